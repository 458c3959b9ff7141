"""A malicious server against honest clients: one section per attack of the threat model.

Every attack is refused with a named reason. For the important ones the check that stops it is then taken away, and the
same attack ends with what it was after: one client's values, or a sum over fewer clients than promised.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from attacker import LyingServer
from simulator import Federation, Simulation, insecure_rng, make_manifest, random_values

from protocol import client as client_module
from protocol.client_states import AwaitingKeys, ClientMemory
from protocol.effects import Released
from protocol.errors import RemoteProtocolError
from protocol.messages import (
    AdvertiseKeys,
    Certificate,
    KeyList,
    LedgerRow,
    PeerShares,
    SurvivorNotice,
    hash_masked,
)
from protocol.release import ReleaseLedger
from secagg import kdf, shamir
from secagg.params import SecAggParams
from secagg.signing import SigningKey, VerifyKey
from secagg.transcript import bitmap
from secagg.types import ClientId, Phase, Secret

ME, PEER, VICTIM, CORRUPT = ClientId(1), ClientId(2), ClientId(3), ClientId(5)
EVIL = SigningKey.generate(insecure_rng("evil"))


def lying(n: int = 5, c: int = 1, dropouts: int = 1, length: int = 40, **changes: object) -> LyingServer:
    federation = Federation.create(make_manifest(n, c, dropouts, length, **changes))
    return LyingServer(federation, random_values(federation.manifest, range(1, n + 1)))


def refused(server: LyingServer, client: ClientId, reason: str) -> None:
    """`client` aborted for this reason, erased its secrets and stays silent."""
    assert reason in server.refusals[client].what
    session = server.sessions[client]
    assert session.phase is Phase.ABORTED
    with pytest.raises(RemoteProtocolError, match="unexpected message"):
        session.receive(server.key_list())


def no_signature_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VerifyKey, "verify", lambda self, signature, message: None)


def same(one: object, other: object) -> bool:
    return isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and bool(np.array_equal(one, other))


# -- A1: both kinds of share of one client ----------------------------------------------------------------------------


def test_a1_a_client_answers_once() -> None:
    server = lying().play()
    for client in server.ids:
        assert server.tell(client, server.notice(server.ids))
    for client in server.ids:
        assert server.tell(client, server.certificate(server.ids))
    without = server.notice([c for c in server.ids if c != VICTIM])
    first = dict(server.answers)
    assert not server.tell(ME, without)
    assert "unexpected message" in server.refusals[ME].what
    assert not server.tell(PEER, server.certificate(server.ids))
    assert server.answers == first
    assert same(server.unmask(server.ids), sum(server.values.values()))  # the sum, and nothing but the sum
    assert server.unmask([VICTIM], {CORRUPT: server.answers[CORRUPT]}) is None
    for answer in server.answers.values():
        assert not {d for d, _ in answer.self_shares} & {d for d, _ in answer.key_shares}


def test_a1_a_client_signs_one_set() -> None:
    server = lying().play()
    assert server.tell(ME, server.notice(server.ids))
    server.tell(ME, server.notice([c for c in server.ids if c != VICTIM]))
    refused(server, ME, "unexpected message")


def test_a1_succeeds_against_clients_that_do_not_move_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same attack on a copy that neither erases its shares nor leaves its state."""
    monkeypatch.setattr("protocol.client.erase", lambda value: None)
    server = lying().play()
    before = {c: s._state for c, s in server.sessions.items()}
    collected = {}
    for u3 in (server.ids, [c for c in server.ids if c != VICTIM]):
        for client in u3:
            server.sessions[client]._state = before[client]
            assert server.tell(client, server.notice(u3))
        for client in u3:
            assert server.tell(client, server.certificate(u3))
        collected[len(u3)] = dict(server.answers)
    server.answers = collected[5]
    assert same(server.unmask([VICTIM], collected[4]), server.values[VICTIM])


# -- A2: different survivor sets to different helpers -----------------------------------------------------------------


def test_a2_signatures_on_another_set_do_not_count() -> None:
    server = lying().play()
    without = [c for c in server.ids if c != VICTIM]
    for client in server.ids:
        assert server.tell(client, server.notice(server.ids if client in (1, 2, VICTIM) else without))
    server.tell(ME, server.certificate(without))
    refused(server, ME, "a signature of the certificate is not on the set that we signed")
    server.tell(PEER, server.certificate([1, 2, 3]))
    refused(server, PEER, "too few signatures on U3")
    assert all(c not in server.answers for c in server.ids)


def split_views(server: LyingServer) -> None:
    """Nine clients, none corrupt: everybody sees a U3 of five, yet only clients 1 and 2 are in every view.

    Each of 3..9 is declared dropped to five others, so its masking key can be rebuilt; the seeds of 1 and 2 as well.
    """
    for client in server.ids:
        if client == 1:
            dropped = {3, 4, 5, 6}
        elif client == 2:
            dropped = {7, 8, 9, 3}
        else:
            dropped = {3 + (client - 3 + step) % 7 for step in (1, 2, 3, 4)}
        server.tell(client, server.notice([c for c in server.ids if c not in dropped]))


def test_a2_split_views_get_no_share() -> None:
    server = lying(9, 0, 4).play()
    split_views(server)
    assert not server.refusals  # every single view is fine by itself
    for client in server.ids:
        members = set(server.sessions[client].survivors or ())
        server.tell(client, server.certificate(sorted(members)))
        refused(server, client, "a signature of the certificate is not on the set that we signed")
    assert server.answers == {}


def test_a2_succeeds_where_the_consistency_check_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the sum over two clients comes out although `min_cohort` is three and each client saw five."""
    server = lying(9, 0, 4, aggregation__min_cohort=3).play()
    split_views(server)
    no_signature_is_checked(monkeypatch)
    for client in server.ids:
        assert server.tell(client, server.certificate(server.sessions[client].survivors or ()))
    assert server.params.min_cohort == 3
    assert same(server.unmask([ClientId(1), ClientId(2)]), server.values[ClientId(1)] + server.values[ClientId(2)])
    assert server.unmask([ClientId(1)]) is None  # 2 * threshold > n + C still keeps the two kinds apart


# -- A3: all neighbours of one client declared dropped, told to everybody alike ---------------------------------------


def consistent_lie(server: LyingServer) -> object:
    """U3 = the victim and the corrupt client; the corrupt client gives away all that it holds."""
    server.corrupt = frozenset([CORRUPT])
    server.play()
    loot = {CORRUPT: server.held(CORRUPT)}
    alone = [VICTIM, CORRUPT]
    for client in alone:
        if not server.tell(client, server.notice(alone)):
            return None
    if not server.tell(VICTIM, server.certificate(alone)):
        return None
    return server.unmask([VICTIM], loot)


def test_a3_is_refused() -> None:
    server = lying()
    assert consistent_lie(server) is None
    refused(server, VICTIM, "U3 is too small")


@pytest.mark.parametrize("left", ["required", "quorum", "threshold"])
def test_a3_each_of_three_checks_stops_it_alone(monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    for name in {"required", "quorum", "threshold"} - {left}:
        monkeypatch.setattr(SecAggParams, name, property(lambda self: 2))
    assert consistent_lie(lying()) is None


def test_a3_succeeds_without_the_three(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("required", "quorum", "threshold"):
        monkeypatch.setattr(SecAggParams, name, property(lambda self: 2))
    server = lying()
    # two shares of the victim's seed and of each dropped client's key: the victim's own answer and the corrupt client's
    assert same(consistent_lie(server), server.values[VICTIM])


# -- A4: swapped public keys ------------------------------------------------------------------------------------------


def man_in_the_middle(server: LyingServer) -> LyingServer:
    """The server plays everybody but the victim, with identity keys of its own making."""
    fakes = {c: SigningKey.generate(insecure_rng(f"fake {c}")) for c in server.ids if c != VICTIM}
    server.announce(keys=fakes)
    for client in server.ids:
        server.tell(client, server.key_list())
    for client in server.ids:
        if client in server.dealt and VICTIM in server.dealt:
            server.tell(client, server.peer_shares(client))
    return server


def test_a4_swapped_keys_are_refused() -> None:
    server = man_in_the_middle(lying())
    refused(server, VICTIM, "a key advertisement is not signed by its client")
    assert VICTIM not in server.dealt and VICTIM not in server.words


def test_a4_succeeds_where_signatures_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    no_signature_is_checked(monkeypatch)
    server = man_in_the_middle(lying())
    loot = {c: server.held(c) for c in server.ids if c != VICTIM}
    assert same(server.unmask([VICTIM], loot), server.values[VICTIM])


# -- A5, A19: the server chooses who is there -------------------------------------------------------------------------


def test_a5_a_small_u1_is_refused() -> None:
    server = lying()
    server.announce()
    server.tell(ME, server.key_list([1, 2, 5]))
    refused(server, ME, "U1 is too small")


def test_a5_a_small_u2_is_refused() -> None:
    server = lying().play(shares=False)
    server.tell(ME, server.peer_shares(ME, [1, 2, 5]))
    refused(server, ME, "U2 is too small")


def test_a19_two_views_that_share_only_corrupt_clients_do_not_both_fit() -> None:
    server = lying()
    server.announce()
    for view in ([1, 2, 5], [3, 4, 5]):
        for client in set(view) - {CORRUPT}:
            server.tell(client, server.key_list(view))
            refused(server, client, "U1 is too small")


@pytest.mark.parametrize("n", range(3, 40))
def test_a19_two_quorums_share_an_honest_signer(n: int) -> None:
    """Exact for every C: two quorums within n need more signatures than n clients and C who sign twice can give."""
    for c in range(n - 1):
        manifest = lambda: make_manifest(n, c, 0, 1)  # noqa: B023, E731
        params = manifest().secagg_params()
        assert 2 * params.quorum > n + c and 2 * params.threshold > n + c
        assert 2 * (params.quorum - 1) <= n + c  # and it is not higher than it must be


# -- A6, A7: replays, and a second sum over the same values -----------------------------------------------------------


def second_attempt(first: Simulation, memories: dict[ClientId, ClientMemory]) -> Simulation:
    """The same round again, same values, without the victim."""
    again = Simulation(
        first.federation,
        first.values,
        {VICTIM: Phase.MASKED_INPUT},
        memories=memories,
        ledger=first.server.ledger,
        attempt=1,
    )
    again.run()
    return again


def full_round() -> Simulation:
    federation = Federation.create(make_manifest())
    first = Simulation(federation, random_values(federation.manifest, range(1, 6)))
    assert isinstance(first.run(), Released)
    return first


@pytest.mark.parametrize("attempt", [0, 1, 7])
def test_a6_a_spent_round_is_refused(attempt: int) -> None:
    first = full_round()
    announcement = first.federation.announcement(1, attempt)
    server = LyingServer(first.federation, first.values, dict(first.memories))
    server.announce(announcement)
    assert server.sessions == {}
    expected = "already joined" if attempt == 0 else "this round is spent"
    assert all(expected in error.what for error in server.refusals.values()) and len(server.refusals) == 5


@pytest.mark.parametrize(("round_", "attempt"), [(1, 1), (1, 0)])
def test_a6_a_joined_attempt_is_refused(round_: int, attempt: int) -> None:
    """Not spent yet, but joined: its secrets are gone and the same attempt never starts again, nor an earlier one."""
    server = lying()
    server.announce(server.federation.announcement(1, 1))
    again = LyingServer(server.federation, server.values, server.memories)
    again.announce(server.federation.announcement(round_, attempt))
    assert again.sessions == {}
    assert all("already joined" in error.what for error in again.refusals.values())


def test_a6_keys_are_used_for_one_list_only() -> None:
    """A second U1 would mean a second encryption under one key."""
    server = lying()
    server.announce()
    assert server.tell(ME, server.key_list())
    server.tell(ME, server.key_list([1, 2, 3, 4]))
    refused(server, ME, "unexpected message")


def test_a6_attempts_use_fresh_keys() -> None:
    server, other = lying(), lying()
    server.announce()
    other.announce(other.federation.announcement(1, 1))
    assert server.adverts[ME].masking_pk != other.adverts[ME].masking_pk


def test_a7_no_second_sum_of_a_round() -> None:
    first = full_round()
    again = second_attempt(first, dict(first.memories))
    assert not isinstance(again.outcome, Released)
    assert all("spent" in error.what for error in again.errors.values()) and len(again.errors) == 5


def test_a7_succeeds_against_clients_that_forget() -> None:
    """Without the journal, two sums differ by exactly one client's values."""
    first = full_round()
    again = second_attempt(first, {})
    # clients without memory would even follow the ledger from its genesis
    assert isinstance(first.outcome, Released) and isinstance(again.outcome, Released)
    assert same(first.outcome.total - again.outcome.total, first.values[VICTIM])


# -- A9, A10: another model, manifest, roster or cohort ---------------------------------------------------------------


def test_a9_different_models_give_different_contexts() -> None:
    server = lying()
    server.announce(server.federation.announcement(model=b"\x01" * 32), to=[1, 2])
    server.announce(server.federation.announcement(model=b"\x02" * 32), to=[3, 4, 5])
    server.tell(ME, server.key_list())
    refused(server, ME, "a key advertisement is not signed by its client")


def test_a9_even_unsigned_the_shares_do_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    no_signature_is_checked(monkeypatch)
    server = lying()
    server.announce(server.federation.announcement(model=b"\x01" * 32), to=[1, 2])
    server.announce(server.federation.announcement(model=b"\x02" * 32), to=[3, 4, 5])
    for client in server.ids:
        assert server.tell(client, server.key_list())
    for client in server.ids:
        server.tell(client, server.peer_shares(client))
        refused(server, client, "too few shares opened")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"manifest_digest": b"\x01" * 32}, "announced manifest differs"),
        ({"roster_root": b"\x01" * 32}, "announced roster differs"),
        ({"cohort": (1, 2, 3, 4)}, "not the whole roster"),
        ({"cohort": (1, 2, 3, 4, 6)}, "not the whole roster"),
        ({"cohort": (1, 2, 3, 4, 5, 6)}, "not the whole roster"),
        ({"cohort": (1, 2, 3, 4, 4)}, "not the whole roster"),
        ({"cohort": (2, 1, 3, 4, 5)}, "not the whole roster"),
        ({"round": 0}, "outside 1..rounds"),
        ({"round": 11}, "outside 1..rounds"),
    ],
)
def test_a10_only_the_signed_documents_count(changes: dict[str, object], reason: str) -> None:
    server = lying()
    server.announce(replace(server.federation.announcement(), **changes))  # type: ignore[arg-type]
    assert server.sessions == {} and reason in server.refusals[ME].what


def test_a10_a_client_outside_the_roster_refuses() -> None:
    server = lying()
    outsider = ClientId(6)
    announcement = server.federation.announcement()
    server.federation.client_keys[outsider] = EVIL
    server.announce(announcement, to=[outsider])
    assert "not invited" in server.refusals[outsider].what


def test_a10_a_roster_of_more_than_num_clients_is_refused() -> None:
    """Otherwise the server could choose a cohort, and another one for a retry (A7)."""
    federation = Federation.create(make_manifest(6, 1, 1))
    small = replace(federation, manifest=make_manifest())
    for cohort in ((1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5)):
        server = LyingServer(small, {})
        server.announce(replace(small.announcement(), cohort=cohort))
        assert all("not the whole roster" in e.what for e in server.refusals.values()) and len(server.refusals) == 6


# -- A13: reflected and crossed ciphertexts ---------------------------------------------------------------------------


def reflected(server: LyingServer) -> PeerShares:
    """To the victim: its own ciphertexts back, under the names of those whom they were meant for."""
    honest = server.peer_shares(VICTIM)
    own = {share.recipient: share for share in server.dealt[VICTIM].shares}
    return replace(
        honest,
        shares=tuple(
            replace(
                s,
                ciphertext=own[s.dealer].ciphertext,
                self_hash=own[s.dealer].self_hash,
                key_hash=own[s.dealer].key_hash,
            )
            for s in honest.shares
        ),
    )


def test_a13_reflected_ciphertexts_are_refused() -> None:
    server = lying().play(shares=False)
    server.tell(VICTIM, reflected(server))
    refused(server, VICTIM, "relayed shares are not signed by their dealer")


@pytest.mark.parametrize("kind", ["crossed between dealers", "of another recipient"])
def test_a13_crossed_ciphertexts_are_refused(kind: str) -> None:
    server = lying().play(shares=False)
    honest, other = server.peer_shares(ME), server.peer_shares(PEER)
    shares = list(honest.shares)
    if kind == "of another recipient":
        shares[1] = next(s for s in other.shares if s.dealer == shares[1].dealer)
    else:
        shares[1], shares[2] = replace(shares[2], dealer=shares[1].dealer), replace(shares[1], dealer=shares[2].dealer)
    server.tell(ME, replace(honest, shares=tuple(shares)))
    refused(server, ME, "relayed shares are not signed by their dealer")


@pytest.mark.parametrize("left", ["signature", "key", "associated data", "share hash"])
def test_a13_each_layer_stops_it_alone(monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    server = lying().play(shares=False)
    disarm(monkeypatch, {"signature", "key", "associated data", "share hash"} - {left})
    server.dealt = deal_again(server)
    server.tell(VICTIM, reflected(server))
    refused(server, VICTIM, "signed by their dealer" if left == "signature" else "too few shares opened")


def test_a13_succeeds_without_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the victim takes shares of its own secrets for those of others, and would hand out its own masking key."""
    server = lying().play(shares=False)
    disarm(monkeypatch, {"signature", "key", "associated data", "share hash"})
    server.dealt = deal_again(server)
    masking_sk = Secret(server.sessions[VICTIM]._state.masking_sk.view)  # type: ignore[union-attr]
    assert server.tell(VICTIM, reflected(server))
    held = server.sessions[VICTIM]._state.held.key_shares  # type: ignore[union-attr]
    assert shamir.reconstruct(held, server.params.threshold) == masking_sk


def disarm(monkeypatch: pytest.MonkeyPatch, layers: set[str]) -> None:
    if "signature" in layers:
        no_signature_is_checked(monkeypatch)
    if "key" in layers:
        original = kdf.share_key
        monkeypatch.setattr(
            client_module.kdf, "share_key", lambda s, ctx, root, a, b: original(s, ctx, root, min(a, b), max(a, b))
        )
    if "associated data" in layers:
        ad = client_module._share_ad
        monkeypatch.setattr(client_module, "_share_ad", lambda ctx, root, a, b: ad(ctx, root, min(a, b), max(a, b)))
    if "share hash" in layers:
        hash_ = client_module.share_hash
        monkeypatch.setattr(
            client_module, "share_hash", lambda ctx, d, h, kind, share: hash_(ctx, min(d, h), max(d, h), kind, share)
        )


def deal_again(server: LyingServer) -> dict[ClientId, object]:
    """The victim's sharing again, from its state, under the rules that are left."""
    session = server.sessions[VICTIM]
    state = session._state
    before = AwaitingKeys(
        server.adverts[VICTIM],
        Secret(state.encryption_sk.view),  # type: ignore[union-attr]
        Secret(state.masking_sk.view),  # type: ignore[union-attr]
        Secret(state.self_seed.view),  # type: ignore[union-attr]
    )
    session._state, effects = client_module.share_keys(
        before, session._attempt, server.key_list(), insecure_rng("again")
    )
    return {**server.dealt, VICTIM: effects[0].message}  # type: ignore[dict-item,union-attr]


# -- A14: the masked input of a client that was declared dropped ------------------------------------------------------


def declared_dropped(server: LyingServer) -> LyingServer:
    """The victim uploaded, but the others are told that it did not: they hand over shares of its masking key."""
    server.play()
    u3 = [c for c in server.ids if c != VICTIM]
    for client in u3:
        assert server.tell(client, server.notice(u3))
    for client in u3:
        assert server.tell(client, server.certificate(u3))
    return server


def test_a14_a_late_input_stays_behind_its_self_mask() -> None:
    server = declared_dropped(lying())
    assert server._rebuilt(VICTIM, "key_shares", {}) is not None  # all pairwise masks of the victim are known
    assert server.unmask([VICTIM]) is None  # its own mask is not
    server.tell(VICTIM, server.notice([c for c in server.ids if c != VICTIM]))
    refused(server, VICTIM, "leaves us out")


def test_a14_succeeds_without_a_self_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secagg.kdf.self_mask_key", lambda seed, ctx, client: Secret(bytes(32)))
    server = declared_dropped(lying())
    monkeypatch.setattr(
        server,
        "_rebuilt",
        lambda d, k, loot: Secret(bytes(32)) if k == "self_shares" else LyingServer._rebuilt(server, d, k, loot),
    )
    assert same(server.unmask([VICTIM]), server.values[VICTIM])


# -- A17: an old backup, a forked ledger ------------------------------------------------------------------------------


def rewound() -> LyingServer:
    """Round 2, by a server that has lost, or hides, the row of round 1."""
    first = full_round()
    server = LyingServer(first.federation, first.values, dict(first.memories))
    server.announce(first.federation.announcement(2))
    for client in server.ids:
        server.tell(client, server.key_list())
    for client in server.ids:
        server.tell(client, server.peer_shares(client))
    return server


def test_a17_a_rewound_ledger_is_refused() -> None:
    server = rewound()
    assert not server.refusals
    server.tell(ME, server.notice(server.ids))
    refused(server, ME, "no signed extension")
    assert ME not in server.signatures


def test_a17_succeeds_where_the_chain_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    server = rewound()
    monkeypatch.setattr(
        "protocol.client.follow", lambda digest, seq, head, rows, key: (rows[0].seq, rows[0].head(head))
    )
    assert server.tell(ME, server.notice(server.ids)) and ME in server.signatures


def test_a17_a_forked_segment_is_refused() -> None:
    first = full_round()
    row = first.server.ledger.rows[0]
    other = ReleaseLedger(first.federation.manifest.digest())
    forked = other.next_row(row.ctx, row.root_u2, bytes(32), first.federation.server_key)
    server = LyingServer(first.federation, first.values, dict(first.memories))
    server.announce(first.federation.announcement(2))
    for client, rows in ((ME, (forked,)), (PEER, (row,))):  # another row 1; row 1 a second time
        server.tell(client, replace(server.key_list(), segment=rows))
        refused(server, client, "the server's release ledger is no extension")


# -- every field that the server fills in -----------------------------------------------------------------------------


def advert(server: LyingServer, **changes: object) -> AdvertiseKeys:
    """A corrupt client's advertisement with other fields, rightly signed."""
    bent = replace(server.adverts[CORRUPT], **changes)  # type: ignore[arg-type]
    return replace(bent, signature=server.federation.client_keys[CORRUPT].sign(bent.body(server.ctx, CORRUPT)))


def bent_key_lists(server: LyingServer) -> Iterator[tuple[str, KeyList, str]]:
    honest = server.key_list()
    entries = dict(honest.entries)

    def with_(client: int, message: AdvertiseKeys) -> KeyList:
        return replace(honest, entries=tuple((c, message if c == client else m) for c, m in honest.entries))

    yield "descending", replace(honest, entries=honest.entries[::-1]), "ascending subset"
    yield "twice", replace(honest, entries=(honest.entries[0], *honest.entries)), "ascending subset"
    yield "outsider", replace(honest, entries=(*honest.entries, (ClientId(6), entries[CORRUPT]))), "ascending subset"
    yield "without us", replace(honest, entries=honest.entries[1:]), "our own key advertisement is missing"
    yield "ours changed", with_(ME, replace(entries[ME], commitment=bytes(32))), "our own key advertisement is missing"
    for name in ("encryption_pk", "masking_pk", "commitment"):
        copied = advert(server, **{name: getattr(entries[PEER], name)})
        yield f"copied {name}", with_(CORRUPT, copied), f"two clients advertise the same {name}"
    same_key = bytearray(entries[PEER].masking_pk)
    same_key[31] ^= 0x80
    yield "same key, other bytes", with_(CORRUPT, advert(server, masking_pk=bytes(same_key))), "not in canonical form"
    for name in ("encryption_pk", "masking_pk", "commitment", "ledger_head"):
        yield f"changed {name}", with_(CORRUPT, replace(entries[CORRUPT], **{name: b"\x09" + bytes(31)})), "not signed"
    yield "changed seq", with_(CORRUPT, replace(entries[CORRUPT], ledger_seq=9)), "not signed"
    by_other = replace(entries[CORRUPT], signature=EVIL.sign(entries[CORRUPT].body(server.ctx, CORRUPT)))
    yield "wrong signer", with_(CORRUPT, by_other), "not signed by its client"
    other = LyingServer(server.federation, {})
    other.announce(server.federation.announcement(1, 1))
    yield "of another attempt", with_(CORRUPT, other.adverts[CORRUPT]), "not signed by its client"
    yield "small order", with_(CORRUPT, advert(server, encryption_pk=bytes(32))), "not a valid X25519 key"
    row = LedgerRow(1, bytes(32), bytes(32), bytes(32), bytes(64))
    yield "unsigned row", replace(honest, segment=(row,)), "release ledger is no extension"
    signed_row = server.ledger.next_row(bytes(32), bytes(32), bytes(32), server.federation.server_key)
    yield "row of another seq", replace(honest, segment=(replace(signed_row, seq=2),)), "release ledger is no extension"


def bent_peer_shares(server: LyingServer) -> Iterator[tuple[str, PeerShares, str]]:
    honest = server.peer_shares(ME)
    first = honest.shares[0]

    def with_first(**changes: object) -> PeerShares:
        return replace(honest, shares=(replace(first, **changes), *honest.shares[1:]))  # type: ignore[arg-type]

    yield "long bitmap", replace(honest, shared=honest.shared + b"\x00"), "bitmap of U2 is malformed"
    yield "stray bit", replace(honest, shared=bytes([honest.shared[0] | 1])), "bitmap of U2 is malformed"
    yield "without us", replace(honest, shared=bitmap([2, 3, 4, 5], server.ids)), "bitmap of U2 is malformed or leaves"
    yield "dealer missing", replace(honest, shares=honest.shares[1:]), "shares of other dealers"
    yield "dealer twice", replace(honest, shares=(first, *honest.shares)), "shares of other dealers"
    yield "our own", with_first(dealer=ME), "shares of other dealers"
    yield "outside U2", replace(honest, shared=bitmap([1, 3, 4, 5], server.ids)), "shares of other dealers"
    yield "long path", with_first(path=(*first.path, bytes(32))), "path has the wrong length"
    yield "short path", with_first(path=first.path[:-1]), "path has the wrong length"
    for name in ("self_hash", "key_hash", "signature", "ciphertext"):
        old = getattr(first, name)
        yield f"changed {name}", with_first(**{name: bytes([old[0] ^ 1]) + old[1:]}), "not signed by their dealer"
    yield "other path", with_first(path=(bytes(32), *first.path[1:])), "not signed by their dealer"


def bent_notices(server: LyingServer) -> Iterator[tuple[str, SurvivorNotice, str]]:
    honest = server.notice(server.ids)
    key, root = server.federation.server_key, server.root_u2()

    def row(ctx: bytes, root_u2: bytes, bits: bytes, signer: SigningKey = key) -> LedgerRow:
        return server.ledger.next_row(ctx, root_u2, hash_masked(root, bits), signer)

    bits = honest.masked
    yield "stray bit", replace(honest, masked=bytes([bits[0] | 1])), "bitmap of U3 is malformed"
    yield "long bitmap", replace(honest, masked=bits + b"\x00"), "bitmap of U3 is malformed"
    yield "without us", server.notice([2, 3, 4, 5]), "leaves us out"
    yield "too small", server.notice([1, 2, 3]), "U3 is too small"
    yield "row of another U3", replace(honest, row=server.notice([1, 2, 3, 4]).row), "not that of this attempt"
    yield "row of another ctx", replace(honest, row=row(bytes(32), root, bits)), "not that of this attempt"
    yield "row of another U2", replace(honest, row=row(server.ctx, bytes(32), bits)), "not that of this attempt"
    yield "row by another key", replace(honest, row=row(server.ctx, root, bits, EVIL)), "no signed extension"
    yield "row of another seq", replace(honest, row=replace(honest.row, seq=2)), "no signed extension"
    ahead = server.ledger.extended(honest.row)
    yield "row after a hidden row", server.notice(server.ids, ahead), "no signed extension"


def bent_certificates(server: LyingServer) -> Iterator[tuple[str, Certificate, str]]:
    honest = server.certificate(server.ids)
    one = honest.signatures[0]
    yield "three", server.certificate([1, 2, 3]), "too few signatures"
    yield "empty", Certificate(()), "too few signatures"
    yield "one four times", Certificate((one,) * 4), "not ascending members of U3"
    yield "descending", Certificate(honest.signatures[::-1]), "not ascending members of U3"
    outsider = (ClientId(6), honest.signatures[4][1])
    yield "outsider", Certificate((*honest.signatures, outsider)), "not ascending members of U3"
    forged = tuple((c, EVIL.sign(b"")) for c in server.ids)
    yield "forged", Certificate(forged), "not on the set that we signed"
    borrowed = tuple((c, one[1]) for c in server.ids)
    yield "one signature under all names", Certificate(borrowed), "not on the set that we signed"
    yield "one bad among five", Certificate((*honest.signatures[:4], forged[4])), "not on the set that we signed"


def staged(stage: str) -> LyingServer:
    server = lying()
    server.play(keys=stage != "keys", shares=stage not in ("keys", "shares"))
    if stage == "certificate":
        for client in server.ids:
            assert server.tell(client, server.notice(server.ids))
    return server


BENT = {
    "keys": bent_key_lists,
    "shares": bent_peer_shares,
    "notice": bent_notices,
    "certificate": bent_certificates,
}
CASES = [(stage, name) for stage, bent in BENT.items() for name, _, _ in bent(staged(stage))]


@pytest.mark.parametrize(("stage", "case"), CASES, ids=[f"{s}: {c}" for s, c in CASES])
def test_every_field_is_distrusted(stage: str, case: str) -> None:
    server = staged(stage)
    message, reason = next((m, r) for name, m, r in BENT[stage](server) if name == case)
    shown = (dict(server.dealt), dict(server.signatures), dict(server.answers))
    server.tell(ME, message)
    refused(server, ME, reason)
    assert shown == (server.dealt, server.signatures, server.answers)  # nothing was answered


@pytest.mark.parametrize("stage", BENT)
def test_the_unbent_message_is_accepted(stage: str) -> None:
    """The cases above fail for their own reason: the honest message at the same place passes."""
    server = staged(stage)
    honest = {
        "keys": lambda: server.key_list(),
        "shares": lambda: server.peer_shares(ME),
        "notice": lambda: server.notice(server.ids),
        "certificate": lambda: server.certificate(server.ids),
    }[stage]()
    assert server.tell(ME, honest)


def test_a_survivor_set_is_remembered_for_the_published_result() -> None:
    server = lying().play()
    assert server.sessions[ME].survivors is None
    u3 = [ClientId(i) for i in (1, 2, 3, 4)]
    server.tell(ME, server.notice(u3))
    assert server.sessions[ME].survivors == tuple(u3)

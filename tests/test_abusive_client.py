"""Abusive clients against an honest server: named, left out, or the attempt aborts. Never a wrong sum, never a crash.

And one client alone cannot get an honest one evicted.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from simulator import Federation, Simulation, insecure_rng, make_manifest, random_values, simulate
from vectors.server_checks import (
    BAD,
    EVIL,
    HEADERS,
    LEDGER,
    LISTS,
    PHASE_0,
    UNMASK,
    sign_advert,
    sign_input,
    sign_shares,
)

from protocol.drops import DropReason
from protocol.effects import Abort, Released
from protocol.messages import (
    AdvertiseKeys,
    ConsistencyCheck,
    MaskedInput,
    ShareKeys,
    UnmaskingShares,
    Withdraw,
)
from secagg.masking import InputDigest, chunks, frame
from secagg.params import SecAggParams
from secagg.shamir import PRIME, split
from secagg.types import ClientId, Phase, Rng, Secret

KINDS = [AdvertiseKeys, ShareKeys, MaskedInput, ConsistencyCheck, UnmaskingShares]


def abuse(change: Callable[[Simulation, object], object | None], **options: object) -> Simulation:
    """One attempt in which every message of client 2 goes through `change`."""
    federation = Federation.create(make_manifest())
    simulation = Simulation(federation, random_values(federation.manifest, range(1, 6)), **options)  # type: ignore[arg-type]
    simulation.tamper_client = lambda sender, message: change(simulation, message) if sender == BAD else message
    simulation.run()
    return simulation


def exact_over(simulation: Simulation, members: tuple[int, ...]) -> bool:
    outcome = simulation.outcome
    assert isinstance(outcome, Released), outcome
    return outcome.masked == members and bool(
        np.array_equal(outcome.total, sum(simulation.values[ClientId(c)] for c in members))
    )


# -- signatures and identity ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS[:4], ids=lambda k: k.__name__)
@pytest.mark.parametrize("forgery", ["one bit", "another key", "empty", "of another client"])
def test_a_bad_signature_is_named_and_left_out(kind: type, forgery: str) -> None:
    stolen: dict[type, bytes] = {type(m): m.signature for c, m in simulate().view if c == 1 and hasattr(m, "signature")}

    def change(s: Simulation, message: object) -> object:
        if type(message) is not kind:
            return message
        old = message.signature  # type: ignore[attr-defined]
        new = {
            "one bit": bytes([old[0] ^ 1]) + old[1:],
            "another key": EVIL.sign(b"whatever"),
            "empty": b"",
            "of another client": stolen[kind],
        }[forgery]
        return replace(message, signature=new)  # type: ignore[type-var]

    simulation = abuse(change)
    if kind is ConsistencyCheck and forgery == "of another client":
        assert simulation.server.drops[BAD] is DropReason.BAD_SIGNATURE  # same body, yet another key
    assert (BAD, DropReason.BAD_SIGNATURE) in simulation.drops
    late = kind is ConsistencyCheck  # its masked input is in the sum already
    assert exact_over(simulation, (1, 2, 3, 4, 5) if late else (1, 3, 4, 5))
    assert simulation.errors.keys() <= {BAD}


def test_a_stranger_is_not_heard() -> None:
    simulation = simulate()
    message = simulation.view[0][1]
    for stranger in (0, 6, 65535):
        assert simulation.server.receive(ClientId(stranger), message) is DropReason.NOT_INVITED
    assert simulation.server.drops == {}


def test_a_changed_message_drops_its_sender() -> None:
    for kind in KINDS:
        federation = Federation.create(make_manifest())
        simulation = Simulation(federation, random_values(federation.manifest, range(1, 6)))
        answers = []

        def twice(sender: ClientId, message: object, kind: type = kind, s: Simulation = simulation) -> object:
            if sender == BAD and type(message) is kind:
                s.server.receive(sender, message)  # type: ignore[arg-type]
                answers.append(s.server.receive(sender, changed(message)))  # type: ignore[arg-type]  # noqa: B023
            return message

        simulation.tamper_client = twice
        simulation.run()
        assert answers == [DropReason.CHANGED_MESSAGE]
        assert simulation.server.drops[BAD] is DropReason.CHANGED_MESSAGE
        in_u3 = kind in (ConsistencyCheck, UnmaskingShares)
        assert exact_over(simulation, (1, 2, 3, 4, 5) if in_u3 else (1, 3, 4, 5))


def changed(message: object) -> object:
    if isinstance(message, UnmaskingShares):
        return replace(message, key_shares=((ClientId(1), bytes(33)),))
    return replace(message, signature=bytes(64))  # type: ignore[type-var]


@pytest.mark.parametrize("phase", [p for p in Phase if p < Phase.COMPLETED], ids=lambda p: p.name)
def test_a_client_may_withdraw_at_any_time(phase: Phase) -> None:
    def change(s: Simulation, message: object) -> object:
        return Withdraw("E110", "EncodingError") if KINDS.index(type(message)) == phase else message

    simulation = abuse(change)
    assert simulation.server.drops[BAD] is DropReason.WITHDREW
    assert exact_over(simulation, (1, 2, 3, 4, 5) if phase > Phase.MASKED_INPUT else (1, 3, 4, 5))


# -- phase 0 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", PHASE_0)
def test_bad_keys_are_found_before_they_reach_anybody(case: str) -> None:
    def change(s: Simulation, message: object) -> object:
        return sign_advert(s, PHASE_0[case](s, message)) if isinstance(message, AdvertiseKeys) else message

    simulation = abuse(change)
    assert simulation.server.drops[BAD] is DropReason.BAD_KEYS
    assert exact_over(simulation, (1, 3, 4, 5)) and simulation.errors == {}


@pytest.mark.parametrize(("seq", "head"), [*LEDGER.values(), (2**63, bytes(32))])
def test_a_ledger_that_the_server_does_not_have_is_named(seq: int, head: bytes) -> None:
    def change(s: Simulation, message: object) -> object:
        if not isinstance(message, AdvertiseKeys):
            return message
        return sign_advert(s, replace(message, ledger_seq=seq, ledger_head=head))

    simulation = abuse(change)
    assert simulation.server.drops[BAD] is DropReason.LEDGER_MISMATCH
    assert exact_over(simulation, (1, 3, 4, 5))


# -- phase 1: what a dealer deals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", LISTS)
def test_a_wrong_list_of_shares(case: str) -> None:
    def change(s: Simulation, message: object) -> object:
        if not isinstance(message, ShareKeys):
            return message
        bent = LISTS[case](message)
        return sign_shares(s, bent) if bent.shares else bent

    simulation = abuse(change)
    assert simulation.server.drops[BAD] is DropReason.BAD_SHARE_LIST
    assert exact_over(simulation, (1, 3, 4, 5))


def garbage_for(victims: tuple[int, ...], what: str) -> Callable[[Simulation, object], object]:
    def change(s: Simulation, message: object) -> object:
        if not isinstance(message, ShareKeys):
            return message
        shares = []
        for share in message.shares:
            if share.recipient in victims:
                old = getattr(share, what)
                share = replace(share, **{what: bytes([old[0] ^ 1]) + old[1:]})
            shares.append(share)
        return sign_shares(s, replace(message, shares=tuple(shares)))

    return change


@pytest.mark.parametrize("what", ["self_hash", "key_hash", "ciphertext"])
def test_a12_garbage_for_one_holder_hurts_nobody_else(what: str) -> None:
    """The holder complains, nobody is evicted, and the sum is still exact over all."""
    simulation = abuse(garbage_for((4,), what))
    header = simulation.server._headers[ClientId(4)]
    assert header.complaints == (BAD,)
    assert simulation.server.drops == {}
    assert exact_over(simulation, (1, 2, 3, 4, 5))


@pytest.mark.parametrize("what", ["self_hash", "key_hash", "ciphertext"])
def test_a12_garbage_for_more_than_c_holders_convicts_the_dealer(what: str) -> None:
    simulation = abuse(garbage_for((4, 5), what))
    assert isinstance(simulation.outcome, Abort)
    assert simulation.outcome.reason == "client 2 dealt shares that do not open"


def test_garbage_for_one_and_then_silence_aborts_and_is_not_a_wrong_sum() -> None:
    """The dealer's key would need the one holder that has no share of it: liveness is lost, nothing else."""
    simulation = abuse(garbage_for((4,), "key_hash"), lost={BAD: Phase.MASKED_INPUT})
    assert isinstance(simulation.outcome, Abort)
    assert simulation.outcome.reason == "shares of client 2: too few"


def complaint(named: tuple[int, ...], liars: tuple[int, ...] = (BAD,)) -> Simulation:
    federation = Federation.create(make_manifest())
    simulation = Simulation(federation, random_values(federation.manifest, range(1, 6)))

    def change(sender: ClientId, message: object) -> object:
        if sender in liars and isinstance(message, MaskedInput):
            return sign_input(simulation, replace(message, complaints=tuple(map(ClientId, named))), sender)
        if sender in liars and isinstance(message, UnmaskingShares):  # keeps to its story
            return replace(message, self_shares=tuple((d, x) for d, x in message.self_shares if d not in named))
        return message

    simulation.tamper_client = change
    simulation.run()
    return simulation


def test_a_false_complaint_evicts_nobody() -> None:
    simulation = complaint((4,))
    assert simulation.server.drops == {}
    assert exact_over(simulation, (1, 2, 3, 4, 5))


def test_c_false_complaints_against_all_evict_nobody() -> None:
    assert exact_over(complaint((1, 3, 4, 5)), (1, 2, 3, 4, 5))


def test_more_than_c_complaints_convict() -> None:
    """With C = 1, two complaints prove that an honest client complains. (Two liars break the assumption.)"""
    simulation = complaint((4,), liars=(BAD, ClientId(3)))
    assert isinstance(simulation.outcome, Abort) and "client 4 dealt shares" in simulation.outcome.reason


@pytest.mark.parametrize(
    "named", [(4, 4), (4, 4, 4), (5, 4), (BAD,), (6,)], ids=["twice", "thrice", "descending", "itself", "a stranger"]
)
def test_a_complaint_counts_once(named: tuple[int, ...]) -> None:
    """One client that names a dealer twice would otherwise convict it alone."""
    simulation = complaint(named)
    assert simulation.server.drops[BAD] is DropReason.BAD_HEADER
    assert exact_over(simulation, (1, 3, 4, 5))


@pytest.mark.parametrize("kind", ["seed", "key"])
def test_a12_shares_of_another_secret_name_the_dealer(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Every hash and ciphertext is right, but the shares are not of what was committed to or advertised."""
    calls = []

    def deal(secret: Secret, threshold: int, xs: tuple[int, ...], rng: Rng) -> dict[int, Secret]:
        calls.append(None)
        mine = 2 * (BAD - 1) + (1 if kind == "seed" else 2)  # each client shares its seed first, then its key
        return split(Secret(b"\x07" * 32) if len(calls) == mine else secret, threshold, xs, rng)

    monkeypatch.setattr("protocol.client_phases.shamir.split", deal)
    lost = {BAD: Phase.MASKED_INPUT} if kind == "key" else {}
    simulation = simulate({int(c): p for c, p in lost.items()})
    assert isinstance(simulation.outcome, Abort)
    assert simulation.outcome.reason.startswith("client 2 dealt shares of another")
    assert simulation.outcome.convicted == (BAD,)


NO_SECRET: dict[str, Callable[[int, int], int]] = {
    "a secret of 257 bits": lambda share, secret: (share + 2**256 - secret) % PRIME,  # moves the whole polynomial
    "no field elements": lambda share, secret: 2**264 - 1,
}


@pytest.mark.parametrize("case", NO_SECRET)
@pytest.mark.parametrize("lost", [None, Phase.MASKED_INPUT], ids=["seed", "key"])
def test_a12_shares_of_no_secret_convict_their_dealer(
    monkeypatch: pytest.MonkeyPatch, case: str, lost: Phase | None
) -> None:
    """They open and fit their hashes, and no holder can tell; only together they are of nothing. If nobody were to
    blame, one client could end attempt after attempt."""
    calls = []

    def deal(secret: Secret, threshold: int, xs: tuple[int, ...], rng: Rng) -> dict[int, Secret]:
        calls.append(None)
        shares, whole = split(secret, threshold, xs, rng), int.from_bytes(secret.view, "big")
        if (len(calls) - 1) // 2 != BAD - 1:
            return shares
        bent = {x: NO_SECRET[case](int.from_bytes(s.view, "big"), whole) for x, s in shares.items()}
        return {x: Secret(value.to_bytes(33, "big")) for x, value in bent.items()}

    monkeypatch.setattr("protocol.client_phases.shamir.split", deal)
    simulation = simulate({} if lost is None else {int(BAD): lost})
    assert isinstance(simulation.outcome, Abort) and simulation.outcome.phase is Phase.UNMASKING
    assert simulation.outcome.convicted == (BAD,)


def test_a12_inconsistent_shares_are_never_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dealer whose shares lie on no polynomial of the right degree: some thresholds rebuild, others do not."""

    def deal(secret: Secret, threshold: int, xs: tuple[int, ...], rng: Rng) -> dict[int, Secret]:
        shares = split(secret, threshold, xs, rng)
        other = split(secret, threshold, xs, rng)
        return {x: other[x] if x == 4 else shares[x] for x in shares}

    monkeypatch.setattr("protocol.client_phases.shamir.split", deal)
    simulation = simulate()
    assert isinstance(simulation.outcome, Abort)
    assert simulation.outcome.phase is Phase.UNMASKING


def test_a_convicted_dealer_is_left_out_of_the_next_attempt() -> None:
    """Abort.convicted is what the shell hands to the next attempt: there the dealer gets no further than phase 0."""
    first = abuse(garbage_for((4, 5), "ciphertext"))
    assert isinstance(first.outcome, Abort) and first.outcome.convicted == (BAD,)
    again = Simulation(first.federation, first.values, memories=first.memories, excluded=frozenset({BAD}), attempt=1)
    again.run()
    assert again.server.drops == {BAD: DropReason.CONVICTED}
    assert exact_over(again, (1, 3, 4, 5))


def test_too_few_complaints_convict_nobody_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = abuse(garbage_for((4,), "key_hash"), lost={BAD: Phase.MASKED_INPUT})
    assert isinstance(simulation.outcome, Abort) and simulation.outcome.convicted == ()


def test_a_client_that_missed_more_rows_than_a_message_holds_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    first = simulate()
    monkeypatch.setattr("protocol.server.MAX_SEGMENT", 0)
    late = dict(first.memories)
    del late[BAD]
    again = Simulation(first.federation, first.values, memories=late, ledger=first.server.ledger, round=2)
    again.run()
    assert again.server.drops == {BAD: DropReason.LEDGER_BEHIND}
    assert exact_over(again, (1, 3, 4, 5))


# -- phase 2: what is uploaded ----------------------------------------------------------------------------------------


def test_a12_bytes_that_are_not_the_signed_ones_never_count() -> None:
    federation = Federation.create(make_manifest())
    values = random_values(federation.manifest, range(1, 6))
    simulation = Simulation(federation, values, tamper_words=lambda c, w: w + np.uint64(c == BAD))
    simulation.run()
    assert simulation.server.drops[BAD] is DropReason.TIMED_OUT
    assert exact_over(simulation, (1, 3, 4, 5))


def bogus(change: Callable[[np.ndarray], None], monkeypatch: pytest.MonkeyPatch) -> Simulation:
    """Client 2 frames something else and then follows the protocol to the letter, signatures included."""
    federation = Federation.create(make_manifest())
    values = random_values(federation.manifest, range(1, 6))

    def bent(x: np.ndarray, params: object) -> np.ndarray:
        words = frame(x, params)  # type: ignore[arg-type]
        if x is values[BAD]:
            change(words)
        return words

    monkeypatch.setattr("protocol.client_phases.frame", bent)
    simulation = Simulation(federation, values)
    simulation.run()
    return simulation


def set_word(index: int, value: int) -> Callable[[np.ndarray], None]:
    return lambda words: words.__setitem__(index, np.uint64(value))


@pytest.mark.parametrize(
    "change",
    [
        set_word(0, 1),
        set_word(0, 2**64 - 1),
        set_word(1, 0),
        set_word(1, 2),
        set_word(2, 1 << 63),
        set_word(2, 2 * 4096 * 5 + 1),
        set_word(2, (2 * 4096 * 5 + 1) << 42),
        lambda w: w.__setitem__(slice(None), np.frombuffer(insecure_rng("noise")(8 * len(w)), dtype="<u8")),
        lambda w: w.__setitem__(slice(None), 0),
    ],
    ids=["zero word", "zero word -1", "no contribution", "two contributions", "stray bit", "first slot", "last slot",
         "noise", "nothing"],
)  # fmt: skip
def test_a12_a_bogus_input_aborts(monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], None]) -> None:
    simulation = bogus(change, monkeypatch)
    assert isinstance(simulation.outcome, Abort) and simulation.outcome.phase is Phase.UNMASKING
    assert not hasattr(simulation.outcome, "total")


def test_a12_succeeds_where_the_sum_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without zero words, contribution word and ranges, one client's noise is published as everybody's sum."""

    def unchecked(words: np.ndarray, count: int, params: SecAggParams) -> np.ndarray:
        keep = np.arange(len(words)) % params.chunk_words != 0
        slots = np.zeros(3 * (keep.sum() - 1), dtype=np.int64)
        for j in range(3):
            slots[j::3] = ((words[keep][1:] >> np.uint64(21 * j)) & np.uint64(2**21 - 1)).view(np.int64)
        return slots[: params.vector_length] - params.encoding.bound * count

    monkeypatch.setattr("protocol.server.unframe", unchecked)
    assert exact_over(bogus(lambda words: None, monkeypatch), (1, 2, 3, 4, 5))  # honest clients lose nothing by it
    noise = np.frombuffer(insecure_rng("noise")(8 * 64), dtype="<u8")
    simulation = bogus(lambda words: words.__setitem__(slice(None), noise[: len(words)]), monkeypatch)
    assert isinstance(simulation.outcome, Released)
    assert not np.array_equal(simulation.outcome.total, sum(simulation.values.values()))


def test_a_lie_that_keeps_the_sum_in_range_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What secure aggregation does not promise: a client may be dishonest about its own values (poisoning).

    The last word of one client is -1 as a whole: no valid encoding, yet the sum over all is one. It moves that sum by
    what the client uploaded and no further.
    """
    simulation = bogus(set_word(2, 2**64 - 1), monkeypatch)
    assert isinstance(simulation.outcome, Released)
    total = sum(simulation.values.values())
    assert np.array_equal(simulation.outcome.total[3:], total[3:])
    bound = simulation.server.params.encoding.bound
    assert np.array_equal(simulation.outcome.total[:3], (total - simulation.values[BAD])[:3] - bound + [-1, 0, 0])


def test_an_unchanged_frame_is_no_bogus_input(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exact_over(bogus(lambda words: None, monkeypatch), (1, 2, 3, 4, 5))


@pytest.mark.parametrize("case", [*HEADERS, "no words"])
def test_a_header_that_does_not_fit_is_refused_before_the_body(case: str) -> None:
    bend = HEADERS.get(case, lambda m: replace(m, total_words=0))

    def change(s: Simulation, message: object) -> object:
        return sign_input(s, bend(message)) if isinstance(message, MaskedInput) else message

    simulation = abuse(change)
    assert simulation.server.drops[BAD] is DropReason.BAD_HEADER
    assert BAD not in simulation.uploads and exact_over(simulation, (1, 3, 4, 5))


def test_a14_an_upload_needs_a_header_and_an_open_phase() -> None:
    simulation = simulate({BAD: Phase.MASKED_INPUT})
    assert simulation.server.upload_complete(BAD) is DropReason.TIMED_OUT
    assert simulation.server.upload_complete(ClientId(3)) is DropReason.WRONG_PHASE  # it is in U3, and once is enough
    federation = simulation.federation
    late = Simulation(federation, simulation.values)
    headers: list[MaskedInput] = []

    def keep(sender: ClientId, message: object) -> object | None:
        if sender == BAD and isinstance(message, MaskedInput):
            headers.append(message)
            assert late.server.upload_complete(BAD) is DropReason.UPLOAD_NOT_ACCEPTED
            late.server.receive(BAD, message)  # the header is accepted, its chunks stay away
            return None
        return message

    late.tamper_client = keep
    late.run()
    assert late.server.receive(BAD, headers[0]) is DropReason.TIMED_OUT
    assert late.server.upload_complete(BAD) is DropReason.TIMED_OUT  # A14: never folded in
    assert exact_over(late, (1, 3, 4, 5))


def test_a_digest_covers_every_chunk_in_order() -> None:
    words = np.arange(64, dtype="<u8")
    params = make_manifest().secagg_params()
    parts = list(chunks(words, params))

    def digest(pieces: list[bytes]) -> bytes:
        h = InputDigest()
        for piece in pieces:
            h.update(piece)
        return h.digest()

    assert len({digest(parts), digest(parts[::-1]), digest(parts[:-1]), digest([*parts, b"\x00"])}) == 4


# -- phase 4: what is handed over -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", UNMASK)
def test_a12_bad_shares_are_named_and_not_used(case: str) -> None:
    """n = 7, C = 1: five shares rebuild, one client is lost and one lies; the sum is exact and the liar is named."""
    federation = Federation.create(make_manifest(7, 1, 2))
    values = random_values(federation.manifest, range(1, 8))
    simulation = Simulation(federation, values, {ClientId(7): Phase.MASKED_INPUT})
    simulation.tamper_client = lambda sender, m: (
        UNMASK[case](m) if sender == BAD and isinstance(m, UnmaskingShares) else m
    )
    simulation.run()
    assert simulation.server.drops[BAD] is DropReason.BAD_SHARES
    assert BAD not in simulation.server.unmasked
    assert exact_over(simulation, (1, 2, 3, 4, 5, 6))


def test_a12_without_the_hash_check_a_bad_share_aborts_and_never_gives_a_wrong_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two walls: with the first one taken away, the commitment still stops it, but nobody can be named any more."""
    monkeypatch.setattr("protocol.server.ServerSession._check_unmasking", lambda self, sender, message: None)
    simulation = abuse(lambda s, m: UNMASK["one bit"](m) if isinstance(m, UnmaskingShares) else m)
    assert isinstance(simulation.outcome, Abort) and BAD not in simulation.server.drops


def test_nothing_a_client_says_raises() -> None:
    """Every message of an attempt, from every sender, at every moment and place: reasons, not exceptions."""
    recorded = simulate({1: Phase.MASKED_INPUT}).view
    federation = Federation.create(make_manifest())
    simulation = Simulation(federation, random_values(federation.manifest, range(1, 6)))
    done: set[Phase] = set()

    def noise(sender: ClientId, message: object) -> object:
        if simulation.server.phase not in done:
            done.add(simulation.server.phase)
            for claimed in (1, 9):
                for author, other in recorded:
                    if author != claimed:
                        simulation.server.receive(ClientId(claimed), other)
        return message

    simulation.tamper_client = noise
    outcome = simulation.run()
    assert len(done) == 5 and isinstance(outcome, Released) and exact_over(simulation, (2, 3, 4, 5))
    assert simulation.server.drops[ClientId(1)] in set(DropReason)

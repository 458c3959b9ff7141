"""What a client must refuse: one message per fault, for every check of SPEC 6.1 and 6.3 to 6.6.

The same faults are played by tests/test_lying_server.py and written down in the bad_*.json files here. Each case names
the check that it belongs to (a file), the fault, the message, and the reason that the client gives.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from attacker import LyingServer
from simulator import Federation, insecure_rng

from protocol.messages import (
    AdvertiseKeys,
    Announcement,
    Certificate,
    KeyEntry,
    KeyList,
    LedgerRow,
    PeerShares,
    ServerMessage,
    ShareKeys,
    SurvivorNotice,
    hash_masked,
    shares_body,
)
from secagg.signing import SigningKey
from secagg.transcript import bitmap, merkle_root
from secagg.types import ClientId

ME, PEER, CORRUPT = ClientId(1), ClientId(2), ClientId(5)
EVIL = SigningKey.generate(insecure_rng("evil"))
OTHER = b"\x09" + bytes(31)


@dataclass(frozen=True, slots=True)
class Case:
    """One fault in one message to client 1."""

    check: str
    fault: str
    message: ServerMessage
    reason: str


def honest(server: LyingServer, stage: str) -> ServerMessage:
    """The message that client 1 awaits at this stage."""
    return {
        "key_list": lambda: server.key_list(to=ME),
        "peer_shares": lambda: server.peer_shares(ME),
        "notice": lambda: server.notice(server.ids),
        "certificate": lambda: server.certificate(server.ids),
    }[stage]()


def advance(server: LyingServer, stage: str) -> LyingServer:
    """Play honestly until every client awaits the message of this stage."""
    server.play(keys=stage != "key_list", shares=stage not in ("key_list", "peer_shares"))
    if stage == "certificate":
        for client in server.ids:
            assert server.tell(client, server.notice(server.ids))
    return server


def advert(server: LyingServer, client: ClientId, **changes: object) -> AdvertiseKeys:
    """Another advertisement of a corrupt client, rightly signed."""
    bent = replace(server.adverts[client], **changes)  # type: ignore[arg-type]
    return replace(bent, signature=server.federation.client_keys[client].sign(bent.body(server.ctx, client)))


def key_lists(server: LyingServer) -> Iterator[Case]:
    """Faults in U1 on the complete graph."""
    honest_list = server.key_list()
    keys = {entry.client: entry.keys for entry in honest_list.entries}
    bits, entries = honest_list.advertised, honest_list.entries

    def with_(client: int, message: AdvertiseKeys) -> KeyList:
        return replace(
            honest_list, entries=tuple(replace(e, keys=message) if e.client == client else e for e in entries)
        )

    check, why = "key_list_members", "bitmap of U1 is malformed"
    yield Case(check, "stray bit", replace(honest_list, advertised=bytes([bits[0] | 1])), why)
    yield Case(check, "long bitmap", replace(honest_list, advertised=bits + b"\x00"), why)
    yield Case(check, "without us", server.key_list([2, 3, 4, 5]), "leaves us out")
    yield Case("key_list_size", "three of five", server.key_list([1, 2, 5]), "U1 is too small")

    check, why = "key_list_entries", "not those of ascending members of U1"
    yield Case(check, "descending", replace(honest_list, entries=entries[::-1]), why)
    yield Case(check, "twice", replace(honest_list, entries=(entries[0], *entries)), why)
    outsider = KeyEntry(ClientId(6), keys[CORRUPT])
    yield Case(check, "outside the cohort", replace(honest_list, entries=(*entries, outsider)), why)
    yield Case(check, "outside U1", replace(server.key_list([1, 2, 3, 4]), entries=entries), why)
    why = "is not all of U1 without paths"
    yield Case(check, "one missing", replace(honest_list, entries=entries[:-1]), why)
    path = replace(entries[1], path=(bytes(32),))
    yield Case(check, "a path", replace(honest_list, entries=(entries[0], path, *entries[2:])), why)

    check, why = "key_list_own_entry", "our own key advertisement is missing or changed"
    yield Case(check, "missing", replace(honest_list, entries=entries[1:]), why)
    yield Case(check, "changed", with_(ME, replace(keys[ME], commitment=OTHER)), why)
    for name in ("encryption_pk", "masking_pk", "commitment"):
        copied = advert(server, CORRUPT, **{name: getattr(keys[PEER], name)})
        yield Case("key_list_duplicates", name, with_(CORRUPT, copied), f"two clients advertise the same {name}")

    check, why = "key_list_canonical", "not in canonical form"
    for name in ("encryption_pk", "masking_pk"):
        same_key = bytearray(getattr(keys[PEER], name))
        same_key[31] ^= 0x80
        yield Case(check, f"{name}, top bit", with_(CORRUPT, advert(server, CORRUPT, **{name: bytes(same_key)})), why)
        above = (2**255 - 19 + 9).to_bytes(32, "little")
        yield Case(check, f"{name}, above p", with_(CORRUPT, advert(server, CORRUPT, **{name: above})), why)

    check, why = "key_list_signatures", "not signed by its client"
    for name in ("encryption_pk", "masking_pk", "commitment", "ledger_head"):
        yield Case(check, f"changed {name}", with_(CORRUPT, replace(keys[CORRUPT], **{name: OTHER})), why)
    yield Case(check, "changed ledger_seq", with_(CORRUPT, replace(keys[CORRUPT], ledger_seq=9)), why)
    by_other = replace(keys[CORRUPT], signature=EVIL.sign(keys[CORRUPT].body(server.ctx, CORRUPT)))
    yield Case(check, "another signer", with_(CORRUPT, by_other), why)
    other = LyingServer(server.federation, {})
    other.announce(server.federation.announcement(1, 1))
    yield Case(check, "of another attempt", with_(CORRUPT, other.adverts[CORRUPT]), why)
    small = advert(server, CORRUPT, encryption_pk=bytes(32))
    yield Case("key_list_small_order", "encryption_pk", with_(CORRUPT, small), "not a valid X25519 key")
    yield from segments(server, honest_list)


def segments(server: LyingServer, honest_list: KeyList) -> Iterator[Case]:
    """Faults in the segment of the release ledger."""
    check, why = "key_list_ledger", "release ledger is no extension"
    zero = bytes(32)
    signed = server.row(zero, zero, zero)
    after = server.row(zero, zero, zero, server.ledger.extended(signed))
    for fault, rows in {
        "unsigned": (replace(signed, signature=bytes(64)),),
        "signed by another": (replace(signed, signature=EVIL.sign(zero)),),
        "another sequence number": (replace(signed, seq=2),),
        "another round": (replace(signed, round=2),),
        "another attempt": (replace(signed, attempt=1),),
        "another ctx": (replace(signed, ctx=OTHER),),
        "another root_u2": (replace(signed, root_u2=OTHER),),
        "another hash_u3": (replace(signed, hash_u3=OTHER),),
        "twice": (signed, signed),
        "a gap": (after,),
        "descending": (after, signed),
    }.items():
        yield Case(check, fault, replace(honest_list, segment=rows), why)


def ring_key_lists(server: LyingServer) -> Iterator[Case]:
    """Faults in U1 that only the ring has: whose keys are listed, and under which root."""
    honest_list = server.key_list(to=ME)
    listed = tuple(entry.client for entry in honest_list.entries)
    tree, u1 = server.tree(), sorted(server.adverts)
    stranger = next(c for c in server.ids if c not in listed)
    last = next(e for e in reversed(honest_list.entries) if e.client != ME)

    def entry(client: ClientId) -> KeyEntry:
        return KeyEntry(client, server.adverts[client], tree.path(u1.index(client)))

    def of(clients: list[ClientId]) -> KeyList:
        return replace(honest_list, entries=tuple(entry(c) for c in sorted(clients)))

    check, why = "ring_key_list_neighbors", "keys of others than us and our neighbours"
    yield Case(check, "one missing", of([c for c in listed if c != last.client]), why)
    yield Case(check, "one too many", of([*listed, stranger]), why)
    yield Case(check, "another in its place", of([*(c for c in listed if c != last.client), stranger]), why)

    check, why = "ring_key_list_paths", "do not lead to one root"

    def bent(new: KeyEntry) -> KeyList:
        return replace(honest_list, entries=tuple(new if e.client == new.client else e for e in honest_list.entries))

    yield Case(check, "short", bent(replace(last, path=last.path[:-1])), why)
    yield Case(check, "long", bent(replace(last, path=(*last.path, bytes(32)))), why)
    yield Case(check, "changed", bent(replace(last, path=(bytes(32), *last.path[1:]))), why)
    yield Case(check, "none", bent(replace(last, path=())), why)
    yield Case(check, "of another member", bent(replace(last, path=tree.path(u1.index(stranger)))), why)
    forged = replace(server.adverts[last.client], commitment=OTHER)
    yield Case(check, "changed keys", bent(replace(last, keys=forged)), why)


def ring_notices(server: LyingServer) -> Iterator[Case]:
    """Survivors on the ring of which some member of U2 has too few among its neighbours."""
    check, why = "ring_notice_neighbors", "a member of U2 has too few neighbours in U3"
    graph, needed = server.graph, server.params.threshold
    far = max(server.ids, key=lambda c: (len(set(graph.neighbors(c)) - set(graph.neighbors(ME))), c))
    near = [v for v in graph.neighbors(far) if v != ME]
    lost = near[: len(near) - needed + 1]
    yield Case(check, "around another client", server.notice([c for c in server.ids if c not in lost]), why)


def peer_shares(server: LyingServer) -> Iterator[Case]:
    """Faults in U2 and in what is relayed."""
    message = server.peer_shares(ME)
    first = message.shares[0]

    def with_first(**changes: object) -> PeerShares:
        return replace(message, shares=(replace(first, **changes), *message.shares[1:]))  # type: ignore[arg-type]

    check, why = "peer_shares_members", "bitmap of U2 is malformed"
    yield Case(check, "long bitmap", replace(message, shared=message.shared + b"\x00"), why)
    yield Case(check, "stray bit", replace(message, shared=bytes([message.shared[0] | 1])), why)
    yield Case(check, "without us", replace(message, shared=bitmap([2, 3, 4, 5], server.ids)), "or leaves us out")
    yield Case("peer_shares_size", "three of five", server.peer_shares(ME, [1, 2, 5]), "U2 is too small")
    check, why = "peer_shares_dealers", "shares of other dealers"
    yield Case(check, "one missing", replace(message, shares=message.shares[1:]), why)
    yield Case(check, "one twice", replace(message, shares=(first, *message.shares)), why)
    yield Case(check, "our own", with_first(dealer=ME), why)
    yield Case(check, "outside U2", replace(message, shared=bitmap([1, 3, 4, 5], server.ids)), why)
    check, why = "peer_shares_path", "path has the wrong length"
    yield Case(check, "long", with_first(path=(*first.path, bytes(32))), why)
    yield Case(check, "short", with_first(path=first.path[:-1]), why)
    check, why = "peer_shares_signatures", "not signed by their dealer"
    for name in ("self_hash", "key_hash", "signature", "ciphertext"):
        old = getattr(first, name)
        yield Case(check, f"changed {name}", with_first(**{name: bytes([old[0] ^ 1]) + old[1:]}), why)
    yield Case(check, "changed path", with_first(path=(bytes(32), *first.path[1:])), why)
    second = message.shares[1]
    yield Case(check, "of another dealer", with_first(**{n: getattr(second, n) for n in SHARE_FIELDS}), why)
    garbled = {d: server.dealt[d] for d in (PEER, ClientId(3))}
    server.dealt |= {d: deal_badly(server, d) for d in garbled}
    yield Case("peer_shares_opened", "two of four do not open", server.peer_shares(ME), "too few shares opened")
    server.dealt |= garbled
    other = server.peer_shares(PEER).shares[-1]
    crossed = (*message.shares[:-1], other)
    yield Case(check, "of another recipient", replace(message, shares=crossed), why)


def deal_badly(server: LyingServer, dealer: ClientId) -> ShareKeys:
    """What a corrupt dealer may send: a share for client 1 that is not what its hash says, all of it rightly signed."""
    shares = tuple(replace(s, key_hash=OTHER) if s.recipient == ME else s for s in server.dealt[dealer].shares)
    root = merkle_root([share.leaf(dealer) for share in shares])
    body = shares_body(server.ctx, server.root_u1(), dealer, root)
    return ShareKeys(shares, server.federation.client_keys[dealer].sign(body))


SHARE_FIELDS = ("ciphertext", "self_hash", "key_hash", "path", "signature")


def notices(server: LyingServer) -> Iterator[Case]:
    """Faults in U3 and in the row that is to be opened."""
    message = server.notice(server.ids)
    key, root, bits = server.federation.server_key, server.root_u2(), message.masked

    def row(ctx: bytes, root_u2: bytes, hash_u3: bytes) -> SurvivorNotice:
        return replace(message, row=server.row(ctx, root_u2, hash_u3))

    def of(round_: int, attempt: int) -> SurvivorNotice:
        opened = (round_, attempt, server.ctx, root, hash_masked(root, bits))
        return replace(message, row=server.ledger.next_row(opened, key))

    check, why = "notice_members", "bitmap of U3 is malformed"
    yield Case(check, "stray bit", replace(message, masked=bytes([bits[0] | 1])), why)
    yield Case(check, "long bitmap", replace(message, masked=bits + b"\x00"), why)
    yield Case(check, "without us", server.notice([2, 3, 4, 5]), "leaves us out")
    yield Case("notice_size", "three of five", server.notice([1, 2, 3]), "U3 is too small")
    check, why = "notice_row", "not that of this attempt"
    yield Case(check, "of another U3", replace(message, row=server.notice([1, 2, 3, 4]).row), why)
    yield Case(check, "of another ctx", row(OTHER, root, hash_masked(root, bits)), why)
    yield Case(check, "of another U2", row(server.ctx, OTHER, hash_masked(root, bits)), why)
    yield Case(check, "of another round", of(2, 0), why)
    yield Case(check, "of another attempt", of(1, 1), why)
    check, why = "notice_ledger", "no signed extension"
    by_other = server.ledger.next_row((1, 0, server.ctx, root, hash_masked(root, bits)), EVIL)
    yield Case(check, "signed by another", replace(message, row=by_other), why)
    yield Case(check, "another sequence number", replace(message, row=replace(message.row, seq=2)), why)
    hidden: LedgerRow = message.row
    yield Case(check, "after a hidden row", server.notice(server.ids, server.ledger.extended(hidden)), why)


def certificates(server: LyingServer) -> Iterator[Case]:
    """Faults in the signatures on U3."""
    message = server.certificate(server.ids)
    one = message.signatures[0]
    forged = tuple((c, EVIL.sign(b"")) for c in server.ids)
    check, why = "certificate_quorum", "too few signatures"
    yield Case(check, "three of five", server.certificate([1, 2, 3]), why)
    yield Case(check, "none", Certificate(()), why)
    check, why = "certificate_signers", "not ascending members of U3"
    yield Case(check, "one four times", Certificate((one,) * 4), why)
    yield Case(check, "descending", Certificate(message.signatures[::-1]), why)
    outsider = (ClientId(6), message.signatures[4][1])
    yield Case(check, "an outsider", Certificate((*message.signatures, outsider)), why)
    check, why = "certificate_signatures", "not on the set that we signed"
    yield Case(check, "forged", Certificate(forged), why)
    yield Case(check, "one under all names", Certificate(tuple((c, one[1]) for c in server.ids)), why)
    yield Case(check, "one bad among five", Certificate((*message.signatures[:4], forged[4])), why)


STAGES: dict[str, Callable[[LyingServer], Iterator[Case]]] = {
    "key_list": key_lists,
    "peer_shares": peer_shares,
    "notice": notices,
    "certificate": certificates,
}


@dataclass(frozen=True, slots=True)
class JoinCase:
    """One announcement that client 1 must refuse, with what it remembers."""

    check: str
    fault: str
    announcement: Announcement
    reason: str
    joined: tuple[int, int] = (0, 0)
    spent_round: int = 0


def announcements(federation: Federation) -> Iterator[JoinCase]:
    """Faults of SPEC 6.1, for a roster of clients 1 to 5."""
    fine = federation.announcement()
    for check, fault, changes, reason in (
        ("announcement_manifest", "another", {"manifest_digest": OTHER}, "announced manifest differs"),
        ("announcement_roster", "another", {"roster_root": OTHER}, "announced roster differs"),
        ("announcement_cohort", "one left out", {"cohort": (1, 2, 3, 4)}, "not the whole roster"),
        ("announcement_cohort", "one exchanged", {"cohort": (1, 2, 3, 4, 6)}, "not the whole roster"),
        ("announcement_cohort", "one too many", {"cohort": (1, 2, 3, 4, 5, 6)}, "not the whole roster"),
        ("announcement_cohort", "one twice", {"cohort": (1, 2, 3, 4, 4)}, "not the whole roster"),
        ("announcement_cohort", "descending", {"cohort": (2, 1, 3, 4, 5)}, "not the whole roster"),
        ("announcement_round", "0", {"round": 0}, "outside 1..rounds"),
        ("announcement_round", "above the last", {"round": 11}, "outside 1..rounds"),
    ):
        yield JoinCase(check, fault, replace(fine, **changes), reason)  # type: ignore[arg-type]
    for fault, round_, attempt, joined in (
        ("the same again", 2, 1, (2, 1)),
        ("an earlier attempt", 2, 0, (2, 1)),
        ("an earlier round", 1, 7, (2, 1)),
    ):
        again = federation.announcement(round_, attempt)
        yield JoinCase("announcement_joined", fault, again, "already joined", joined)
    for fault, round_, spent in (("a later attempt", 2, 2), ("an earlier round", 1, 2)):
        later = federation.announcement(round_, 5)
        yield JoinCase("announcement_spent", fault, later, "this round is spent", (1, 4), spent)

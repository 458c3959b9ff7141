"""A malicious server on the ring: whom a client has to do with, and what a set of survivors may cut off.

Most rings here are small (16 clients, degree 4): sizes that the finder would refuse, so that an extremal placement of
corrupt clients and dropouts can be arranged and the whole attack be played. One test plays a real ring of 200.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import comb

import numpy as np
import pytest
from attacker import LyingServer, lying, small_ring
from vectors.client_checks import EVIL, ME, ring_key_lists

from protocol import client_phases
from protocol.errors import RemoteProtocolError
from protocol.messages import AdvertiseKeys, KeyEntry, KeyList, advertise_leaf
from secagg import kdf, key_agreement
from secagg.graph import RingGraph, neighbor_graph
from secagg.masking import Mask, add_masks, pairwise_sign, unframe
from secagg.params import SecAggParams
from secagg.signing import VerifyKey
from secagg.thresholds import RingParameters, ring_parameters
from secagg.transcript import MerkleTree, bitmap
from secagg.types import ClientId, Phase

RULE = RingParameters(degree=4, threshold=4, max_corrupt_neighbors=1)  # threshold = k/2 + a + 1


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    """Graphs of patched copies must not outlive their test."""
    yield
    neighbor_graph.cache_clear()


def ring(monkeypatch: pytest.MonkeyPatch) -> LyingServer:
    server = small_ring(monkeypatch, RULE)
    assert (server.params.degree, server.params.threshold, server.params.quorum) == (4, 4, 10)
    return server


def order(server: LyingServer) -> list[ClientId]:
    """The ring, from its first member on."""
    graph = server.graph
    assert isinstance(graph, RingGraph)
    return list(graph._order)


def refused(server: LyingServer, client: ClientId, reason: str) -> None:
    assert reason in server.refusals[client].what
    assert server.sessions[client].phase is Phase.ABORTED
    with pytest.raises(RemoteProtocolError, match="unexpected message"):
        server.sessions[client].receive(server.key_list(to=client))


def to_the_end(server: LyingServer, u3: Iterable[ClientId]) -> bool:
    """Phases 3 and 4 with this U3; whether everybody in it went along."""
    members = sorted(u3)
    for client in members:
        if not server.tell(client, server.notice(members)):
            return False
    return all([server.tell(client, server.certificate(members)) for client in members])


def total(server: LyingServer, members: Iterable[ClientId]) -> np.ndarray:
    return np.sum([server.values[c] for c in members], axis=0)


def same(one: object, other: np.ndarray) -> bool:
    return isinstance(one, np.ndarray) and bool(np.array_equal(one, other))


def test_an_honest_attempt_on_a_small_ring_opens_the_sum_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ring(monkeypatch).play()
    assert to_the_end(server, server.ids)
    assert same(server.unmask(server.ids), total(server, server.ids))
    assert server.unmask([ME]) is None and server.unmask(order(server)[:8]) is None


def test_with_a_neighbour_to_spare_dropouts_do_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    server = small_ring(monkeypatch, RingParameters(degree=6, threshold=5, max_corrupt_neighbors=1)).play()
    places = order(server)
    gone = {places[2], places[10]}  # no neighbour in common
    u3 = [c for c in server.ids if c not in gone]
    assert to_the_end(server, u3)
    assert same(server.unmask(u3), total(server, u3))
    assert all(server.unmask([c]) is None for c in server.ids)


# -- A5: who chooses the neighbours -----------------------------------------------------------------------------------

RING_CASES = ["one missing", "one too many", "another in its place", "short", "long", "changed", "none",
              "of another member", "changed keys"]  # fmt: skip


@pytest.mark.parametrize("fault", RING_CASES)
def test_a5_neighbours_are_those_of_the_derived_order(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    server = ring(monkeypatch)
    server.announce()
    cases = {case.fault: case for case in ring_key_lists(server)}
    assert sorted(cases) == sorted(RING_CASES)
    server.tell(ME, cases[fault].message)
    refused(server, ME, cases[fault].reason)
    assert ME not in server.dealt


def test_a5_the_honest_list_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ring(monkeypatch)
    server.announce()
    assert server.tell(ME, server.key_list(to=ME)) and ME in server.dealt


def chosen_order(monkeypatch: pytest.MonkeyPatch, corrupt: list[ClientId]) -> None:
    """A copy on which the server says how clients stand: the victim in the middle of the corrupt ones."""

    def placed(self: RingGraph, advertised: Iterable[ClientId], root_u1: bytes, degree: int) -> None:
        original(self, advertised, root_u1, degree)
        rest = [c for c in self.members if c != ME and c not in corrupt]
        self._order = [*corrupt[:2], ME, *corrupt[2:], *rest]
        self._position = {client: i for i, client in enumerate(self._order)}

    original = RingGraph.__init__
    monkeypatch.setattr(RingGraph, "__init__", placed)


def test_a5_succeeds_where_the_server_chooses_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four corrupt neighbours know every pairwise mask of the victim and hold the threshold of its seed: its masked
    input opens as it arrives, and no set of survivors was ever asked for."""
    corrupt = [ClientId(i) for i in (13, 14, 15, 16)]
    chosen_order(monkeypatch, corrupt)
    server = ring(monkeypatch)
    server.corrupt = frozenset(corrupt)
    server.play()
    assert set(server.graph.neighbors(ME)) == set(corrupt) and server.signatures == {}
    assert same(server.unmask([ME], {c: server.held(c) for c in corrupt}), server.values[ME])


def test_a5_with_the_derived_order_the_same_clients_learn_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt = [ClientId(i) for i in (13, 14, 15, 16)]
    server = ring(monkeypatch)
    server.corrupt = frozenset(corrupt)
    server.play()
    open_to_them = [
        c for c in server.ids if c not in corrupt and len(set(server.graph.neighbors(c)) & server.corrupt) == 4
    ]
    assert open_to_them == []
    loot = {c: server.held(c) for c in corrupt}
    assert all(server.unmask([c], loot) is None for c in server.ids if c not in corrupt)


@pytest.mark.parametrize(("n", "c", "dropouts"), [(200, 10, 10), (1000, 50, 50), (10_000, 500, 500)])
def test_a5_grinding_the_order_does_not_help(n: int, c: int, dropouts: int) -> None:
    """The order is a hash of a root that corrupt clients can vary. With 2^40 tries, the chance that any honest client
    gets more than `a` corrupt neighbours stays below 2^-40: exact, for the smallest and the largest U1."""
    rule = ring_parameters(n, c, dropouts)
    k, a = rule.degree, rule.max_corrupt_neighbors
    for size in (n - dropouts, n):
        others = size - 1
        tail = sum(comb(c, i) * comb(others - c, k - i) for i in range(a + 1, min(k, c) + 1))
        assert tail * size * 2**80 <= comb(others, k)
    assert rule.threshold >= k // 2 + a + 1


def test_a5_a_smaller_u1_than_the_parameters_were_proved_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ring(monkeypatch)
    server.announce()
    server.tell(ME, server.key_list(server.ids[:13], to=ME))
    refused(server, ME, "U1 is too small")


def test_a5_on_a_real_ring_of_two_hundred() -> None:
    """Sizes as the finder gives them: the same list is accepted, and refused with one stranger in it."""
    server = lying(200, 2, 2, length=4, aggregation__graph="ring")
    assert (server.params.degree, server.params.threshold, server.params.max_corrupt_neighbors) == (10, 8, 2)
    server.announce()
    cases = {case.fault: case for case in ring_key_lists(server)}
    server.tell(ME, cases["another in its place"].message)
    refused(server, ME, "keys of others than us and our neighbours")
    other = ClientId(2)
    assert server.tell(other, server.key_list(to=other)) and len(server.dealt[other].shares) == 10


# -- A4: a forged key of somebody whom the client does not see ---------------------------------------------------------


def with_forged_keys_of(server: LyingServer, owner: ClientId) -> dict[ClientId, KeyList]:
    """Honest lists but for one thing: the tree holds keys of the server's making for `owner`."""
    fake: AdvertiseKeys = replace(server.adverts[owner], masking_pk=b"\x09" + bytes(31))
    fake = replace(fake, signature=EVIL.sign(fake.body(server.ctx, owner)))
    keys = {**server.adverts, owner: fake}
    u1 = sorted(keys)
    tree = MerkleTree([advertise_leaf(server.ctx, c, keys[c]) for c in u1])
    true, server.adverts = server.adverts, keys
    graph = server.graph
    server.adverts = true
    bits = bitmap(u1, server.announcement.cohort)
    lists = {}
    for client in u1:
        listed = sorted((client, *graph.neighbors(client)))
        lists[client] = KeyList(bits, tuple(KeyEntry(c, keys[c], tree.path(u1.index(c))) for c in listed), ())
    return lists


def test_a4_a_forged_key_of_a_stranger_ends_with_its_owner_and_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients far away cannot see it and go on, under a root that the owner and everybody near it refuse: nobody shares
    a mask or a share with the forged key, and with fewer than `required` clients left nothing is ever opened."""
    server = ring(monkeypatch)
    server.announce()
    owner = ClientId(7)
    lists = with_forged_keys_of(server, owner)
    near = {c for c, message in lists.items() if owner in {e.client for e in message.entries}} - {owner}
    assert len(near) == 4
    for client, message in lists.items():
        server.tell(client, message)
    refused(server, owner, "our own key advertisement is missing or changed")
    for client in near:
        refused(server, client, "a key advertisement is not signed by its client")
    assert set(server.dealt) == set(server.ids) - near - {owner}
    assert all(owner not in {s.recipient for s in message.shares} for message in server.dealt.values())


def test_a4_succeeds_where_a_client_does_not_check_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without signatures the victim's whole neighbourhood is the server's own making."""
    monkeypatch.setattr(VerifyKey, "verify", lambda self, signature, message: None)
    server = ring(monkeypatch)
    server.announce(keys=dict.fromkeys([c for c in server.ids if c != ME], EVIL))
    for client in server.ids:
        assert server.tell(client, server.key_list(to=client))
    for client in server.ids:
        assert server.tell(client, server.peer_shares(client))
    near = server.graph.neighbors(ME)
    server.corrupt = frozenset(near)
    assert same(server.unmask([ME], {c: server.held(c) for c in near}), server.values[ME])


# -- A3: clients cut off by a set of survivors -------------------------------------------------------------------------


def two_arcs(server: LyingServer) -> tuple[list[ClientId], list[ClientId], list[ClientId]]:
    """(corrupt, dropped, one arc): corrupt and dropped clients side by side split the ring in two.

    Every client has at most one corrupt neighbour and every member of U2 at least k/2 + a = 3 neighbours in U3: one
    less than the rule asks for. No two honest members of U3 on different arcs are neighbours.
    """
    places = order(server)
    corrupt, dropped = [places[0], places[9]], [places[1], places[8]]
    inside = places[2:8]
    for client in inside:
        assert not set(server.graph.neighbors(client)) & set(places[10:])
    for client in server.ids:
        near = set(server.graph.neighbors(client))
        assert client in corrupt or len(near & set(corrupt)) <= 1
        assert len(near - set(dropped)) >= 3
    return corrupt, dropped, inside


def split_ring(server: LyingServer) -> object:
    """The sum over one arc alone, if the attack gets that far."""
    server.play()
    corrupt, dropped, inside = two_arcs(server)
    server.corrupt = frozenset(corrupt)
    loot = {c: server.held(c) for c in corrupt}
    u3 = [c for c in server.ids if c not in dropped]
    if not to_the_end(server, u3):
        return None
    return server.unmask(inside, loot)


def test_a3_a_set_that_cuts_the_ring_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ring(monkeypatch)
    assert split_ring(server) is None
    first = next(c for c in server.ids if c in server.refusals)
    refused(server, first, "a member of U2 has too few neighbours in U3")
    assert server.signatures == {} and server.answers == {}


def test_a3_the_threshold_alone_stops_it_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check on U3 everybody answers, and the seeds at the ends of the arcs still lack one share."""
    monkeypatch.setattr(RingGraph, "fewest_holders", lambda self, of, among: 4)
    server = ring(monkeypatch)
    assert split_ring(server) is None
    assert server.refusals == {} and len(server.answers) == 14


def test_a3_succeeds_with_a_threshold_one_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    """threshold = k/2 + a: six clients' sum is opened although `min_cohort` is ten. The rule is exact."""
    monkeypatch.setattr(SecAggParams, "threshold", property(lambda self: 3))
    server = small_ring(monkeypatch, RULE)
    opened = split_ring(server)
    places = order(server)
    assert server.params.min_cohort == 10
    assert same(opened, total(server, places[2:8]))


def test_a3_a_peeled_client_is_noticed_by_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """All neighbours of one client declared dropped: also clients at the other end of the ring refuse."""
    monkeypatch.setattr(SecAggParams, "required", property(lambda self: 3))  # so that only this check is in the way
    server = ring(monkeypatch).play()
    places = order(server)
    u3 = [c for c in server.ids if c not in server.graph.neighbors(places[0])]
    for client in (places[0], places[8]):
        server.tell(client, server.notice(u3))
        refused(server, client, "a member of U2 has too few neighbours in U3")


# -- A1: both kinds of share -------------------------------------------------------------------------------------------


def both_kinds(monkeypatch: pytest.MonkeyPatch, server: LyingServer) -> object:
    """Signatures count for nothing, and of four neighbours one is corrupt, one answers for U3 with the victim, two for
    U3 without it."""
    monkeypatch.setattr(VerifyKey, "verify", lambda self, signature, message: None)
    monkeypatch.setattr(RingGraph, "fewest_holders", lambda self, of, among: 4)
    server.play()
    near = sorted(server.graph.neighbors(ME))
    server.corrupt = frozenset(near[:1])
    loot = {near[0]: server.held(near[0])}
    without = [c for c in server.ids if c != ME]
    for client in near[1:]:
        u3 = without if client in near[2:] else server.ids
        server.signatures = dict.fromkeys(server.ids, bytes(64))
        assert server.tell(client, server.notice(u3)) and server.tell(client, server.certificate(u3))
    return server.unmask([ME], loot)


def test_a1_the_ring_rule_keeps_the_two_kinds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """2t > k + a follows from t >= k/2 + a + 1: holders that answer one kind each, and `a` that answer both."""
    for n, c in ((200, 10), (1000, 50), (10_000, 500)):
        rule = ring_parameters(n, c, c)
        assert 2 * rule.threshold > rule.degree + rule.max_corrupt_neighbors
    assert both_kinds(monkeypatch, ring(monkeypatch)) is None


def test_a1_succeeds_on_the_ring_with_half_the_holders_as_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SecAggParams, "threshold", property(lambda self: 2))  # 2t = k
    server = small_ring(monkeypatch, RULE)
    assert same(both_kinds(monkeypatch, server), server.values[ME])


# -- A2, A19: another U2 for one client --------------------------------------------------------------------------------


def another_u2_for_the_victim(server: LyingServer) -> object:
    """The victim is shown a U2 in which its one corrupt neighbour is its only one; everybody else the true one, and a
    U3 with the victim in it. Its honest neighbours then give away its self seed."""
    server.play(shares=False)
    near = sorted(server.graph.neighbors(ME))
    corrupt = near[0]
    server.corrupt = frozenset({corrupt})
    shown = [c for c in server.ids if c not in near[1:]]
    assert len(shown) >= server.params.required
    for client in server.ids:
        server.tell(client, server.peer_shares(client, shown if client == ME else None))
    if ME not in server.words:
        return None
    others = [c for c in server.ids if c != ME]
    for client in others:
        assert server.tell(client, server.notice(server.ids))
    for client in others:
        assert server.tell(client, server.certificate(others))
    seed = server._rebuilt(ME, "self_shares", {})
    assert seed is not None
    agreed = key_agreement.agree(server._masking_sks[corrupt], server.adverts[ME].masking_pk)
    shared = kdf.pairwise_seed(agreed, server.ctx, server.root_u2(shown), ME, corrupt)
    words = server.words[ME].copy()
    add_masks(words, [Mask(kdf.self_mask_key(seed, server.ctx, ME), -1), Mask(shared, -pairwise_sign(ME, corrupt))])
    return unframe(words, 1, server.params)


def test_a2_another_u2_for_one_client_is_refused_by_its_count_of_dealers(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ring(monkeypatch)
    assert another_u2_for_the_victim(server) is None
    refused(server, ME, "too few shares opened")


def test_a2_succeeds_where_the_dealers_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    original = client_phases.reject

    def lenient(what: str, **more: object) -> None:
        if what != "too few shares opened":
            original(what, **more)

    monkeypatch.setattr(client_phases, "reject", lenient)
    server = ring(monkeypatch)
    assert same(another_u2_for_the_victim(server), server.values[ME])

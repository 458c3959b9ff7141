"""The rule of the ring, attacked: no choice of corrupt clients, dropouts, ghosts and split views opens a smaller sum.

The adversary here is stronger than the real one: it places the corrupt clients after it has seen the order, as densely
as the bound of a corrupt neighbours per honest client allows; the quorum costs it nothing; and it is handed every
secret of which it can name `threshold` shares. What it can then compute is linear algebra: a sum of masked inputs is
determined if and only if every mask in it is known or cancels. With the threshold one lower the same search finds
smaller sums in seconds, so it is not blind.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest

from secagg.graph import RingGraph
from secagg.prg import Stream
from secagg.thresholds import ring_parameters
from secagg.types import ClientId, Secret

Ids = frozenset[int]


class Draw:
    """Reproducible choices."""

    def __init__(self, seed: int) -> None:
        self._stream = Stream(Secret(seed.to_bytes(32, "big")))
        self._words: list[int] = []

    def below(self, limit: int) -> int:
        if not self._words:
            self._words = self._stream.words(4096).tolist()
        return self._words.pop() % limit

    def shuffled(self, items: Iterable[int]) -> list[int]:
        left = list(items)
        for i in range(len(left) - 1, 0, -1):
            j = self.below(i + 1)
            left[i], left[j] = left[j], left[i]
        return left

    def some(self, items: Iterable[int], one_in: int) -> Ids:
        return frozenset(i for i in sorted(items) if self.below(one_in) == 0)


@dataclass(frozen=True)
class Ring:
    """A RingGraph with its order, and the corrupt clients on it."""

    order: Sequence[int]
    neighbors: dict[int, Ids]
    degree: int
    bound: int  # a
    corrupt: Ids

    @property
    def honest(self) -> Ids:
        return frozenset(self.order) - self.corrupt

    def from_place(self, place: int, count: int) -> list[int]:
        """`count` members clockwise from a place."""
        return [self.order[(place + i) % len(self.order)] for i in range(count)]


def ring_of(size: int, degree: int, root: bytes) -> tuple[list[int], dict[int, Ids]]:
    """(order, neighbours) of a RingGraph, by its public functions: the next one clockwise holds point 1."""
    graph = RingGraph([ClientId(i) for i in range(1, size + 1)], root, degree)
    order = [1]
    while len(order) < size:
        here = ClientId(order[-1])
        order.append(next(v for v in graph.neighbors(here) if graph.point(here, v) == 1))
    return order, {i: frozenset(graph.neighbors(ClientId(i))) for i in order}


def gaps(ring_order: Sequence[int], degree: int, draw: Draw) -> list[int]:
    """All members, those of two gaps of about degree / 2 first: an attacker's order of preference."""
    size, first = len(ring_order), draw.below(len(ring_order))
    second = first + degree // 2 + 1 + draw.below(max(1, size - degree - 2))
    near = [ring_order[(p + i) % size] for p in (first, second) for i in range(degree // 2)]
    near = draw.shuffled(dict.fromkeys(near)) if draw.below(2) else list(dict.fromkeys(near))
    return near + draw.shuffled(set(ring_order) - set(near))


def draw_ring(draw: Draw) -> tuple[Ring, list[int]]:
    """A ring with as many corrupt clients as the bound allows, and the attacker's order of preference."""
    degree = 4 + 2 * draw.below(4)
    bound = draw.below(degree // 2)
    size = 2 * degree + 2 + draw.below(2 * degree)
    order, neighbors = ring_of(size, degree, draw.below(2**63).to_bytes(32, "big"))
    wish = gaps(order, degree, draw) if draw.below(4) else draw.shuffled(order)
    corrupt: set[int] = set()
    near = dict.fromkeys(order, 0)  # corrupt neighbours
    budget = 1 + draw.below(size)
    for client in wish[:budget]:
        if all(near[v] < bound for v in neighbors[client] if v not in corrupt):
            corrupt.add(client)
            for v in neighbors[client]:
                near[v] += 1
    # one that became corrupt early may have been exempt from the bound; the honest ones never are
    assert all(near[u] <= bound for u in order if u not in corrupt)
    return Ring(order, neighbors, degree, bound, frozenset(corrupt)), wish


@dataclass(frozen=True)
class Attempt:
    """What the server tells whom. View 0 is the one that it wants to open."""

    shared: list[Ids]  # U2, one per view
    masked: Ids  # U3 of view 0
    view: dict[int, int] = field(default_factory=dict)  # of each honest client; 0 where nothing else is said
    ghosts: Ids = frozenset()  # honest clients in the server's lists whose entry is forged: they take no part


def draw_sets(ring: Ring, wish: Sequence[int], threshold: int, draw: Draw) -> Attempt:
    """U2 and U3: members are lost as the attacker wishes, as long as everybody's check of U3 still passes."""
    lost_early = draw.some(ring.order, 12) - ring.corrupt if draw.below(2) else frozenset()
    shared, masked = set(ring.order) - lost_early, set(ring.order) - lost_early
    left = {u: len(ring.neighbors[u] & masked) for u in ring.order}
    if any(left[u] < threshold for u in shared):
        shared, masked = set(ring.order), set(ring.order)
        left = dict.fromkeys(ring.order, ring.degree)
    for client in wish:
        also_u2 = draw.below(2) == 0
        if client in ring.corrupt or client not in masked:
            continue
        stay = shared - {client} if also_u2 else shared
        if all(left[v] > threshold for v in ring.neighbors[client] & stay):
            masked.discard(client)
            shared = set(stay)
            for v in ring.neighbors[client]:
                left[v] -= 1
    return Attempt([frozenset(shared)], frozenset(masked))


def check_of_u3(ring: Ring, attempt: Attempt, threshold: int) -> bool:
    """SPEC 6.5 on the ring: every member of U2 has at least `threshold` neighbours in U3."""
    return all(len(ring.neighbors[u] & attempt.masked) >= threshold for u in attempt.shared[0])


def opened(ring: Ring, attempt: Attempt, threshold: int, check_dealers: bool = True) -> list[Ids]:
    """The minimal sets of honest clients whose sum the adversary can compute.

    A client whose list of U2 holds a neighbour without a good share message stops there, and so does one with fewer
    than `threshold` dealers (unless that check is taken out). The clients of view 0 in U3 answer.
    """
    taking_part = ring.honest - attempt.ghosts
    active = {}
    for u in taking_part:
        u2 = attempt.shared[attempt.view.get(u, 0)]
        dealers = ring.neighbors[u] & u2
        if u in u2 and not dealers & attempt.ghosts and (len(dealers) >= threshold or not check_dealers):
            active[u] = attempt.view.get(u, 0)
    answering = {u for u, view in active.items() if view == 0 and u in attempt.masked}
    if not check_of_u3(ring, attempt, threshold):
        answering = set()

    def shares(u: int, kind_asked: bool) -> int:
        """Shares of one kind of u's secrets: corrupt holders give both kinds, honest ones the kind asked for."""
        return len(ring.neighbors[u] & ring.corrupt) + (len(ring.neighbors[u] & answering) if kind_asked else 0)

    seed_known = {u for u in active if shares(u, u in attempt.masked) >= threshold}
    key_known = {u for u in taking_part if shares(u, u in attempt.shared[0] - attempt.masked) >= threshold}
    group = {u: u for u in active}  # union-find over masked inputs; an edge is a mask that is not known

    def find(u: int) -> int:
        while group[u] != u:
            group[u] = u = group[group[u]]
        return u

    hidden = active.keys() - seed_known
    for u, view in active.items():
        for v in ring.neighbors[u] & attempt.shared[view] & ring.honest:
            if u in key_known or v in key_known:
                continue
            if active.get(v) == view:
                group[find(u)] = find(v)
            else:
                hidden |= {u}  # nobody else ever adds this mask
    covered = {find(u) for u in hidden}
    sums: dict[int, set[int]] = {}
    for u in active:
        if find(u) not in covered:
            sums.setdefault(find(u), set()).add(u)
    return [frozenset(members) for members in sums.values()]


def rank_of_null_space(ring: Ring, attempt: Attempt) -> int:
    """Independent of `opened`: dimension of the combinations of masked inputs of U3 in which all masks cancel."""
    prime = 2_147_483_647
    nodes = sorted(ring.honest & attempt.masked)
    rows = []
    edges = [(u, v) for u in nodes for v in nodes if u < v and v in ring.neighbors[u]]
    for u in nodes:
        rows.append([(u == e[0]) - (u == e[1]) for e in edges])
    rank = 0
    for column in range(len(edges)):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column] % prime), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        inverse = pow(rows[rank][column], -1, prime)
        for i in range(rank + 1, len(rows)):
            if factor := rows[i][column] * inverse % prime:
                rows[i] = [(x - factor * y) % prime for x, y in zip(rows[i], rows[rank], strict=True)]
        rank += 1
    return len(nodes) - rank


def smaller(ring: Ring, attempt: Attempt, sums: Iterable[Ids]) -> list[Ids]:
    """Violations: every opened set other than all honest members of U3."""
    return [s for s in sums if s != ring.honest & attempt.masked]


@pytest.mark.parametrize("seed", range(3))
def test_honest_runs_open_exactly_one_sum(seed: int) -> None:
    draw, lost, corrupt = Draw(seed), 0, 0
    for _ in range(2000):
        ring, wish = draw_ring(draw)
        threshold = ring.degree // 2 + ring.bound + 1
        attempt = draw_sets(ring, wish, threshold, draw)
        assert check_of_u3(ring, attempt, threshold)
        assert opened(ring, attempt, threshold) == [ring.honest & attempt.masked]
        lost += len(attempt.masked) < len(ring.order)
        corrupt += bool(ring.corrupt)
    assert lost > 1000 and corrupt > 1000  # the search had something to do


def test_one_lower_and_the_search_finds_smaller_sums() -> None:
    draw, found = Draw(10), 0
    for _ in range(2000):
        ring, wish = draw_ring(draw)
        threshold = ring.degree // 2 + ring.bound
        attempt = draw_sets(ring, wish, threshold, draw)
        found += bool(smaller(ring, attempt, opened(ring, attempt, threshold)))
    assert found > 50


def test_components_are_the_null_space() -> None:
    """The union-find agrees with plain elimination, where one sum is opened and where several are."""
    draw, several = Draw(20), 0
    for i in range(40):
        ring, wish = draw_ring(draw)
        threshold = ring.degree // 2 + ring.bound + (1 if i % 2 else 0)
        attempt = draw_sets(ring, wish, threshold, draw)
        sums = opened(ring, attempt, threshold)
        assert rank_of_null_space(ring, attempt) == len(sums)
        several += len(sums) > 1
    assert several > 2


def split_views(ring: Ring, attempt: Attempt, draw: Draw) -> Attempt:
    """The same U3 for view 0. Other honest clients are shown one of two other U2, and some never took part at all."""
    ghosts = draw.some(ring.honest, 2 + draw.below(30)) if draw.below(2) else frozenset()
    shared, view = list(attempt.shared), {}
    for number in (1, 2):
        arc = ring.from_place(draw.below(len(ring.order)), 1 + draw.below(len(ring.order) // 2))
        lost = attempt.shared[0] - attempt.masked
        other = (frozenset(arc), draw.some(ring.order, 2), draw.some(ring.order, 12), lost)[draw.below(4)] & ring.honest
        filler = draw.some(attempt.shared[0], 1 + draw.below(4)) | lost
        shared.append(other | ring.corrupt | (filler if draw.below(2) else frozenset()))
        view.update(dict.fromkeys(other, number))
        if draw.below(2):
            break
    return Attempt(shared, attempt.masked, view, ghosts)


@pytest.mark.parametrize("seed", range(3))
def test_split_views_and_forged_entries_open_nothing_smaller(seed: int) -> None:
    draw, whole, nothing = Draw(100 + seed), 0, 0
    for _ in range(2000):
        ring, wish = draw_ring(draw)
        threshold = ring.degree // 2 + ring.bound + 1
        attempt = split_views(ring, draw_sets(ring, wish, threshold, draw), draw)
        sums = opened(ring, attempt, threshold)
        assert smaller(ring, attempt, sums) == []
        whole, nothing = whole + bool(sums), nothing + (not sums)
    assert whole > 100 and nothing > 1000


def test_without_the_count_of_dealers_split_views_single_clients_out() -> None:
    """SPEC 6.4: a client that keeps fewer than `threshold` dealers stops. That check carries the ring."""
    draw, found, single = Draw(200), 0, 0
    for _ in range(2000):
        ring, wish = draw_ring(draw)
        threshold = ring.degree // 2 + ring.bound + 1
        attempt = split_views(ring, draw_sets(ring, wish, threshold, draw), draw)
        bad = smaller(ring, attempt, opened(ring, attempt, threshold, check_dealers=False))
        found += bool(bad)
        single += any(len(s) == 1 for s in bad)
    assert found > 100 and single > 10


@pytest.mark.parametrize(("degree", "bound"), [(k, a) for k in (4, 6, 10, 16) for a in range(k // 2)])
def test_the_extremal_cut(degree: int, bound: int) -> None:
    """Two gaps of degree / 2, each with `bound` corrupt clients, the rest lost before U2: at equality the ring falls
    apart in two; the rule's threshold is refused by the members at the edge of a gap, which are short of one."""
    half = degree // 2
    order, neighbors = ring_of(3 * degree + 8, degree, bytes([degree, bound] * 16))
    places = (0, len(order) // 2)
    corrupt = frozenset(order[p + i] for p in places for i in range(bound))
    lost = frozenset(order[p + i] for p in places for i in range(bound, half))
    ring = Ring(order, neighbors, degree, bound, corrupt)
    assert max(len(neighbors[u] & corrupt) for u in ring.honest) == bound
    attempt = Attempt([frozenset(order) - lost], frozenset(order) - lost)
    graph = RingGraph([ClientId(i) for i in order], bytes([degree, bound] * 16), degree)
    of, among = ([ClientId(i) for i in s] for s in (attempt.shared[0], attempt.masked))
    assert graph.fewest_holders(of, among) == half + bound  # one less than the rule asks for
    assert opened(ring, attempt, half + bound + 1) == []
    sums = opened(ring, attempt, half + bound)
    assert len(sums) == 2 and frozenset().union(*sums) == ring.honest & attempt.masked


@pytest.mark.parametrize(("degree", "bound"), [(k, a) for k in (4, 6, 10, 16) for a in range(k // 2)])
def test_both_secrets_of_one_client(degree: int, bound: int) -> None:
    """2t > k + a is exact for one client's holders, and the rule of the ring implies it."""

    def most_of_both(corrupt: int) -> int:
        honest = degree - corrupt
        return max(min(asked + corrupt, honest - asked + corrupt) for asked in range(honest + 1))

    exact = (degree + bound) // 2 + 1
    assert max(most_of_both(c) for c in range(bound + 1)) == exact - 1
    assert degree // 2 + bound + 1 >= exact


def test_real_parameters_keep_every_member_supplied() -> None:
    """The finder's ring, with D random clients lost after U1 was fixed: nobody falls below the threshold."""
    n, dropouts, draw = 200, 10, Draw(300)
    ring = ring_parameters(n, 10, dropouts)
    short = 0
    for i in range(300):
        graph = RingGraph([ClientId(u) for u in range(1, n + 1)], i.to_bytes(32, "big"), ring.degree)
        left = [ClientId(u) for u in draw.shuffled(range(1, n + 1))[dropouts:]]
        short += graph.fewest_holders(graph.members, left) < ring.threshold
    assert short == 0

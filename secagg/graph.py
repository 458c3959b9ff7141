"""Who shares secrets and masks with whom: everybody with everybody, or a random ring. SPEC 4.7.

The complete graph is that of Bonawitz et al. 2017. On the ring (Bell et al. 2020: a Harary graph over a permuted
order) a client works with `degree` neighbours only. Nobody chooses the order: it follows from the root over U1, which
every client derives by itself.
"""

from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

import numpy as np

from secagg.labels import RING_ORDER
from secagg.params import SecAggParams
from secagg.transcript import digest
from secagg.types import ClientId

Members = tuple[ClientId, ...]


class NeighborGraph(Protocol):
    """Neighbourhoods inside U1. Symmetric: v in neighbors(u) iff u in neighbors(v), and so for `dealt_to`."""

    @property
    def members(self) -> Members:
        """U1, ascending."""

    def neighbors(self, client: ClientId) -> Members:
        """Clients with which `client` shares a pairwise mask, ascending, without itself."""

    def dealt_to(self, client: ClientId) -> Members:
        """Clients that hold a share of the secrets of `client`, ascending."""

    def point(self, dealer: ClientId, holder: ClientId) -> int:
        """Shamir x-coordinate of the share that `holder` gets of `dealer`."""

    def fewest_holders(self, of: Iterable[ClientId], among: Iterable[ClientId]) -> int:
        """Over all u in `of`, the smallest number of holders of u's shares that are in `among`. Both within U1."""


class CompleteGraph:
    """Everybody is everybody's neighbour, and each client also holds a share of its own seed."""

    def __init__(self, advertised: Iterable[ClientId]) -> None:
        self.members: Members = tuple(sorted(advertised))

    def neighbors(self, client: ClientId) -> Members:
        """All others."""
        return tuple(v for v in self.members if v != client)

    def dealt_to(self, client: ClientId) -> Members:
        """All, the dealer included."""
        return self.members

    def point(self, dealer: ClientId, holder: ClientId) -> int:
        """The holder's id."""
        return holder

    def fewest_holders(self, of: Iterable[ClientId], among: Iterable[ClientId]) -> int:
        """All of `among` hold shares of everybody."""
        return len(set(among))


class RingGraph:
    """Neighbours are the `degree` members nearest on a ring whose order is a hash of root(U1) and the id. SPEC 4.7.

    The point of a share is the holder's place as seen from the dealer: 1..degree/2 clockwise, then degree/2+1..degree
    from the farthest counter-clockwise neighbour to the nearest. No client holds a share of its own.
    """

    def __init__(self, advertised: Iterable[ClientId], root_u1: bytes, degree: int) -> None:
        """`degree` is even and smaller than the number of members."""
        self.members: Members = tuple(sorted(advertised))
        self._order = sorted(self.members, key=lambda client: (digest(RING_ORDER, root_u1, client), client))
        self._position = {client: i for i, client in enumerate(self._order)}
        self._half = degree // 2
        self._neighbors: dict[ClientId, Members] = {}

    def neighbors(self, client: ClientId) -> Members:
        """The `degree` nearest on the ring."""
        known = self._neighbors.get(client)
        if known is None:
            at, count = self._position[client], len(self._order)
            offsets = (*range(-self._half, 0), *range(1, self._half + 1))
            known = self._neighbors[client] = tuple(sorted(self._order[(at + d) % count] for d in offsets))
        return known

    def dealt_to(self, client: ClientId) -> Members:
        """The neighbours: a client holds nothing of its own."""
        return self.neighbors(client)

    def point(self, dealer: ClientId, holder: ClientId) -> int:
        """1..degree, as described above."""
        count = len(self._order)
        clockwise = (self._position[holder] - self._position[dealer]) % count
        return clockwise if clockwise <= self._half else 2 * self._half + 1 - (count - clockwise)

    def fewest_holders(self, of: Iterable[ClientId], among: Iterable[ClientId]) -> int:
        """One pass over the ring: a sliding window of running sums."""
        count, half = len(self._order), self._half
        inside = np.zeros(count, dtype=np.int64)
        inside[[self._position[client] for client in among]] = 1
        sums = np.concatenate([[0], np.cumsum(np.concatenate([inside[-half:], inside, inside[:half]]))])
        window = sums[2 * half + 1 :] - sums[:count] - inside  # members within `half` on either side, itself not
        return int(window[[self._position[client] for client in of]].min())


def index_in(members: Members, client: ClientId) -> int:
    """Index of `client`, which must be a member, in an ascending tuple."""
    return bisect_left(members, client)


@lru_cache(maxsize=8)  # many sessions of one process may ask for the same graph: it is public and never changes
def neighbor_graph(params: SecAggParams, advertised: Members, root_u1: bytes) -> NeighborGraph:
    """The graph over U1 = `advertised` that `params` prescribe."""
    if params.graph == "ring":
        return RingGraph(advertised, root_u1, params.degree)
    return CompleteGraph(advertised)

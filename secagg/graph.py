"""Who shares secrets and masks with whom. The complete graph (Bonawitz et al. 2017) is the only one so far."""

from typing import Protocol

from secagg.types import ClientId


class NeighborGraph(Protocol):
    """Neighbourhoods inside U1. Symmetric: v in neighbors(u) iff u in neighbors(v)."""

    def neighbors(self, client: ClientId) -> tuple[ClientId, ...]:
        """Neighbours of `client`, ascending, without itself."""

    def dealt_to(self, client: ClientId) -> tuple[ClientId, ...]:
        """Clients that hold a share of the secrets of `client`, ascending."""


class CompleteGraph:
    """Everybody is everybody's neighbour, and each client also holds a share of its own seed."""

    def __init__(self, advertised: tuple[ClientId, ...]) -> None:
        self._advertised = tuple(sorted(advertised))

    def neighbors(self, client: ClientId) -> tuple[ClientId, ...]:
        """All others."""
        return tuple(v for v in self._advertised if v != client)

    def dealt_to(self, client: ClientId) -> tuple[ClientId, ...]:
        """All, the dealer included."""
        return self._advertised

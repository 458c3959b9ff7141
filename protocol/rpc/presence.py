"""Which clients are there: calls in progress and the time of the last one. SPEC 9.7.

A client that lives has a poll or an upload open at any time. One whose process died loses its connection, and its calls
end; then the phases need not wait for it until their deadline.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from secagg.types import ClientId


class Presence:
    """Counts calls per client; `clock` gives seconds that only increase."""

    def __init__(self, clients: Iterable[ClientId], clock: Callable[[], float]) -> None:
        self._clock = clock
        self._calls = dict.fromkeys(clients, 0)
        self._last: dict[ClientId, float] = {}

    @contextmanager
    def call(self, client: ClientId) -> Iterator[None]:
        """A call of this client is in progress."""
        self._calls[client] += 1
        try:
            yield
        finally:
            self._calls[client] -= 1
            self._last[client] = self._clock()

    def connected(self, client: ClientId) -> bool:
        """Whether a call is in progress now."""
        return self._calls[client] > 0

    def away_since(self, client: ClientId, start: float) -> float | None:
        """Since when the client has been away, not before `start`; None if it is there."""
        return None if self._calls[client] else max(start, self._last.get(client, start))

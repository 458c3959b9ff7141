"""Reproducible choices: one stream of integers per execution, recorded so that a failure can be replayed and shrunk."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15

BOUNDARIES = tuple(
    sorted(
        {0, 1, 2, 3, 6, 7, 8, 31, 32, 33, 63, 64, 65, 10**4, 10**4 + 1}
        | {2**k + d for k in (7, 8, 14, 15, 16, 21, 28, 31, 32, 35, 40, 42, 49, 53, 56, 62, 63) for d in (-1, 0, 1)}
        | {2**64 - 2, 2**64 - 1}
    )
)


class Dice:
    """SplitMix64 over a seed, or a recorded list of draws; behind the end of the list every draw is 0.

    `draws` holds what was drawn so far: `Dice(replay=draws)` repeats the execution on any machine.
    """

    def __init__(self, *seed: object, replay: Sequence[int] | None = None) -> None:
        self._state = int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:8], "big")
        self._replay = replay
        self.draws: list[int] = []

    def below(self, limit: int) -> int:
        """An integer in 0..limit - 1."""
        if self._replay is not None:
            raw = self._replay[len(self.draws)] if len(self.draws) < len(self._replay) else 0
        else:
            raw = self._next()
        value = raw % limit
        self.draws.append(value)
        return value

    def chance(self, one_in: int) -> bool:
        """True once in `one_in`. The simplest replay, all zeros, says no."""
        return self.below(one_in) == one_in - 1

    def pick(self, items: Sequence[T]) -> T:
        """One of `items`, which are not empty."""
        return items[self.below(len(items))]

    def bytes(self, size: int) -> bytes:
        """`size` bytes out of one draw: their content matters less than that they are new."""
        word = self.below(2**64).to_bytes(8, "little")
        if size <= 8:
            return word[:size]
        return hashlib.shake_128(word).digest(size)

    def integer(self) -> int:
        """An unsigned 64-bit integer that some limit may be near to."""
        if self.chance(4):
            return self.below(2**64) >> self.below(64)
        return self.pick(BOUNDARIES)

    def _next(self) -> int:
        self._state = (self._state + _GOLDEN) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

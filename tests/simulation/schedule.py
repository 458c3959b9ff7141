"""Schedules: lists of integers, consumed by position. Past the end, and at 0, every choice is the benign one."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

LENGTH: Final = 1500  # choices of a drawn schedule; what comes after them is benign


class Schedule:
    """Hands out choices. `taken` are those made so far, each reduced to its range: the same run, written shorter."""

    __slots__ = ("_values", "taken")

    def __init__(self, values: Sequence[int]) -> None:
        self._values = values
        self.taken: list[int] = []

    def pick(self, count: int) -> int:
        """One of 0..count-1."""
        at = len(self.taken)
        value = self._values[at] % count if at < len(self._values) else 0
        self.taken.append(value)
        return value

    def chance(self, one_in: int) -> bool:
        """True once in `one_in` times; never for 0."""
        return self.pick(one_in) == one_in - 1


def drawn(seed: int, length: int = LENGTH) -> list[int]:
    """A schedule that depends on the seed alone: SHAKE-256, read as 16-bit words."""
    data = hashlib.shake_256(f"schedule {seed}".encode()).digest(2 * length)
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]


def trimmed(values: Sequence[int]) -> list[int]:
    """Without the zeros at the end: they stand there anyway."""
    end = len(values)
    while end and values[end - 1] == 0:
        end -= 1
    return list(values[:end])


def sparse(choices: dict[int, int]) -> list[int]:
    """The schedule with these choices at these places, and benign ones before and between them."""
    return [choices.get(at, 0) for at in range(max(choices, default=-1) + 1)]


def shrink(values: Sequence[int], fails: Callable[[list[int]], Sequence[int] | None], budget: int = 2000) -> list[int]:
    """A short schedule that still fails: delta debugging (Zeller and Hildebrandt 2002) over ranges, zeros and sizes.

    Args:
        values: A schedule for which `fails` holds.
        fails: Runs a schedule; the choices that it took if the same invariant breaks, else None.
        budget: At most so many runs.
    """
    best = trimmed(values)
    left = budget

    def attempt(candidate: list[int]) -> bool:
        nonlocal best, left
        candidate = trimmed(candidate)
        if left <= 0 or not _smaller(candidate, best):
            return False
        left -= 1
        took = fails(candidate)
        if took is None:
            return False
        taken = trimmed(took)
        best = taken if _smaller(taken, candidate) else candidate
        return True

    before: list[int] = []
    while best != before and left > 0:
        before = best
        size = max(len(best) // 2, 1)
        while size and left > 0:
            at = 0
            while at < len(best) and left > 0:
                if not attempt(best[:at] + best[at + size :]) and not attempt(
                    best[:at] + [0] * len(best[at : at + size]) + best[at + size :]
                ):
                    at += size
            size //= 2
        for at in range(len(best)):
            for value in _lower(best[at] if at < len(best) else 0):
                if attempt([*best[:at], value, *best[at + 1 :]]):
                    break
    return best


def _lower(value: int) -> list[int]:
    return sorted({1, 2, value // 2, value - 1} & set(range(1, value)))


def _smaller(one: Sequence[int], other: Sequence[int]) -> bool:
    """Fewer choices that are not benign, then fewer choices, then smaller ones."""

    def size(values: Sequence[int]) -> tuple[int, int, list[int]]:
        return len(values) - list(values).count(0), len(values), list(values)

    return size(one) < size(other)

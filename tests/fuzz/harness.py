"""What a harness is, how one execution is judged, and how a failing one is made small."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fuzz.dice import Dice


class Violation(AssertionError):
    """A property does not hold."""


class Harness(Protocol):
    """One target. `run` draws an input from the dice, checks every property on it, and says what came of it."""

    @property
    def name(self) -> str:
        """Short and unique."""

    def run(self, dice: Dice) -> str:
        """One execution; returns a class of outcomes. Any exception is a finding."""

    def explain(self, dice: Dice) -> str:
        """The input that these dice give, for people."""


@dataclass(frozen=True)
class Finding:
    """A failing execution, shrunk: `draws` replays it."""

    harness: str
    error: str
    draws: tuple[int, ...]
    explanation: str


def failure(harness: Harness, dice: Dice) -> str | None:
    """What went wrong with this execution, or None."""
    try:
        harness.run(dice)
    except (Exception, MemoryError, RecursionError) as error:
        return named(error)
    return None


def shrunk(harness: Harness, draws: list[int], error: str, budget: int = 400) -> Finding:
    """A shorter and smaller list of draws that fails in the same way, found in at most `budget` executions."""
    spent = 0

    def still(candidate: list[int]) -> bool:
        nonlocal spent
        spent += 1
        return failure(harness, Dice(replay=candidate)) == error

    best = list(draws)
    size = max(1, len(best) // 2)
    while size and spent < budget:  # cut spans, halving their size
        at = 0
        while at < len(best) and spent < budget:
            candidate = best[:at] + best[at + size :]
            if still(candidate):
                best = candidate
            else:
                at += size
        size //= 2
    for at, value in enumerate(best):  # then make each number as small as it can be
        for smaller in (0, 1, value // 256, value // 2):
            if smaller < best[at] and spent < budget and still([*best[:at], smaller, *best[at + 1 :]]):
                best[at] = smaller
                break
    try:
        harness.run(Dice(replay=best))
        text = "does not fail when replayed"
    except Exception as again:
        text = f"{type(again).__name__}: {str(again)[:300]}"
    return Finding(harness.name, error, tuple(best), f"{text}\n{harness.explain(Dice(replay=best))}")


def smaller_bytes(data: bytes, fails: Callable[[bytes], bool], budget: int = 400) -> bytes:
    """A shorter input that fails too: spans are cut as long as that is so."""
    size, best = max(1, len(data) // 2), data
    while size and budget > 0:
        at = 0
        while at < len(best) and budget > 0:
            budget -= 1
            candidate = best[:at] + best[at + size :]
            if fails(candidate):
                best = candidate
            else:
                at += size
        size //= 2
    return best


def named(error: BaseException) -> str:
    """Class and place of an error: what makes two failures the same one. A violated property is named by its text."""
    place = error.__traceback__
    where = ""
    while place is not None:
        code = place.tb_frame.f_code
        if "fuzz/" not in code.co_filename or not where:
            where = f"{code.co_filename.rsplit('/', 1)[-1]}:{place.tb_lineno} in {code.co_name}"
        place = place.tb_next
    return f"{where}: {error}" if isinstance(error, Violation) else f"{type(error).__name__} at {where}"

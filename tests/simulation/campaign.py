"""Many schedules: over processes, with a table of what happened, and every violation shrunk to a short schedule."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.fast import memoised
from tests.simulation.oracle import ViolationError
from tests.simulation.schedule import drawn, shrink
from tests.simulation.world import Outcome, play

REPORT_EVERY = 2.0  # seconds


@dataclass
class Tally:
    """What came of a range of seeds."""

    schedules: int = 0
    events: int = 0
    seconds: float = 0.0
    counters: Counter[str] = field(default_factory=Counter)
    found: list[tuple[int, str, str]] = field(default_factory=list)  # (seed, invariant, detail)

    def add(self, other: "Tally") -> None:
        """Both together."""
        self.schedules += other.schedules
        self.events += other.events
        self.seconds += other.seconds
        self.counters += other.counters
        self.found += other.found

    def to_json(self) -> str:
        """One line."""
        return json.dumps([self.schedules, self.events, self.seconds, self.counters, self.found])

    @classmethod
    def from_json(cls, line: str) -> "Tally":
        """The inverse."""
        schedules, events, seconds, counters, found = json.loads(line)
        return cls(schedules, events, seconds, Counter(counters), [(s, i, d) for s, i, d in found])


def run_range(first: int, count: int, most_found: int = 20) -> Iterator[Tally]:
    """Play seeds first..first+count-1; a tally of the last seconds, again and again."""
    with memoised():
        tally, since = Tally(), time.perf_counter()
        left = most_found
        for seed in range(first, first + count):
            outcome = play(drawn(seed))
            tally.schedules += 1
            tally.events += outcome.events
            tally.counters += outcome.counters
            if outcome.violation is not None:
                tally.found.append((seed, outcome.violation.invariant, str(outcome.violation)))
                left -= 1
            now = time.perf_counter()
            if now - since >= REPORT_EVERY or not left:
                tally.seconds = now - since
                yield tally
                tally, since = Tally(), now
            if not left:
                return
        tally.seconds = time.perf_counter() - since
        yield tally


def run(first: int, count: int, processes: int) -> Iterator[Tally]:
    """The same over several processes, each an interpreter of its own with a share of the seeds."""
    if processes == 1:
        yield from run_range(first, count)
        return
    shares = [(first + i * count // processes, first + (i + 1) * count // processes) for i in range(processes)]
    command = [sys.executable, "-m", "tests.simulation", "--part"]
    parts = [
        subprocess.Popen([*command, str(a), str(b - a)], stdout=subprocess.PIPE, text=True) for a, b in shares if b > a
    ]
    try:
        pipes = [part.stdout for part in parts if part.stdout is not None]
        open_ = list(pipes)
        while open_:
            for pipe in list(open_):
                line = pipe.readline()
                if line:
                    yield Tally.from_json(line)
                else:
                    open_.remove(pipe)
        if any(part.wait() for part in parts):
            raise RuntimeError("a process of the campaign failed")
    finally:
        for part in parts:
            part.kill()
            part.wait()


def shrunk(seed_or_values: int | Sequence[int], invariant: str, budget: int = 1500) -> list[int]:
    """A short schedule that breaks the same invariant."""
    values = drawn(seed_or_values) if isinstance(seed_or_values, int) else list(seed_or_values)

    def fails(candidate: list[int]) -> Sequence[int] | None:
        outcome = play(candidate)
        same = outcome.violation is not None and outcome.violation.invariant == invariant
        return outcome.taken if same else None

    with memoised():
        taken = fails(values)
        return shrink(taken if taken is not None else values, fails, budget)


def as_test(values: Sequence[int], violation: ViolationError) -> str:
    """A test to paste into tests/test_simulation.py."""
    name = violation.invariant.replace("-", "_")
    places = [f"{at}: {value}" for at, value in enumerate(values) if value]
    rows = [", ".join(places[i : i + 12]) for i in range(0, len(places), 12)]
    body = ",\n        ".join(rows)
    return (
        f"def test_{name}_found_by_simulation() -> None:\n"
        f'    """{str(violation)[:100]}"""\n'
        f"    choices = {{\n        {body}\n    }}\n"
        f"    outcome = play(sparse(choices), tracing=True)\n"
        f'    assert outcome.violation is None, "\\n".join(outcome.log)\n'
    )


def explain(seed: int, invariant: str) -> tuple[str, Outcome]:
    """Shrink one finding: the test to paste, and the run of it with its trace."""
    values = shrunk(seed, invariant)
    with memoised():
        outcome: Any = play(values, tracing=True)
    return as_test(values, outcome.violation), outcome

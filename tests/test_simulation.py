"""The federation under faults and lies: a few hundred schedules, and that the simulator itself can be trusted.

`make simulate N=20000` runs more of them. tests/test_seeded_bugs.py shows that what it looks for is found.
"""

import os
import subprocess
import sys

import pytest

from tests.simulation.__main__ import campaign
from tests.simulation.bugs import BUGS, Bug
from tests.simulation.campaign import Tally, as_test, run_range, shrunk
from tests.simulation.coverage import PHASES, SOMETIMES, never
from tests.simulation.fast import memoised
from tests.simulation.schedule import Schedule, drawn, shrink, sparse, trimmed
from tests.simulation.settings import Fault, draw
from tests.simulation.world import play

SCHEDULES = 200


@pytest.fixture(scope="module")
def tally() -> Tally:
    """What came of the schedules that every run of the tests plays."""
    total = Tally()
    for part in run_range(0, SCHEDULES):
        total.add(part)
    return total


def test_no_invariant_breaks(tally: Tally) -> None:
    assert tally.schedules == SCHEDULES and tally.found == []


def test_every_fault_strikes_and_attempts_end_in_every_phase(tally: Tally) -> None:
    """The large campaign asks for all of `SOMETIMES`."""
    hit = {name.partition("@")[0] for name in tally.counters}
    unseen = {Fault.REORDER, Fault.SHRINK}  # they change the order or the sets of other events
    assert {fault.name for fault in set(Fault) - unseen} <= hit
    assert all(tally.counters[f"closed {phase}"] for phase in PHASES)
    assert tally.counters["released"] and tally.counters["released in the end"]


def test_a_campaign_with_a_gap_fails() -> None:
    assert never(Tally().counters) == list(SOMETIMES)


def test_an_empty_schedule_is_two_good_rounds() -> None:
    outcome = play([], tracing=True)
    assert outcome.violation is None and outcome.taken == []
    assert [line for line in outcome.log if line.startswith("released")] == [
        "released (1, 0): (1, 2, 3, 4)",
        "released (2, 0): (1, 2, 3, 4)",
    ]


def test_a_schedule_is_replayed_exactly() -> None:
    """From the drawn list, and from the shorter list of the choices that were made."""
    with memoised():
        for seed in range(12):
            first = play(drawn(seed), tracing=True)
            assert play(drawn(seed), tracing=True).log == first.log
            assert play(first.taken, tracing=True).log == first.log


def test_memory_of_pure_functions_changes_nothing() -> None:
    with memoised():
        remembered = [play(drawn(seed), tracing=True).log for seed in range(4)]
    assert remembered == [play(drawn(seed), tracing=True).log for seed in range(4)]


def test_traces_do_not_depend_on_the_order_of_sets() -> None:
    digests = set()
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", "--digest", "12"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


def test_shrinking_finds_the_few_choices_that_matter() -> None:
    """A predicate on two places of a long list; both stay, everything else goes."""

    def fails(values: list[int]) -> list[int] | None:
        schedule = Schedule(values)
        picked = [schedule.pick(10) for _ in range(200)]
        return trimmed(schedule.taken) if 7 in picked and picked.count(3) >= 2 else None

    start = fails(drawn(1))
    assert start is not None
    assert sorted(shrink(start, fails)) == [3, 3, 7]


def _bug(name: str) -> Bug:
    return next(bug for bug in BUGS if bug.name == name)


def test_a_finding_becomes_a_short_test_that_fails_until_the_bug_is_gone() -> None:
    bug = _bug("all of U2 is declared")
    with bug.planted():
        with memoised():
            seed = next(s for s in range(20_000) if bug.can_show(draw(Schedule(drawn(s)))) and _breaks(drawn(s), bug))
        values = shrunk(seed, "sum", budget=400)
        outcome = play(values)
        assert outcome.violation is not None and outcome.violation.invariant == "sum"
        assert len([value for value in values if value]) <= 12
        scope: dict[str, object] = {"play": play, "sparse": sparse}
        exec(as_test(values, outcome.violation), scope)  # noqa: S102 - our own text
        test = scope["test_sum_found_by_simulation"]
        with pytest.raises(AssertionError):
            test()  # type: ignore[operator]
    test()  # type: ignore[operator]


def _breaks(values: list[int], bug: Bug) -> bool:
    violation = play(values).violation
    return violation is not None and violation.invariant in bug.breaks


def test_a_campaign_ends_with_exit_code_1_and_a_test_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    with _bug("spent is written after signing").planted():
        assert campaign(0, 4, processes=1) == 1
    printed = capsys.readouterr().out
    assert "VIOLATION seed" in printed and "def test_spent_found_by_simulation() -> None:" in printed
    assert campaign(0, 2, processes=2) == 0

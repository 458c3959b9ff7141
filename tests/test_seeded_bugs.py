"""The tester is tested: each planted protocol bug is found within a bounded number of schedules."""

import pytest

from tests.simulation.bugs import BUGS, Bug, edited
from tests.simulation.fast import memoised
from tests.simulation.schedule import Schedule, drawn
from tests.simulation.settings import draw
from tests.simulation.world import play

MOST = 600  # schedules in which the bug could show


def schedules_until_found(bug: Bug) -> int:
    """How many schedules it took; MOST + 1 if it was not found."""
    played, seed = 0, -1
    with bug.planted(), memoised():
        while played < MOST:
            seed += 1
            values = drawn(seed)
            if not bug.can_show(draw(Schedule(values))):
                continue
            played += 1
            violation = play(values, unseen=bug.unseen).violation
            if violation is not None and violation.invariant in bug.breaks:
                return played
    return MOST + 1


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_a_planted_bug_is_found(bug: Bug) -> None:
    took = schedules_until_found(bug)
    print(f"{bug.name}: {took} schedules")
    assert took <= MOST


def test_there_are_at_least_twenty_bugs_and_each_invariant_breaks_for_one() -> None:
    assert len(BUGS) >= 20
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_a_bug_that_no_longer_fits_the_source_is_an_error() -> None:
    from secagg import masking

    with pytest.raises(AssertionError, match="0 times"):
        edited(masking, "frame", ("no such words", ""))

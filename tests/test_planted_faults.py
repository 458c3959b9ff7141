"""Every planted fault is seen and named; a clean pipeline raises no alarm, whatever the seed."""

import pytest

from tests.planted_faults import FAULTS, PARTS, Fault, small_audit

CLEAN = 20


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_planted_fault_is_seen_and_named(fault: Fault) -> None:
    with fault.planted():
        result = small_audit(1, (fault.part,))
    seen = [f"{finding.name}: {finding.found}" for finding in result.violations]
    print(f"{fault.name}: {seen}")
    assert any(fault.seen_as in text for text in seen)


@pytest.mark.parametrize("seed", range(CLEAN))
def test_a_clean_pipeline_raises_no_alarm(seed: int) -> None:
    result = small_audit(seed, PARTS if seed < 2 else ("planted", "encoding"))
    assert [f"{finding.name}: {finding.found} ({finding.bound})" for finding in result.violations] == []
    assert len(result.findings) > 20


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("part", ["shares", "rounds", "shared books", "rotated", "clients"])
def test_clean_shares_raise_no_alarm(part: str, seed: int) -> None:
    result = small_audit(seed, (part,))
    assert [f"{finding.name}: {finding.found} ({finding.bound})" for finding in result.violations] == []


def test_rotated_sums_are_audited_beside_what_is_rotated() -> None:
    """Under names of their own, and within the comparisons that an audit has."""
    assert small_audit(0, ("shares", "rotated", "shared books", "encoding")).passed


def test_the_training_process_raises_no_alarm() -> None:
    assert small_audit(0, ("process",)).passed


def test_there_are_enough_faults_each_with_its_name() -> None:
    assert len(FAULTS) >= 20
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)

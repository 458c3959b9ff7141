"""The privacy ledger: charged once, for ever, across restarts; and the budget that refuses before a round."""

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp.accountant import epsilon
from dp.budget import Budget, check_next
from dp.errors import BudgetExceededError, LedgerError, UnsupportedMechanismError
from dp.events import SampledGaussian, event_tree, merge, parse
from dp.ledger import Charge, PrivacyLedger
from dp.store import OTHER_BOOK

RUN, OTHER_RUN = "11" * 32, "22" * 32
EVENT = event_tree(SampledGaussian(20, Fraction(1, 8), 98304, 65536))


def charge(round_: int, attempt: int = 0, digest: str = RUN, event: dict[str, Any] | None = None) -> Charge:
    return Charge("task", digest, round_, attempt, event or EVENT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "books" / "ledger.db"


def opened(path: Path) -> PrivacyLedger:
    return PrivacyLedger.open(path, silo="north", population="codes")


def test_charges_compose_across_restarts_and_runs(path: Path) -> None:
    with opened(path) as ledger:
        ledger.charge(charge(1))
        ledger.charge(charge(1, 1))
    with opened(path) as ledger:
        ledger.charge(charge(1, digest=OTHER_RUN))
        assert ledger.charges() == (charge(1), charge(1, 1), charge(1, digest=OTHER_RUN))
        assert ledger.head == (3, ledger.rows()[-1].hash)
        total = epsilon(ledger.charges(), Decimal("1e-6"), prv=False)
    assert total == epsilon(
        [SampledGaussian(60, charge(1).mechanism.sampling_probability, 98304, 65536)], Decimal("1e-6"), prv=False
    )


def test_charging_twice_is_charging_once(path: Path) -> None:
    with opened(path) as ledger:
        row = ledger.charge(charge(1))
        assert ledger.charge(charge(1)) == row
    with opened(path) as ledger:
        assert ledger.charge(charge(1)) == row
        assert len(ledger.charges()) == 1 and ledger.head[0] == 1


def test_another_event_for_the_same_attempt_is_refused(path: Path) -> None:
    with opened(path) as ledger:
        ledger.charge(charge(1))
        with pytest.raises(LedgerError, match="charged already"):
            ledger.charge(charge(1, event=event_tree(SampledGaussian(1, Fraction(1, 8), 98304, 65536))))
        with pytest.raises(LedgerError, match="charged already"):
            ledger.charge(Charge("renamed", RUN, 1, 0, EVENT))
        assert len(ledger.charges()) == 1


def test_a_later_change_of_the_callers_event_does_not_reach_the_ledger(path: Path) -> None:
    event = json.loads(json.dumps(EVENT))
    with opened(path) as ledger:
        ledger.charge(charge(1, event=event))
        event["count"] = 1
        assert ledger.charges()[0].mechanism.count == 20


def test_no_refund(path: Path) -> None:
    with opened(path) as ledger:
        assert not [name for name in dir(ledger) if any(w in name for w in ("refund", "delete", "remove", "clear"))]


def test_one_ledger_per_silo_and_population(path: Path) -> None:
    opened(path).close()
    for silo, population in (("south", "codes"), ("north", "letters")):
        with pytest.raises(LedgerError) as caught:
            PrivacyLedger.open(path, silo=silo, population=population)
        assert caught.value.code == OTHER_BOOK


@pytest.mark.parametrize(
    "fields",
    [
        ("task", "xy" * 32, 1, 0),
        ("task", "AA" * 32, 1, 0),
        ("", RUN, 1, 0),
        ("task", RUN, -1, 0),
        ("task", RUN, 1, True),
    ],
)
def test_a_charge_for_nothing_is_refused(fields: tuple[str, str, int, int]) -> None:
    with pytest.raises(LedgerError):
        Charge(*fields, EVENT)


def changed(**fields: object) -> dict[str, Any]:
    """The event with one field of the innermost fitting node replaced."""
    event: dict[str, Any] = json.loads(json.dumps(EVENT))
    for name, value in fields.items():
        node = event
        while name not in node:
            node = node["event"]
        node[name] = value
    return event


@pytest.mark.parametrize(
    "event",
    [
        changed(count=0),
        changed(count=1.5),
        changed(count=True),
        changed(numerator=9),
        changed(denominator=0),
        changed(noise_steps=0),
        changed(noise_steps="98304"),
        changed(clip_steps=-1),
        changed(clip_steps=2**53),
        changed(kind="dp_accounting.dp_event.NoOpDpEvent"),
        {"kind": "gaussian", "noise_multiplier": 1},
        {"kind": "self_composed", "count": 2, "event": EVENT},
        {"kind": "composed", "events": [EVENT]},
        {**EVENT, "module_name": "os"},
        {"kind": ["self_composed"]},
        None,
        [],
    ],
)
def test_the_event_list_is_closed(event: Any) -> None:
    with pytest.raises(UnsupportedMechanismError):
        parse(event)
    with pytest.raises(UnsupportedMechanismError):
        Charge("task", RUN, 1, 0, event)


counts = st.integers(1, 50)


@given(st.lists(st.tuples(counts, st.integers(1, 4), st.integers(1, 3)), max_size=8), st.randoms(use_true_random=False))
def test_merging_keeps_every_step_in_any_order(raw: list[tuple[int, int, int]], shuffler: Any) -> None:
    events = [parse(event_tree(SampledGaussian(count, Fraction(1, q), 100 * noise, 100))) for count, q, noise in raw]
    merged = merge(events)
    assert sum(e.count for e in merged) == sum(e.count for e in events)
    assert len({(e.sampling_probability, e.noise_steps, e.clip_steps) for e in merged}) == len(merged)
    shuffler.shuffle(events)
    assert merge(events) == merged


def test_the_budget_refuses_the_round_before_it_starts(path: Path) -> None:
    budget = Budget(Decimal("3"), Decimal("0.000001"))
    with opened(path) as ledger:
        for round_ in range(1, 100):
            try:
                after = check_next(ledger.charges(), charge(round_), budget)
            except BudgetExceededError as error:
                refused = error
                break
            ledger.charge(charge(round_))
            assert after.epsilon == epsilon(ledger.charges(), budget.delta, prv=False).epsilon
        spent = epsilon(ledger.charges(), budget.delta, prv=False)
        over = epsilon([*ledger.charges(), charge(99)], budget.delta, prv=False)
    assert Decimal(spent.epsilon) <= 3 < Decimal(over.epsilon)
    assert spent.epsilon in str(refused) and over.epsilon in str(refused) and "at most ε = 3 at δ" in str(refused)
    with opened(path) as ledger, pytest.raises(BudgetExceededError):  # also after a restart, also for another run
        check_next(ledger.charges(), charge(1, digest=OTHER_RUN), budget)


def test_a_task_that_the_budget_would_stop_half_way_is_refused_before_its_first_round(path: Path) -> None:
    delta = Decimal("0.000001")
    three = epsilon([charge(r) for r in range(3)], delta, prv=False).epsilon
    with opened(path) as ledger:
        assert ledger.last_charged is None
        for round_ in (7, 5):
            ledger.charge(charge(round_))
        assert ledger.last_charged == charge(5)  # the last one written, not the highest round
        budget = Budget(Decimal(three), delta)
        check_next(ledger.charges(), charge(1, digest=OTHER_RUN), budget)  # one round fits
        with pytest.raises(BudgetExceededError, match="the 2 rounds of") as refused:
            check_next(ledger.charges(), charge(1, digest=OTHER_RUN), budget, 2)
        four = epsilon([charge(r) for r in range(4)], delta, prv=False).epsilon
    assert f"with them ε = {four}" in str(refused.value) and refused.value.code == "E201"


def test_an_attempt_that_stands_in_the_ledger_is_not_counted_twice() -> None:
    budget = Budget(Decimal("8"), Decimal("0.000001"))
    assert check_next([charge(1)], charge(1), budget) == check_next([], charge(1), budget)


@pytest.mark.parametrize(("e", "d"), [("0", "1e-6"), ("51", "1e-6"), ("1", "0"), ("1", "1"), ("NaN", "1e-6")])
def test_a_budget_that_protects_nobody_is_refused(e: str, d: str) -> None:
    with pytest.raises((UnsupportedMechanismError, ArithmeticError)):
        Budget(Decimal(e), Decimal(d))

"""The accountant: published reference points, independent certificates, and failing closed."""

import builtins
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp import accountant
from dp.accountant import ABOVE_CEILING, NOT_NEEDED, NOT_RUN, SKIPPED, calibrate, curve, delta_at, epsilon
from dp.errors import AccountingError, UnsupportedMechanismError
from dp.events import SampledGaussian

GRAIN = 1 << 16


def event(q: str, multiplier: str, steps: int, clip: int = GRAIN) -> SampledGaussian:
    return SampledGaussian(steps, Fraction(q), int(Fraction(multiplier) * clip), clip)


@pytest.mark.parametrize(
    ("q", "multiplier", "steps", "delta", "expected"),
    [
        ("0.01", "1", 1000, "1e-5", "1.83"),
        ("0.05", "1", 200, "1e-5", "4.77"),
        ("0.02", "0.8", 500, "1e-6", "5.44"),
        ("1", "5", 20, "1e-5", "3.85"),
    ],
)
def test_reference_points(q: str, multiplier: str, steps: int, delta: str, expected: str) -> None:
    result = epsilon([event(q, multiplier, steps)], Decimal(delta))
    assert result.method == "pld" and result.releases == steps
    assert str(Decimal(result.epsilon).quantize(Decimal("0.01"))) == expected
    assert Decimal(result.continuous) <= Decimal(result.epsilon) <= Decimal(result.rdp)
    assert abs(Decimal(result.second_grid) - Decimal(result.epsilon)) < Decimal("0.005")
    if q == "1":
        assert result.prv == NOT_NEEDED and abs(Decimal(result.closed_form) - Decimal(result.epsilon)) < Decimal(
            "0.001"
        )
    else:
        assert result.closed_form == NOT_NEEDED and abs(Decimal(result.prv) - Decimal(result.epsilon)) < Decimal("0.02")


def test_the_risk_figures_of_the_reference_point() -> None:
    events = [event("0.01", "1", 1000)]
    assert accountant.membership_advantage(events)[:5] == "0.161"  # and not the .723 of (ε, δ)
    tpr = Decimal(accountant.tpr_at_fpr(events))
    assert Decimal("0.01") < tpr < Decimal("0.0625")  # far below e^ε · 1 %


def test_risk_figures_without_sampling_against_the_closed_form() -> None:
    # One Gaussian with μ = 1: advantage 2Φ(1/2) - 1, TPR at FPR α is Φ(Φ^{-1}(α) + 1).
    events = [event("1", "4", 16)]
    assert float(accountant.membership_advantage(events)) == pytest.approx(0.38292, abs=5e-4)
    assert float(accountant.tpr_at_fpr(events)) == pytest.approx(0.09236, abs=2e-3)
    assert float(accountant.tpr_at_fpr(events)) >= 0.09236


def test_delta_curve_falls_and_meets_epsilon() -> None:
    events, delta = [event("0.05", "1", 200)], Decimal("1e-5")
    at = Decimal(epsilon(events, delta, prv=False).epsilon)
    values = [Decimal(v) for v in delta_at(events, [Decimal(0), Decimal(1), Decimal(3), at])]
    assert values == sorted(values, reverse=True) and values[0] < 1
    assert abs(values[3] - delta) <= Decimal("2e-7")


def test_certified_is_above_continuous_where_the_grid_is_coarse() -> None:
    coarse = epsilon([event("0.05", "1", 200, clip=100)], Decimal("1e-5"), prv=False)
    fine = epsilon([event("0.05", "1", 200)], Decimal("1e-5"), prv=False)
    assert Decimal(coarse.epsilon) > Decimal(coarse.continuous) + Decimal("0.01")
    assert Decimal(coarse.continuous) == Decimal(fine.continuous)
    with pytest.raises(UnsupportedMechanismError, match="too coarse"):
        epsilon([event("0.05", "1", 200, clip=99)], Decimal("1e-5"))


def test_the_naive_composition_of_runs_is_the_same_as_one_long_run() -> None:
    delta = Decimal("1e-5")
    parts = [event("0.05", "1", 20)] * 10
    assert epsilon(parts, delta, prv=False) == epsilon([event("0.05", "1", 200)], delta, prv=False)
    steps = curve(parts, delta)
    assert list(steps) == sorted(steps) and len(steps) == 10
    assert steps[-1] == epsilon(parts, delta, prv=False).epsilon
    assert curve([], delta) == () and epsilon([], delta).epsilon == "0.0000"


def test_different_mechanisms_compose() -> None:
    one, two, delta = event("0.05", "1", 50), event("0.1", "2", 50), Decimal("1e-5")
    both = epsilon([one, two], delta)
    assert both == epsilon([two, one], delta)
    single = max(Decimal(epsilon([e], delta, prv=False).epsilon) for e in (one, two))
    assert single < Decimal(both.epsilon) < 2 * single
    assert abs(Decimal(both.prv) - Decimal(both.epsilon)) < Decimal("0.02")


@settings(max_examples=5)
@given(st.integers(2, 40), st.integers(60, 300), st.integers(1, 60))
def test_more_steps_cost_more_and_more_noise_costs_less(divisor: int, percent: int, steps: int) -> None:
    delta = Decimal("1e-6")
    base = SampledGaussian(steps, Fraction(1, divisor), percent * 1000, 100_000)
    more = SampledGaussian(2 * steps, base.sampling_probability, base.noise_steps, base.clip_steps)
    noisier = SampledGaussian(steps, base.sampling_probability, 2 * base.noise_steps, base.clip_steps)
    here, after, quiet = (epsilon([e], delta, prv=False) for e in (base, more, noisier))
    assert (
        Decimal(quiet.epsilon) < Decimal(here.epsilon) < Decimal(after.epsilon) <= Decimal(after.rdp) + Decimal("0.01")
    )


@settings(max_examples=6)
@given(st.integers(20, 400), st.integers(1, 30))
def test_without_sampling_pld_is_the_closed_form(percent: int, steps: int) -> None:
    result = epsilon([SampledGaussian(steps, Fraction(1), percent * 1000, 100_000)], Decimal("1e-6"), prv=False)
    if result.epsilon != ABOVE_CEILING:
        mu = math.sqrt(steps) / (percent / 100)
        upper = mu * mu / 2 + mu * math.sqrt(2 * math.log(1e6))  # the tail bound of the Gaussian's privacy loss
        assert float(result.closed_form) <= upper + 1e-3
        assert abs(float(result.closed_form) - float(result.epsilon)) <= 1e-3 + 0.002 * float(result.epsilon) + 1e-4


def test_more_than_fifty_is_not_a_figure() -> None:
    result = epsilon([event("0.5", "0.5", 1000)], Decimal("1e-6"))
    assert (result.epsilon, result.continuous, result.rdp) == (ABOVE_CEILING,) * 3
    assert not result.within(Decimal(50))
    assert curve([event("0.5", "0.5", 1000)], Decimal("1e-6")) == (ABOVE_CEILING,)


def test_tiny_delta_is_rdp_alone() -> None:
    result = epsilon([event("0.01", "2", 100)], Decimal("1e-12"))
    assert result.method == "rdp" and result.epsilon == result.rdp and result.second_grid == NOT_NEEDED


@pytest.mark.parametrize("delta", ["0", "1", "-1e-6"])
def test_delta_out_of_range(delta: str) -> None:
    with pytest.raises(AccountingError):
        epsilon([event("0.1", "1", 1)], Decimal(delta))


@pytest.mark.parametrize("bad", [SampledGaussian(1_000_001, Fraction(1, 9), 200, 100), event("0.1", "1001", 1)])
def test_outside_the_compared_range_is_refused(bad: SampledGaussian) -> None:
    with pytest.raises(UnsupportedMechanismError):
        epsilon([bad], Decimal("1e-6"))


# -- failing closed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "factor", "q"),
    [
        ("_prv", 1.05, "0.05"),
        ("_prv", 0.95, "0.05"),
        ("_rdp", 0.5, "0.05"),
        ("_closed_form", 1.02, "1"),
        ("_closed_form", 0.98, "1"),
    ],
)
def test_a_disagreeing_accountant_stops_everything(
    monkeypatch: pytest.MonkeyPatch, name: str, factor: float, q: str
) -> None:
    accountant._account.cache_clear()
    real = getattr(accountant, name)

    def skewed(*arguments: Any) -> float | None:
        value = real(*arguments)
        return None if value is None else value * factor

    monkeypatch.setattr(accountant, name, skewed)
    with pytest.raises(AccountingError, match="disagree"):
        epsilon([event(q, "1" if q != "1" else "5", 20)], Decimal("1e-5"))
    accountant._account.cache_clear()


def test_a_pld_that_is_too_small_or_too_large_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    real = accountant._single
    for wrong in (1.05, 0.95):
        accountant._account.cache_clear()
        accountant._pld.cache_clear()
        monkeypatch.setattr(accountant, "_single", lambda d, *rest, wrong=wrong: real(d * wrong, *rest))
        with pytest.raises(AccountingError, match="disagree"):
            epsilon([event("0.05", "1", 200)], Decimal("1e-5"))
    accountant._account.cache_clear()
    accountant._pld.cache_clear()


def test_a_failing_prv_leaves_the_rdp_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    accountant._account.cache_clear()
    monkeypatch.setattr(accountant, "_prv", lambda events, delta: math.nan)
    result = epsilon([event("0.05", "1", 20)], Decimal("1e-5"))
    assert result.method == "rdp" and result.epsilon == result.rdp and result.prv == "failed"
    accountant._account.cache_clear()


def test_missing_opacus_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    accountant._account.cache_clear()
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("opacus"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert epsilon([event("0.05", "1", 20)], Decimal("1e-5")).prv == SKIPPED
    assert epsilon([event("0.05", "1", 20)], Decimal("1e-5"), prv=False).prv == NOT_RUN
    accountant._account.cache_clear()


# -- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "q", "steps"), [("8", (1, 8), 100)])
def test_calibrate_gives_the_smallest_noise(target: str, q: tuple[int, int], steps: int) -> None:
    delta = Decimal("1e-6")
    noise = calibrate(Decimal(target), delta, SampledGaussian(steps, Fraction(*q), 1, GRAIN))

    def price(n: int) -> Decimal:
        return Decimal(epsilon([SampledGaussian(steps, Fraction(*q), n, GRAIN)], delta, prv=False).epsilon)

    assert price(noise) <= Decimal(target) < price(noise - 1)


@pytest.mark.parametrize("target", ["0", "51", "0.000001"])
def test_calibrate_refuses_what_cannot_be(target: str) -> None:
    with pytest.raises(AccountingError):
        calibrate(Decimal(target), Decimal("1e-6"), SampledGaussian(1000, Fraction(1, 2), 1, GRAIN))

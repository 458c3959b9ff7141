"""What the charges of a ledger cost: certified ε, cross-checked, rounded up, or an error.

Unit: one record; adjacency: add or remove one (replace-one costs far more and is never mixed in).

*Certified ε* [derived for this project, not peer reviewed]: for an integer mechanism with noise σ_int >= 100 grid
steps and sensitivity Δ, the privacy-loss distribution of the Poisson-sampled **continuous** Gaussian at standard
deviation sqrt(σ_int² - 100)/Δ. A discrete Gaussian of variance σ_int² is a continuous one of variance σ_int² - 100
plus post-processing (randomised rounding by a discrete Gaussian of variance 100), up to lattice terms
e^{±4dε_s} per release with ε_s ≈ 2e^{-200π²} < 1e-850, which any rounding up of ε swallows. In protocol R1 every client
adds one whole Gaussian: no term for sums of shares. The plain continuous figure stands beside it, labelled.

Cross-checks run before anything is returned and fail closed (AccountingError): RDP at integer orders (Mironov 2017),
PRV (Gopi et al. 2021, by Opacus if it is installed), a second grid, and the closed form of Balle and Wang 2018
without sampling. The privacy-loss distributions are dp-accounting's: pessimistic, add and remove, connect-the-dots.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeAlias

from dp.errors import AccountingError, UnsupportedMechanismError
from dp.events import SampledGaussian, merge
from dp.ledger import Charge

# Width of the loss grid by number of releases: its error grows like releases · width². Every grid is pessimistic, so
# each gives upper bounds; the second grid, four times coarser, also serves the curves and risk figures.
GRIDS = ((1_000, 5e-4), (16_000, 1.25e-4), (1_000_000, 3.125e-5))
COARSER = 4
MIN_NOISE_STEPS = 100  # below, the integer noise is too coarse for the certificate
LATTICE_VARIANCE = 100
MAX_RELEASES, MAX_MULTIPLIER = GRIDS[-1][0], 1000
CEILING = Decimal(50)
ABOVE_CEILING = ">50"
PRV_ERROR = Decimal("0.01")
SMALLEST_PLD_DELTA = Decimal("1e-11")  # below it the FFT's rounding errors count: RDP alone
SKIPPED = "skipped: Opacus is not installed"
NOT_RUN = "not run"
NOT_NEEDED = "not applicable"

_FOUR = Decimal("0.0001")
_RDP_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512, 1024)
_PLD: TypeAlias = Any  # dp_accounting carries no types


@dataclass(frozen=True, slots=True)
class Accounting:
    """The price of a list of charges at one δ. Figures are decimal strings, ε rounded up to four places.

    Attributes:
        delta: The δ that every figure holds at.
        epsilon: Certified ε (see the module), or ``">50"``: no useful guarantee.
        continuous: The same for continuous noise of the nominal standard deviation (not certified).
        method: ``"pld"``, or ``"rdp"`` where δ is too small for it or PRV fails.
        rdp: RDP certificate.
        prv: PRV upper bound, or why there is none.
        closed_form: Exact ε without sampling, or why there is none.
        second_grid: PLD on a coarser grid.
        releases: Gradient steps composed.
    """

    delta: str
    epsilon: str
    continuous: str
    method: str
    rdp: str
    prv: str
    closed_form: str
    second_grid: str
    releases: int

    def within(self, budget: Decimal) -> bool:
        """Whether certified ε is at most `budget`; ``">50"`` is within none."""
        return self.epsilon != ABOVE_CEILING and Decimal(self.epsilon) <= budget


def mechanisms(charges: Iterable[Charge | SampledGaussian]) -> tuple[SampledGaussian, ...]:
    """The charges as mechanisms, equal ones added up."""
    return merge(c.mechanism if isinstance(c, Charge) else c for c in charges)


def epsilon(charges: Iterable[Charge | SampledGaussian], delta: Decimal, *, prv: bool = True) -> Accounting:
    """Certified ε of everything charged, with its cross-checks.

    Args:
        charges: Any runs and manifests; all of them compose.
        delta: In (0, 1).
        prv: Also run the PRV cross-check (seconds: it imports Opacus). Off for the decision before each round,
            which RDP, the second grid and the closed form check; on wherever a figure is published.

    Raises:
        AccountingError: The accountants disagree. UnsupportedMechanismError: no certificate for this noise.
    """
    if not 0 < delta < 1:
        raise AccountingError("δ out of range", found=delta, expected="a number between 0 and 1")
    events = mechanisms(charges)
    for event in events:
        if event.noise_steps > MAX_MULTIPLIER * event.clip_steps or sum(e.count for e in events) > MAX_RELEASES:
            raise UnsupportedMechanismError(
                "outside the range in which the accountants were compared",
                found=f"{event.count} steps at noise multiplier {event.noise_steps / event.clip_steps:.6g}",
                expected=f"at most {MAX_RELEASES} steps and a multiplier of at most {MAX_MULTIPLIER}",
            )
        if event.noise_steps < MIN_NOISE_STEPS:
            raise UnsupportedMechanismError(
                "the integer noise is too coarse for the certificate",
                found=f"{event.noise_steps} grid steps",
                expected=f"at least {MIN_NOISE_STEPS}",
                do="raise the grid's scale in the manifest",
            )
    return _account(events, delta, prv)


@lru_cache(maxsize=512)
def _account(events: tuple[SampledGaussian, ...], delta: Decimal, prv: bool) -> Accounting:
    d, releases = float(delta), sum(event.count for event in events)
    if not events:
        zero = "0.0000"
        return Accounting(f"{delta:f}", zero, zero, "pld", zero, NOT_NEEDED, NOT_NEEDED, zero, 0)
    rdp = _rdp(events, d)
    if not rdp <= 2 * float(CEILING) or (delta >= SMALLEST_PLD_DELTA and _pld_epsilon(events, d) > float(CEILING)):
        # Far beyond use: the other accountants may overflow there, and no figure is printed.
        over = ABOVE_CEILING
        return Accounting(f"{delta:f}", over, over, "rdp", over, NOT_NEEDED, NOT_NEEDED, over, releases)
    continuous = _up(_pld(events, 1, False).get_epsilon_for_delta(d))
    closed = _closed_form(events, d)
    result = Accounting(f"{delta:f}", _up(rdp), continuous, "rdp", _up(rdp), NOT_NEEDED, NOT_NEEDED, "", releases)
    if delta < SMALLEST_PLD_DELTA:
        return replace(result, epsilon=_capped(rdp), second_grid=NOT_NEEDED)
    pld = _pld_epsilon(events, d)
    coarse = _pld(events, COARSER, True).get_epsilon_for_delta(d)
    bounds = [rdp]
    _agree("the second grid", coarse, pld, 1e-3 + 0.002 * pld)
    result = replace(result, second_grid=_up(coarse), method="pld", epsilon=_capped(pld))
    if closed is not None:
        _agree("the closed form", closed, pld, 1e-3 + 0.002 * pld)
        result = replace(result, closed_form=_up(closed))
    elif prv:
        upper = _prv(events, d)
        if upper is None:
            result = replace(result, prv=SKIPPED)
        elif math.isnan(upper):
            result = replace(result, prv="failed", method="rdp", epsilon=_capped(rdp))
        else:
            _agree("PRV", upper, pld, float(PRV_ERROR) + 1e-3 + 0.002 * pld)
            bounds.append(upper)
            result = replace(result, prv=_up(upper))
    else:
        result = replace(result, prv=NOT_RUN)
    if not pld <= 1.002 * min(bounds) + 0.002:
        raise _disagreement("an upper bound", min(bounds), pld)
    if not float(continuous) <= pld + 2e-4:
        raise _disagreement("the continuous Gaussian", float(continuous), pld)
    return result


def curve(charges: Sequence[Charge | SampledGaussian], delta: Decimal) -> tuple[str, ...]:
    """Certified ε after each charge, in the order of the ledger: the last equals `epsilon` of all."""
    prefixes = (mechanisms(charges[:end]) for end in range(1, len(charges) + 1))
    return tuple(_certified(events, delta) for events in prefixes)


@lru_cache(maxsize=1024)
def _certified(events: tuple[SampledGaussian, ...], delta: Decimal) -> str:
    rdp = _rdp(events, float(delta))
    if delta < SMALLEST_PLD_DELTA or not rdp <= 2 * float(CEILING):
        return _capped(rdp)
    return _capped(_pld_epsilon(events, float(delta)))


def delta_at(charges: Iterable[Charge | SampledGaussian], epsilons: Sequence[Decimal]) -> tuple[str, ...]:
    """δ(ε) of the certified mechanism at each ε, rounded up to three significant digits, as plain decimals.

    Values below 1e-11 are given as 1e-11 (still an upper bound): the FFT resolves no less.
    """
    return _delta_at(mechanisms(charges), tuple(epsilons))


@lru_cache(maxsize=64)
def _delta_at(events: tuple[SampledGaussian, ...], epsilons: tuple[Decimal, ...]) -> tuple[str, ...]:
    values = _pld(events, COARSER, True).get_delta_for_epsilon([float(e) for e in epsilons])
    return tuple(_significant(max(Decimal(float(v)), SMALLEST_PLD_DELTA)) for v in values)


def membership_advantage(charges: Iterable[Charge | SampledGaussian]) -> str:
    """Largest TPR - FPR of any membership test: δ(0), the total variation distance. Four places, rounded up."""
    return _up(min(1.0, float(_delta_at_zero(mechanisms(charges)))))


@lru_cache(maxsize=64)
def _delta_at_zero(events: tuple[SampledGaussian, ...]) -> float:
    return float(_pld(events, COARSER, True).get_delta_for_epsilon(0.0))


def tpr_at_fpr(charges: Iterable[Charge | SampledGaussian], fpr: Decimal = Decimal("0.01")) -> str:
    """Largest true-positive rate of any membership test at this false-positive rate. Four places, rounded up.

    From the whole curve and not from one (ε, δ): TPR <= min over ε of δ(ε) + e^ε·FPR and of
    1 - e^{-ε}(1 - δ(ε) - FPR) (Dong, Roth, Su 2022, proposition 6). Every ε of the grid gives a valid bound.
    """
    return _tpr(mechanisms(charges), float(fpr))


@lru_cache(maxsize=64)
def _tpr(events: tuple[SampledGaussian, ...], rate: float) -> str:
    grid = [k / 50 for k in range(0, 501)]
    deltas = _pld(events, COARSER, True).get_delta_for_epsilon(grid)
    bounds = [1.0]
    for e, d in zip(grid, deltas, strict=True):
        bounds += [float(d) + math.exp(e) * rate, 1 - math.exp(-e) * (1 - float(d) - rate)]
    return _up(min(bounds))


def calibrate(
    target_epsilon: Decimal, delta: Decimal, numerator: int, denominator: int, steps: int, clip_steps: int
) -> int:
    """Smallest `noise_steps` whose certified ε for `steps` steps is at most `target_epsilon`.

    Args:
        target_epsilon: In (0, 50].
        delta: In (0, 1).
        numerator: Of the sampling probability.
        denominator: Of the sampling probability.
        steps: Gradient steps of all rounds and attempts that shall fit into the budget.
        clip_steps: Clip norm in grid steps.

    Raises:
        AccountingError: No supported noise reaches the target, or the cross-checks fail.
    """
    probability = Fraction(numerator, denominator)
    if not 0 < target_epsilon <= CEILING:
        raise AccountingError("no such target ε", found=target_epsilon, expected=f"above 0, at most {CEILING}")

    def holds(noise: int, coarser: int) -> bool:
        events = (SampledGaussian(steps, probability, noise, clip_steps),)
        if not _rdp(events, float(delta)) <= 2 * float(CEILING):
            return False
        return Decimal(_up(_pld_epsilon(events, float(delta), coarser))) <= target_epsilon

    high = max(MIN_NOISE_STEPS, clip_steps)
    while not holds(high, COARSER):
        high *= 2
        if high > MAX_MULTIPLIER * clip_steps:
            raise AccountingError("no noise reaches this ε", found=target_epsilon, expected="a reachable target")
    low = MIN_NOISE_STEPS - 1 if high == MIN_NOISE_STEPS else high // 2
    while low > MIN_NOISE_STEPS and holds(low, COARSER):
        low, high = max(MIN_NOISE_STEPS - 1, low // 2), low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle, COARSER) else (middle, high)
    # The coarse grid is pessimistic: on the fine one the answer lies a little lower. Gallop down to it.
    step, low = 1, high - 1
    while low >= MIN_NOISE_STEPS and holds(low, 1):
        low, high, step = max(MIN_NOISE_STEPS - 1, low - 2 * step), low, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle, 1) else (middle, high)
    checked = epsilon([SampledGaussian(steps, probability, high, clip_steps)], delta, prv=False)
    if not checked.within(target_epsilon):
        raise AccountingError("the calibrated noise misses the target", found=checked.epsilon, expected=target_epsilon)
    return high


def _deviation(event: SampledGaussian, certified: bool) -> float:
    """Standard deviation over sensitivity, rounded down."""
    variance = event.noise_steps**2 - (LATTICE_VARIANCE if certified else 0)
    return math.nextafter(math.sqrt(variance) / event.clip_steps * (1 - 2**-51), 0.0)


def _probability(event: SampledGaussian) -> float:
    """Sampling probability, rounded up."""
    return min(1.0, math.nextafter(float(event.sampling_probability), 2.0)) if event.sampling_probability < 1 else 1.0


@lru_cache(maxsize=64)
def _single(deviation: float, probability: float, grid: float) -> _PLD:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        deviation, value_discretization_interval=grid, sampling_prob=probability, use_connect_dots=True
    )


@lru_cache(maxsize=64)
def _pld(events: tuple[SampledGaussian, ...], coarser: int, certified: bool) -> _PLD:
    from dp_accounting.pld import privacy_loss_distribution

    releases = sum(event.count for event in events)
    grid = coarser * next(width for most, width in GRIDS if releases <= most)
    total = None
    for event in events:
        one = _single(_deviation(event, certified), _probability(event), grid).self_compose(event.count)
        total = one if total is None else total.compose(one)
    return privacy_loss_distribution.identity(grid) if total is None else total


def _pld_epsilon(events: tuple[SampledGaussian, ...], delta: float, coarser: int = 1) -> float:
    return float(_pld(events, coarser, True).get_epsilon_for_delta(delta))


def _rdp(events: tuple[SampledGaussian, ...], delta: float) -> float:
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(list(_RDP_ORDERS))
    for event in events:
        gaussian = dp_event.GaussianDpEvent(_deviation(event, True))
        accountant.compose(dp_event.PoissonSampledDpEvent(_probability(event), gaussian), event.count)
    return float(accountant.get_epsilon(delta))


def _prv(events: tuple[SampledGaussian, ...], delta: float) -> float | None:
    """PRV's upper bound; None if Opacus is missing, NaN if its accountant fails."""
    try:
        from opacus.accountants import PRVAccountant
    except ImportError:
        return None
    accountant = PRVAccountant()
    accountant.history = [(_deviation(e, True), _probability(e), e.count) for e in events]
    try:
        return float(accountant.get_epsilon(delta, eps_error=float(PRV_ERROR)))
    except (ArithmeticError, RuntimeError, ValueError, MemoryError):
        return math.nan


def _closed_form(events: tuple[SampledGaussian, ...], delta: float) -> float | None:
    """Exact ε of composed Gaussians without sampling (Balle and Wang 2018, theorem 8); None if any is sampled."""
    if any(event.sampling_probability != 1 for event in events):
        return None
    from scipy.special import log_ndtr, ndtr

    mu = math.sqrt(sum(event.count / _deviation(event, True) ** 2 for event in events))

    def excess(e: float) -> float:
        return float(ndtr(mu / 2 - e / mu) - math.exp(e + log_ndtr(-mu / 2 - e / mu))) - delta

    low, high = 0.0, 1.0
    if excess(low) <= 0:
        return 0.0
    while excess(high) > 0:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def _agree(what: str, value: float, pld: float, tolerance: float) -> None:
    if not abs(value - pld) <= tolerance:
        raise _disagreement(what, value, pld)


def _disagreement(what: str, value: float, pld: float) -> AccountingError:
    return AccountingError(
        "independent accountants disagree",
        found=f"ε = {pld:.4f} by PLD and {value:.4f} by {what}",
        expected="agreement within the declared error",
        do="release nothing; report the event tree as a bug",
    )


def _up(value: float) -> str:
    if not math.isfinite(value) or value < 0:
        raise AccountingError("an accountant gave no number", found=value, expected="a finite ε")
    return str(Decimal(value).quantize(_FOUR, ROUND_CEILING))


def _capped(value: float) -> str:
    return ABOVE_CEILING if value > float(CEILING) else _up(value)


def _significant(value: Decimal) -> str:
    digits = value.adjusted() - 2
    return f"{value.quantize(Decimal(1).scaleb(digits), ROUND_CEILING):f}"

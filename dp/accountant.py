"""What the charges of a ledger cost: certified ε, cross-checked, rounded up, or an error.

Unit: one record; adjacency: add or remove one (replace-one costs far more and is never mixed in). Or, where every event
is client-level (protocol C): one client; zero-out. The two are never composed with each other: `in_unit` gives the
charges of a ledger in one of them, or an error.

*Certified ε* [derived for this project, not peer reviewed]: for an integer mechanism with noise σ_int >= 100 grid
steps and sensitivity Δ, the privacy-loss distribution of the Poisson-sampled **continuous** Gaussian at standard
deviation sqrt(σ_int² - 100)/Δ. A discrete Gaussian of variance σ_int² is a continuous one of variance σ_int² - 100
plus post-processing (randomised rounding by a discrete Gaussian of variance 100), up to lattice terms
e^{±4dε_s} per release with ε_s ≈ 2e^{-200π²} < 1e-850, which any rounding up of ε swallows. Where the noise is a sum of
shares (protocols R2 and C), each of variance >= 100, the sum is one discrete Gaussian up to e^{±τd} with τ < 1e-400
(Kairouz, Liu, Steinke 2021): swallowed likewise. The plain continuous figure stands beside it, labelled.
Proofs: docs/proofs/discrete-gaussian.md, noise-shares.md.

*Several records of one person* (`records` = K, each sampled by itself): the mixture of Gaussians with shift j·Δ, j ~
Binomial(K, q). RDP and PRV do not take mixtures: the single Gaussian with shift K·Δ and probability 1 - (1 - q)^K,
which dominates it, is RDP's upper bound.

Cross-checks run before anything is returned and fail closed (AccountingError): RDP at integer orders (Mironov 2017),
PRV (Gopi et al. 2021, by Opacus if it is installed), a second grid, and the closed form of Balle and Wang 2018
without sampling. The privacy-loss distributions are dp-accounting's: pessimistic, add and remove, connect-the-dots.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from typing import Any, TypeAlias

from dp.errors import AccountingError, UnsupportedMechanismError
from dp.events import SampledGaussian, Unit, merge
from dp.ledger import Charge

# Width of the loss grid by number of releases: its error grows like releases · width². Every grid is pessimistic, so
# each gives upper bounds; the second grid, four times coarser, also serves the curves and risk figures.
GRIDS = ((200, 5e-4), (1_000, 2.5e-4), (4_000, 1.25e-4), (16_000, 6.25e-5), (1_000_000, 3.125e-5))
COARSER = 4
MIN_NOISE_STEPS = 100  # below, the integer noise is too coarse for the certificate
LATTICE_VARIANCE = 100
MAX_RELEASES, MAX_MULTIPLIER = GRIDS[-1][0], 1000
MAX_RECORDS = 64  # of one person
CEILING = Decimal(50)
ABOVE_CEILING = ">50"
PRV_ERROR = Decimal("0.01")
SMALLEST_PLD_DELTA = Decimal("1e-11")  # below it the FFT's rounding errors count: RDP alone
REFUSAL_PROBABILITY = 2.0**-80  # of one client in one round, where noise comes in shares (SPEC 10.8)
REFUSAL_SHARE = 2.0**-10  # of δ
SKIPPED = "skipped: Opacus is not installed"
NOT_RUN = "not run"
NOT_NEEDED = "not applicable"

_TPR_GRID = [k / 50 for k in range(0, 501)]
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
    """The charges as mechanisms, equal ones added up. Raises UnsupportedMechanismError for two units in one account."""
    events = merge(c.mechanism if isinstance(c, Charge) else c for c in charges)
    if len({event.unit for event in events}) > 1:
        raise UnsupportedMechanismError(
            "releases of two units in one account", found="record and client", expected="one unit and one adjacency"
        )
    return events


def in_unit(charges: Iterable[Charge | SampledGaussian], unit: Unit) -> tuple[SampledGaussian, ...]:
    """What the charges of a ledger are worth in one unit, in their order.

    A client-level release at the record level [derived for this project]: a record more or less exchanges one bounded
    update for another, two vectors of norm at most Δ each, so the sum moves by at most 2Δ. A record-level release has
    no bound for a whole client: with one in the ledger there is no client-level ε (UnsupportedMechanismError).
    """
    events = [c.mechanism if isinstance(c, Charge) else c for c in charges]
    if unit == "record":
        return tuple(
            replace(e, clip_steps=2 * e.clip_steps, unit="record") if e.unit == "client" else e for e in events
        )
    if any(e.unit != unit for e in events):
        raise UnsupportedMechanismError(
            "the privacy ledger holds record-level releases, of which none bounds what a whole client gives away",
            found="record-level charges",
            expected="client-level charges only",
            do="start a ledger over a population of which the owner signs that it is disjoint from this one",
        )
    return tuple(events)


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
        least = max(MIN_NOISE_STEPS, math.isqrt(LATTICE_VARIANCE * event.shares - 1) + 1)
        if event.noise_steps < least:
            raise UnsupportedMechanismError(
                "the integer noise is too coarse for the certificate",
                found=f"{event.noise_steps} grid steps in {event.shares} share(s)",
                expected=f"at least {least}",
                do="raise the grid's scale in the manifest",
            )
        if event.records > MAX_RECORDS:
            raise UnsupportedMechanismError(
                "outside the range in which the accountants were compared",
                found=f"{event.records} records of one person",
                expected=f"at most {MAX_RECORDS}",
            )
    return _account(events, delta, prv)


def _inner_delta(events: tuple[SampledGaussian, ...], delta: Decimal) -> float:
    """δ less what is kept for clients that have to refuse (SPEC 10.8): a thousandth, where noise comes in shares."""
    return float(delta) * (1 - REFUSAL_SHARE) if any(event.shares > 1 for event in events) else float(delta)


def _hopeless(events: tuple[SampledGaussian, ...], rdp: float) -> bool:
    """Whether RDP alone shows that no useful ε can come out. Its bound for several records of a person is too rough for
    that: there the PLD is asked in any case."""
    return not rdp <= 2 * float(CEILING) and all(event.records == 1 for event in events)


def _claimed(events: tuple[SampledGaussian, ...], delta: Decimal, epsilon: float) -> str:
    """What may be said: `epsilon`, if it is of use and what was kept of δ is enough. A mechanism that differs from the
    one accounted for with probability β on any data has δ larger by at most (1 + e^ε)·β."""
    refusals = sum(event.count * event.records for event in events if event.shares > 1)
    if epsilon > float(CEILING):
        return ABOVE_CEILING
    enough = refusals * (1 + math.exp(epsilon)) * REFUSAL_PROBABILITY <= REFUSAL_SHARE * float(delta)
    return _up(epsilon) if enough else ABOVE_CEILING


@lru_cache(maxsize=512)
def _account(events: tuple[SampledGaussian, ...], delta: Decimal, prv: bool) -> Accounting:
    d, releases = _inner_delta(events, delta), sum(event.count for event in events)
    if not events:
        zero = "0.0000"
        return Accounting(f"{delta:f}", zero, zero, "pld", zero, NOT_NEEDED, NOT_NEEDED, zero, 0)
    rdp = _rdp(events, d)
    if _hopeless(events, rdp) or (delta >= SMALLEST_PLD_DELTA and _pld_epsilon(events, d) > float(CEILING)):
        # Far beyond use: the other accountants may overflow there, and no figure is printed.
        over = ABOVE_CEILING
        return Accounting(f"{delta:f}", over, over, "rdp", over, NOT_NEEDED, NOT_NEEDED, over, releases)
    continuous = _up(_pld(events, 1, False).get_epsilon_for_delta(d))
    closed = _closed_form(events, d)
    result = Accounting(f"{delta:f}", "", continuous, "rdp", _shown(rdp), NOT_NEEDED, NOT_NEEDED, "", releases)
    if delta < SMALLEST_PLD_DELTA:
        return replace(result, epsilon=_claimed(events, delta, rdp), second_grid=NOT_NEEDED)
    pld = _pld_epsilon(events, d)
    coarse = _pld(events, COARSER, True).get_epsilon_for_delta(d)
    bounds = [rdp]
    _agree("the second grid", coarse, pld, 1e-3 + 0.002 * pld)
    result = replace(result, second_grid=_up(coarse), method="pld", epsilon=_claimed(events, delta, pld))
    if closed is not None:
        _agree("the closed form", closed, pld, 1e-3 + 0.002 * pld)
        result = replace(result, closed_form=_up(closed))
    elif prv:
        upper = None if any(e.records > 1 for e in events) else _prv(events, d)
        if any(e.records > 1 for e in events):
            result = replace(result, prv=NOT_NEEDED)
        elif upper is None:
            result = replace(result, prv=SKIPPED)
        elif math.isnan(upper):
            result = replace(result, prv="failed", method="rdp", epsilon=_claimed(events, delta, rdp))
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
    d = _inner_delta(events, delta)
    rdp = _rdp(events, d)
    found = rdp if delta < SMALLEST_PLD_DELTA or _hopeless(events, rdp) else _pld_epsilon(events, d)
    return _claimed(events, delta, found)


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
def _profile(events: tuple[SampledGaussian, ...]) -> tuple[float, ...]:
    return tuple(map(float, _pld(events, COARSER, True).get_delta_for_epsilon(_TPR_GRID)))


@lru_cache(maxsize=64)
def _tpr(events: tuple[SampledGaussian, ...], rate: float) -> str:
    bounds = [1.0]
    for e, d in zip(_TPR_GRID, _profile(events), strict=True):
        bounds += [float(d) + math.exp(e) * rate, 1 - math.exp(-e) * (1 - float(d) - rate)]
    return _up(min(bounds))


def calibrate(target_epsilon: Decimal, delta: Decimal, planned: SampledGaussian) -> int:
    """Smallest `noise_steps` whose certified ε for everything planned is at most `target_epsilon`.

    Args:
        target_epsilon: In (0, 50].
        delta: In (0, 1).
        planned: Gradient steps of all rounds and attempts that shall fit into the budget; its noise is ignored.

    Raises:
        AccountingError: No supported noise reaches the target, or the cross-checks fail.
    """
    if not 0 < target_epsilon <= CEILING:
        raise AccountingError("no such target ε", found=target_epsilon, expected=f"above 0, at most {CEILING}")
    clip_steps = planned.clip_steps

    def holds(noise: int, coarser: int) -> bool:
        events = (replace(planned, noise_steps=noise),)
        d = _inner_delta(events, delta)
        if _hopeless(events, _rdp(events, d)):
            return False
        return Decimal(_up(_pld_epsilon(events, d, coarser))) <= target_epsilon

    least = max(MIN_NOISE_STEPS, math.isqrt(LATTICE_VARIANCE * planned.shares - 1) + 1)
    high = max(least, clip_steps)
    while not holds(high, COARSER):
        high *= 2
        if high > MAX_MULTIPLIER * clip_steps:
            raise AccountingError("no noise reaches this ε", found=target_epsilon, expected="a reachable target")
    low = least - 1 if high == least else max(least - 1, high // 2)
    while low > least and holds(low, COARSER):
        low, high = max(least - 1, low // 2), low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle, COARSER) else (middle, high)
    # The coarse grid is pessimistic: on the fine one the answer lies a little lower. Gallop down to it.
    step, low = 1, high - 1
    while low >= least and holds(low, 1):
        low, high, step = max(least - 1, low - 2 * step), low, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle, 1) else (middle, high)
    checked = epsilon([replace(planned, noise_steps=high)], delta, prv=False)
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
def _single(deviation: float, probability: float, grid: float, records: int) -> _PLD:
    from dp_accounting.pld import privacy_loss_distribution

    if records == 1 or probability == 1:
        return privacy_loss_distribution.from_gaussian_mechanism(
            deviation,
            sensitivity=float(records),
            value_discretization_interval=grid,
            sampling_prob=probability,
            use_connect_dots=True,
        )
    weights = [math.comb(records, j) * probability**j * (1 - probability) ** (records - j) for j in range(records + 1)]
    weights[0] = 1 - math.fsum(weights[1:])  # the float powers need not add up to 1
    return privacy_loss_distribution.from_mixture_gaussian_mechanism(
        deviation, list(map(float, range(records + 1))), weights, value_discretization_interval=grid
    )


def _dominating(event: SampledGaussian) -> tuple[float, float]:
    """(deviation, probability) of one Gaussian that dominates the mixture over a person's records."""
    if event.records == 1:
        return _deviation(event, True), _probability(event)
    q = _probability(event)
    some = min(1.0, math.nextafter(-math.expm1(event.records * math.log1p(-q)), 2.0)) if q < 1 else 1.0
    return math.nextafter(_deviation(event, True) / event.records, 0.0), some


@lru_cache(maxsize=64)
def _pld(events: tuple[SampledGaussian, ...], coarser: int, certified: bool) -> _PLD:
    from dp_accounting.pld import privacy_loss_distribution

    releases = sum(event.count for event in events)
    grid = coarser * next(width for most, width in GRIDS if releases <= most)
    total = None
    for event in events:
        single = _single(_deviation(event, certified), _probability(event), grid, event.records)
        one = single.self_compose(event.count)
        total = one if total is None else total.compose(one)
    return privacy_loss_distribution.identity(grid) if total is None else total


def _pld_epsilon(events: tuple[SampledGaussian, ...], delta: float, coarser: int = 1) -> float:
    return float(_pld(events, coarser, True).get_epsilon_for_delta(delta))


def _rdp(events: tuple[SampledGaussian, ...], delta: float) -> float:
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(list(_RDP_ORDERS))
    for event in events:
        deviation, probability = _dominating(event)
        gaussian = dp_event.GaussianDpEvent(deviation)
        accountant.compose(dp_event.PoissonSampledDpEvent(probability, gaussian), event.count)
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

    mu = math.sqrt(sum(event.count * (event.records / _deviation(event, True)) ** 2 for event in events))

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


def _shown(value: float) -> str:
    return ABOVE_CEILING if value > float(CEILING) else _up(value)


def _significant(value: Decimal) -> str:
    digits = value.adjusted() - 2
    return f"{value.quantize(Decimal(1).scaleb(digits), ROUND_CEILING):f}"

"""All checks over planted canaries, and the negative controls: the same checks on pipelines that are broken on purpose.

A control runs the real loop with another noise, clip or sampling probability than is claimed. It must be seen; an audit
whose controls are not seen says nothing.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

import numpy as np

from dp import accountant
from dp.audit import Canary, CanaryPipeline, Finding, Reals, Trace, guarded
from dp.audit_canaries import Game, check_gaussian, check_guesses, curve_wrong, gaussian_epsilon, gaussian_wrong
from dp.audit_neighbours import BACKGROUND, JOINERS, PATIENT, check_neighbours, check_patient
from dp.audit_noise import NoiseTally, check_streams
from dp.audit_sampler import Included, check_fresh_sample, check_sampler
from dp.events import SampledGaussian
from dp.mechanism import MAX_CLIP_STEPS, GaussianMechanism
from dp.sampling import Csprng

_VALUES = 2**20  # coordinates of one trace, about: it stays small in memory
_CURVE = tuple(Decimal(k) / 4 for k in range(81))  # ε at which a claimed trade-off is taken


@dataclass(frozen=True, slots=True)
class Claimed:
    """What is claimed of every step: mechanism, sampling probability, and δ for the figures.

    Where the mechanism adds a share of the noise (protocol R2), the checks of one client look at the share, which is
    what its masked input holds; the whole of the noise is looked at in the sum (`ffm.audit_rounds`).
    """

    mechanism: GaussianMechanism
    sampling: tuple[int, int]
    delta: Decimal

    @property
    def deviation(self) -> float:
        """Standard deviation of what one client adds, in grid steps."""
        return self.mechanism.noise_steps / math.sqrt(self.mechanism.shares)

    @property
    def mu(self) -> float:
        """Sensitivity over deviation of one step without sampling."""
        return self.mechanism.clip_steps / self.deviation

    def event(self, steps: int) -> SampledGaussian:
        """`steps` steps of one client, for the accountant."""
        noise = math.isqrt(self.mechanism.noise_steps**2 // self.mechanism.shares)
        return SampledGaussian(steps, Fraction(*self.sampling), noise, self.mechanism.clip_steps)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is drawn. More draws show smaller faults."""

    noise_values: int = 12_000_000  # zero-input noise, over all coordinates
    sampled_steps: int = 96  # with sampling; the canaries at the real q
    attempts: int = 16  # steps of each of two attempts
    round_values: int = 2_000_000  # of whole rounds' sums, where noise comes in shares


def planted_checks(
    canaries: CanaryPipeline, claimed: Claimed, effort: Effort, rng: Csprng, fresh: Callable[[], Csprng]
) -> list[Finding]:
    """Neighbours, noise, sampler and canaries. `rng` may be pinned; `fresh` is the production's source of streams."""
    claim = claimed.mechanism
    both = (BACKGROUND, JOINERS)
    findings = guarded("planted", lambda: check_neighbours(canaries, claim, both, "planted"))
    findings += guarded("patient", lambda: [check_patient(canaries, claim, len(PATIENT))])
    findings += guarded("noise", lambda: zero_input(canaries, claimed.deviation, effort.noise_values, rng))
    findings += guarded("canaries", lambda: _all_in(canaries, claimed, rng))
    findings += guarded("sampler", lambda: _sampled(canaries, claimed, effort.sampled_steps, rng))
    return findings + guarded("attempts", lambda: _attempts(canaries, claimed, effort.attempts, fresh))


def zero_input(canaries: CanaryPipeline, deviation: float, values: int, rng: Csprng) -> list[Finding]:
    """Steps over a record whose gradient is zero: what is handed on is the noise and nothing else."""
    size = max(where.stop for where in canaries.groups.values())
    tally, missing = NoiseTally(deviation, canaries.groups), -(-values // size)
    while missing > 0:
        steps = min(missing, max(2, _VALUES // size))
        tally.add(canaries.run([Canary(0, 0.0)], steps, True, rng))
        missing -= steps
    return tally.findings()


def controls(canaries: CanaryPipeline, claimed: Claimed, rng: Csprng) -> list[Finding]:
    """Each of the broken pipelines must be seen."""
    claim, (numerator, denominator) = claimed.mechanism, claimed.sampling
    draws = 300_000

    def with_noise(numerator: int, denominator: int) -> GaussianMechanism:
        return replace(claim, noise_steps=claim.noise_steps * numerator // denominator)

    quarter = canaries.configured(with_noise(1, 4), claimed.sampling)
    weaker = canaries.configured(with_noise(5, 6), claimed.sampling)
    loose = replace(claim, clip_steps=min(10 * claim.clip_steps, MAX_CLIP_STEPS))
    unclipped = canaries.configured(loose, claimed.sampling)
    q = min(Fraction(2 * numerator, denominator), Fraction(denominator + numerator, 2 * denominator))
    often = canaries.configured(claim, (q.numerator, q.denominator))

    def twice() -> list[Finding]:
        seed = rng.take(32)
        traces = [canaries.run([Canary(0, 0.0)], 8, True, Csprng(seed)) for _ in range(2)]
        return [check_streams(traces[0], traces[1], claimed.deviation, "clients")]

    neighbours = (BACKGROUND, JOINERS)
    found = [
        _control("noise 4 times too small", lambda: zero_input(quarter, claimed.deviation, draws, rng)),
        _control("noise 4 times too small, to canaries", lambda: _all_in(quarter, claimed, rng)),
        _control("noise 1.2 times too small", lambda: zero_input(weaker, claimed.deviation, draws, rng)),
        _control("one seed for two clients", twice),
    ]
    if loose.clip_steps > claim.clip_steps:
        found.append(
            _control("clip 10 times too wide", lambda: check_neighbours(unclipped, claim, neighbours, "planted"))
        )
    if q != Fraction(numerator, denominator):
        found.append(_control("sampled too often", lambda: _sampled(often, claimed, 32, rng)))
    return found


def _control(name: str, check: Callable[[], Iterable[Finding]]) -> Finding:
    seen = [finding.name for finding in guarded(name, check) if not finding.passed]
    more = f" and {len(seen) - 1} more" if len(seen) > 1 else ""
    return Finding(
        f"control: {name}",
        f"seen by {seen[0]}{more}" if seen else "seen by no check",
        "seen",
        bool(seen),
        "an audit that cannot fail",
        "faults of other kinds",
        control=True,
    )


def _all_in(canaries: CanaryPipeline, claimed: Claimed, rng: Csprng) -> list[Finding]:
    """One step at q = 1: half of the canaries are in, at norms C and 10C."""
    members = _coins(canaries.rows, rng)
    trace = canaries.run(_planted(members), 1, False, rng)
    game = _game(canaries, trace, members)
    epsilon = f"{gaussian_epsilon(claimed.mu, float(claimed.delta)):.2f}"
    told = epsilon, f"one step at q = 1, δ = {claimed.delta:f}"
    return [
        check_guesses("one step at q = 1", game, gaussian_wrong(claimed.mu), told, float(claimed.delta)),
        check_gaussian("one step at q = 1", game, claimed.mu),
    ]


def _sampled(canaries: CanaryPipeline, claimed: Claimed, steps: int, rng: Csprng) -> list[Finding]:
    """Many steps at the real q: inclusions one by one, and the canaries against the claimed trade-off."""
    members = _coins(canaries.rows, rng)
    trace = canaries.run(_planted(members), steps, True, rng)
    findings = check_sampler(_included(canaries, trace)[:, members], *claimed.sampling)
    epsilons, deltas, spent = claimed_curve(claimed, steps)
    game, wrong = _game(canaries, trace, members), curve_wrong(epsilons, deltas)
    told = spent, f"{steps} steps at q = {Fraction(*claimed.sampling)}, δ = {claimed.delta:f}"
    return [*findings, check_guesses(f"{steps} steps at the real q", game, wrong, told, float(claimed.delta))]


def claimed_curve(claimed: Claimed, steps: int) -> tuple[Reals, Reals, str]:
    """(ε, δ(ε)) of that many steps as the accountant has them, and ε at the claim's δ."""
    event = claimed.event(steps)
    deltas = np.array([float(value) for value in accountant.delta_at([event], _CURVE)])
    spent = accountant.epsilon([event], claimed.delta, prv=False).epsilon
    return np.array([float(e) for e in _CURVE]), deltas, spent


def _attempts(canaries: CanaryPipeline, claimed: Claimed, steps: int, fresh: Callable[[], Csprng]) -> list[Finding]:
    """Two clients, or two attempts of one: neither sample nor noise may have anything in common."""
    records = _planted(np.ones(canaries.rows, dtype=np.bool_))
    first, second = (canaries.run(records, steps, True, fresh()) for _ in range(2))
    one, two = _included(canaries, first), _included(canaries, second)
    return [
        check_streams(first, second, claimed.deviation, "clients and attempts"),
        check_fresh_sample(one, two, *claimed.sampling, "clients and attempts"),
    ]


def _coins(count: int, rng: Csprng) -> Included:
    return np.unpackbits(np.frombuffer(rng.take(-(-count // 8)), dtype=np.uint8))[:count].astype(np.bool_)


def _planted(members: Included) -> list[Canary]:
    """Every second canary at the clip norm, every second far above it."""
    return [Canary(int(row), 1.0 if row % 2 else 10.0) for row in np.flatnonzero(members)]


def _included(canaries: CanaryPipeline, trace: Trace) -> Included:
    return np.asarray(canaries.scores(trace.sums.astype(np.float64)) > 0.5)


def _game(canaries: CanaryPipeline, trace: Trace, members: Included) -> Game:
    return Game(canaries.scores(trace.handed).sum(axis=0), members)

"""White-box gradient canaries: what somebody who sees every noised sum can tell of who was in it.

Half of the canaries are records, chosen by fair coins; all of them go through the real clip, sampler and noise of one
run. The score of a canary is the inner product of what was released with its direction. A guesser who names the k most
extreme scores is held against a trade-off function f by the one-run bound for f-DP of Mahloujifar, Melis and Chaudhuri
2024 (arXiv 2410.22235, algorithm "rh" with abstention): `refuted` says that a mechanism with f is right that often with
probability below the level. Plain one-run auditing (Steinke et al. 2023) does not see noise that is four times too
small; this one does; neither sees 1.2 times, and `dp.audit_noise` is for that.

The level is 1e-3, against every mechanism with that f, also one that gives all canaries away at once with a probability
as small as f allows; that is why no number of right guesses proves more than the printed ceiling. For the independent
noise that the other checks establish, the count of right guesses concentrates, and a false alarm is far less likely
than `dp.audit.LEVEL`: at the claim's own deviation a refutation needs nearly every guess right.

The Gaussian estimate (mean and variance of the scores in and out) is sharper and used as an alarm only: it assumes
what it measures, that scores are Gaussian.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import log_ndtr, ndtr, ndtri

from dp.audit import LEVEL, Finding, Measure, Reals

GUESSED = (20, 5, 2, 1)  # one in so many canaries is guessed; each guesser pays its share of the level
CONFIDENCE = 1e-3  # one minus that of a lower bound

# Wrong guesses (as probability mass) that a mechanism must make at least for x right ones: the inverse of 1 - f.
WrongAtLeast = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Game:
    """One run's canaries: their scores, signed so that membership raises them, and who was in."""

    scores: Reals = field(repr=False)
    members: NDArray[np.bool_] = field(repr=False)

    def guesses(self, count: int) -> tuple[int, int]:
        """(right, made) guesses about the `count` most extreme scores, half each way: the lowest are said to be out."""
        order = np.argsort(self.scores, kind="stable")
        half = count // 2
        right = int((~self.members[order[:half]]).sum() + self.members[order[len(order) - half :]].sum())
        return right, 2 * half


def gaussian_wrong(mu: float) -> WrongAtLeast:
    """Trade-off of one Gaussian of sensitivity over deviation `mu` (Dong, Roth, Su 2022)."""
    return lambda right: float(ndtr(ndtri(right) - mu)) if 0 < right < 1 else float(right)


def curve_wrong(epsilons: Reals, deltas: Reals) -> WrongAtLeast:
    """Trade-off of a mechanism that is (ε, δ(ε))-DP for every pair; every pair alone is a valid bound."""
    down, up = np.exp(-epsilons), np.exp(epsilons)

    def wrong(right: float) -> float:
        return max(0.0, float((down * (right - deltas)).max()), float((1 - deltas - up * (1 - right)).max()))

    return wrong


def refuted(wrong: WrongAtLeast, guesses: tuple[int, int], canaries: int, level: float) -> bool:
    """Whether (right, made) guesses about `canaries` fair coins are impossible for `wrong` but with chance `level`.

    Mass of right and of wrong guesses is followed downward from the observed count: if at least `right` guesses are
    right with probability `level`, then the trade-off forces so much mass on smaller counts that the sum exceeds 1.
    """
    right, made = guesses
    if right <= made / 2:
        return False
    share = level * made / canaries
    mass_right, mass_wrong = share * right / made, share * (made - right) / made
    for count in range(right - 1, -1, -1):
        forced = max(mass_wrong, wrong(mass_right))
        mass_right = min(1.0, mass_right + count / (made - count) * (forced - mass_wrong))
        mass_wrong = forced
        if mass_right + mass_wrong > made / canaries:
            return True
    return False


def gaussian_epsilon(mu: float, delta: float) -> float:
    """ε of a Gaussian of sensitivity over deviation `mu` at `delta` (Balle and Wang 2018, theorem 8)."""

    def excess(e: float) -> float:
        return float(ndtr(mu / 2 - e / mu)) - math.exp(e + float(log_ndtr(-mu / 2 - e / mu))) - delta

    if mu <= 0 or excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while excess(high) > 0:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def lower_mu(guesses: tuple[int, int], canaries: int, level: float = CONFIDENCE) -> float:
    """Largest `mu` of a Gaussian that (right, made) guesses refute at `level`; 0 if none."""
    low, high = 0.0, 20.0
    if not refuted(gaussian_wrong(1e-3), guesses, canaries, level):
        return 0.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(gaussian_wrong(middle), guesses, canaries, level) else (low, middle)
    return low


def check_guesses(name: str, game: Game, wrong: WrongAtLeast, claim: tuple[str, str], delta: float) -> Finding:
    """The f-DP one-run test of a claim (ε, of what): what the best guesser proves, and the most that it could."""
    canaries, (epsilon, subject) = len(game.scores), claim
    tries = [game.guesses(canaries // part) for part in GUESSED]
    level = CONFIDENCE / len(tries)
    broken = any(refuted(wrong, guesses, canaries, level) for guesses in tries)
    best, most = (max(lower_mu(g, canaries, level) for g in t) for t in (tries, [(made, made) for _, made in tries]))
    shown, ceiling = (f"{gaussian_epsilon(mu, delta):.2f}" for mu in (best, most))
    told = ", ".join(f"{right}/{made}" for right, made in tries)
    return Finding(
        f"canaries: {name}",
        f"right guesses {told} of {canaries} canaries: ε >= {shown} at 99.9 %",
        f"not refuting ε = {epsilon} of {subject}; at most ε = {ceiling} could be shown at all",
        not broken,
        "no noise, noise about four times too small, a sample that is known",
        "noise that is less than about three times too small; stronger attacks",
        1,
        measure=Measure(f"ε of {subject}", shown, epsilon.removeprefix(">"), ceiling),
    )


def check_gaussian(name: str, game: Game, mu: float) -> Finding:
    """Alarm: the estimated `mu` of the scores against the claim."""
    inside, outside = game.scores[game.members], game.scores[~game.members]
    degrees = len(game.scores) - 2
    pooled = (inside.var(ddof=1) * (len(inside) - 1) + outside.var(ddof=1) * (len(outside) - 1)) / degrees
    estimate = float(inside.mean() - outside.mean()) / max(math.sqrt(pooled), 1e-12)
    # Standard error at the claim, by the delta method: of the two means, and of the deviation.
    error = math.sqrt(1 / len(inside) + 1 / len(outside) + mu * mu / (2 * degrees))
    bound = mu + float(stats.norm.isf(LEVEL)) * error
    return Finding(
        f"canaries: {name}, Gaussian estimate",
        f"μ = {estimate:.4f} over {len(game.scores)} canaries",
        f"at most {bound:.4f}; the claim is {mu:.4f}",
        estimate <= bound,
        "noise too small against what a record contributes",
        "scores that are not Gaussian; the alarm proves no lower bound",
        1,
    )

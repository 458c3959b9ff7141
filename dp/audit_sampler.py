"""Goodness of fit of the sampler, through the training loop: which planted records are in which step's sum.

Every bound is exact or a Chernoff bound: counts are compared with their binomial law, sums of squared deviations with
their moment-generating function, so that also rare inclusions raise no false alarm.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from dp.audit import LEVEL, Finding

Included = NDArray[np.bool_]
_BLIND = "deviations below the printed bound"


def check_sampler(included: Included, numerator: int, denominator: int) -> list[Finding]:
    """Inclusion matrix (steps, records) of the real sampler against independent Bernoulli(q) draws."""
    steps, records = included.shape
    q = numerator / denominator
    if numerator == denominator:
        missed = int((~included).sum())
        sees = "records that are left out"
        return [Finding("sampler: q = 1", f"{missed} inclusions are missing", "0", missed == 0, sees, "nothing else")]
    both = int((included[0 : steps - 1 : 2] & included[1:steps:2]).sum())
    return [
        _count("sampler: inclusions", int(included.sum()), steps * records, q, "another q"),
        _spread("sampler: batch sizes", included.sum(axis=1), records, q, "batches of fixed size, shuffled epochs"),
        _spread(
            "sampler: inclusions of each record",
            included.sum(axis=0),
            steps,
            q,
            "shuffled epochs, records with another q, the same sample again",
        ),
        # Pairs of steps (0,1), (2,3), ... so that the count is exactly binomial.
        _count(
            "sampler: steps draw afresh",
            both,
            (steps // 2) * records,
            q * q,
            "the same sample again, epochs without replacement",
        ),
    ]


def check_fresh_sample(first: Included, second: Included, numerator: int, denominator: int, what: str) -> Finding:
    """Two runs over the same records, equal steps compared: a sample that is drawn again is found again."""
    q, pairs = numerator / denominator, first.size
    name = f"sampler: fresh between {what}"
    if numerator == denominator:
        return Finding(name, "q = 1", "nothing to draw", True, "nothing at q = 1", "everything at q = 1")
    return _count(name, int((first & second).sum()), pairs, q * q, "a round retried with the same sample, a fixed seed")


def _count(name: str, value: int, draws: int, probability: float, sees: str) -> Finding:
    law = stats.binom(draws, probability)
    low, high = int(law.ppf(LEVEL / 2)), int(law.isf(LEVEL / 2))
    return Finding(name, f"{value} of {draws}", f"{low} to {high}", low <= value <= high, sees, _BLIND, 1)


def _spread(name: str, counts: NDArray[np.int64], draws: int, q: float, sees: str) -> Finding:
    """Sum of squared standardised deviations of independent Binomial(draws, q) counts."""
    law = stats.binom(draws, q)
    values = np.arange(draws + 1)
    squares = np.asarray((values - draws * q) ** 2 / (draws * q * (1 - q)), dtype=np.float64)
    log_mass = np.asarray(law.logpmf(values), dtype=np.float64)
    value = float(((counts - draws * q) ** 2 / (draws * q * (1 - q))).sum()) / counts.size
    low, high = (_chernoff(squares, log_mass, counts.size, side) for side in (-1, 1))
    return Finding(
        f"{name} vary as a Poisson sample's",
        f"variance {value:.4f} of the binomial one",
        f"{low:.4f} to {high:.4f}",
        low <= value <= high,
        sees,
        _BLIND,
        1,
    )


def _chernoff(squares: NDArray[np.float64], log_mass: NDArray[np.float64], count: int, side: int) -> float:
    """A mean of `count` draws that is passed on this side with probability at most LEVEL / 2."""
    need = -np.log(LEVEL / 2) / count

    def bound(log_tilt: float) -> float:
        # P(mean beyond t) <= exp(count (log E e^{side·tilt·x} - side·tilt·t)): solved for t.
        tilt = np.exp(log_tilt)
        moment = np.logaddexp.reduce(log_mass + side * tilt * squares)
        return float((moment + need) / tilt)

    best = optimize.minimize_scalar(bound, bounds=(-12.0, 6.0), method="bounded").fun  # any tilt gives a valid bound
    return max(0.0, -float(best)) if side < 0 else float(best)

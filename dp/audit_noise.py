"""Statistical checks of the noise in what the optimizer is handed, over traces of the real training loop.

`NoiseTally` takes traces of any number of steps, one after the other, and keeps sums only: every coordinate group's
variance, the law, and the correlations between steps and between coordinates. Levels: see `dp.audit`.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt

import numpy as np
from scipy import stats

from dp.audit import LEVEL, Finding, Reals, Trace

_CELLS = 40
_LINES = 40  # tensors with a line of their own
_BLIND = "deviations below the printed bound"


class NoiseTally:
    """Noise of many steps against the claimed deviation, in grid steps. Feed it any steps: sums are subtracted."""

    def __init__(self, deviation: float, groups: Mapping[str, slice]) -> None:
        self._deviation, self._groups = deviation, groups
        self._squares = dict.fromkeys(groups, 0.0)
        self._draws = dict.fromkeys(groups, 0)
        self._cuts = _cuts(self._deviation)
        self._counts = np.zeros(self._cuts.size + 1, dtype=np.int64)
        self._size = self._steps = self._pairs = 0
        self._largest = self._neighbours = self._sums = self._gap = 0.0
        self._tolerance, self._whole = 0.5, True

    def add(self, trace: Trace) -> None:
        """Count the steps of one trace."""
        self._whole = self._whole and trace.whole
        steps = min(len(trace.sums), len(trace.released), len(trace.handed))
        if steps == 0:
            return
        handed, sums, released = trace.handed[:steps], trace.sums[:steps], trace.released[:steps]
        if not np.isfinite(handed).all():
            self._gap = float("inf")
            return
        noise = (handed - sums) / self._deviation
        self._gap = max(self._gap, float(np.abs(handed - released).max()))
        # Gradients travel as float32.
        self._tolerance = max(self._tolerance, 0.5 + float(np.abs(released).max()) * 2.0**-22)
        for name, where in self._groups.items():
            part = noise[:, where]
            self._squares[name] += float(np.einsum("sd,sd->", part, part))
            self._draws[name] += part.size
        self._counts += np.bincount(np.searchsorted(self._cuts, noise.ravel()), minlength=self._counts.size)
        self._size, self._steps = noise.shape[1], self._steps + steps
        self._neighbours += float(np.einsum("sd,sd->", noise[:, 1:], noise[:, :-1]))
        self._sums += float((noise.sum(axis=1) ** 2).sum()) / self._size
        if steps > 1:
            gram = (noise @ noise.T / self._size)[np.triu_indices(steps, 1)]
            self._largest = max(self._largest, float(np.abs(gram).max()))
            self._pairs += gram.size

    def findings(self) -> list[Finding]:
        """All checks."""
        missing = self._steps == 0
        out = [
            Finding(
                "noise: nothing else leaves",
                "no step was seen" if missing else f"what is handed on is off the integers by {self._gap:.3g} steps",
                f"at most {self._tolerance:.3g}, every step noised once",
                not missing and self._whole and self._gap <= self._tolerance,
                "a tensor that goes round the noise, steps without noise, sums that overflow, NaN",
                "what leaves by other ways than the gradient",
            )
        ]
        if missing:
            return out
        out += self._variances()
        total = self._variance("all coordinates", sum(self._squares.values()), sum(self._draws.values()))
        return [*out, total, self._law(), self._between_steps(), self._between_coordinates()]

    def _variances(self) -> list[Finding]:
        """One line for each tensor; with very many of them the worst one, at its share of the level."""
        share = len(self._groups) if len(self._groups) > _LINES else 1
        rows = [self._variance(name, self._squares[name], self._draws[name], share) for name in self._groups]
        if share == 1:
            return rows
        worst = min(rows, key=lambda row: (row.passed, -abs(float(row.found.split()[0]) - 1)))
        named = f"{worst.found}, {worst.name.removeprefix('noise: variance of ')}"
        return [replace(worst, name=f"noise: variance of each of {share} tensors, the worst", found=named)]

    def _variance(self, name: str, squares: float, draws: int, share: int = 1) -> Finding:
        """Ratio of the mean square to the claim: chi-square with as many degrees of freedom as draws."""
        law, tail = stats.chi2(draws), LEVEL / 2 / share
        ratio = squares / draws
        low, high = float(law.ppf(tail)) / draws, float(law.isf(tail)) / draws
        return Finding(
            f"noise: variance of {name}",
            f"{ratio:.5f} of the claim over {draws} draws",
            f"{low:.5f} to {high:.5f}",
            low <= ratio <= high,
            "noise off, too small, too large, clamped; a tensor un-noised",
            _BLIND,
            1,
        )

    def _law(self) -> Finding:
        """Chi-square over equally likely cells of the Gaussian, and its tails, cut between grid points."""
        masses = np.diff(np.concatenate([[0.0], stats.norm.cdf(self._cuts), [1.0]]))
        expected = masses * self._counts.sum()
        value, bound = (
            float(((self._counts - expected) ** 2 / expected).sum()),
            float(stats.chi2.isf(LEVEL, len(masses))),
        )
        return Finding(
            "noise: Gaussian law",
            f"chi-square {value:.1f} over {len(masses)} cells",
            f"at most {bound:.1f}",
            value <= bound,
            "another distribution, clamped tails, a bias",
            "tails beyond the outermost cell",
            1,
        )

    def _between_steps(self) -> Finding:
        bound = float(stats.norm.isf(LEVEL / 2 / max(1, self._pairs))) / sqrt(self._size)
        return Finding(
            "noise: independent between steps",
            f"largest correlation {self._largest:.5f} of {self._pairs} pairs",
            f"at most {bound:.5f}",
            self._largest <= bound and self._pairs > 0,
            "noise that is used again in another step or round, a shared stream",
            "dependence without correlation",
            1,
        )

    def _between_coordinates(self) -> Finding:
        """Neighbouring coordinates, and the sum of a step: one draw for several coordinates shows in either."""
        pairs = self._steps * max(1, self._size - 1)
        neighbours, bound = self._neighbours / pairs, _z() / sqrt(pairs)
        low, high = (float(stats.chi2(self._steps).ppf(p)) for p in (LEVEL / 2, 1 - LEVEL / 2))
        return Finding(
            "noise: independent between coordinates",
            f"correlation {neighbours:+.5f} of neighbours, squared sums {self._sums:.1f}",
            f"within ±{bound:.5f}, {low:.1f} to {high:.1f}",
            abs(neighbours) <= bound and low <= self._sums <= high,
            "one draw for several coordinates",
            "dependence that leaves neighbours and sums alone",
            2,
        )


def check_streams(first: Trace, second: Trace, deviation: float, what: str) -> Finding:
    """Noise of two runs that must have nothing in common: two clients, two rounds, two attempts."""
    one, two = ((t.handed - t.sums[: len(t.handed)]).ravel() / deviation for t in (first, second))
    size = min(one.size, two.size)
    correlation, bound = float(np.mean(one[:size] * two[:size])), _z() / sqrt(size)
    return Finding(
        f"noise: independent between {what}",
        f"correlation {correlation:+.5f} over {size} coordinates",
        f"within ±{bound:.5f}",
        abs(correlation) <= bound,
        "a shared or fixed seed, noise that is used again",
        "dependence without correlation",
        1,
    )


def _z() -> float:
    return float(stats.norm.isf(LEVEL / 2))


def _cuts(deviation: float) -> Reals:
    """Quantiles of the Gaussian and some in its tails, each moved to the middle between two grid points."""
    inner = np.arange(1, _CELLS) / _CELLS
    tails = 0.5 / _CELLS / 4.0 ** np.arange(1, 4)
    quantiles = stats.norm.ppf(np.sort(np.concatenate([inner, tails, 1 - tails])))
    return np.asarray((np.floor(quantiles * deviation) + 0.5) / deviation, dtype=np.float64)

"""The Gaussian mechanism of one DP-SGD step, on integers: design page DP, section 2.

Why its sensitivity is exactly `clip_steps` (L2, adjacency add-or-remove-one record): `round_toward_zero_and_bound`
is a function of one row at a time, and each row that it returns has an integer norm of at most `clip_steps`,
checked exactly, whatever the floats before it did. The released quantity is the integer sum of such rows
plus noise that does not depend on them; with one record more or less the sum moves by one row.
Rounding toward zero never lengthens a row, so nothing is redrawn and nothing grows by sqrt(d).
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dp.errors import PrivacyError, UnsupportedMechanismError
from dp.sampling import MAX_SIGMA, Csprng, discrete_gaussian

MAX_CLIP_STEPS: Final = 2**26  # squares stay below 2^52, so that a float64 sum of squares decides exactly
MIN_NOISE_STEPS: Final = 10  # the certificate needs an integer standard deviation of at least 10
_MAX_ROWS: Final = 2**26  # |sum| <= rows * clip_steps <= 2^52


@dataclass(frozen=True, slots=True)
class GaussianMechanism:
    """All quantities in grid steps: clip norm C = clip_steps / scale, noise deviation = noise_steps / scale.

    With `shares` above 1 what is added here is one share, of variance noise_steps^2 / shares, and nothing may be
    released but a sum that holds at least so many of them (protocols R2 and C).

    Raises UnsupportedMechanismError unless scale >= 1, 1 <= clip_steps <= 2^26 and 10 <= noise_steps <= 2^40, the same
    for the deviation of one share.
    """

    scale: int  # grid steps per unit of the gradient
    clip_steps: int  # L2 bound of one row, and the sensitivity of the sum
    noise_steps: int  # standard deviation parameter of all the noise that is counted on
    shares: int = 1

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("scale", self.scale, 1, 2**53),
            ("clip_steps", self.clip_steps, 1, MAX_CLIP_STEPS),
            ("noise_steps", self.noise_steps, MIN_NOISE_STEPS, MAX_SIGMA),
        ):
            if not low <= value <= high:
                raise UnsupportedMechanismError(
                    f"{name} of the Gaussian mechanism out of range",
                    found=value,
                    expected=f"{low} to {high}",
                    code="E215",
                )
        if self.shares < 1 or self.noise_steps**2 < MIN_NOISE_STEPS**2 * self.shares:
            raise UnsupportedMechanismError(
                "shares of the noise",
                found=f"{self.shares} of {self.noise_steps} grid steps",
                expected=f"at least 1, each of a standard deviation of at least {MIN_NOISE_STEPS}",
                code="E215",
            )

    @property
    def clip_norm(self) -> Fraction:
        """C, in units of the gradient."""
        return Fraction(self.clip_steps, self.scale)

    @property
    def noise_multiplier(self) -> Fraction:
        """Standard deviation of the noise over the sensitivity."""
        return Fraction(self.noise_steps, self.clip_steps)

    def clip(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scale each row of (n, d) down to norm C at most; a row that is not finite becomes zero.

        Floats, so only nearly C: the bound that counts is the integer one of the next step.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
            factor = np.minimum(1.0, float(self.clip_norm) / np.maximum(norms, np.finfo(np.float64).tiny))
            return np.where(np.isfinite(norms)[:, None], rows * factor[:, None], 0.0)

    def round_toward_zero_and_bound(self, rows: NDArray[np.float64]) -> NDArray[np.int64]:
        """Grid points of (n, d) clipped rows; rows whose integer norm exceeds clip_steps, or that are not finite, are
        zeroed."""
        with np.errstate(over="ignore", invalid="ignore"):
            steps = np.trunc(np.asarray(rows, dtype=np.float64) * self.scale)
            # Integer-valued and non-negative terms: a float64 sum below 2^53 is exact in any order, and a larger one
            # cannot round below 2^53 > clip_steps^2. NaN compares false. So this is the integer comparison.
            within = np.einsum("nd,nd->n", steps, steps) <= float(self.clip_steps**2)
        return np.where(within[:, None], steps, 0.0).astype(np.int64)

    def privatize(self, rows: NDArray[np.int64], rng: Csprng) -> NDArray[np.int64]:
        """The sum of bounded rows (n, d), or their sum (d,) itself, plus one discrete Gaussian per coordinate.

        Raises PrivacyError for rows outside the bound: noise on them would promise nothing.
        """
        if rows.dtype != np.int64 or rows.ndim not in (1, 2):
            raise PrivacyError(
                "noise goes on integers only",
                found=f"{rows.dtype} {rows.shape}",
                expected="int64 (n, d) or (d,)",
                code="E216",
            )
        total = rows
        if rows.ndim == 2:
            inside = (np.abs(rows.astype(np.float64)) ** 2).sum(axis=1) <= float(self.clip_steps**2)
            if rows.shape[0] > _MAX_ROWS or not bool(inside.all()):
                raise PrivacyError(
                    "a row above the sensitivity", expected=f"norm of at most {self.clip_steps} grid steps", code="E216"
                )
            total = rows.sum(axis=0, dtype=np.int64)
        return total + discrete_gaussian(rng, (self.noise_steps**2, self.shares), total.size)

"""Bounds of integer vectors that a manifest's headroom stands on. SPEC 10.8, 10.11.

`dp.client_level` computes the norm bound once more, for the mechanism: the two rooms do not import each other, and a
test compares them.
"""

from fractions import Fraction
from math import ceil, isqrt
from typing import Final

LEAST_CLIENTS: Final = 500  # behind every sum of protocol C
LN2: Final = Fraction(694, 1000)  # rounded up
FAIL: Final = 81 * LN2  # e^-FAIL <= 2^-81
LEAST_ROTATED: Final = 64  # values of a vector that is rotated
DITHER: Final = Fraction(10604, 1000)  # above sqrt(2 ln(1/β)) at β = 2^-81
MAX_SENSITIVITY: Final = 2**26  # squares stay below 2^52, so that float64 compares norms exactly


def root_above(value: Fraction | int) -> int:
    """The square root, rounded up to an integer."""
    whole = ceil(value)
    root = isqrt(whole)
    return root if root**2 == whole else root + 1


def rounded_norm(clip_steps: int, size: int, deviation: Fraction = Fraction(1)) -> int:
    """D2 of SPEC 10.11: what stochastic rounding keeps a vector of norm `clip_steps` to but with probability β, where
    `deviation` >= sqrt(2 ln(1/β)). By default that of the conditional rounding, which draws again."""
    root = root_above(size)
    likely = Fraction(4 * clip_steps**2 + size, 4) + deviation * Fraction(2 * clip_steps + root, 2)
    return min(clip_steps + root, root_above(likely))


def block_root(size: int) -> int:
    """Root of the rotation's block: a power of two, whose square is at most size / 16. SPEC 5.4."""
    return 1 << min(10, max(0, (size // 16).bit_length() - 1) // 2)


def rotated_length(size: int) -> int:
    """Coordinates after the rotation: whole blocks."""
    block = block_root(size) ** 2
    return size + -size % block


def spread_norm(norm: int, size: int, clients: int) -> int:
    """A magnitude that no value of `clients` rotated and rounded vectors of norm `norm` exceeds but with probability
    2^-81 over the signs: Hoeffding's inequality, 2·exp(-t^2 / 2) at t·norm / √m for each; and 1 for the rounding."""
    coordinates = FAIL + (2 * clients * rotated_length(size)).bit_length() * LN2
    return min(norm, root_above(2 * coordinates * norm**2 / block_root(size) ** 2)) + 1

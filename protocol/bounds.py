"""Bounds of integer vectors that a manifest's headroom stands on. SPEC 10.8, 10.11.

`dp.client_level` computes the norm bound once more, for the mechanism: the two rooms do not import each other, and a
test compares them.
"""

from fractions import Fraction
from math import ceil, isqrt
from typing import Final

LEAST_CLIENTS: Final = 500  # behind every sum of protocol C
MAX_SENSITIVITY: Final = 2**26  # squares stay below 2^52, so that float64 compares norms exactly


def root_above(value: Fraction | int) -> int:
    """The square root, rounded up to an integer."""
    whole = ceil(value)
    root = isqrt(whole)
    return root if root**2 == whole else root + 1


def rounded_norm(clip_steps: int, size: int) -> int:
    """D2 of SPEC 10.11: what conditional stochastic rounding keeps a vector of norm `clip_steps` to."""
    root = root_above(size)
    return min(clip_steps + root, root_above(Fraction(4 * clip_steps * (clip_steps + 1) + size + 2 * root, 4)))

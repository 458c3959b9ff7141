"""How long a stochastically rounded vector can be: integers from here on. SPEC 10.11, docs/proofs/client-level.md.

`protocol.bounds` computes the same for the manifest's headroom; a test compares the two.
"""

from fractions import Fraction
from math import ceil, isqrt
from typing import Final

CONDITIONAL: Final = Fraction(1)  # sqrt(2 ln(1/β)) at β = e^(-1/2): a redraw in at most 61 of 100 cases


def root_above(value: Fraction | int) -> int:
    """The square root, rounded up to an integer."""
    return isqrt(max(ceil(value) - 1, 0)) + (value > 0)


def norm_bound(clip_steps: int, size: int, deviation: Fraction = CONDITIONAL) -> int:
    """Norm, in whole grid steps, that a stochastically rounded vector of norm `clip_steps` and `size` coordinates keeps
    to but with probability β, where `deviation` >= sqrt(2 ln(1/β)); rounded up. The first of the two bounds always
    holds.

    Kairouz, Liu and Steinke 2021, section 4; proof in docs/proofs/client-level.md.
    """
    root = root_above(size)
    likely = clip_steps**2 + Fraction(size, 4) + deviation * (clip_steps + Fraction(root, 2))
    return min(clip_steps + root, root_above(likely))

"""Shamir's secret sharing over GF(p), p = 2^256 + 297 (Shamir 1979). SPEC 3.7.

Secrets are 32 bytes (big-endian integers below 2^256 < p), shares 33 bytes, x-coordinates client ids >= 1. Shares carry
no proof: whoever reconstructs checks the secret against its commitment.
"""

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache

from secagg.errors import ParameterError, ReconstructionError
from secagg.types import Rng, Secret

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: Secret, threshold: int, xs: Iterable[int], rng: Rng) -> dict[int, Secret]:
    """Shares of `secret` at the points `xs`; any `threshold` of them give it back, fewer say nothing.

    Args:
        secret: 32 bytes.
        threshold: Number of shares that reconstruct, 1 <= threshold <= len(xs).
        xs: Distinct integers in [1, 65535].
        rng: CSPRNG for the threshold - 1 coefficients, each uniform in [0, p) by rejection.
    """
    points = list(xs)
    if len(secret) != SECRET_BYTES:
        raise ParameterError("wrong secret length", found=len(secret), expected=SECRET_BYTES)
    if len(set(points)) != len(points) or not all(1 <= x <= 65535 for x in points):
        raise ParameterError("share points must be distinct and in 1..65535")
    if not 1 <= threshold <= len(points):
        raise ParameterError("threshold out of range", found=threshold, expected=f"1..{len(points)}")
    coefficients = [int.from_bytes(secret.view, "big")] + [_uniform(rng) for _ in range(threshold - 1)]
    coefficients.reverse()
    return {x: Secret(_evaluate(coefficients, x).to_bytes(SHARE_BYTES, "big")) for x in points}


def reconstruct(shares: Mapping[int, Secret], threshold: int) -> Secret:
    """The secret from at least `threshold` shares (the lowest `threshold` points are used).

    Raises:
        ReconstructionError: Too few shares, a share out of range, or a result that is no 32-byte secret.
    """
    points = tuple(sorted(shares)[:threshold])
    if len(points) < threshold:
        raise ReconstructionError("too few shares", found=len(points), expected=f"at least {threshold}")
    total = 0
    for x, weight in zip(points, lagrange_at_zero(points), strict=True):
        value = int.from_bytes(shares[x].view, "big")
        if len(shares[x]) != SHARE_BYTES or value >= PRIME:
            raise ReconstructionError("a share is not a field element", found=f"share at {x}")
        total += value * weight
    secret = total % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise ReconstructionError("the shares do not meet in a 32-byte secret")
    return Secret(secret.to_bytes(SECRET_BYTES, "big"))


@lru_cache(maxsize=512)
def lagrange_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Weights w_i with f(0) = sum of w_i * f(x_i) mod p for every polynomial f of degree below ``len(points)``.

    Nothing secret goes in; many dealers have the same holders, so the weights are kept.

    Args:
        points: Distinct integers in [1, 65535].
    """
    product = math.prod(points) % PRIME
    # w_i = prod_{j != i} x_j / (x_j - x_i) = product / denominator_i
    denominators = [x * math.prod(other - x for other in points if other != x) % PRIME for x in points]
    before = [1]  # running products: one inversion serves all (Montgomery's trick)
    for denominator in denominators:
        before.append(before[-1] * denominator % PRIME)
    inverse = pow(before.pop(), -1, PRIME)
    weights = []
    for denominator in reversed(denominators):
        weights.append(product * (inverse * before.pop() % PRIME) % PRIME)
        inverse = inverse * denominator % PRIME
    return tuple(reversed(weights))


def _uniform(rng: Rng) -> int:
    while True:  # 257-bit candidates: accepted with probability just above 1/2
        candidate = int.from_bytes(rng(SHARE_BYTES), "big") & (2**257 - 1)
        if candidate < PRIME:
            return candidate


def _evaluate(coefficients: list[int], x: int) -> int:
    """Horner's rule, highest coefficient first. Points are short, so one reduction at the end costs least."""
    value = 0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value % PRIME

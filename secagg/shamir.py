"""Shamir's secret sharing over GF(p), p = 2^256 + 297 (Shamir 1979). SPEC 3.7.

Secrets are 32 bytes (big-endian integers below 2^256 < p), shares 33 bytes, x-coordinates client ids >= 1. Shares carry
no proof: whoever reconstructs checks the secret against its commitment.
"""

from collections.abc import Iterable, Mapping

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
    return {x: Secret(_evaluate(coefficients, x).to_bytes(SHARE_BYTES, "big")) for x in points}


def reconstruct(shares: Mapping[int, Secret], threshold: int) -> Secret:
    """The secret from at least `threshold` shares (the lowest `threshold` points are used).

    Raises:
        ReconstructionError: Too few shares, a share out of range, or a result that is no 32-byte secret.
    """
    points = sorted(shares)[:threshold]
    if len(points) < threshold:
        raise ReconstructionError("too few shares", found=len(points), expected=f"at least {threshold}")
    total = 0
    for x in points:
        value = int.from_bytes(shares[x].view, "big")
        if len(shares[x]) != SHARE_BYTES or value >= PRIME:
            raise ReconstructionError("a share is not a field element", found=f"share at {x}")
        total += value * _lagrange_at_zero(x, points)
    secret = total % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise ReconstructionError("the shares do not meet in a 32-byte secret")
    return Secret(secret.to_bytes(SECRET_BYTES, "big"))


def _uniform(rng: Rng) -> int:
    while True:  # 257-bit candidates: accepted with probability just above 1/2
        candidate = int.from_bytes(rng(SHARE_BYTES), "big") & (2**257 - 1)
        if candidate < PRIME:
            return candidate


def _evaluate(coefficients: list[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


def _lagrange_at_zero(x: int, points: list[int]) -> int:
    numerator = denominator = 1
    for other in points:
        if other != x:
            numerator = numerator * other % PRIME
            denominator = denominator * (other - x) % PRIME
    return numerator * pow(denominator, -1, PRIME) % PRIME

"""Vectors of what stands between values and slots where noise comes in shares: norms and the rotation."""

from typing import Any

import numpy as np
from simulator import insecure_rng

from dp.rotation import RotatedSum, Rotation
from dp.rounding import norm_bound
from secagg.labels import ROTATION
from secagg.transcript import digest

Vector = dict[str, Any]


def noise_in_shares() -> list[Vector]:
    """`norm_bound` (SPEC 10.11), `rotated_sensitivity` (5.4), `rotate` and `rotate_back` (5.4, exact integers)."""
    sizes = [(1, 1), (64, 4), (1024, 40), (65536, 295_000), (300, 2**20)]
    out = [_good("norm_bound", {"clip": c, "size": d}, norm_bound(c, d)) for c, d in sizes]
    for clip, size, shift in [(65536, 5000, 11), (65536, 295_000, 14), (50, 64, 0)]:
        given = {"clip": clip, "size": size, "shift": shift}
        out.append(_good("rotated_sensitivity", given, RotatedSum.sensitivity(clip, size, shift)))
    for size in (64, 70, 300):
        words = np.frombuffer(insecure_rng(("rotate", size))(2 * size), dtype="<i2").astype(np.int64)
        rotation = Rotation(size, digest(ROTATION, 7, size))
        rotated = rotation.sum_of_integers(words)
        given = {"adapter_seed": 7, "values": words.tolist()}
        out.append(_good("rotate", given, rotated.tolist()))
        back = (rotation.back(rotated) * rotation.root).astype(np.int64)  # m times the values
        out.append(_good("rotate_back", {"adapter_seed": 7, "size": size, "total": rotated.tolist()}, back.tolist()))
    return out


def _good(operation: str, given: Vector, gives: Any) -> Vector:
    return {"operation": operation, "given": given, "gives": gives, "success": True}

"""Whole rounds of protocol R2 with nothing in them but noise: what the smallest sum that is opened holds.

`min_cohort` clients run the training process's code over a record whose gradient is zero; their integers go through the
real frames and masks, and are added up and unmasked. The variance of every tensor must be that of as many shares, which
is at least what the accountant counts on.
"""

from dataclasses import replace
from fractions import Fraction
from math import sqrt

import numpy as np

from dp.audit import Canary, Finding, Trace
from dp.audit_noise import NoiseTally
from dp.sampling import Csprng
from ffm.audit_encoding import masked_sum
from ffm.audit_pipeline import CanaryTraining
from ffm.learner import plan_of
from protocol.manifest import Manifest
from secagg.masking import frame, unframe
from secagg.types import ClientId

_TOGETHER = 16  # rounds of which every pair is compared


def honest_shares(manifest: Manifest) -> int:
    """Shares that every opened sum holds, worked out here: the smallest sum without its corrupt members; R1: one."""
    a = manifest.aggregation
    return a.min_cohort - a.max_corrupt if manifest.privacy.protocol in ("R2", "C") else 1


def check_rounds(manifest: Manifest, values: int, rng: Csprng) -> list[Finding]:
    """Rounds until about `values` values of sums were seen."""
    canaries = CanaryTraining.of(manifest.adapter, plan_of(manifest))
    survivors, size = manifest.aggregation.min_cohort, manifest.adapter.size
    shares = honest_shares(manifest)
    variance = Fraction(survivors * manifest.privacy.noise_steps**2, shares)
    tally = NoiseTally(sqrt(variance), canaries.groups)
    for _ in range(-(-values // (size * _TOGETHER))):
        sums = np.stack([_round(manifest, canaries, rng) for _ in range(_TOGETHER)])
        tally.add(Trace(np.zeros_like(sums), sums, sums.astype(np.float64), _TOGETHER))
    counted = float(variance / manifest.privacy.noise_steps**2)
    named = [replace(f, name=f.name.replace("noise: ", "rounds: ")) for f in tally.findings()]
    return [
        *named,
        Finding(
            "rounds: the smallest sum holds the noise that is counted on",
            f"{survivors} clients add {counted:.4f} times the variance of the claim",
            f"at least 1 without {manifest.aggregation.max_corrupt} of them; shares as configured: {shares}",
            manifest.noise_shares == shares,
            "a share that is too small for the smallest sum, corrupt clients that are counted on",
            "more corrupt clients than the manifest says",
        ),
    ]


def _round(
    manifest: Manifest, canaries: CanaryTraining, rng: Csprng
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The opened sum of one round over nothing."""
    params = manifest.secagg_params()
    frames = {}
    for client in range(1, params.min_cohort + 1):
        noised = canaries.run([Canary(0, 0.0)], 1, True, rng).handed[0].astype(np.int64)
        frames[ClientId(client)] = frame(noised, params)
    return unframe(masked_sum(frames, rng.take), params.min_cohort, params)

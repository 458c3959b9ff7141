"""What a manifest's attempts cost, as the mechanism that ledger, budget and report account for."""

from dataclasses import replace

from dp.events import SampledGaussian
from protocol.manifest import Manifest, PrivacySpec


def step_mechanism(privacy: PrivacySpec, shares: int) -> SampledGaussian:
    """One noised step. `shares`: clients whose noise is counted on, `Manifest.noise_shares`."""
    q = privacy.sampling_probability
    return SampledGaussian(1, q, privacy.noise_steps, privacy.clip_steps, shares, privacy.records_per_person)


def attempt_mechanism(manifest: Manifest) -> SampledGaussian:
    """One attempt: `local_steps` of them."""
    return replace(step_mechanism(manifest.privacy, manifest.noise_shares), count=manifest.training.local_steps)

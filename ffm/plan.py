"""What a manifest's attempts cost, as the mechanism that ledger, budget and report account for."""

from fractions import Fraction

from dp.client_level import ClientMechanism
from dp.events import SampledGaussian
from protocol.manifest import Manifest


def attempt_mechanism(manifest: Manifest) -> SampledGaussian:
    """One attempt: `local_steps` noised steps on samples; under C one release of whole updates, which nothing samples
    however they were trained."""
    p, shares = manifest.privacy, manifest.noise_shares
    if p.protocol == "C":
        return SampledGaussian(1, Fraction(1), p.noise_steps, manifest.sensitivity_steps, shares, unit="client")
    steps, q = manifest.training.local_steps, p.sampling_probability
    return SampledGaussian(steps, q, p.noise_steps, p.clip_steps, shares, p.records_per_person)


def client_mechanism(manifest: Manifest) -> ClientMechanism:
    """What protocol C does to a client's update."""
    p = manifest.privacy
    return ClientMechanism(p.scale, p.clip_steps, p.noise_steps, manifest.noise_shares, manifest.adapter.size)

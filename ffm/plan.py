"""What a manifest's attempts cost, as the mechanism that ledger, budget and report account for, and what runs it."""

from dataclasses import replace
from fractions import Fraction

from dp.client_level import ClientMechanism
from dp.events import SampledGaussian
from dp.mechanism import GaussianMechanism
from dp.rotation import RotatedSum, Rotation
from protocol.manifest import Manifest


def attempt_mechanism(manifest: Manifest) -> SampledGaussian:
    """One attempt: `local_steps` noised steps on samples; under C one release of whole updates, which nothing samples
    however they were trained."""
    p, shares = manifest.privacy, manifest.noise_shares
    noise, sensitivity = manifest.release_noise_steps, manifest.sensitivity_steps
    if p.protocol == "C":
        return SampledGaussian(1, Fraction(1), noise, sensitivity, shares, unit="client")
    steps, q = manifest.training.local_steps, p.sampling_probability
    return SampledGaussian(steps, q, noise, sensitivity, shares, p.records_per_person)


def client_mechanism(manifest: Manifest) -> ClientMechanism:
    """What protocol C does to a client's update."""
    p, size, rotation = manifest.privacy, manifest.adapter.size, rotation_of(manifest)
    made = ClientMechanism(p.scale, p.clip_steps, p.noise_steps, manifest.noise_shares, size)
    return made if rotation is None else replace(made, rotation=rotation, limit=manifest.largest_update)


def rotation_of(manifest: Manifest) -> Rotation | None:
    """The rotation of what clients send, if there is one."""
    return Rotation(manifest.adapter.size, manifest.rotation_seed) if manifest.rotated else None


def rotated_sum(manifest: Manifest) -> RotatedSum | None:
    """What protocol R2 does to the sum of a sample where it is rotated."""
    rotation = rotation_of(manifest)
    if rotation is None or manifest.privacy.protocol != "R2":
        return None
    scale, sensitivity = manifest.aggregation.scale, manifest.sensitivity_steps
    noise = GaussianMechanism(scale, sensitivity, manifest.release_noise_steps, manifest.noise_shares)
    return RotatedSum(rotation, manifest.rotation_shift, manifest.largest_update, noise)

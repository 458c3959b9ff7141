"""Rotated sums in narrow slots: the rotation, the dithered grid and its sensitivity, the manifest, a whole round."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from simulator import insecure_rng, make_manifest
from test_client_level import manifest as client_manifest
from test_training import adapted_model, records

from dp.audit_ledger import check_accountant
from dp.client_level import ClientMechanism, bounded_update
from dp.errors import UnsupportedMechanismError
from dp.mechanism import GaussianMechanism
from dp.report_figures import noise_steps, planned_event, sensitivity_steps
from dp.rotation import DITHER, RotatedSum, Rotation, block_root, rotated_length
from dp.rounding import norm_bound
from dp.sampling import Csprng
from dp.training import DpSgdPlan, noised_sum
from ffm.audit import claim_of_books
from ffm.audit_shares import check_client_level, check_rotated
from ffm.client_run import round_charge
from ffm.plan import client_mechanism, rotated_sum, rotation_of
from ffm.step import next_model
from protocol import bounds
from protocol.manifest import Manifest
from secagg.masking import frame, unframe

SEED = bytes(range(32))


def stream(*parts: object) -> Csprng:
    return Csprng(insecure_rng(parts)(32))


def manifest(length: int = 5000, slots: int = 3, **changes: Any) -> Manifest:
    """R2, 8 clients, sums of at least 7, one corrupt: 6 shares, in slots of 21 bits (3) or 16 (4)."""
    body = make_manifest(8, length=length).model_dump(mode="python", exclude_none=True)
    body["training"] |= {"local_steps": 1, "optimizer": "sgd", "expected_batch": 8}
    body["privacy"] |= {"protocol": "R2", "scale": 2**16, "clip_steps": 2**16, "noise_steps": 2**16, "max_records": 20}
    body["aggregation"] |= {
        **{"rotation": "hadamard", "slots_per_word": slots, "scale": 2**9 if slots == 3 else 2**6},
        **{"bound": (2**20 if slots == 3 else 2**15) // 8 - 1, "min_cohort": 7},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        body[section] |= {key: value}
    return Manifest.model_validate(body)


# -- the rotation -----------------------------------------------------------------------------------------------------


def dense(rotation: Rotation) -> np.ndarray[Any, np.dtype[np.float64]]:
    """H·D by Sylvester's definition: entry (i, j) of a block is -1 to the number of common bits."""
    m = rotation.root**2
    block = np.array([[(-1) ** (i & j).bit_count() for j in range(m)] for i in range(m)], dtype=float)
    whole = np.kron(np.eye(rotation.length // m), block)
    return whole * rotation.signs()


@pytest.mark.parametrize("size", [64, 100, 256, 300, 1030])
def test_it_is_the_hadamard_matrix_and_has_an_inverse(size: int) -> None:
    rotation = Rotation(size, SEED)
    matrix, values = dense(rotation), np.arange(size) - size // 3
    padded = np.zeros(rotation.length)
    padded[:size] = values
    assert np.array_equal(rotation.sum_of_integers(values.astype(np.int64)), matrix @ padded)
    assert np.array_equal(rotation.back(rotation.sum_of_integers(values.astype(np.int64))), values * rotation.root)
    real = rotation.of_reals(np.sin(values))
    assert np.linalg.norm(real) == pytest.approx(np.linalg.norm(np.sin(values)))
    assert np.allclose(matrix @ matrix.T, rotation.root**2 * np.eye(rotation.length))


@given(st.integers(64, 2**26))
def test_blocks_are_powers_of_four_and_little_is_padded(size: int) -> None:
    root, length = block_root(size), rotated_length(size)
    assert root & (root - 1) == 0 and 2 <= root <= 1024 and root**2 * 16 <= size
    assert size <= length < size + root**2 and length % root**2 == 0 and 16 * (length - size) < size
    assert (root, length) == (bounds.block_root(size), bounds.rotated_length(size))


def test_signs_are_the_bits_of_the_stream() -> None:
    """SPEC 5.4, by the keystream itself."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    bits = Cipher(algorithms.AES256(SEED), modes.CTR(bytes(16))).encryptor().update(bytes(40))
    expected = [-1 if bits[i // 8] >> i % 8 & 1 else 1 for i in range(300)]
    assert Rotation(300, SEED).signs()[:300].tolist() == expected
    with pytest.raises(UnsupportedMechanismError):
        block_root(63)


def test_one_coordinate_is_spread_over_its_block() -> None:
    spike = np.zeros(5000)
    spike[17] = 1.0
    rotated = Rotation(5000, SEED).of_reals(spike)
    assert np.abs(rotated).max() == 1 / 16 and np.count_nonzero(rotated) == 256


def test_no_coordinate_is_longer_than_the_bound_over_signs() -> None:
    """Against 300 signs: Hoeffding's bound at 2^-81 is far away, four standard deviations are not."""
    size, norm = 2000, 10_000
    values = np.full(size, norm / math.sqrt(size))
    longest = max(np.abs(Rotation(size, insecure_rng(k)(32)).of_reals(values)).max() for k in range(300))
    assert 3.5 * norm / math.sqrt(size) < longest < bounds.spread_norm(norm, size, 8)
    assert bounds.spread_norm(norm, 2**20, 8) < norm / 15
    assert bounds.spread_norm(norm, 64, 8) == norm + 1  # never worse than the norm itself


# -- the dithered grid: sensitivity -----------------------------------------------------------------------------------


def summed(size: int, clip: int, shift: int, limit: int = 2**40) -> RotatedSum:
    sensitivity = RotatedSum.sensitivity(clip, size, shift)
    return RotatedSum(Rotation(size, SEED), shift, limit, GaussianMechanism(1, sensitivity, 2**20, 2))


def test_the_mean_over_dithers_is_the_rotated_sum() -> None:
    values, rounds = np.arange(-50, 50) * 37, 4000
    made, rng = summed(100, 1000, 5), stream("dither")
    mean = np.mean([made.released(values, rng) for _ in range(rounds)], axis=0)
    exact = Rotation(100, SEED).sum_of_integers(values) / 2**5
    assert np.abs(mean - exact).max() < 5 * 0.5 / math.sqrt(rounds)


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(8, 2**16), st.integers(0, 8), st.sampled_from([1, 40, 2**40]))
def test_a_row_moves_the_rotated_sum_by_at_most_the_sensitivity(seed: int, clip: int, shift: int, limit: int) -> None:
    """The same dither on both sides, any background, any row of norm `clip`, with and without the limit."""
    size = 300
    words = stream("rows", seed).words(2 * size).astype(np.int64)
    background = words[:size] >> 43
    row = np.where(words[size:] & 7 == 0, (words[size:] >> 40).astype(float), 0.0) + np.eye(1, size)[0]
    row = np.trunc(row / np.linalg.norm(row) * clip).astype(np.int64)
    assert int(row @ row) <= clip**2
    made = summed(size, clip, shift, limit)
    moved = made.released(background + row, stream(seed)) - made.released(background, stream(seed))
    assert int(moved @ moved) <= made.noise.clip_steps**2


def test_the_bound_of_the_dither_is_the_formula() -> None:
    assert DITHER**2 >= 162 * Fraction(694, 1000) > (DITHER - Fraction(1, 100)) ** 2
    size, clip, shift = 5000, 2**16, 11
    coarse = math.ceil(2**16 * 16 / 2**11)
    assert RotatedSum.sensitivity(clip, size, shift) == norm_bound(coarse, rotated_length(size), DITHER)
    assert coarse < norm_bound(coarse, 5120, DITHER) <= coarse + 72
    assert norm_bound(coarse, 5120, DITHER) == bounds.rounded_norm(coarse, 5120, bounds.DITHER)


def test_the_noise_is_the_share_and_comes_last() -> None:
    made = replace(summed(200_000, 1000, 3), limit=5)
    noised = made.privatize(np.full(200_000, 10**6, dtype=np.int64), stream("noise"))
    assert noised.std() == pytest.approx(2**20 / math.sqrt(2), rel=0.01)
    assert np.abs(noised).max() > 5  # nothing is cut off after the noise


def test_rotated_updates_keep_the_bound_of_protocol_c() -> None:
    rotation = Rotation(3000, SEED)
    wide = ClientMechanism(64, 64, 2000, 25, 3000, rotation)
    mechanism = replace(wide, limit=6)  # the spike's coordinates are 8 long
    spike = np.zeros(3000, dtype=np.float32)
    spike[5] = 50.0
    steps = bounded_update(spike, mechanism, stream("spike"))
    assert len(steps) == rotation.length == mechanism.length and np.abs(steps).max() <= 6
    assert int(steps @ steps) <= mechanism.sensitivity**2 == norm_bound(64, rotation.length) ** 2
    mean = np.mean([rotation.back(bounded_update(spike, wide, stream(k))) for k in range(400)], axis=0) / 64
    assert mean[5] == pytest.approx(1.0, rel=0.1) and np.abs(mean[6:]).max() < 0.15


# -- the manifest and a round -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [3, 4])
def test_what_is_accounted_for_is_in_steps_of_the_coarser_grid(slots: int) -> None:
    made = manifest(slots=slots)
    scale = made.aggregation.scale
    assert made.vector_length == made.secagg_params().vector_length == 5120
    assert 16 * 2**16 >> made.rotation_shift == scale  # √m·privacy.scale over a power of two
    assert (made.release_clip_steps, made.release_noise_steps) == (scale, scale)
    assert made.sensitivity_steps == norm_bound(scale, 5120, DITHER) > scale
    charge = round_charge(made, 1, 0)
    assert (charge.mechanism.noise_steps, charge.mechanism.clip_steps) == (scale, made.sensitivity_steps)
    document = made.model_dump(mode="json", exclude_none=True)
    assert planned_event(document) == charge.event
    assert (sensitivity_steps(document), noise_steps(document)) == (made.sensitivity_steps, scale)


def test_an_unrotated_manifest_has_no_new_key() -> None:
    assert b"rotation" not in make_manifest(5).to_bytes()
    assert b'"rotation":"hadamard"' in manifest().to_bytes()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"privacy__protocol": "R1"}, "for noise in shares"),
        ({"aggregation__scale": 3 * 2**7}, "coarser by a power of two"),
        ({"aggregation__bound": 500}, "bound too small"),
        (
            {"privacy__clip_steps": 2**26, "privacy__max_records": 2**24, "privacy__delta": "0.000000001"},
            "rotated exactly",
        ),
        ({"aggregation__scale": 2**4}, "too coarse"),
    ],
)
def test_what_cannot_be_rotated_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        manifest(**change)


def test_short_vectors_are_not_rotated() -> None:
    with pytest.raises(ValidationError, match="fewer than 64"):
        manifest(length=63)


def test_narrow_slots_hold_what_wide_ones_would_have_to_refuse() -> None:
    """The same norm without the rotation needs eight times the bound: one coordinate could hold all of it."""
    made = manifest()
    plain = made.privacy.max_records * made.release_clip_steps
    assert made.largest_contribution() < plain
    assert made.largest_update >= bounds.spread_norm(made.release_clip_steps, 5000, 8)


def test_a_round_of_rotated_sums_gives_back_the_gradient_and_the_noise() -> None:
    """Through frames: the server's step undoes the rotation, and every value has the variance of all shares."""
    made = manifest()
    release, params = rotated_sum(made), made.secagg_params()
    assert release is not None
    gradient = (2**16 * np.sin(np.arange(5000)) / 50).astype(np.int64)  # of norm about clip
    total = np.zeros(params.total_words, dtype=np.uint64)
    for k in range(7):
        total += frame(release.privatize(gradient, stream("round", k)), params)
    opened = unframe(total, 7, params).astype(np.int32)
    rate = float(made.training.learning_rate)
    step = next_model(np.zeros(5000, dtype=np.float32), opened, 7, made)
    found = -step.astype(float) / rate * made.training.expected_batch  # in units of the gradient
    noise = found - 7 * gradient / 2**16
    variance = (7 / 6 * 2**18 + 7 / 4) / 2**18  # shares, and the dither's at most a quarter each; unit: the clip norm
    assert noise.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / 5000))
    assert abs(noise.mean()) < 5 * math.sqrt(variance / 5000)


def test_the_training_loop_hands_its_sum_to_the_rotation() -> None:
    """The same sample and dither: what leaves is the rotated sum of bounded rows."""
    model, data = adapted_model(), records(30)
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    mechanism = GaussianMechanism(2**20, 2**20, 10)
    plan = DpSgdPlan(1, 1, 1, mechanism, 10, "sgd", 0.1)
    plain = noised_sum(model, data, plan, Csprng(bytes(32)))  # noise of ten steps
    made = replace(summed(size, 2**20, 6), noise=GaussianMechanism(1, 2**26, 10, 1))
    rotated = noised_sum(model, data, replace(plan, rotated=made), Csprng(bytes(32)))
    assert len(rotated) == rotated_length(size)
    back = made.rotation.back(rotated) * 2**6 / made.rotation.root
    assert np.abs(back - plain).max() < 6 * math.hypot(10, 10 * 2**6 / made.rotation.root) + 2**6
    assert all(p.grad is None for p in model.parameters())
    torch.set_num_threads(1)


def test_client_level_rounds_in_narrow_slots() -> None:
    numbers = {"privacy__scale": 256, "privacy__clip_steps": 256, "privacy__noise_steps": 512}
    made = client_manifest(
        6000,
        **numbers,
        aggregation__scale=256,
        aggregation__bound=2000,
        aggregation__slots_per_word=3,
        aggregation__rotation="hadamard",
    )
    mechanism, params = client_mechanism(made), made.secagg_params()
    assert mechanism.rotation == rotation_of(made) and params.encoding.slot_bits == 21
    update = np.zeros(6000, dtype=np.float32)
    update[3] = 1.0
    total = np.zeros(params.total_words, dtype=np.uint64)
    for k in range(500):
        total += frame(mechanism.privatize(update, stream("narrow", k)), params)
    step = next_model(np.zeros(6000, dtype=np.float32), unframe(total, 500, params), 500, made)
    deviation = math.sqrt(512**2 * 500 / 475 + 500 / 4) / (256 * 500)
    assert step[3] == pytest.approx(1.0, abs=6 * deviation)
    assert np.delete(step, 3).std() == pytest.approx(deviation, rel=0.05)


# -- the audit --------------------------------------------------------------------------------------------------------


def test_the_audit_of_rotated_sums_passes_and_its_controls_are_seen() -> None:
    findings = check_rotated(manifest(), (400_000, 400_000), stream("audit"))
    assert [f.name for f in findings if not f.passed] == []
    assert {f.verdict for f in findings} == {"holds", "seen"}
    assert sum(f.comparisons for f in findings) <= 25  # an audit has a hundred, of which others take the rest
    assert check_rotated(client_manifest(), (1, 1), stream("none")) == []
    assert check_accountant(claim_of_books(manifest()))[0].passed


def test_the_audit_of_rotated_clients_looks_at_parts() -> None:
    numbers = {
        "privacy__scale": 256,
        "privacy__clip_steps": 256,
        "privacy__noise_steps": 512,
        "aggregation__scale": 256,
    }
    made = client_manifest(2000, **numbers, aggregation__rotation="hadamard")
    findings = check_client_level(made, (100_000, 100_000), stream("audit C"))
    assert [f.name for f in findings if not f.passed] == []
    assert "noise: variance of part 3 of 4" in {f.name for f in findings}

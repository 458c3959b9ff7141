"""The Gaussian mechanism on integers: its sensitivity is a fact about integers, checked as one."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from dp.errors import PrivacyError, UnsupportedMechanismError
from dp.mechanism import MAX_CLIP_STEPS, GaussianMechanism
from dp.sampling import Csprng, discrete_gaussian

MECHANISM = GaussianMechanism(scale=2**10, clip_steps=1500, noise_steps=3000)


def rng(label: int) -> Csprng:
    return Csprng(label.to_bytes(32, "big"))


def square_norms(rows: NDArray[np.int64]) -> list[int]:
    """Exact, in Python integers."""
    return [sum(int(x) ** 2 for x in row) for row in rows]


any_float = st.one_of(
    st.floats(-4, 4),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1e308, -1e308, 1e-308, 5e-324, float("nan"), float("inf")]),
)
matrices = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=any_float)


def test_real_units_are_exact() -> None:
    assert MECHANISM.clip_norm == Fraction(1500, 1024)
    assert MECHANISM.noise_multiplier == 2


@given(matrices)
def test_clip_bounds_every_row_and_zeroes_broken_ones(rows: NDArray[np.float64]) -> None:
    clipped = MECHANISM.clip(rows)
    assert np.isfinite(clipped).all()
    for before, after in zip(rows, clipped, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            norm = float(np.sqrt((before * before).sum()))
        assert float(np.linalg.norm(after)) <= float(MECHANISM.clip_norm) * (1 + 1e-12)
        if not np.isfinite(norm):
            assert not after.any()
        elif norm <= float(MECHANISM.clip_norm):
            assert after.tolist() == before.tolist()
        else:
            assert np.allclose(after * (norm / float(MECHANISM.clip_norm)), before, rtol=1e-9, atol=1e-9 * norm)


@given(matrices)
def test_no_row_of_any_input_exceeds_the_sensitivity(rows: NDArray[np.float64]) -> None:
    """Also without the clip before it: the bound does not rest on the floats."""
    for floats in (rows, MECHANISM.clip(rows)):
        bounded = MECHANISM.round_toward_zero_and_bound(floats)
        assert bounded.dtype == np.int64
        assert bounded.shape == rows.shape
        assert max(square_norms(bounded)) <= MECHANISM.clip_steps**2


@given(matrices)
def test_rounding_is_toward_zero_and_drops_whole_rows_only(rows: NDArray[np.float64]) -> None:
    clipped = MECHANISM.clip(rows)
    bounded = MECHANISM.round_toward_zero_and_bound(clipped)
    for row, steps in zip(clipped, bounded, strict=True):
        expected = [int(x * MECHANISM.scale) for x in row]
        above = sum(x * x for x in expected) > MECHANISM.clip_steps**2
        assert steps.tolist() == ([0] * len(expected) if above else expected)


@pytest.mark.parametrize("clip_steps", [5, 2**16, MAX_CLIP_STEPS])
def test_the_bound_is_exact_to_the_last_unit(clip_steps: int) -> None:
    mechanism = GaussianMechanism(scale=1, clip_steps=clip_steps, noise_steps=10)
    at = [float(clip_steps), 0.0, 0.0]
    over = [float(clip_steps), 1.0, 0.0]
    far = [1e300, 1e300, 1e300]
    rows = np.array([at, over, far, [-x for x in at]])
    kept = mechanism.round_toward_zero_and_bound(rows).tolist()
    assert kept == [[clip_steps, 0, 0], [0, 0, 0], [0, 0, 0], [-clip_steps, 0, 0]]
    if clip_steps == 5:
        assert mechanism.round_toward_zero_and_bound(np.array([[3.0, 4.0, 0.9]])).tolist() == [[3, 4, 0]]
        assert mechanism.round_toward_zero_and_bound(np.array([[3.0, 4.0, 1.0]])).tolist() == [[0, 0, 0]]


def test_the_bound_holds_over_many_coordinates() -> None:
    # 2^20 squares of 2^11 steps each make exactly 2^21 squared; one more step is too many.
    mechanism = GaussianMechanism(scale=1, clip_steps=2**21, noise_steps=10)
    row = np.full((1, 2**20), 2.0**11)
    assert int(mechanism.round_toward_zero_and_bound(row).sum()) == 2**31
    row[0, 77] += 1
    assert not mechanism.round_toward_zero_and_bound(row).any()


@given(matrices, st.integers(0, 7))
def test_one_record_moves_the_release_by_its_own_row(rows: NDArray[np.float64], which: int) -> None:
    """Grey box: the same randomness on neighbouring data. The difference is one bounded row, exactly."""
    bounded = MECHANISM.round_toward_zero_and_bound(MECHANISM.clip(rows))
    index = which % rows.shape[0]
    with_all = MECHANISM.privatize(bounded, rng(1))
    without = MECHANISM.privatize(np.delete(bounded, index, axis=0), rng(1))
    assert (with_all - without).tolist() == bounded[index].tolist()
    assert square_norms((with_all - without)[None])[0] <= MECHANISM.clip_steps**2


def test_noise_is_the_discrete_gaussian_of_the_stream() -> None:
    total = np.arange(-50, 50, dtype=np.int64)
    noise = MECHANISM.privatize(total, rng(2)) - total
    assert noise.tolist() == discrete_gaussian(rng(2), MECHANISM.noise_steps, 100).tolist()
    rows = np.stack([total, -total, total])
    assert (MECHANISM.privatize(rows, rng(2)) - total).tolist() == noise.tolist()


def test_noise_is_fresh_at_every_call_and_as_wide_as_claimed() -> None:
    stream = rng(3)
    zero = np.zeros(100_000, dtype=np.int64)
    first, second = (MECHANISM.privatize(zero, stream).astype(np.float64) for _ in range(2))
    for noise in (first, second):
        assert abs(noise.var() / MECHANISM.noise_steps**2 - 1) < 3.3 * (2 / noise.size) ** 0.5
    assert abs(np.corrcoef(first, second)[0, 1]) < 3.3 / zero.size**0.5


def test_an_empty_batch_is_noise_alone() -> None:
    empty = np.zeros((0, 40), dtype=np.int64)
    assert MECHANISM.privatize(empty, rng(4)).tolist() == discrete_gaussian(rng(4), 3000, 40).tolist()


@pytest.mark.parametrize(
    "rows",
    [
        np.array([[1501, 0]], dtype=np.int64),
        np.array([[0, 0], [1500, 1]], dtype=np.int64),
        np.array([[-(2**62), 2**62]], dtype=np.int64),
        np.zeros((2, 2), dtype=np.float64),
        np.zeros((2, 2), dtype=np.int32),
        np.zeros((1, 2, 2), dtype=np.int64),
    ],
)
def test_rows_without_a_bound_are_not_noised(rows: NDArray[np.int64]) -> None:
    with pytest.raises(PrivacyError) as caught:
        MECHANISM.privatize(rows, rng(1))
    assert caught.value.code == "E216"


@pytest.mark.parametrize(
    "values",
    [(0, 1, 10), (1, 0, 10), (1, 1, 9), (1, 2**26 + 1, 10), (1, 1, 2**40 + 1), (2**53 + 1, 1, 10), (1, -5, 10)],
)
def test_parameters_without_proof_are_refused(values: tuple[int, int, int]) -> None:
    with pytest.raises(UnsupportedMechanismError, match="out of range"):
        GaussianMechanism(*values)

"""Fixed point and slots: exact sums, unbiased rounding, and every value that does not fit is refused, never clamped."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.encoding import PIECE, SlotEncoding, SlotPacker
from secagg.errors import EncodingError
from secagg.prg import Stream
from secagg.types import Secret


def words(count: int, seed: int = 0) -> np.ndarray:
    return Stream(Secret(seed.to_bytes(32, "big"))).words(count)


@settings(max_examples=60)
@given(st.sampled_from([2, 3, 4]), st.integers(1, 12), st.integers(1, 50), st.integers(0, 2), st.integers(0, 999))
def test_sums_are_exact(slots: int, clients: int, length: int, which: int, seed: int) -> None:
    limit = ((1 << (64 // slots)) - 1) // (2 * clients)
    bound = (limit, max(1, limit // 2), 1)[which]
    encoding = SlotEncoding(slots, 16, bound, clients)
    raw = (words(clients * length, seed) % np.uint64(2 * bound + 1)).astype(np.int64) - bound
    raw[raw % 5 == 0] = bound  # many values at the two ends, where a slot would overflow first
    raw[raw % 7 == 0] = -bound
    vectors = raw.reshape(clients, length)
    total = np.zeros(encoding.words_for(length), dtype=np.uint64)
    for vector in vectors:
        packed = encoding.pack(vector)
        assert np.array_equal(encoding.unpack(packed, length, 1), vector)
        total += packed
    assert np.array_equal(encoding.unpack(total, length, clients), vectors.sum(axis=0))


def test_layout_by_hand() -> None:
    encoding = SlotEncoding(3, 1, 5, 2)
    packed = encoding.pack(np.array([-5, 0, 5, 1], dtype=np.int64))
    assert packed.tolist() == [0 | 5 << 21 | 10 << 42, 6]


@pytest.mark.parametrize(("slots", "bits"), [(2, 32), (3, 21), (4, 16)])
def test_headroom_is_exact(slots: int, bits: int) -> None:
    clients = 10
    largest = ((1 << bits) - 1) // (2 * clients)
    assert SlotEncoding(slots, 1, largest, clients).slot_bits == bits
    with pytest.raises(EncodingError, match="no headroom") as caught:
        SlotEncoding(slots, 1, largest + 1, clients)
    assert caught.value.do is not None


@pytest.mark.parametrize(
    "fields", [(1, 1, 1, 1), (5, 1, 1, 1), (3, 0, 1, 1), (3, 1, 0, 1), (3, 1, 1, 0), (3, 1, -1, 1)]
)
def test_bad_encodings(fields: tuple[int, int, int, int]) -> None:
    with pytest.raises(EncodingError):
        SlotEncoding(*fields)


@given(st.lists(st.floats(-4, 4), min_size=1, max_size=30), st.integers(0, 99))
def test_rounding_is_to_a_neighbour(values: list[float], seed: int) -> None:
    encoding = SlotEncoding(3, 1024, 4096, 5)
    x = np.array(values)
    q = encoding.quantize(x, words(len(x), seed))
    assert q.dtype == np.int64 and (np.abs(q - x * 1024) < 1).all() and (np.abs(q) <= 4096).all()
    exact = np.round(x * 1024) / 1024
    assert np.array_equal(encoding.quantize(exact, words(len(x), seed)), exact * 1024)


def rounded(x: float, scale: int, random: int) -> int:
    """SPEC 5.1 in plain integers."""
    whole, fraction = divmod(int(x * scale * 2.0**32), 2**32)  # int() cuts toward zero
    return whole + (random < fraction)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(-4, 4), st.integers(0, 2**32 - 1)), min_size=1, max_size=30),
    st.sampled_from(["<f8", "<f4", "<f2"]),
)
def test_rounding_is_that_of_the_spec(pairs: list[tuple[float, int]], dtype: str) -> None:
    encoding = SlotEncoding(3, 1024, 4096, 5)
    x = np.array([value for value, _ in pairs]).astype(dtype)
    random = np.array([r for _, r in pairs], dtype=np.uint32)
    expected = [rounded(float(value), 1024, int(r)) for value, r in zip(x, random, strict=True)]
    assert encoding.quantize(x, random).tolist() == expected
    low = words(len(x)) & np.uint64(2**32 - 1)  # what stands in the lower half of a uint64 does not count
    assert encoding.quantize(x, random.astype(np.uint64) << np.uint64(32) | low).tolist() == expected
    assert encoding.quantize(np.repeat(x, 2)[::2], random).tolist() == expected  # any stride


def test_rounding_runs_over_many_pieces() -> None:
    encoding = SlotEncoding(3, 1000, 8191, 100)
    count = 2 * PIECE + 77
    raw = words(count)
    x = ((raw % np.uint64(16_000_001)).astype(np.float64) - 8e6) / 1e6
    random = words(count, 1)
    expected = [rounded(v, 1000, r >> 32) for v, r in zip(x.tolist(), random.tolist(), strict=True)]
    assert encoding.quantize(x, random).tolist() == expected


@pytest.mark.parametrize(
    ("slots", "bound", "clients"), [(2, 2**31 - 1, 1), (3, 2**20 - 1, 1), (4, 2**15 - 1, 1), (2, 1, 9)]
)
@pytest.mark.parametrize("random", [0, 2**32 - 1])
def test_the_ends_of_the_range(slots: int, bound: int, clients: int, random: int) -> None:
    """At the largest bound that any encoding has, neither rounding nor packing overflows."""
    encoding = SlotEncoding(slots, 1, bound, clients)
    x = np.array([bound, -bound, bound - 1, 0.5, -0.5, 2.0**-33, -(2.0**-33), -0.0])
    r = np.full(len(x), random, dtype=np.uint32)
    q = encoding.quantize(x, r)
    assert q.tolist() == [rounded(v, 1, random) for v in x.tolist()]
    assert q[:3].tolist() == [bound, -bound, bound - 1] and q[5:].tolist() == [0, 0, 0]
    packed = np.empty(encoding.words_for(len(x)), dtype=np.uint64)
    assert SlotPacker(encoding).reals(x, r, packed)
    assert np.array_equal(packed, encoding.pack(q)) and np.array_equal(encoding.unpack(packed, len(x), 1), q)


@pytest.mark.parametrize("length", [1, 2, 3, 3 * PIECE - 1, 3 * PIECE, 3 * PIECE + 1, 7 * PIECE + 2])
def test_packing_runs_over_many_pieces(length: int) -> None:
    encoding = SlotEncoding(3, 16, 5000, 3)
    values = (words(length) % np.uint64(10_001)).astype(np.int64) - 5000
    padded = [v + 5000 for v in values.tolist()] + [0] * (-length % 3)
    expected = [a | b << 21 | c << 42 for a, b, c in zip(*[iter(padded)] * 3, strict=True)]
    packed = encoding.pack(values)
    assert packed.tolist() == expected
    assert np.array_equal(encoding.unpack(packed, length, 1), values)
    assert np.array_equal(encoding.pack(values.astype(np.int32)), packed)
    for place in {0, length // 2, length - 1}:
        for wrong in (5001, -5001):
            bent = values.copy()
            bent[place] = wrong
            with pytest.raises(EncodingError, match="within the bound"):
                encoding.pack(bent)
        bent_words = packed.copy()
        bent_words[place // 3] |= np.uint64(1 << 63)
        with pytest.raises(EncodingError, match="out of range"):
            encoding.unpack(bent_words, length, 1)


@pytest.mark.parametrize("place", [0, 1, 2, PIECE, 3 * PIECE + 4, -1])
@pytest.mark.parametrize(("bad", "code"), [(np.nan, "E110"), (np.inf, "E110"), (4.01, "E111"), (-1e38, "E111")])
def test_one_bad_value_anywhere_is_found(place: int, bad: float, code: str) -> None:
    encoding = SlotEncoding(3, 1024, 4096, 5)
    x = np.zeros(3 * PIECE + 50, dtype=np.float32)
    x[place] = bad
    random = np.zeros(len(x), dtype=np.uint32)
    with pytest.raises(EncodingError) as caught:
        encoding.quantize(x, random)
    assert caught.value.code == code
    if code == "E110":
        assert caught.value.found == f"1 non-finite of {len(x)}"
    assert not SlotPacker(encoding).reals(x, random, np.empty(encoding.words_for(len(x)), dtype=np.uint64))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint64, bool])
def test_only_signed_integers_are_packed(dtype: type) -> None:
    with pytest.raises(EncodingError, match="not integers"):
        SlotEncoding(3, 1, 5, 2).pack(np.zeros(4, dtype=dtype))


def test_rounding_is_unbiased() -> None:
    """100,000 roundings of 0.3 grid steps: the mean is 0.3 within 6 deviations. Rounding to nearest would give 0."""
    encoding = SlotEncoding(3, 1, 10, 5)
    for value in (0.3, -0.3, 2.75):
        q = encoding.quantize(np.full(100_000, value), words(100_000))
        deviation = np.sqrt(abs(value % 1) * (1 - abs(value % 1)) / 100_000)
        assert abs(q.mean() - value) < 6 * deviation
        assert set(q.tolist()) == {int(np.floor(value)), int(np.floor(value)) + 1}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused(bad: float) -> None:
    encoding = SlotEncoding(3, 1024, 4096, 5)
    with pytest.raises(EncodingError, match="NaN or infinite") as caught:
        encoding.quantize(np.array([0.0, bad]), words(2))
    assert caught.value.code == "E110" and "1 non-finite of 2" in str(caught.value)


@pytest.mark.parametrize("bad", [4.0001, -4.0001, 1e300, -1e300])
def test_out_of_range_is_refused_and_not_clamped(bad: float) -> None:
    encoding = SlotEncoding(3, 1024, 4096, 5)
    with pytest.raises(EncodingError, match="out of range") as caught:
        encoding.quantize(np.array([0.0, bad]), words(2))
    assert caught.value.code == "E111" and f"{abs(bad):.4g}" in str(caught.value)
    assert encoding.quantize(np.array([4.0, -4.0]), words(2)).tolist() == [4096, -4096]


def test_each_value_has_a_random_word_of_its_own() -> None:
    with pytest.raises(EncodingError, match="one random word per value"):
        SlotEncoding(3, 1024, 4096, 5).quantize(np.zeros(5), words(1))


@pytest.mark.parametrize("bad", [4097, -4097, 2**62, -(2**62), 2**63 - 1, -(2**63)])
def test_pack_refuses_what_does_not_fit(bad: int) -> None:
    """-2^63 is what NaN becomes when it is cast to int64, and its absolute value is negative."""
    encoding = SlotEncoding(3, 1024, 4096, 5)
    with pytest.raises(EncodingError, match="within the bound"):
        encoding.pack(np.array([0, bad, 0], dtype=np.int64))
    with pytest.raises(EncodingError, match="within the bound"):
        encoding.pack(np.zeros((2, 2), dtype=np.int64))


def test_unpack_refuses_what_is_no_sum() -> None:
    encoding = SlotEncoding(3, 1, 10, 5)
    one = encoding.pack(np.array([1, 2, 3, 4], dtype=np.int64))
    assert encoding.unpack(one, 4, 1).tolist() == [1, 2, 3, 4]
    for bent in (one + np.uint64([21, 0]), one | np.uint64([1 << 63, 0]), one + np.uint64([0, 1 << 21])):
        with pytest.raises(EncodingError, match="out of range"):
            encoding.unpack(bent, 4, 1)
    for length, count in ((3, 1), (7, 1), (4, 0), (4, 6)):
        with pytest.raises(EncodingError):
            encoding.unpack(one, length, count)


def test_dequantize_is_the_mean() -> None:
    encoding = SlotEncoding(3, 1024, 4096, 5)
    assert encoding.dequantize(np.array([1024, -2048]), 2).tolist() == [0.5, -1.0]

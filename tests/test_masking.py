"""Frame, mask, unmask: masks cancel exactly, in every word; a wrong sum is found by its zero words."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator import insecure_rng

from secagg.encoding import SlotEncoding
from secagg.errors import EncodingError, ReconstructionError
from secagg.masking import (
    MASKS_AT_ONCE,
    PIECE_WORDS,
    InputDigest,
    Mask,
    MaskStreams,
    add_masks,
    chunks,
    frame,
    frame_real,
    pairwise_sign,
    unframe,
)
from secagg.params import SecAggParams
from secagg.prg import Stream
from secagg.types import ClientId, Secret


def params(length: int = 40, n: int = 5) -> SecAggParams:
    return SecAggParams(n, 1, 0, 3, length, SlotEncoding(3, 16, 100, n), 16)


def seed(*parts: object) -> Secret:
    return Secret(insecure_rng(parts)(32))


@given(st.integers(1, 100), st.integers(3, 8), st.integers(0, 999))
def test_masks_cancel(length: int, n: int, salt: int) -> None:
    p = params(length, n)
    values = {
        u: np.array([(u * 37 + i * salt) % 201 - 100 for i in range(length)], dtype=np.int64) for u in range(1, n + 1)
    }
    total = np.zeros(p.total_words, dtype=np.uint64)
    for u in values:
        words = frame(values[u], p)
        add_masks(
            words,
            [Mask(seed(salt, u), 1)]
            + [
                Mask(seed(salt, min(u, v), max(u, v)), pairwise_sign(ClientId(u), ClientId(v)))
                for v in values
                if v != u
            ],
        )
        total += words
    add_masks(total, [Mask(seed(salt, u), -1) for u in values])
    assert np.array_equal(unframe(total, n, p), sum(values.values()))


def test_layout_by_hand() -> None:
    p = params(length=60)  # 20 words of slots: contribution word and 14 in the first chunk, 6 in the second
    words = frame(np.zeros(60, dtype=np.int64), p)
    zero_values = 100 | 100 << 21 | 100 << 42
    assert words.tolist() == [0, 1, *[zero_values] * 14, 0, *[zero_values] * 6]
    parts = list(chunks(words, p))
    assert [len(part) for part in parts] == [128, 56] and parts[0][8:16] == b"\x01" + bytes(7)
    assert b"".join(chunks(words, p)) == b"".join(parts)  # replayable


def framed_by_hand(values: list[int], p: SecAggParams) -> list[int]:
    """SPEC 5.2 and 5.3 in plain integers."""
    c, bits, bound = p.encoding.slots_per_word, p.encoding.slot_bits, p.encoding.bound
    payload = [1]
    for start in range(0, len(values), c):
        payload.append(sum((v + bound) << (bits * j) for j, v in enumerate(values[start : start + c])))
    out = []
    for start in range(0, len(payload), p.chunk_words - 1):
        out += [0, *payload[start : start + p.chunk_words - 1]]
    return out


def sized(length: int, chunk_words: int, slots: int = 3) -> SecAggParams:
    return SecAggParams(5, 1, 0, 3, length, SlotEncoding(slots, 16, 1000, 5), chunk_words)


def integers(length: int, bound: int = 1000) -> np.ndarray:
    return (Stream(seed("values")).words(length) % np.uint64(2 * bound + 1)).astype(np.int64) - bound


@given(st.integers(1, 700), st.sampled_from([16, 18, 64, 256]), st.sampled_from([2, 3, 4]))
def test_frames_are_those_of_the_spec(length: int, chunk_words: int, slots: int) -> None:
    p = sized(length, chunk_words, slots)
    values = integers(length)
    words = frame(values, p)
    assert len(words) == p.total_words and words.tolist() == framed_by_hand(values.tolist(), p)
    assert np.array_equal(unframe(words, 1, p), values)
    assert np.array_equal(unframe(words * np.uint64(5), 5, p), 5 * values)


@pytest.mark.parametrize("chunk_words", [16, 1002, PIECE_WORDS - 2, PIECE_WORDS, 65536])
@pytest.mark.parametrize("length", [3 * PIECE_WORDS - 4, 200_003, 6 * 65535 - 3])
def test_long_frames(length: int, chunk_words: int) -> None:
    p = sized(length, chunk_words)
    values = integers(length)
    words = frame(values, p)
    assert words.tolist() == framed_by_hand(values.tolist(), p)
    assert np.array_equal(frame(values.astype(np.int32), p), words)
    assert np.array_equal(unframe(words, 1, p), values)
    for place in (1, (p.chunk_words + 1) % len(words), len(words) - 1):  # an impossible slot anywhere
        bent = words.copy()
        bent[place] += np.uint64(2001 << 42) if place != 1 else np.uint64(1)
        with pytest.raises(ReconstructionError, match=r"out of range|contribution"):
            unframe(bent, 1, p)


class Tape:
    """A source of bytes that remembers what it gave."""

    def __init__(self, *parts: object) -> None:
        self._rng, self.given = insecure_rng(parts), b""

    def __call__(self, size: int) -> bytes:
        data = self._rng(size)
        self.given += data
        return data


@pytest.mark.parametrize(("length", "chunk_words"), [(1, 16), (40, 16), (5000, 64), (200_003, 16), (200_003, 65536)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_real_vector_in_one_pass_is_rounding_then_framing(length: int, chunk_words: int, dtype: type) -> None:
    """Value i is rounded by number i of what the source gave, and by nothing else."""
    p = sized(length, chunk_words)
    x = (integers(length, 62_000) / 1000).astype(dtype)
    tape = Tape("tape")
    framed = frame_real(x, p, tape)
    random = np.frombuffer(tape.given, dtype="<u4")
    assert len(random) == length
    values = []
    for value, r in zip(x.astype(np.float64).tolist(), random.tolist(), strict=True):
        whole, fraction = divmod(int(value * 16 * 2.0**32), 2**32)
        values.append(whole + (r < fraction))
    assert framed.words.tolist() == framed_by_hand(values, p)
    assert np.array_equal(framed.words, frame(p.encoding.quantize(x, random), p))


@pytest.mark.parametrize(("bad", "code"), [(np.nan, "E110"), (-np.inf, "E110"), (62.6, "E111"), (-1e30, "E111")])
@pytest.mark.parametrize("place", [0, 100_001, -1])
def test_a_real_vector_that_does_not_fit_is_refused(bad: float, code: str, place: int) -> None:
    p = sized(200_003, 16)
    x = np.zeros(200_003, dtype=np.float32)
    x[place] = bad
    with pytest.raises(EncodingError) as caught:
        frame_real(x, p, Tape())
    assert caught.value.code == code and caught.value.do is not None
    if code == "E110":
        assert caught.value.found == "1 non-finite of 200003"  # of the whole vector, not of a piece


def test_a_kept_frame_serves_several_attempts_and_shows_nothing() -> None:
    p = sized(40, 16)
    framed = frame_real(np.full(40, 3.0), p, Tape())
    clear = framed.words.copy()
    one, two = framed.copy(p), framed.copy(p)
    add_masks(one, [Mask(seed("first attempt"), 1)])
    assert np.array_equal(two, clear) and np.array_equal(framed.words, clear) and not np.array_equal(one, clear)
    assert repr(framed) == f"Framed(params={p!r})"
    for other in (sized(40, 18), sized(39, 16), sized(40, 16, 2)):
        with pytest.raises(EncodingError, match="other parameters") as caught:
            framed.copy(other)
        assert caught.value.code == "E113"
    framed.wipe()
    assert not framed.words.any() and two.any()


def peak(work: Callable[[], object]) -> int:
    """Bytes that `work` had at most at once, its result included (NumPy reports its buffers)."""
    work()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("chunk_words", [16, 65536])
def test_memory_is_the_result_and_a_few_pieces(chunk_words: int) -> None:
    length = 3_000_000
    p = sized(length, chunk_words)
    x, values = np.ones(length, dtype=np.float32), np.ones(length, dtype=np.int64)
    words, rng = frame(values, p), insecure_rng("memory")
    out, spare = 8 * p.total_words, 3 << 20  # 8 MB of words; a copy of x or of the words would show
    masks = [Mask(seed("mask", i), 1) for i in range(5)]
    assert out <= peak(lambda: frame(values, p)) < out + spare
    assert out <= peak(lambda: frame_real(x, p, lambda n: bytes(n))) < out + spare
    assert peak(lambda: add_masks(words, masks)) < spare
    assert peak(lambda: unframe(frame(values, p), 1, p)) < out + 8 * length + spare
    assert rng(1) and peak(lambda: p.encoding.quantize(x, np.zeros(length, dtype=np.uint32))) < 12 * length + spare


def test_signs_are_opposite_at_the_two_ends() -> None:
    assert pairwise_sign(ClientId(1), ClientId(2)) == 1 == -pairwise_sign(ClientId(2), ClientId(1))


def test_masks_are_the_plain_keystream_also_across_pieces() -> None:
    length = PIECE_WORDS + 11
    words = np.zeros(length, dtype="<u8")
    add_masks(words, [Mask(seed("a"), 1), Mask(seed("b"), -1)])
    assert np.array_equal(words, Stream(seed("a")).words(length) - Stream(seed("b")).words(length))


@given(st.lists(st.sampled_from((1, -1)), max_size=5), st.lists(st.integers(0, 40), max_size=5))
def test_masks_block_by_block(signs: list[int], sizes: list[int]) -> None:
    """However the vector is cut, also inside the first blocks of the cipher."""
    masks = [Mask(seed("block", i), sign) for i, sign in enumerate(signs)]
    whole = np.zeros(sum(sizes), dtype="<u8")
    streams, start = MaskStreams(masks), 0
    for size in sizes:
        streams.add_to(whole[start : start + size])
        start += size
    expected = np.zeros(sum(sizes), dtype=np.uint64)
    for mask in masks:
        stream = Stream(mask.seed).words(len(whole))
        expected = expected + stream if mask.sign > 0 else expected - stream
    assert np.array_equal(whole, expected)


def test_more_masks_than_contexts_are_kept_open() -> None:
    masks = [Mask(seed("many", i), 1 if i % 3 else -1) for i in range(2 * MASKS_AT_ONCE + 3)]
    words = np.zeros(50, dtype="<u8")
    add_masks(words, iter(masks))
    streams = [Stream(mask.seed).words(50) * np.uint64(mask.sign % 2**64) for mask in masks]
    assert np.array_equal(words, np.sum(streams, axis=0, dtype=np.uint64))


@pytest.mark.parametrize("sign", [0, 2, -2])
def test_a_mask_has_one_of_two_signs(sign: int) -> None:
    with pytest.raises(KeyError):
        add_masks(np.zeros(4, dtype="<u8"), [Mask(seed("sign"), sign)])


def test_every_wrong_zero_or_contribution_word_is_found() -> None:
    p = params(60)
    good = frame(np.zeros(60, dtype=np.int64), p) * np.uint64(2)
    assert unframe(good, 2, p).tolist() == [0] * 60
    for place in (0, 16):
        for wrong in (1, 2**63, 2**64 - 1):
            bent = good.copy()
            bent[place] = wrong
            with pytest.raises(ReconstructionError, match="zero word"):
                unframe(bent, 2, p)
    for wrong in (0, 1, 3, 2**64 - 2):
        bent = good.copy()
        bent[1] = wrong
        with pytest.raises(ReconstructionError, match="contribution word"):
            unframe(bent, 2, p)
    with pytest.raises(ReconstructionError, match="contribution word"):
        unframe(good, 3, p)
    bent = good.copy()
    bent[2] |= np.uint64(1 << 63)
    with pytest.raises(ReconstructionError, match="out of range"):
        unframe(bent, 2, p)
    for wrong_length in (good[:-1], np.append(good, np.uint64(0))):
        with pytest.raises(ReconstructionError, match="wrong length"):
            unframe(wrong_length, 2, p)


def test_a_left_over_mask_never_passes_for_a_sum() -> None:
    """500 wrong unmaskings: the first zero word alone lets one pass with probability 2^-64."""
    p = params()
    for i in range(500):
        words = frame(np.zeros(40, dtype=np.int64), p)
        add_masks(words, [Mask(seed("left over", i), 1)])
        with pytest.raises(ReconstructionError):
            unframe(words, 1, p)


def test_a_frame_has_the_length_of_the_manifest() -> None:
    for length in (0, 39, 41):
        with pytest.raises(EncodingError, match="wrong length") as caught:
            frame(np.zeros(length, dtype=np.int64), params(40))
        assert caught.value.code == "E113"
        with pytest.raises(EncodingError, match="wrong length"):
            frame_real(np.zeros(length), params(40), Tape())
    for shape in ((40, 1), (1, 40), (40, 2), ()):
        with pytest.raises(EncodingError, match="wrong length"):
            frame_real(np.zeros(shape), params(40), Tape())
        with pytest.raises(EncodingError, match="wrong length"):
            frame(np.zeros(shape, dtype=np.int64), params(40))


def test_the_digest_does_not_depend_on_how_chunks_are_cut() -> None:
    words = Stream(seed("digest")).words(50)
    one, two = InputDigest(), InputDigest()
    one.update(words.tobytes())
    for chunk in chunks(words, params()):
        two.update(chunk)
    three = InputDigest()
    three.update(words.view(np.uint8).data)
    assert one.digest() == two.digest() == three.digest() and one.digest() != InputDigest().digest()

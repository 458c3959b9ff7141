"""Frame, mask, unmask: masks cancel exactly, in every word; a wrong sum is found by its zero words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator import insecure_rng

from secagg.encoding import SlotEncoding
from secagg.errors import EncodingError, ReconstructionError
from secagg.masking import PIECE_WORDS, InputDigest, Mask, add_masks, chunks, frame, pairwise_sign, unframe
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


def test_signs_are_opposite_at_the_two_ends() -> None:
    assert pairwise_sign(ClientId(1), ClientId(2)) == 1 == -pairwise_sign(ClientId(2), ClientId(1))


def test_masks_are_the_plain_keystream_also_across_pieces() -> None:
    length = PIECE_WORDS + 11
    words = np.zeros(length, dtype="<u8")
    add_masks(words, [Mask(seed("a"), 1), Mask(seed("b"), -1)])
    assert np.array_equal(words, Stream(seed("a")).words(length) - Stream(seed("b")).words(length))


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


def test_the_digest_does_not_depend_on_how_chunks_are_cut() -> None:
    words = Stream(seed("digest")).words(50)
    one, two = InputDigest(), InputDigest()
    one.update(words.tobytes())
    for chunk in chunks(words, params()):
        two.update(chunk)
    assert one.digest() == two.digest() and one.digest() != InputDigest().digest()

"""AES-256-CTR as mask generator: NIST SP 800-38A vectors through our stream, offsets, another implementation."""

from collections.abc import Iterator

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB
from hypothesis import given
from hypothesis import strategies as st

from secagg import prg
from secagg.errors import ParameterError
from secagg.prg import Stream
from secagg.types import Secret

SEED = Secret(bytes(range(32)))


@pytest.fixture(autouse=True, params=[False, True], ids=["by CTR", "off GCM"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test here holds for both ways to the same bytes."""
    chosen, prg._Way.from_gcm = prg._Way.from_gcm, request.param
    yield
    prg._Way.from_gcm = chosen


@pytest.mark.parametrize("gcm_is_faster", [False, True])
def test_the_clock_chooses(gcm_is_faster: bool) -> None:
    """Five trials of (CTR, GCM), two readings each; the slow one takes twice as long."""
    seconds = (2.0, 1.0) if gcm_is_faster else (1.0, 2.0)
    readings = iter([at for _ in range(5) for one in seconds for at in (0.0, one)])
    prg.choose_faster(lambda: next(readings))
    assert prg._Way.from_gcm is gcm_is_faster and next(readings, None) is None


def test_nist_sp_800_38a_f_5_5() -> None:
    key = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
    counter = 0xF0F1F2F3F4F5F6F7F8F9FAFBFCFDFEFF
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    stream = Stream(Secret(bytes.fromhex(key)), first_word=2 * counter).words(8).tobytes()
    assert stream == bytes(a ^ b for a, b in zip(plain, cipher, strict=True))


def test_counter_blocks_one_by_one() -> None:
    """Block b is AES(seed, b as 128-bit big-endian), words are little-endian: written with ECB instead of CTR."""
    encryptor = Cipher(AES256(bytes(SEED.view)), ECB()).encryptor()  # noqa: S305
    blocks = b"".join(encryptor.update(b.to_bytes(16, "big")) for b in range(5))
    words = [int.from_bytes(blocks[i : i + 8], "little") for i in range(0, 80, 8)]
    assert Stream(SEED).words(10).tolist() == words


@given(st.lists(st.integers(0, 70), max_size=6), st.integers(0, 40))
def test_pieces_make_the_whole(sizes: list[int], start: int) -> None:
    stream = Stream(SEED, 2 * start)
    pieces = np.concatenate([np.empty(0, np.uint64), *(stream.words(n) for n in sizes)])
    assert np.array_equal(pieces, Stream(SEED).words(2 * start + sum(sizes))[2 * start :])


@given(st.binary(min_size=32, max_size=32), st.lists(st.integers(0, 9), max_size=8), st.integers(0, 3000))
def test_the_fast_stream_is_ctr(seed: bytes, first: list[int], rest: int) -> None:
    """Read in small pieces across the blocks that do not come from GCM, then at length; by words and by bytes."""
    expected = Cipher(AES256(seed), CTR(bytes(16))).encryptor().update(bytes(8 * (sum(first) + rest)))
    stream = Stream(Secret(seed))
    got = b"".join(stream.words(n).tobytes() for n in first)
    tail = bytearray(8 * rest)
    stream.write(memoryview(bytes(8 * rest)), memoryview(tail))
    assert got + tail == expected


def test_the_fast_stream_and_ctr_meet_far_inside() -> None:
    """Also past 2^16 blocks, where a shorter counter would have wrapped."""
    words = Stream(SEED).words(2 * 70_000)
    assert np.array_equal(words[2 * 65_530 :], Stream(SEED, 2 * 65_530).words(2 * 4_470))


def test_into_writes_exactly_its_target() -> None:
    out, zeros = np.full(10, 7, dtype="<u8"), np.zeros(16, dtype="<u8")
    Stream(SEED).into(out[2:7], zeros)
    assert np.array_equal(out[2:7], Stream(SEED).words(5)) and out[[0, 1, 7, 8, 9]].tolist() == [7] * 5
    assert not zeros.any()


@pytest.mark.parametrize("length", [0, 4, 16, 31, 33])
def test_a_short_seed_is_refused(length: int) -> None:
    with pytest.raises(ParameterError):
        Stream(Secret(bytes(length)))


def test_a_stream_starts_on_a_block() -> None:
    with pytest.raises(ParameterError):
        Stream(SEED, 1)


def test_the_stream_shows_nothing() -> None:
    assert bytes(SEED.view).hex() not in repr(Stream(SEED)) and not hasattr(Stream(SEED), "__dict__")

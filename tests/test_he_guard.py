"""The guard against bytes that the library really writes, and against each way to bend them."""

import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import tenseal  # noqa: TID251 - real bytes of several parameter sets, some of which the guard must refuse
import zstandard
from ciphertexts import Sealed, framed, unframed, varint

from secagg.he import guard
from secagg.he.bfv import Bfv
from secagg.he.errors import CiphertextError
from secagg.he.scheme import DEGREE, BfvParams

P = BfvParams(3, 32)
SHAPE = guard.ciphertext_shape(P)


@pytest.fixture(scope="module")
def key() -> bytes:
    return Bfv().opening(P, 10, [1, 2]).public_key


@pytest.fixture(scope="module")
def ciphertext(key: bytes) -> bytes:
    return next(Bfv().encryptor(P, key).encrypt(np.arange(10, dtype=np.uint64)))


def refused(data: bytes, params: BfvParams = P) -> str:
    """What the guard says."""
    with pytest.raises(CiphertextError) as caught:
        guard.check_ciphertext(data, params)
    assert caught.value.code == "E105" and len(str(caught.value)) < 200
    return caught.value.what


@pytest.mark.parametrize(
    ("clients", "bits"), [(2, 16), (2, 22), (2, 32), (100, 32), (128, 32), (1024, 22), (65_537, 16)]
)
def test_what_the_library_writes_is_what_the_guard_knows(clients: int, bits: int) -> None:
    """Parameter ids, moduli and every leading field, computed without the library, are the library's own."""
    params = BfvParams(clients, bits)
    opening = Bfv().opening(params, 10, [1, 2])
    assert len(guard.check_public_key(opening.public_key, params)) == 16 + guard.public_key_shape(params).size
    data = next(Bfv().encryptor(params, opening.public_key).encrypt(np.arange(10, dtype=np.uint64)))
    numbers = guard.check_ciphertext(data, params)
    assert numbers.shape == (2, DEGREE) and int(numbers.max()) < params.modulus
    assert int(numbers.max()) > params.modulus * 0.99
    again = tenseal.bfv_vector_from(opening._context, guard.frame_ciphertext(numbers, params)).serialize()
    assert np.array_equal(guard.check_ciphertext(again, params), numbers)
    with pytest.raises(CiphertextError):
        guard.check_ciphertext(data, BfvParams(clients - 1 if clients > 2 else 3, bits))


def library(scheme: str, degree: int, plain: int | None, bits: list[int]) -> bytes:
    """A ciphertext as the library makes it for other parameters."""
    kind = {"bfv": tenseal.SCHEME_TYPE.BFV, "ckks": tenseal.SCHEME_TYPE.CKKS}[scheme]
    more = {} if plain is None else {"plain_modulus": plain}
    context = tenseal.context(kind, degree, coeff_mod_bit_sizes=bits, n_threads=1, **more)
    if scheme == "ckks":
        context.global_scale = 2.0**30
        return bytes(tenseal.ckks_vector(context, [1.0] * 100).serialize())
    return bytes(tenseal.bfv_vector(context, [1] * 4096).serialize())


@pytest.mark.parametrize(
    ("scheme", "degree", "plain", "bits"),
    [
        ("bfv", 4096, P.plain_modulus, [P.coefficient_bits - 1] * 2),
        ("bfv", 4096, BfvParams(4, 32).plain_modulus, [P.coefficient_bits] * 2),
        ("bfv", 4096, P.plain_modulus, [36, 36, 37]),
        ("bfv", 8192, 1_032_193, [P.coefficient_bits] * 2),
        ("ckks", 8192, None, [60, 40, 40]),
    ],
)
def test_other_parameters_of_the_library_are_refused(
    scheme: str, degree: int, plain: int | None, bits: list[int]
) -> None:
    assert refused(library(scheme, degree, plain, bits))


def test_a_vector_of_another_length_is_refused(key: bytes) -> None:
    context = Bfv().encryptor(P, key)._context
    for size in (1, 4095):
        assert refused(bytes(tenseal.bfv_vector(context, [1] * size).serialize())) == "sizes of a ciphertext"


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 5, 7, 8, 23, 24, 40, 1000, -1])
def test_truncated(ciphertext: bytes, key: bytes, cut: int) -> None:
    assert refused(ciphertext[:cut])
    with pytest.raises(CiphertextError):
        guard.check_public_key(key[:cut], P)


def test_over_long(ciphertext: bytes, key: bytes) -> None:
    assert refused(ciphertext + b"\0") == "bytes of the ciphertext"
    assert refused(ciphertext + bytes(1 << 20)) == "bytes of a ciphertext"
    with pytest.raises(CiphertextError):
        guard.check_public_key(key + b"\0", P)
    with pytest.raises(CiphertextError, match="bytes of a sealed object"):  # before anything else is looked at
        guard.check_public_key(key + bytes(1 << 20), P)
    assert refused(framed(Sealed.read(unframed(ciphertext)).around(bytes(SHAPE.size + 300)))) == "bytes of a ciphertext"


def test_every_flipped_bit_of_the_shell_is_refused(ciphertext: bytes) -> None:
    """Framing, header, frame header: 40 bytes. (Bits of the content may give another ciphertext: test_he.py.)"""
    start = ciphertext.index(zstandard.FRAME_HEADER)
    for place in range(start + 4):
        for bit in range(8):
            bent = bytearray(ciphertext)
            bent[place] ^= 1 << bit
            assert refused(bytes(bent))


def test_flipped_bits_anywhere_are_refused_or_give_numbers_below_q(ciphertext: bytes) -> None:
    outcomes = set()
    for place in range(30, len(ciphertext), 97):
        bent = bytearray(ciphertext)
        bent[place] ^= 1 << place % 8
        try:
            numbers = guard.check_ciphertext(bytes(bent), P)
        except CiphertextError:
            outcomes.add("refused")
        else:
            assert int(numbers.max()) < P.modulus
            outcomes.add("other numbers")
    assert "refused" in outcomes


HEADERS = {
    "magic": 0xA15F,
    "size": 8,
    "major": 3,
    "minor": 4,
    "compression": 1,
    "reserved": 1,
    "total": 5,
}


@pytest.mark.parametrize("name", HEADERS)
def test_every_field_of_the_header(ciphertext: bytes, name: str) -> None:
    sealed = Sealed.read(unframed(ciphertext))
    guard.check_ciphertext(framed(sealed.write()), P)
    assert refused(framed(replace(sealed, **{name: HEADERS[name]}).write())) == "header of a sealed object"


def test_every_byte_of_the_leading_fields(ciphertext: bytes) -> None:
    sealed = Sealed.read(unframed(ciphertext))
    for place in range(len(SHAPE.leading)):
        bent = sealed.patched(place, bytes([sealed.content[place] ^ 0x41]))
        assert refused(framed(bent.write())) == "leading fields"


@pytest.mark.parametrize("place", [0, 1, 4095, 4096, 8191])
def test_every_coefficient_is_below_its_modulus(ciphertext: bytes, place: int) -> None:
    sealed = Sealed.read(unframed(ciphertext))
    at = len(SHAPE.leading) + 8 * place
    guard.check_ciphertext(framed(sealed.patched(at, struct.pack("<Q", P.modulus - 1)).write()), P)
    for number in (P.modulus, P.modulus + 1, 2**63, 2**64 - 1):
        what = refused(framed(sealed.patched(at, struct.pack("<Q", number)).write()))
        assert what == "a coefficient that is not below its modulus"


def test_transparent(ciphertext: bytes) -> None:
    sealed = Sealed.read(unframed(ciphertext))
    bare = sealed.patched(len(SHAPE.leading) + 8 * DEGREE, bytes(8 * DEGREE))
    assert refused(framed(bare.write())) == "a second polynomial of zeros"


def with_dictionary(frame: bytes) -> bytes:
    """The same frame, said to need dictionary number 5."""
    return frame[:4] + bytes([frame[4] | 1, 5]) + frame[5:]


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "two frames": lambda c: zstandard.compress(c[:100]) + zstandard.compress(c[100:]),
    "a skippable frame first": lambda c: b"\x50\x2a\x4d\x18\x01\0\0\0x" + zstandard.compress(c),
    "a skippable frame of the right size": lambda c: b"\x50\x2a\x4d\x18" + struct.pack("<I", len(c)) + c,
    "rubbish after it": lambda c: zstandard.compress(c) + b"x",
    "no declared size": lambda c: zstandard.ZstdCompressor(write_content_size=False).compress(c),
    "a byte less": lambda c: zstandard.compress(c[:-1]),
    "a byte more": lambda c: zstandard.compress(c + b"\0"),
    "a bomb": lambda c: zstandard.compress(c + bytes(1 << 26)),
    "a dictionary": lambda c: with_dictionary(zstandard.compress(c)),
    "not compressed": lambda c: c[:40_000],
}


@pytest.mark.parametrize("name", PACKED)
def test_every_other_frame(ciphertext: bytes, name: str) -> None:
    sealed = Sealed.read(unframed(ciphertext))
    what = refused(framed(sealed.around(PACKED[name](sealed.content))))
    assert what in {"compressed frame", "declared content of a sealed object", "bytes of a sealed object"} or (
        name == "a bomb" and what == "bytes of a ciphertext"
    )


def test_varints_have_one_spelling(ciphertext: bytes) -> None:
    sealed = unframed(ciphertext)
    head = b"\x0a\x02\x80\x20\x12"
    length = varint(len(sealed))
    assert ciphertext == head + length + sealed
    padded = length[:-1] + bytes([length[-1] | 0x80]) + b"\0"
    assert refused(head + padded + sealed) == "a length of too many bytes"
    short = sealed[:300]  # a length of two bytes
    assert refused(head + b"\xac\x82\x00" + short) == "a length that is not minimal"
    assert refused(head + b"\xac\x02" + short) == "header of a sealed object"
    assert refused(b"\x0a\x03\x80\xa0\x00\x12" + length + sealed) == "sizes of a ciphertext"
    assert refused(head + length + sealed + head + length + sealed)


def test_what_the_library_gets_of_a_key_is_our_frame(key: bytes) -> None:
    loaded = guard.check_public_key(key, P)
    assert loaded[:8] == bytes.fromhex("5ea1100403000000") and loaded[16:] == Sealed.read(key).content
    assert guard.check_public_key(Sealed.read(key).write(19), P) == loaded


@pytest.mark.parametrize("residue", [0, 1])
def test_bad_keys(key: bytes, residue: int) -> None:
    shape, sealed = guard.public_key_shape(P), Sealed.read(key)
    modulus = shape.moduli[residue]
    at = len(shape.leading) + 8 * DEGREE * residue
    with pytest.raises(CiphertextError, match="not below its modulus"):
        guard.check_public_key(sealed.patched(at, struct.pack("<Q", modulus)).write(), P)
    zero = sealed.patched(len(shape.leading) + 8 * DEGREE * (2 + residue), bytes(8 * DEGREE))
    with pytest.raises(CiphertextError, match="zeros"):
        guard.check_public_key(zero.write(), P)


def test_a_ciphertext_is_no_key_and_a_key_no_ciphertext(ciphertext: bytes, key: bytes) -> None:
    assert refused(framed(key))
    with pytest.raises(CiphertextError):
        guard.check_public_key(unframed(ciphertext), P)

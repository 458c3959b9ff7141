"""Strict reading of a peer's ciphertexts and public keys, before the native library sees anything. RELIABILITY.md 1.

The library aborts the process or reads out of bounds on malformed input. So its formats are read here by hand and
compared with the one shape that `BfvParams` allow, and what is handed on is not the peer's bytes: of a ciphertext the
coefficients, as numbers below q, of a public key its checked content in a fresh, uncompressed frame. No decompressor
and no parser of the library meets anything that a peer framed. SPEC 3.8.

A ciphertext is ``0a 02 80 20`` (protobuf: sizes = [4096]), ``12 <length>`` and one sealed object. A public key is one
sealed object. A sealed object is a 16-byte header, then one Zstandard frame of: parameter id (32 bytes), NTT flag,
polynomials (2), N, moduli k (u64 each), scale 1.0 (f64), correction factor 1, an inner header without compression, the
number of coefficients, and the coefficients, u64, all little-endian.
"""

import struct
from dataclasses import dataclass, field

import numpy as np
import zstandard
from numpy.typing import NDArray

from secagg.he.errors import CiphertextError
from secagg.he.scheme import DEGREE, BfvParams

Coefficients = NDArray[np.uint64]

_POLYNOMIALS = 2
_HEADER = struct.Struct("<HBBBBHQ")  # magic, header size, major, minor, compression, reserved, total size
_MAGIC, _MAJOR, _MINOR = 0xA15E, 4, 3
_RAW, _ZSTD = 0, 2
_SIZES = b"\x0a\x02\x80\x20"  # field 1, length 2, the varint 4096
_CIPHERTEXTS = 0x12  # field 2, length-delimited
_MAX_VARINT = 3
_SLACK = 256  # a frame of incompressible content is a few bytes longer than its content


@dataclass(frozen=True, slots=True)
class Shape:
    """The one shape of a sealed object, made from parameters alone.

    Attributes:
        leading: Every byte before the coefficients.
        moduli: One per residue, repeated for each polynomial.
    """

    leading: bytes
    moduli: tuple[int, ...]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", len(self.leading) + 8 * _POLYNOMIALS * len(self.moduli) * DEGREE)


def ciphertext_shape(params: BfvParams) -> Shape:
    """Shape of one ciphertext: modulo q, not in NTT form."""
    return _shape(params.ciphertext_id, 0, (params.modulus,))


def public_key_shape(params: BfvParams) -> Shape:
    """Shape of a public key: modulo q·P, in NTT form."""
    return _shape(params.key_id, 1, (params.modulus, params.special_modulus))


def check_ciphertext(data: bytes, params: BfvParams) -> Coefficients:
    """The coefficients of one ciphertext of a peer, all below q: uint64, shape (2, DEGREE), read-only.

    Raises:
        CiphertextError: for anything but `DEGREE` limbs in one well-formed, non-transparent ciphertext of `params`.
    """
    _, polynomials = _check_sealed(unframe(data, max_ciphertext_bytes(params)), ciphertext_shape(params))
    return polynomials[:, 0]


def check_public_key(data: bytes, params: BfvParams) -> bytes:
    """The sealed object of a peer's public key, checked and framed anew.

    Raises:
        CiphertextError: for anything but a well-formed public key of `params`.
    """
    return seal_raw(_check_sealed(data, public_key_shape(params))[0])


def frame_ciphertext(coefficients: Coefficients, params: BfvParams) -> bytes:
    """One ciphertext as the library reads it, from coefficients below q that we computed: not from a peer's bytes."""
    return frame(seal_raw(ciphertext_shape(params).leading + coefficients.astype("<u8").tobytes()))


def max_ciphertext_bytes(params: BfvParams) -> int:
    """Upper bound on the bytes of one ciphertext: nothing longer need be received."""
    return len(frame(bytes(ciphertext_shape(params).size + _HEADER.size + _SLACK)))


def frame(sealed: bytes) -> bytes:
    """Protobuf framing of one sealed ciphertext with 4096 slots."""
    return _SIZES + bytes([_CIPHERTEXTS]) + varint(len(sealed)) + sealed


def unframe(data: bytes, limit: int) -> bytes:
    """The sealed ciphertext inside the framing; nothing before, between or after. Raises CiphertextError."""
    if len(data) > limit:
        raise CiphertextError("bytes of a ciphertext", found=len(data), expected=f"at most {limit}")
    if data[: len(_SIZES)] != _SIZES:
        raise CiphertextError("sizes of a ciphertext", expected=f"[{DEGREE}]")
    position = len(_SIZES)
    if data[position : position + 1] != bytes([_CIPHERTEXTS]):
        raise CiphertextError("field after the sizes", expected="one ciphertext")
    position += 1
    length = 0
    for i in range(_MAX_VARINT):
        if position >= len(data):
            raise CiphertextError("end inside a length")
        byte = data[position]
        position += 1
        length |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if i and byte == 0:
                raise CiphertextError("a length that is not minimal")
            break
    else:
        raise CiphertextError("a length of too many bytes", expected=f"at most {_MAX_VARINT}")
    if length != len(data) - position:
        raise CiphertextError("bytes of the ciphertext", found=len(data) - position, expected=length)
    return data[position:]


def sealed_content(sealed: bytes, size: int) -> bytes:
    """Header checked, content inflated: exactly `size` bytes, never more in memory. Raises CiphertextError."""
    if not _HEADER.size < len(sealed) <= size + _HEADER.size + _SLACK:
        raise CiphertextError("bytes of a sealed object", found=len(sealed), expected=f"at most {size + _SLACK}")
    header = _HEADER.unpack_from(sealed)
    if header != (_MAGIC, _HEADER.size, _MAJOR, _MINOR, _ZSTD, 0, len(sealed)):
        raise CiphertextError("header of a sealed object")
    packed = sealed[_HEADER.size :]
    try:
        if zstandard.get_frame_parameters(packed).content_size != size:
            raise CiphertextError("declared content of a sealed object", expected=f"{size} bytes")
        # Gives what was declared, or raises: also for a skippable frame, a dictionary, or anything behind the frame.
        return zstandard.ZstdDecompressor().decompress(packed, read_across_frames=False, allow_extra_data=False)
    except zstandard.ZstdError:
        raise CiphertextError("compressed frame") from None


def seal_raw(content: bytes) -> bytes:
    """A sealed object without compression."""
    return _HEADER.pack(_MAGIC, _HEADER.size, _MAJOR, _MINOR, _RAW, 0, _HEADER.size + len(content)) + content


def _check_sealed(sealed: bytes, shape: Shape) -> tuple[bytes, Coefficients]:
    content = sealed_content(sealed, shape.size)
    if content[: len(shape.leading)] != shape.leading:
        raise CiphertextError("leading fields", expected="those of the agreed parameters")
    numbers = np.frombuffer(content, "<u8", offset=len(shape.leading))
    polynomials = numbers.reshape(_POLYNOMIALS, len(shape.moduli), DEGREE)
    if (polynomials >= np.array(shape.moduli, np.uint64)[None, :, None]).any():
        raise CiphertextError("a coefficient that is not below its modulus")
    # c1 = 0 is a plaintext in disguise; a zero residue of a key would make encryptions of the like
    if not polynomials[1].any(axis=1).all():
        raise CiphertextError("a second polynomial of zeros", expected="no transparent ciphertext")
    return content, polynomials


def _shape(parameter_id: bytes, ntt: int, moduli: tuple[int, ...]) -> Shape:
    count = _POLYNOMIALS * len(moduli) * DEGREE
    leading = parameter_id + struct.pack("<BQQQdQ", ntt, _POLYNOMIALS, DEGREE, len(moduli), 1.0, 1)
    inner = _HEADER.pack(_MAGIC, _HEADER.size, _MAJOR, _MINOR, _RAW, 0, _HEADER.size + 8 + 8 * count)
    return Shape(leading + inner + struct.pack("<Q", count), moduli)


def varint(number: int) -> bytes:
    """Minimal."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])

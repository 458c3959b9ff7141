"""Vectors of homomorphic encryption: what has no randomness in it. Parameters, limbs, and what the guard says to bytes.

The frames are written by hand, of raw and run-length blocks, so that an object of 65 kB takes some 200 bytes here and
no version of a compressor changes them.
"""

import hashlib
import struct
from typing import Any

import numpy as np
from vectors.primitives import Vector, bad, good

from secagg.he import guard
from secagg.he.limbs import recombine, split
from secagg.he.scheme import BfvParams, widest_limbs

N = 4096
MOST = 131_072  # bytes of one block


def frame(*parts: bytes | tuple[int, int], size: int | None = None) -> bytes:
    """A Zstandard frame of raw parts and runs (byte, length); declares `size`, by default what it holds."""
    whole = sum(len(p) if isinstance(p, bytes) else p[1] for p in parts)
    blocks: list[tuple[int, int, bytes]] = []  # kind, size, content
    for part in parts:
        if isinstance(part, bytes):
            blocks.append((0, len(part), part))
            continue
        byte, left = part
        while left:
            blocks.append((1, min(left, MOST), bytes([byte])))
            left -= min(left, MOST)
    out = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", whole if size is None else size)
    for i, (kind, length, content) in enumerate(blocks):
        out += (length << 3 | kind << 1 | (i == len(blocks) - 1)).to_bytes(3, "little") + content
    return out


def sealed(packed: bytes, **other: int) -> bytes:
    """A sealed object around a frame; `other` replaces fields of its header."""
    header = {"magic": 0xA15E, "size": 16, "major": 4, "minor": 3, "compression": 2, "reserved": 0}
    header |= {"total": 16 + len(packed)} | other
    return struct.pack("<HBBBBHQ", *header.values()) + packed


def framed(obj: bytes, sizes: bytes = b"\x0a\x02\x80\x20", length: bytes | None = None) -> bytes:
    """A ciphertext around a sealed object."""
    return sizes + b"\x12" + (varint(len(obj)) if length is None else length) + obj


def varint(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def parts(shape: guard.Shape, leading: bytes | None = None, numbers: dict[int, int] | None = None) -> list[Any]:
    """Content with all coefficients 0 but those in `numbers`: one residue of c1 each, unless told otherwise."""
    count = len(shape.moduli)
    numbers = {(count + i) * N + 7: 3 + i for i in range(count)} if numbers is None else numbers
    out: list[Any] = [shape.leading if leading is None else leading]
    done = 0
    for place, number in sorted(numbers.items()):
        out += [(0, 8 * (place - done)), struct.pack("<Q", number)]
        done = place + 1
    return [*out, (0, 8 * (2 * count * N - done))]


def parameters() -> list[Vector]:
    out = []
    for clients, bits in (
        (2, 16),
        (2, 22),
        (2, 32),
        (5, 32),
        (100, 32),
        (128, 32),
        (129, 22),
        (1024, 22),
        (65_537, 16),
    ):
        p = BfvParams(clients, bits)
        gives = {
            "t": str(p.plain_modulus),
            "q": str(p.modulus),
            "p": str(p.special_modulus),
            "bits": p.coefficient_bits,
            "words_per_block": p.words_per_block,
            "ciphertext_id": p.ciphertext_id.hex(),
            "key_id": p.key_id.hex(),
            "widest_limbs": widest_limbs(clients),
        }
        out.append(good("he_params", {"clients": clients, "limb_bits": bits}, gives))
    words = [0, 1, 2**64 - 1, 0x0123456789ABCDEF]
    for bits in (16, 22, 32):
        given = {"limb_bits": bits, "words": [f"{w:016x}" for w in words]}
        out.append(good("he_split", given, split(np.array(words, np.uint64), bits).tolist()))
        p = BfvParams(3, bits)
        sums = [p.largest_sum] * p.limbs_per_word + list(range(1, p.limbs_per_word + 1))
        made = recombine(np.array(sums, np.int64), p)
        out.append(good("he_recombine", {"clients": 3, **given, "sums": sums}, [f"{w:016x}" for w in made.tolist()]))
        del out[-1]["given"]["words"]
    p = BfvParams(3, 32)
    data = framed(sealed(frame(*parts(guard.ciphertext_shape(p)))))
    digest = hashlib.sha256(guard.check_ciphertext(data, p).tobytes()).hexdigest()
    given = {"clients": 3, "limb_bits": 32}
    out.append(good("he_ciphertext", {**given, "bytes": data.hex()}, {"coefficients_sha256": digest}))
    data = sealed(frame(*parts(guard.public_key_shape(p))))
    digest = hashlib.sha256(guard.check_public_key(data, p)).hexdigest()
    out.append(good("he_public_key", {**given, "bytes": data.hex()}, {"loaded_sha256": digest}))
    return out


def bad_parameters() -> list[Vector]:
    faults = {
        "one client": (1, 32),
        "129 clients in 32-bit limbs": (129, 32),
        "1025 clients in 22-bit limbs": (1025, 22),
        "65,538 clients": (65_538, 16),
        "limbs of 21 bits": (3, 21),
        "limbs of 64 bits": (3, 64),
    }
    return [
        bad("he_params", {"clients": c, "limb_bits": b}, why, lambda c=c, b=b: BfvParams(c, b))
        for why, (c, b) in faults.items()
    ]


def bad_sums() -> list[Vector]:
    p = BfvParams(3, 32)
    faults = {
        "a limb above the largest sum": [0, p.largest_sum + 1],
        "a limb of -1 modulo t": [p.plain_modulus - 1, 0],
        "half a word": [0, 0, 0],
    }
    return [
        bad(
            "he_recombine",
            {"clients": 3, "limb_bits": 32, "sums": sums},
            why,
            lambda sums=sums: recombine(np.array(sums, np.int64), p),
        )
        for why, sums in faults.items()
    ]


def bad_ciphertexts() -> list[Vector]:
    p, other = BfvParams(3, 32), BfvParams(3, 22)
    shape = guard.ciphertext_shape(p)
    fine = frame(*parts(shape))
    leading = shape.leading
    last = 2 * N - 1

    def changed(at: int, new: bytes) -> bytes:
        return framed(sealed(frame(*parts(shape, leading[:at] + new + leading[at + len(new) :]))))

    obj = sealed(fine)
    faults = {
        "empty": b"",
        "two sizes": framed(obj, b"\x0a\x03\x80\x20\x01"),
        "another size": framed(obj, b"\x0a\x02\x81\x20"),
        "no sizes": b"\x12" + varint(len(obj)) + obj,
        "an unknown field before": b"\x18\x01" + framed(obj),
        "sizes twice": b"\x0a\x02\x80\x20" + framed(obj),
        "a length that is not minimal": framed(obj, length=bytes([len(obj) & 0x7F | 0x80, len(obj) >> 7 | 0x80, 0])),
        "a length of four bytes": framed(obj, length=b"\x80\x80\x80\x01"),
        "the end inside the length": framed(obj, length=b"")[:5] + b"\x80",
        "one byte short": framed(obj)[:-1],
        "one byte more": framed(obj) + b"\x00",
        "a second ciphertext": framed(obj) + b"\x12" + varint(len(obj)) + obj,
        "longer than any": framed(sealed(fine + bytes(65_000) + bytes(2000))),
        "magic": framed(sealed(fine, magic=0xA15D)),
        "header size": framed(sealed(fine, size=17)),
        "major version": framed(sealed(fine, major=3)),
        "minor version": framed(sealed(fine, minor=2)),
        "no compression": framed(sealed(fine, compression=0)),
        "zlib": framed(sealed(fine, compression=1)),
        "reserved": framed(sealed(fine, reserved=1)),
        "total too small": framed(sealed(fine, total=16 + len(fine) - 1)),
        "total of 2^63": framed(sealed(fine, total=2**63)),
        "only a header": framed(sealed(b"")),
        "a skippable frame": framed(sealed(b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + fine)),
        "a skippable frame of the right size": framed(
            sealed(b"\x50\x2a\x4d\x18" + struct.pack("<I", shape.size) + bytes(shape.size))
        ),
        "a dictionary": framed(sealed(fine[:4] + b"\xe1\x05" + fine[5:])),
        "bytes after the frame": framed(sealed(fine + b"\x00")),
        "a second frame": framed(sealed(fine + fine)),
        "a frame that ends early": framed(sealed(fine[:-1])),
        "content one byte short": framed(sealed(frame(*parts(shape)[:-1], (0, parts(shape)[-1][1] - 1)))),
        "content one byte more": framed(sealed(frame(*parts(shape), b"\x00"))),
        "a declared size that is too small": framed(sealed(frame(*parts(shape), size=shape.size - 1))),
        "a declared size of 2^40": framed(sealed(frame(*parts(shape), size=2**40))),
        "an honest size, more content": framed(sealed(frame(*parts(shape), (0, 10 * MOST), size=shape.size))),
        "parameter id": changed(0, bytes([leading[0] ^ 1])),
        "other parameters": framed(sealed(frame(*parts(guard.ciphertext_shape(other))))),
        "a public key": framed(sealed(frame(*parts(guard.public_key_shape(p))))),
        "NTT form": changed(32, b"\x01"),
        "three polynomials": changed(33, b"\x03"),
        "no polynomial": changed(33, b"\x00"),
        "degree 8192": changed(41, struct.pack("<Q", 8192)),
        "two moduli": changed(49, b"\x02"),
        "scale 2.0": changed(57, struct.pack("<d", 2.0)),
        "scale NaN": changed(57, struct.pack("<d", float("nan"))),
        "correction factor 2": changed(65, b"\x02"),
        "inner magic": changed(73, b"\x5f"),
        "inner compression": changed(77, b"\x02"),
        "inner length": changed(81, b"\xff"),
        "count of coefficients": changed(89, b"\x01"),
        "count of 2^61": changed(89, struct.pack("<Q", 2**61)),
        "a coefficient equal to q": framed(sealed(frame(*parts(shape, numbers={0: p.modulus, N: 1})))),
        "the last coefficient 2^64 - 1": framed(sealed(frame(*parts(shape, numbers={N: 1, last: 2**64 - 1})))),
        "transparent": framed(sealed(frame(*parts(shape, numbers={0: 1})))),
    }
    given = {"clients": 3, "limb_bits": 32}
    return [
        bad("he_ciphertext", {**given, **held(data)}, why, lambda data=data: guard.check_ciphertext(data, p))
        for why, data in faults.items()
    ]


def bad_public_keys() -> list[Vector]:
    p, other = BfvParams(3, 32), BfvParams(4, 32)
    shape = guard.public_key_shape(p)
    fine = parts(shape)
    both = {2 * N: 1, 3 * N: 1}
    faults = {
        "empty": b"",
        "cut": sealed(frame(*fine))[:-1],
        "one byte more": sealed(frame(*fine)) + b"\x00",
        "other parameters": sealed(frame(*parts(guard.public_key_shape(other)))),
        "a ciphertext": sealed(frame(*parts(guard.ciphertext_shape(p)))),
        "a secret key": sealed(frame(shape.leading[:32], (0, 2 * 8 * N))),
        "no NTT form": sealed(frame(*parts(shape, shape.leading[:32] + b"\x00" + shape.leading[33:]))),
        "a coefficient equal to q": sealed(frame(*parts(shape, numbers={0: p.modulus, **both}))),
        "a coefficient equal to P": sealed(frame(*parts(shape, numbers={N: p.special_modulus, **both}))),
        "a zero residue modulo q": sealed(frame(*parts(shape, numbers={3 * N: 1}))),
        "a zero residue modulo P": sealed(frame(*parts(shape, numbers={2 * N: 1}))),
    }
    given = {"clients": 3, "limb_bits": 32}
    return [
        bad("he_public_key", {**given, **held(data)}, why, lambda data=data: guard.check_public_key(data, p))
        for why, data in faults.items()
    ]


def held(data: bytes) -> dict[str, Any]:
    """The bytes; a long tail of zeros as a number."""
    kept = data.rstrip(b"\x00")
    zeros = len(data) - len(kept)
    return {"bytes": kept.hex(), "zeros": zeros} if zeros > 64 else {"bytes": data.hex()}

"""Canonical bytes under every hash and signature: length-prefixed fields, and a binary Merkle tree. SPEC 3.1.

``encode(label, f1, ..., fk)`` is u32(k+1) then, for the label and each field, u32(length) and the bytes; integers
are 8-byte big-endian unsigned. The count in front and the length before each field make the encoding injective.
"""

import hashlib
from collections.abc import Iterable, Sequence

from secagg.labels import MERKLE_NODE

Field = bytes | bytearray | memoryview | int


def encode(label: bytes, *fields: Field) -> bytes:
    """Injective encoding of a label and fields. Integers must lie in [0, 2^64)."""
    parts: list[bytes | bytearray | memoryview] = [(len(fields) + 1).to_bytes(4, "big")]
    for field in (label, *fields):
        data = field.to_bytes(8, "big") if isinstance(field, int) else field
        parts += [len(data).to_bytes(4, "big"), data]
    return b"".join(parts)


def digest(label: bytes, *fields: Field) -> bytes:
    """SHA-256 of `encode(label, *fields)`: 32 bytes."""
    return hashlib.sha256(encode(label, *fields)).digest()


def id_list(ids: Iterable[int]) -> bytes:
    """Sorted ids as 8-byte big-endian words: the bytes of a set of clients."""
    return b"".join(i.to_bytes(8, "big") for i in sorted(ids))


def bitmap(members: Iterable[int], within: Sequence[int]) -> bytes:
    """Bit i (most significant first in each byte) says whether ``within[i]`` is a member. `within` is ascending."""
    inside = set(members)
    bits = bytearray((len(within) + 7) // 8)
    for index, member in enumerate(within):
        if member in inside:
            bits[index // 8] |= 0x80 >> (index % 8)
    return bytes(bits)


def from_bitmap(bits: bytes, within: Sequence[int]) -> tuple[int, ...] | None:
    """The members that a bitmap names, ascending; None if the bitmap has the wrong length or stray bits."""
    if len(bits) != (len(within) + 7) // 8:
        return None
    members = tuple(m for i, m in enumerate(within) if bits[i // 8] & (0x80 >> (i % 8)))
    return members if bitmap(members, within) == bits else None


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Root over at least one 32-byte leaf hash; an odd node at the end of a level is carried up unchanged."""
    level = list(leaves)
    while len(level) > 1:
        level = _up(level)
    return level[0]


def merkle_path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Sibling hashes from leaf `index` to the root."""
    path, level = [], list(leaves)
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        level, index = _up(level), index // 2
    return tuple(path)


def merkle_climb(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes | None:
    """Root that `leaf` at `index` of `count` leaves and `path` lead to; None if the path has the wrong length."""
    node, siblings = leaf, list(path)
    while count > 1:
        if index ^ 1 < count:
            if not siblings:
                return None
            other = siblings.pop(0)
            node = digest(MERKLE_NODE, other, node) if index & 1 else digest(MERKLE_NODE, node, other)
        index, count = index // 2, (count + 1) // 2
    return None if siblings else node


def _up(level: list[bytes]) -> list[bytes]:
    pairs = [digest(MERKLE_NODE, level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return pairs + ([level[-1]] if len(level) % 2 else [])

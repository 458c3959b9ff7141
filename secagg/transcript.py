"""Canonical bytes under every hash and signature: length-prefixed fields, and a binary Merkle tree. SPEC 3.1.

``encode(label, f1, ..., fk)`` is u32(k+1) then, for the label and each field, u32(length) and the bytes; integers
are 8-byte big-endian unsigned. The count in front and the length before each field make the encoding injective.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

from secagg.labels import MERKLE_NODE

Field = bytes | bytearray | memoryview | int


def encode(label: bytes, *fields: Field) -> bytes:
    """Injective encoding of a label and fields. Integers must lie in [0, 2^64)."""
    return b"".join(_parts(label, fields))


def digest(label: bytes, *fields: Field) -> bytes:
    """SHA-256 of `encode(label, *fields)`: 32 bytes."""
    parts = _parts(label, fields)
    if max(map(len, parts)) <= _LARGE:
        return hashlib.sha256(b"".join(parts)).digest()
    hasher = hashlib.sha256()  # a model or a sum: no copy of it
    for part in parts:
        hasher.update(part)
    return hasher.digest()


_LARGE = 65536


def _parts(label: bytes, fields: Sequence[Field]) -> list[bytes | bytearray | memoryview]:
    parts: list[bytes | bytearray | memoryview] = [(len(fields) + 1).to_bytes(4, "big")]
    for field in (label, *fields):
        data = field.to_bytes(8, "big") if isinstance(field, int) else field
        parts += [len(data).to_bytes(4, "big"), data]
    return parts


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


@lru_cache(maxsize=16)  # public, and the same for all sessions of one process
def from_bitmap(bits: bytes, within: tuple[int, ...]) -> tuple[int, ...] | None:
    """The members that a bitmap names, ascending; None if the bitmap has the wrong length or stray bits."""
    if len(bits) != (len(within) + 7) // 8:
        return None
    members = tuple(m for i, m in enumerate(within) if bits[i // 8] & (0x80 >> (i % 8)))
    return members if bitmap(members, within) == bits else None


class MerkleTree:
    """Binary tree over at least one 32-byte leaf hash; an odd node at the end of a level is carried up unchanged."""

    __slots__ = ("_levels",)

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = [list(leaves)]
        while len(self._levels[-1]) > 1:
            self._levels.append(_up(self._levels[-1]))

    @property
    def root(self) -> bytes:
        """32 bytes."""
        return self._levels[-1][0]

    def path(self, index: int) -> tuple[bytes, ...]:
        """Sibling hashes from leaf `index` to the root."""
        path = []
        for level in self._levels[:-1]:
            if index ^ 1 < len(level):
                path.append(level[index ^ 1])
            index //= 2
        return tuple(path)


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Root over at least one 32-byte leaf hash."""
    return MerkleTree(leaves).root


def merkle_climb(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes | None:
    """Root that `leaf` at `index` of `count` leaves and `path` lead to; None if the path has the wrong length."""
    node, siblings = leaf, list(path)
    while count > 1:
        if index ^ 1 < count:
            if not siblings:
                return None
            other = siblings.pop(0)
            node = _node(other, node) if index & 1 else _node(node, other)
        index, count = index // 2, (count + 1) // 2
    return None if siblings else node


def _up(level: list[bytes]) -> list[bytes]:
    pairs = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return pairs + ([level[-1]] if len(level) % 2 else [])


_NODE_HEAD = encode(MERKLE_NODE, bytes(32), b"")[: -32 - 4]
_NODE_MIDDLE = (32).to_bytes(4, "big")


def _node(left: bytes, right: bytes) -> bytes:
    """``digest(MERKLE_NODE, left, right)``; a ring costs a client some thousand of them, so equal parts are kept."""
    if len(left) != 32 or len(right) != 32:
        return digest(MERKLE_NODE, left, right)
    return hashlib.sha256(b"".join((_NODE_HEAD, left, _NODE_MIDDLE, right))).digest()

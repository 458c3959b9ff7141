"""Injective encoding, bitmaps, Merkle trees."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg import labels
from secagg.transcript import (
    MerkleTree,
    bitmap,
    digest,
    encode,
    from_bitmap,
    id_list,
    merkle_climb,
    merkle_root,
)

FIELDS = st.lists(st.one_of(st.binary(max_size=12), st.integers(0, 2**64 - 1)), max_size=4)


def test_encoding_by_hand() -> None:
    assert encode(b"L", b"ab", 5).hex() == "00000003000000014c000000026162000000080000000000000005"
    assert digest(b"L") == hashlib.sha256(bytes.fromhex("00000001000000014c")).digest()


def decode(data: bytes) -> list[bytes]:
    """The inverse, written apart from the code under test: that it exists makes the encoding injective."""
    count, rest, out = int.from_bytes(data[:4], "big"), data[4:], []
    for _ in range(count):
        size = int.from_bytes(rest[:4], "big")
        out.append(rest[4 : 4 + size])
        rest = rest[4 + size :]
    assert rest == b""
    return out


@given(st.binary(max_size=8), FIELDS)
def test_encoding_can_be_undone(label: bytes, fields: list[bytes | int]) -> None:
    plain = [f.to_bytes(8, "big") if isinstance(f, int) else f for f in fields]
    assert decode(encode(label, *fields)) == [label, *plain]


def test_moving_a_border_changes_the_digest() -> None:
    assert (
        len({digest(b"L", b"ab", b"c"), digest(b"L", b"a", b"bc"), digest(b"L", b"abc"), digest(b"La", b"b", b"c")})
        == 4
    )


@pytest.mark.parametrize("number", [-1, 2**64])
def test_integers_have_64_bits(number: int) -> None:
    with pytest.raises(OverflowError):
        encode(b"L", number)


def test_labels_are_distinct_and_carry_the_version() -> None:
    values = [v for k, v in vars(labels).items() if k.isupper() and isinstance(v, bytes) and not k.startswith("_")]
    assert len(values) == len(set(values)) > 20
    assert all(v.startswith(b"secagg/v1/") for v in values)


@given(st.sets(st.integers(1, 65535), min_size=1, max_size=40), st.data())
def test_bitmap_round_trip(within: set[int], data: st.DataObject) -> None:
    order = tuple(sorted(within))
    members = sorted(data.draw(st.sets(st.sampled_from(order))))
    bits = bitmap(members, order)
    assert from_bitmap(bits, order) == tuple(members)
    assert from_bitmap(bits + b"\x00", order) is None and from_bitmap(bits[:-1], order) is None
    for stray in range(len(order), 8 * len(bits)):
        bent = bytearray(bits)
        bent[stray // 8] |= 0x80 >> (stray % 8)
        assert from_bitmap(bytes(bent), order) is None


def test_bitmap_by_hand() -> None:
    assert bitmap([1, 3, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9]).hex() == "a080"
    assert id_list([3, 1]) == bytes.fromhex("00000000000000010000000000000003")


@given(st.integers(1, 20))
def test_every_leaf_climbs_to_the_root(count: int) -> None:
    leaves = [digest(b"leaf", i) for i in range(count)]
    root = merkle_root(leaves)
    for index, leaf in enumerate(leaves):
        path = MerkleTree(leaves).path(index)
        assert merkle_climb(leaf, index, count, path) == root
        assert merkle_climb(leaf, index, count, (*path, bytes(32))) is None
        if path:
            assert merkle_climb(leaf, index, count, path[:-1]) is None
        other = (index + 1) % count
        if other != index:  # a path proves the position too
            assert merkle_climb(leaf, other, count, path) != root
            assert merkle_climb(leaves[other], index, count, path) != root
        if path:
            assert merkle_climb(leaf, index, count, (bytes(32), *path[1:])) != root


def test_a_node_is_no_leaf() -> None:
    """Trees of different shapes over different leaves never meet: inner nodes have a label of their own."""
    leaves = [digest(b"leaf", i) for i in range(4)]
    inner = [digest(labels.MERKLE_NODE, *leaves[:2]), digest(labels.MERKLE_NODE, *leaves[2:])]
    assert merkle_root(leaves) == merkle_root(inner)  # so the count of leaves must be fixed by the context:
    assert merkle_climb(inner[0], 0, 4, (inner[1],)) is None  # a path of the wrong length for four leaves is refused

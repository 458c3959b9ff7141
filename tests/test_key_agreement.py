"""X25519 through our wrapper: vectors of RFC 7748, points of small order, one encoding per key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator import insecure_rng

from secagg import key_agreement
from secagg.errors import AuthenticationError
from secagg.types import Secret

RFC_7748 = [
    (
        "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
        "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
        "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
    ),
    (
        "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
        "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
        "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
    ),
]
SMALL_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000080",
]


@pytest.mark.parametrize(("scalar", "point", "shared"), RFC_7748)
def test_rfc_7748_section_5_2(scalar: str, point: str, shared: str) -> None:
    assert bytes(key_agreement.agree(Secret(bytes.fromhex(scalar)), bytes.fromhex(point)).view).hex() == shared


def test_rfc_7748_iterated_thousand_times() -> None:
    k = u = bytes([9]) + bytes(31)
    for step in range(1000):
        k, u = bytes(key_agreement.agree(Secret(k), u).view), k
        if step == 0:
            assert k.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_small_order_is_the_peers_fault(point: str) -> None:
    private = key_agreement.generate(insecure_rng("me"))
    with pytest.raises(AuthenticationError, match=r"^X25519 public key rejected$"):
        key_agreement.agree(private, bytes.fromhex(point))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_wrong_length(length: int) -> None:
    with pytest.raises(AuthenticationError):
        key_agreement.agree(Secret(b"\x01" * 32), b"\x09" * length)
    assert not key_agreement.is_canonical(b"\x09" * length)


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_both_ends_agree(a: int, b: int) -> None:
    one, two = key_agreement.generate(insecure_rng(("a", a))), key_agreement.generate(insecure_rng(("b", b)))
    shared = key_agreement.agree(one, key_agreement.public_key(two))
    assert shared == key_agreement.agree(two, key_agreement.public_key(one)) and len(shared) == 32
    assert key_agreement.is_canonical(key_agreement.public_key(one))


def test_one_key_has_one_canonical_encoding() -> None:
    """The top bit is ignored and values from 2^255 - 19 on wrap around (RFC 7748 section 5)."""
    me = key_agreement.generate(insecure_rng("me"))
    peer = key_agreement.public_key(key_agreement.generate(insecure_rng("peer")))
    other = peer[:31] + bytes([peer[31] ^ 0x80])
    assert key_agreement.agree(me, peer) == key_agreement.agree(me, other)  # the same key, twice
    assert key_agreement.is_canonical(peer) and not key_agreement.is_canonical(other)
    nine, wrapped = bytes([9]) + bytes(31), (9 + 2**255 - 19).to_bytes(32, "little")
    assert key_agreement.agree(me, nine) == key_agreement.agree(me, wrapped)
    assert key_agreement.is_canonical(nine) and not key_agreement.is_canonical(wrapped)

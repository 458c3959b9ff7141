"""AES-256-GCM through our wrapper: the vectors of McGrew and Viega with a zero nonce, and every kind of change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.aead import TAG_BYTES, open_, seal
from secagg.errors import AuthenticationError
from secagg.types import Secret

KEY = Secret(bytes(32))


def test_gcm_specification_cases_13_and_14() -> None:
    assert seal(KEY, b"", b"").hex() == "530f8afbc74536b9a963b4f1c4cb738b"
    assert seal(KEY, bytes(16), b"").hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"


@given(st.binary(max_size=100), st.binary(max_size=40), st.binary(min_size=32, max_size=32))
def test_round_trip(plaintext: bytes, associated: bytes, key: bytes) -> None:
    sealed = seal(Secret(key), plaintext, associated)
    assert len(sealed) == len(plaintext) + TAG_BYTES
    assert bytes(open_(Secret(key), sealed, associated).view) == plaintext


def test_any_change_is_refused_without_a_reason() -> None:
    sealed = seal(KEY, b"sixty-six bytes" * 4, b"associated")
    tries = [(KEY, sealed, b"Associated"), (KEY, sealed, b""), (Secret(b"\x01" * 32), sealed, b"associated")]
    tries += [(KEY, sealed[:n], b"associated") for n in (0, 1, 15, 16, len(sealed) - 1)]
    tries += [(KEY, sealed + b"\x00", b"associated")]
    for bit in range(0, 8 * len(sealed), 5):
        bent = bytearray(sealed)
        bent[bit // 8] ^= 1 << (bit % 8)
        tries.append((KEY, bytes(bent), b"associated"))
    for key, ciphertext, associated in tries:
        with pytest.raises(AuthenticationError) as caught:
            open_(key, ciphertext, associated)
        assert str(caught.value) == "authenticated decryption failed" and caught.value.__cause__ is None
    assert bytes(open_(KEY, sealed, b"associated").view) == b"sixty-six bytes" * 4

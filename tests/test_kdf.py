"""HKDF-SHA256: the RFC 5869 vector that our use (no salt, 32 bytes) can express, an independent HMAC construction, and
one key per use."""

import hashlib
import hmac

from hypothesis import given
from hypothesis import strategies as st

from secagg import kdf
from secagg.types import ClientId, Secret

CTX, ROOT = b"\x01" * 32, b"\x02" * 32
A, B, C = ClientId(1), ClientId(2), ClientId(3)


def test_rfc_5869_case_3() -> None:
    okm = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert bytes(kdf.derive(Secret(b"\x0b" * 22), b"").view).hex() == okm[:64]


@given(st.binary(min_size=1, max_size=64), st.binary(max_size=80))
def test_against_hmac(ikm: bytes, info: bytes) -> None:
    prk = hmac.new(bytes(32), ikm, hashlib.sha256).digest()
    assert bytes(kdf.derive(Secret(ikm), info).view) == hmac.new(prk, info + b"\x01", hashlib.sha256).digest()


def test_one_key_per_use_direction_and_context() -> None:
    secret = Secret(b"\x07" * 32)
    keys = [
        kdf.share_key(secret, CTX, ROOT, A, B),
        kdf.share_key(secret, CTX, ROOT, B, A),
        kdf.share_key(secret, CTX, ROOT, A, C),
        kdf.share_key(secret, ROOT, CTX, A, B),
        kdf.share_key(secret, CTX, CTX, A, B),
        kdf.pairwise_seed(secret, CTX, ROOT, A, B),
        kdf.pairwise_seed(secret, CTX, ROOT, A, C),
        kdf.pairwise_seed(secret, CTX, CTX, A, B),
        kdf.pairwise_seed(secret, ROOT, ROOT, A, B),
        kdf.self_mask_key(secret, CTX, A),
        kdf.self_mask_key(secret, CTX, B),
        kdf.self_mask_key(secret, ROOT, A),
        kdf.pairwise_seed(Secret(b"\x08" * 32), CTX, ROOT, A, B),
    ]
    assert len({bytes(k.view) for k in keys}) == len(keys)
    assert kdf.pairwise_seed(secret, CTX, ROOT, A, B) == kdf.pairwise_seed(secret, CTX, ROOT, B, A)

"""AES-256-GCM for shares. Each key seals exactly one message, so the nonce is all zero. SPEC 3.5."""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secagg.errors import AuthenticationError
from secagg.types import Secret

TAG_BYTES = 16
_NONCE = bytes(12)  # one message per key: the key is derived from (ctx, root(U1), sender, recipient)


def seal(key: Secret, plaintext: bytes | memoryview, associated_data: bytes) -> bytes:
    """Ciphertext and 16-byte tag."""
    return AESGCM(key.view).encrypt(_NONCE, plaintext, associated_data)


def open_(key: Secret, ciphertext: bytes, associated_data: bytes) -> Secret:
    """Plaintext. Raises AuthenticationError, without a reason, on any mismatch."""
    try:
        return Secret(AESGCM(key.view).decrypt(_NONCE, ciphertext, associated_data))
    except InvalidTag:
        raise AuthenticationError("authenticated decryption failed") from None

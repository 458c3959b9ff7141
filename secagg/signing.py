"""Ed25519 (RFC 8032) identity signatures behind two small classes."""

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from secagg.errors import AuthenticationError, ParameterError
from secagg.types import Rng

SIGNATURE_BYTES = 64
PUBLIC_KEY_BYTES = 32


class VerifyKey:
    """Ed25519 public key, 32 bytes."""

    __slots__ = ("_key", "_raw")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != PUBLIC_KEY_BYTES:
            raise ParameterError("wrong length of an Ed25519 public key", found=len(raw), expected=PUBLIC_KEY_BYTES)
        self._raw = bytes(raw)
        self._key = Ed25519PublicKey.from_public_bytes(self._raw)

    def to_bytes(self) -> bytes:
        """Raw 32 bytes."""
        return self._raw

    def verify(self, signature: bytes, message: bytes) -> None:
        """Raises AuthenticationError, without a reason, if the signature is not good."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            raise AuthenticationError("signature verification failed") from None

    def fingerprint(self) -> str:
        """First 80 bits of SHA-256 of the key in groups of four hex digits: to be read out by phone."""
        text = hashlib.sha256(self._raw).hexdigest()[:20]
        return "-".join(text[i : i + 4] for i in range(0, 20, 4))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifyKey) and self._raw == other._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def __repr__(self) -> str:
        return f"VerifyKey({self.fingerprint()})"


class SigningKey:
    """Ed25519 private key; its repr shows the public fingerprint only."""

    __slots__ = ("_key", "verify_key")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.verify_key = VerifyKey(key.public_key().public_bytes_raw())

    @classmethod
    def from_bytes(cls, seed: bytes | memoryview) -> "SigningKey":
        """From the 32-byte RFC 8032 seed."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def generate(cls, rng: Rng) -> "SigningKey":
        """Fresh key from the injected CSPRNG."""
        return cls.from_bytes(rng(32))

    def to_bytes(self) -> bytes:
        """The 32-byte seed, for a key file of mode 0600 and nothing else."""
        return self._key.private_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """64-byte deterministic signature."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey(public {self.verify_key.fingerprint()})"

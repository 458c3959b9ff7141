"""X25519 (RFC 7748) key agreement."""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from secagg.errors import AuthenticationError
from secagg.types import Rng, Secret

KEY_BYTES = 32
_FIELD_PRIME = 2**255 - 19


def generate(rng: Rng) -> Secret:
    """Fresh 32-byte private key."""
    return Secret(rng(KEY_BYTES))


def public_key(private: Secret) -> bytes:
    """The 32-byte public key."""
    return X25519PrivateKey.from_private_bytes(private.view).public_key().public_bytes_raw()


def is_canonical(peer: bytes) -> bool:
    """Whether a public key is 32 bytes and the one encoding of its point.

    RFC 7748 section 5 makes every implementation ignore the top bit and accept values from 2^255 - 19 on: one key has
    several encodings, and a comparison of bytes would miss that two clients advertise the same key.
    """
    return len(peer) == KEY_BYTES and int.from_bytes(peer, "little") < _FIELD_PRIME


class Agreement:
    """One private key and any number of peers. Loading a private key costs as much as using it: load it once.

    OpenSSL's copy of the key is wiped when this object goes; `private` stays the caller's.
    """

    __slots__ = ("_key",)

    def __init__(self, private: Secret) -> None:
        self._key = X25519PrivateKey.from_private_bytes(private.view)

    def agree(self, peer: bytes) -> Secret:
        """Raw 32-byte shared secret; goes through `secagg.kdf` before any use.

        Raises:
            AuthenticationError: The peer's key has the wrong length or small order (all-zero result): the peer's fault.
        """
        try:
            return Secret(self._key.exchange(X25519PublicKey.from_public_bytes(peer)))
        except ValueError:
            raise AuthenticationError("X25519 public key rejected") from None


def agree(private: Secret, peer: bytes) -> Secret:
    """`Agreement` with one peer."""
    return Agreement(private).agree(peer)

"""What makes schedules cheap without changing one: pure functions of the same bytes are computed once.

The randomness of simulated clients is pinned, so the same keys come back in most schedules: their X25519 results,
signatures and checks of signatures are remembered, and so are the digests of the signed documents.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from protocol.manifest import Manifest
from protocol.roster import Roster
from secagg import kdf, key_agreement
from secagg.errors import AuthenticationError
from secagg.params import SecAggParams
from secagg.signing import SigningKey, VerifyKey
from secagg.types import ClientId, Secret


@lru_cache(maxsize=1 << 13)
def _public_of(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


@lru_cache(maxsize=1 << 15)
def _exchanged(private: bytes, public: bytes) -> bytes | None:
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return None


class PublicOnce:
    """An X25519 public key as bytes."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @classmethod
    def from_public_bytes(cls, raw: bytes) -> "PublicOnce":
        """As X25519PublicKey."""
        return cls(bytes(raw))

    def public_bytes_raw(self) -> bytes:
        """As X25519PublicKey."""
        return self.raw


class PrivateOnce:
    """An X25519 private key as bytes: every result of it is computed once."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    @classmethod
    def from_private_bytes(cls, raw: bytes | memoryview) -> "PrivateOnce":
        """As X25519PrivateKey."""
        return cls(bytes(raw))

    def public_key(self) -> PublicOnce:
        """As X25519PrivateKey."""
        return PublicOnce(_public_of(self._raw))

    def exchange(self, peer: PublicOnce) -> bytes:
        """As X25519PrivateKey."""
        shared = _exchanged(self._raw, peer.raw)
        if shared is None:
            raise ValueError("wrong length or small order")
        return shared


@contextlib.contextmanager
def memoised() -> Iterator[None]:
    """Remember verifications of identical bytes, document digests and roster keys, for the time of the block."""
    verify, manifest_digest, roster_root = VerifyKey.verify, Manifest.digest, Roster.root
    verify_key, params = Roster.verify_key, Manifest.secagg_params

    @lru_cache(maxsize=1 << 14)
    def good(key: VerifyKey, signature: bytes, message: bytes) -> bool:
        try:
            verify(key, signature, message)
        except AuthenticationError:
            return False
        return True

    def verify_once(self: VerifyKey, signature: bytes, message: bytes) -> None:
        if not good(self, signature, message):
            raise AuthenticationError("signature verification failed")

    sign = SigningKey.sign

    @lru_cache(maxsize=1 << 13)
    def signed(key: SigningKey, message: bytes) -> bytes:
        return sign(key, message)

    digests: dict[int, tuple[object, bytes]] = {}  # the document is kept beside its digest: an id is never used again

    def manifest_once(self: Manifest) -> bytes:
        if id(self) not in digests:
            digests[id(self)] = self, manifest_digest(self)
        return digests[id(self)][1]

    def roster_once(self: Roster) -> bytes:
        if id(self) not in digests:
            digests[id(self)] = self, roster_root(self)
        return digests[id(self)][1]

    keys: dict[tuple[int, ClientId], tuple[Roster, VerifyKey]] = {}

    def key_once(self: Roster, client_id: ClientId) -> VerifyKey:
        if (id(self), client_id) not in keys:
            keys[id(self), client_id] = self, verify_key(self, client_id)
        return keys[id(self), client_id][1]

    all_params: dict[int, tuple[Manifest, SecAggParams]] = {}

    def params_once(self: Manifest) -> SecAggParams:
        if id(self) not in all_params:
            all_params[id(self)] = self, params(self)
        return all_params[id(self)][1]

    with (
        patch.object(VerifyKey, "verify", verify_once),
        patch.object(SigningKey, "sign", lambda self, message: signed(self, bytes(message))),
        patch.object(key_agreement, "X25519PrivateKey", PrivateOnce),
        patch.object(key_agreement, "X25519PublicKey", PublicOnce),
        patch.object(Manifest, "digest", manifest_once),
        patch.object(Manifest, "secagg_params", params_once),
        patch.object(Roster, "root", roster_once),
        patch.object(Roster, "verify_key", key_once),
    ):
        yield


@contextlib.contextmanager
def watching(derived: Callable[[bytes, tuple[bytes, bytes]], None]) -> Iterator[None]:
    """Tell `derived` of every pairwise mask seed, with the (ctx, root of U2) that it was asked for."""
    original = kdf.pairwise_seed

    def seen(shared: Secret, ctx: bytes, root_u2: bytes, one: ClientId, other: ClientId) -> Secret:
        seed = original(shared, ctx, root_u2, one, other)
        derived(bytes(seed.view), (ctx, root_u2))
        return seed

    kdf.pairwise_seed = seen
    try:
        yield
    finally:
        kdf.pairwise_seed = original

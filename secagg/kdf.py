"""HKDF-SHA256 (RFC 5869). The info string carries the label, ctx, a root and the direction. SPEC 3.4."""

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secagg.labels import KDF_PAIRWISE_MASK, KDF_SELF_MASK, KDF_SHARE
from secagg.transcript import encode
from secagg.types import ClientId, Secret

KEY_BYTES = 32


def derive(secret: Secret, info: bytes) -> Secret:
    """32-byte key from keying material and an injectively encoded info; salt empty (RFC 5869 section 3.1)."""
    return Secret(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret.view))


def share_key(shared: Secret, ctx: bytes, root_u1: bytes, sender: ClientId, recipient: ClientId) -> Secret:
    """AEAD key for the one share message sender -> recipient of this attempt."""
    return derive(shared, encode(KDF_SHARE, ctx, root_u1, sender, recipient))


def pairwise_seed(shared: Secret, ctx: bytes, root_u2: bytes, one: ClientId, other: ClientId) -> Secret:
    """s_uv: the same for both ends, bound to the set U2 that both saw."""
    return derive(shared, encode(KDF_PAIRWISE_MASK, ctx, root_u2, min(one, other), max(one, other)))


def self_mask_key(self_seed: Secret, ctx: bytes, client: ClientId) -> Secret:
    """PRG key of the self mask of `client`."""
    return derive(self_seed, encode(KDF_SELF_MASK, ctx, client))

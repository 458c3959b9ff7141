"""Messages and digests of the second lock: the decryptor's key, hashes before uploads, the opening. SPEC 6.8, 7.9.

Only where the manifest's assurance is "dual" or "he". What a client signs from phase 1 on depends on the decryptor's
key, because root(U1) does; what it signs in phase 3 depends on the list of hashes that it saw before it uploaded.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from secagg.labels import (
    DECRYPTOR_KEY,
    ENCRYPTED_INPUT,
    HASH_LIST,
    SIGN_DECRYPTOR_KEY,
    SIGN_ENCRYPTED_INPUT,
    SIGN_INPUT_HASH,
    SIGN_OPENED_SUM,
)
from secagg.transcript import digest, encode, id_list
from secagg.types import ClientId

HASH_BYTES: Final = 32
MAX_KEY: Final = 132 * 1024  # bytes of the decryptor's public key
MAX_BLOCK: Final = 66_048  # bytes of one ciphertext: two polynomials of 4096 coefficients, and room for their frame
LENGTH_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class DecryptorKey:
    """Phase 0, decryptor -> server, relayed in the KeyList: the fresh public key of this ctx."""

    public_key: bytes = field(repr=False)
    signature: bytes  # by the decryptor's identity key


@dataclass(frozen=True, slots=True)
class InputHash:
    """Before phase 2, client -> server: the digest of a ciphertext that nobody else has yet."""

    input_digest: bytes
    total_bytes: int
    complaints: tuple[ClientId, ...]
    signature: bytes


@dataclass(frozen=True, slots=True)
class InputHashes:
    """Server -> everybody who gave a hash: all of them. U3 can have no other members.

    `listed` is a bitmap over U2; `digests` are 32 bytes for each listed client, ascending.
    """

    listed: bytes
    digests: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class EncryptedInput:
    """Phase 2 header, client -> server, later to the decryptor: this ciphertext, sent after that list was seen."""

    input_digest: bytes
    total_bytes: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class OpeningRequest:
    """Phase 4, server -> decryptor: open the sum over U3. All that a quorum signed, from the key up.

    Bitmaps: `advertised` over the cohort, `shared` over U1, `listed` and `masked` over U2.
    """

    advertised: bytes
    tree_root: bytes
    shared: bytes
    listed: bytes
    digests: bytes = field(repr=False)
    masked: bytes
    ledger_seq: int
    ledger_head: bytes
    signatures: tuple[tuple[ClientId, bytes], ...]


@dataclass(frozen=True, slots=True)
class OpenedSum:
    """Phase 4 header, decryptor -> server; the words of the sum modulo 2^64 follow as an upload."""

    input_digest: bytes
    total_words: int
    signature: bytes


def key_digest(public_key: bytes) -> bytes:
    """What root(U1) binds of the decryptor's key."""
    return digest(DECRYPTOR_KEY, public_key)


def key_body(ctx: bytes, public_key: bytes) -> bytes:
    """Signed bytes of DecryptorKey."""
    return encode(SIGN_DECRYPTOR_KEY, ctx, key_digest(public_key))


def input_hash_body(ctx: bytes, root_u2: bytes, client: ClientId, message: InputHash) -> bytes:
    """Signed bytes of InputHash."""
    complaints = id_list(message.complaints)
    return encode(SIGN_INPUT_HASH, ctx, root_u2, client, message.input_digest, message.total_bytes, complaints)


def hash_list(root_u2: bytes, message: InputHashes) -> bytes:
    """One digest for the list of hashes: everybody who signs it has seen the same list."""
    return digest(HASH_LIST, root_u2, message.listed, message.digests)


def encrypted_input_body(ctx: bytes, listed: bytes, client: ClientId, message: EncryptedInput) -> bytes:
    """Signed bytes of EncryptedInput; `listed` is the digest of the list."""
    return encode(SIGN_ENCRYPTED_INPUT, ctx, listed, client, message.input_digest, message.total_bytes)


def opened_body(ctx: bytes, hash_u3: bytes, message: OpenedSum) -> bytes:
    """Signed bytes of OpenedSum."""
    return encode(SIGN_OPENED_SUM, ctx, hash_u3, message.input_digest, message.total_words)


def split_digests(digests: bytes, count: int) -> tuple[bytes, ...] | None:
    """The digests one by one; None unless they are `count` distinct ones."""
    parts = tuple(digests[i : i + HASH_BYTES] for i in range(0, len(digests), HASH_BYTES))
    good = len(digests) == HASH_BYTES * count and len(set(parts)) == count
    return parts if good else None


def pack(blocks: Iterable[bytes]) -> bytes:
    """An encrypted input as it is hashed and sent: each ciphertext behind its length, u32."""
    out = bytearray()
    for block in blocks:
        out += len(block).to_bytes(LENGTH_BYTES, "big") + block
    return bytes(out)


def packed_digest(data: bytes | memoryview) -> bytes:
    """Digest of a packed input."""
    hasher = hashlib.sha256(encode(ENCRYPTED_INPUT))
    hasher.update(data)
    return hasher.digest()


def packed_sizes(num_blocks: int) -> tuple[int, int]:
    """Least and largest number of bytes of a packed input."""
    return (LENGTH_BYTES + 1) * num_blocks, (LENGTH_BYTES + MAX_BLOCK) * num_blocks


class BlockReader:
    """Takes a packed input piece by piece and gives its ciphertexts; at most one of them is kept waiting."""

    __slots__ = ("_count", "_rest", "blocks")

    def __init__(self, num_blocks: int) -> None:
        self.blocks = 0  # ciphertexts given so far
        self._count = num_blocks
        self._rest = bytearray()

    def feed(self, data: bytes) -> Sequence[bytes]:
        """The ciphertexts that are complete now. Raises ValueError for a length or a number that cannot be."""
        self._rest += data
        found: list[bytes] = []
        at = 0
        while len(self._rest) - at >= LENGTH_BYTES:
            length = int.from_bytes(self._rest[at : at + LENGTH_BYTES], "big")
            if not 1 <= length <= MAX_BLOCK:
                raise ValueError("length of a ciphertext")
            end = at + LENGTH_BYTES + length
            if len(self._rest) < end:
                break
            if self.blocks == self._count:
                raise ValueError("more ciphertexts than the vector has")
            found.append(bytes(self._rest[at + LENGTH_BYTES : end]))
            self.blocks += 1
            at = end
        del self._rest[:at]
        return found

    @property
    def complete(self) -> bool:
        """Whether every ciphertext was given, and nothing is left over."""
        return self.blocks == self._count and not self._rest

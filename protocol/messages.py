"""One frozen dataclass per message of SPEC 7, and the digests that they are signed under.

Lengths and ranges that need no context are checked by `protocol.codec`; everything that needs context is checked by the
sessions. Byte fields are public: no message carries a secret in clear except shares on their way to the server in
phase 4.
"""

from dataclasses import dataclass, field

from protocol.encrypted import DecryptorKey, EncryptedInput, InputHash, InputHashes, OpenedSum, OpeningRequest
from secagg.labels import (
    ADVERTISE_LEAF,
    CIPHERTEXT_HASH,
    ENVELOPE_LEAF,
    LEDGER_GENESIS,
    LEDGER_ROW,
    ROOT_ADVERTISED,
    ROOT_MASKED,
    ROOT_SHARED,
    SEED_COMMITMENT,
    SHARE_HASH,
    SIGN_ADVERTISE,
    SIGN_CONSISTENCY,
    SIGN_INPUT,
    SIGN_LEDGER_HEAD,
    SIGN_SHARES,
)
from secagg.transcript import digest, encode, id_list
from secagg.types import ClientId, Phase, Secret

SELF_SHARE = 0
KEY_SHARE = 1
NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One row of the server's release ledger: which set of which attempt was opened. SPEC 8."""

    seq: int
    round: int
    attempt: int
    ctx: bytes
    root_u2: bytes
    hash_u3: bytes
    signature: bytes  # by the server's identity key, over the head after this row

    def head(self, previous: bytes) -> bytes:
        """Chain head after this row."""
        fields = (self.seq, self.round, self.attempt, self.ctx, self.root_u2, self.hash_u3)
        return digest(LEDGER_ROW, previous, *fields)


def ledger_genesis(manifest_digest: bytes) -> bytes:
    """Head of the empty release ledger of a task (seq 0)."""
    return digest(LEDGER_GENESIS, manifest_digest)


def ledger_head_digest(manifest_digest: bytes, seq: int, head: bytes) -> bytes:
    """What the server signs for each head."""
    return digest(SIGN_LEDGER_HEAD, manifest_digest, seq, head)


@dataclass(frozen=True, slots=True)
class Announcement:
    """Server -> client: an attempt begins. Everything in it is checked against roster, manifest and memory."""

    round: int
    attempt: int
    manifest_digest: bytes
    roster_root: bytes
    model_digest: bytes
    cohort: tuple[ClientId, ...]  # ascending
    ledger_seq: int  # last row of the server's release ledger: a hint, in no digest


@dataclass(frozen=True, slots=True)
class AdvertiseKeys:
    """Phase 0, client -> server, relayed to all of U1."""

    encryption_pk: bytes
    masking_pk: bytes
    commitment: bytes
    ledger_seq: int
    ledger_head: bytes
    signature: bytes

    def body(self, ctx: bytes, client: ClientId) -> bytes:
        """Signed bytes."""
        return encode(
            SIGN_ADVERTISE,
            ctx,
            client,
            self.encryption_pk,
            self.masking_pk,
            self.commitment,
            self.ledger_seq,
            self.ledger_head,
        )


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One member's advertisement; on the ring with the path from its leaf to the tree's root, else without."""

    client: ClientId
    keys: AdvertiseKeys
    path: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class KeyList:
    """Server -> members of U1: who is in U1, whose keys concern this client, and the ledger rows it has not seen.

    `advertised` is the bitmap of U1 over the cohort. `entries`, ascending: all of U1 on the complete graph, the
    recipient and its neighbours on the ring. The decryptor's key and signature are empty where nothing is encrypted.
    """

    advertised: bytes
    entries: tuple[KeyEntry, ...]
    segment: tuple[LedgerRow, ...]
    decryptor_key: bytes = field(default=b"", repr=False)
    decryptor_signature: bytes = b""


@dataclass(frozen=True, slots=True)
class SealedShare:
    """One dealer's shares for one recipient. For the dealer itself: no ciphertext, no key share."""

    recipient: ClientId
    ciphertext: bytes
    self_hash: bytes
    key_hash: bytes

    def leaf(self, dealer: ClientId) -> bytes:
        """Merkle leaf."""
        return digest(
            ENVELOPE_LEAF,
            dealer,
            self.recipient,
            digest(CIPHERTEXT_HASH, self.ciphertext),
            self.self_hash,
            self.key_hash,
        )


@dataclass(frozen=True, slots=True)
class ShareKeys:
    """Phase 1, client -> server: sealed shares for all holders, ascending, and a signature over their Merkle root."""

    shares: tuple[SealedShare, ...]
    signature: bytes


@dataclass(frozen=True, slots=True)
class DealtShare:
    """What one recipient gets of one dealer's ShareKeys, with the path to the signed root."""

    dealer: ClientId
    ciphertext: bytes
    self_hash: bytes
    key_hash: bytes
    path: tuple[bytes, ...]
    signature: bytes


@dataclass(frozen=True, slots=True)
class PeerShares:
    """Server -> members of U2: the bitmap of U2 over U1 and the shares dealt to the recipient, ascending by dealer."""

    shared: bytes
    shares: tuple[DealtShare, ...]


@dataclass(frozen=True, slots=True)
class MaskedInput:
    """Phase 2 header, client -> server; chunks follow. `complaints`: dealers whose share did not open, ascending."""

    input_digest: bytes
    total_words: int
    complaints: tuple[ClientId, ...]
    signature: bytes


@dataclass(frozen=True, slots=True)
class SurvivorNotice:
    """Server -> members of U3: the bitmap of U3 over U2, and the release-ledger row written for it."""

    masked: bytes
    row: LedgerRow


@dataclass(frozen=True, slots=True)
class ConsistencyCheck:
    """Phase 3, client -> server: signature over (ctx, root(U2), H(U3), ledger seq and head)."""

    signature: bytes


@dataclass(frozen=True, slots=True)
class Certificate:
    """Server -> members of U4: the signatures of phase 3, ascending by signer."""

    signatures: tuple[tuple[ClientId, bytes], ...]


@dataclass(frozen=True, slots=True)
class UnmaskingShares:
    """Phase 4, client -> server: per member of U2 the one share it may have. Ascending by dealer."""

    self_shares: tuple[tuple[ClientId, bytes], ...] = field(repr=False)
    key_shares: tuple[tuple[ClientId, bytes], ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class RoundResult:
    """Server -> clients: the attempt ended with a sum. `model_digest` is that of the next round's model."""

    round: int
    attempt: int
    included: tuple[ClientId, ...]
    aggregate_digest: bytes
    model_digest: bytes


@dataclass(frozen=True, slots=True)
class AttemptAborted:
    """Server -> clients: the attempt ended without a sum. What was spent stays spent."""

    round: int
    attempt: int
    phase: Phase
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Server -> clients: the task has ended; a statement of the privacy ledger is asked for."""

    rounds: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Client -> server: this client cannot go on. An error code and its class of error, never data."""

    code: str
    what: str


@dataclass(frozen=True, slots=True)
class Statement:
    """Client -> server: the client's signed privacy-ledger statement (canonical JSON), for the report."""

    body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class LedgerRows:
    """Client -> server: signed rows that the server announced not to have. A restored backup gets its past back."""

    rows: tuple[LedgerRow, ...]


ClientMessage = (
    AdvertiseKeys
    | ShareKeys
    | MaskedInput
    | ConsistencyCheck
    | UnmaskingShares
    | Withdraw
    | Statement
    | LedgerRows
    | InputHash
    | EncryptedInput
    | DecryptorKey
    | OpenedSum
)
ServerMessage = (
    Announcement
    | KeyList
    | PeerShares
    | SurvivorNotice
    | Certificate
    | RoundResult
    | AttemptAborted
    | Finished
    | InputHashes
    | OpeningRequest
)
UploadHeader = MaskedInput | EncryptedInput | OpenedSum
"""What chunks may follow. A decryptor sends DecryptorKey and OpenedSum, and is sent an OpeningRequest."""


def seed_commitment(ctx: bytes, client: ClientId, self_seed: Secret) -> bytes:
    """H(ctx, u, self_seed): binding, and hiding because the seed has 256 bits of entropy."""
    return digest(SEED_COMMITMENT, ctx, client, self_seed.view)


def share_hash(ctx: bytes, dealer: ClientId, holder: ClientId, kind: int, share: Secret) -> bytes:
    """H(ctx, u, v, kind, share) for one share; the holder's id is its x-coordinate."""
    return digest(SHARE_HASH, ctx, dealer, holder, kind, share.view)


def shares_body(ctx: bytes, root_u1: bytes, dealer: ClientId, merkle_root: bytes) -> bytes:
    """Signed bytes of ShareKeys."""
    return encode(SIGN_SHARES, ctx, root_u1, dealer, merkle_root)


def input_body(ctx: bytes, root_u2: bytes, client: ClientId, message: MaskedInput) -> bytes:
    """Signed bytes of the MaskedInput header."""
    return encode(
        SIGN_INPUT,
        ctx,
        root_u2,
        client,
        message.input_digest,
        message.total_words,
        id_list(message.complaints),
    )


def consistency_body(ctx: bytes, root_u2: bytes, hash_u3: bytes, seq: int, head: bytes) -> bytes:
    """Signed bytes of phase 3: the same for every signer, so that signatures of different clients prove one view."""
    return encode(SIGN_CONSISTENCY, ctx, root_u2, hash_u3, seq, head)


def advertise_leaf(ctx: bytes, client: ClientId, keys: AdvertiseKeys) -> bytes:
    """Leaf of one member of U1 in the tree under root(U1)."""
    return digest(ADVERTISE_LEAF, keys.body(ctx, client), keys.signature)


def root_advertised(ctx: bytes, advertised: bytes, tree_root: bytes, *key: bytes) -> bytes:
    """root(U1) = H(ctx, bitmap over the cohort, Merkle root over the signed AdvertiseKeys of U1, ascending), and where
    inputs are encrypted the digest of the decryptor's key."""
    return digest(ROOT_ADVERTISED, ctx, advertised, tree_root, *key)


def root_shared(root_u1: bytes, shared: bytes) -> bytes:
    """root(U2) = H(root(U1), bitmap)."""
    return digest(ROOT_SHARED, root_u1, shared)


def hash_masked(root_u2: bytes, masked: bytes, *listed: bytes) -> bytes:
    """H(U3) = H(root(U2), bitmap), and where inputs are encrypted the digest of the list of their hashes."""
    return digest(ROOT_MASKED, root_u2, masked, *listed)

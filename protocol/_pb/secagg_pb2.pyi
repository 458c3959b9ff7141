from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LedgerRow(_message.Message):
    __slots__ = ("seq", "round", "attempt", "ctx", "root_u2", "hash_u3", "signature")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CTX_FIELD_NUMBER: _ClassVar[int]
    ROOT_U2_FIELD_NUMBER: _ClassVar[int]
    HASH_U3_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    seq: int
    round: int
    attempt: int
    ctx: bytes
    root_u2: bytes
    hash_u3: bytes
    signature: bytes
    def __init__(self, seq: _Optional[int] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., ctx: _Optional[bytes] = ..., root_u2: _Optional[bytes] = ..., hash_u3: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class AdvertiseKeys(_message.Message):
    __slots__ = ("encryption_pk", "masking_pk", "commitment", "ledger_seq", "ledger_head", "signature")
    ENCRYPTION_PK_FIELD_NUMBER: _ClassVar[int]
    MASKING_PK_FIELD_NUMBER: _ClassVar[int]
    COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    LEDGER_SEQ_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    encryption_pk: bytes
    masking_pk: bytes
    commitment: bytes
    ledger_seq: int
    ledger_head: bytes
    signature: bytes
    def __init__(self, encryption_pk: _Optional[bytes] = ..., masking_pk: _Optional[bytes] = ..., commitment: _Optional[bytes] = ..., ledger_seq: _Optional[int] = ..., ledger_head: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class KeyEntry(_message.Message):
    __slots__ = ("client", "keys", "path")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    client: int
    keys: AdvertiseKeys
    path: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, client: _Optional[int] = ..., keys: _Optional[_Union[AdvertiseKeys, _Mapping]] = ..., path: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SealedShare(_message.Message):
    __slots__ = ("recipient", "ciphertext", "self_hash", "key_hash")
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    SELF_HASH_FIELD_NUMBER: _ClassVar[int]
    KEY_HASH_FIELD_NUMBER: _ClassVar[int]
    recipient: int
    ciphertext: bytes
    self_hash: bytes
    key_hash: bytes
    def __init__(self, recipient: _Optional[int] = ..., ciphertext: _Optional[bytes] = ..., self_hash: _Optional[bytes] = ..., key_hash: _Optional[bytes] = ...) -> None: ...

class DealtShare(_message.Message):
    __slots__ = ("dealer", "ciphertext", "self_hash", "key_hash", "path", "signature")
    DEALER_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    SELF_HASH_FIELD_NUMBER: _ClassVar[int]
    KEY_HASH_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    dealer: int
    ciphertext: bytes
    self_hash: bytes
    key_hash: bytes
    path: _containers.RepeatedScalarFieldContainer[bytes]
    signature: bytes
    def __init__(self, dealer: _Optional[int] = ..., ciphertext: _Optional[bytes] = ..., self_hash: _Optional[bytes] = ..., key_hash: _Optional[bytes] = ..., path: _Optional[_Iterable[bytes]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SignatureEntry(_message.Message):
    __slots__ = ("client", "signature")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    client: int
    signature: bytes
    def __init__(self, client: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ShareEntry(_message.Message):
    __slots__ = ("client", "share")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    client: int
    share: bytes
    def __init__(self, client: _Optional[int] = ..., share: _Optional[bytes] = ...) -> None: ...

class ShareKeys(_message.Message):
    __slots__ = ("shares", "signature")
    SHARES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    shares: _containers.RepeatedCompositeFieldContainer[SealedShare]
    signature: bytes
    def __init__(self, shares: _Optional[_Iterable[_Union[SealedShare, _Mapping]]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class MaskedInput(_message.Message):
    __slots__ = ("input_digest", "total_words", "complaints", "signature")
    INPUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOTAL_WORDS_FIELD_NUMBER: _ClassVar[int]
    COMPLAINTS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    input_digest: bytes
    total_words: int
    complaints: _containers.RepeatedScalarFieldContainer[int]
    signature: bytes
    def __init__(self, input_digest: _Optional[bytes] = ..., total_words: _Optional[int] = ..., complaints: _Optional[_Iterable[int]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ConsistencyCheck(_message.Message):
    __slots__ = ("signature",)
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    signature: bytes
    def __init__(self, signature: _Optional[bytes] = ...) -> None: ...

class UnmaskingShares(_message.Message):
    __slots__ = ("self_shares", "key_shares")
    SELF_SHARES_FIELD_NUMBER: _ClassVar[int]
    KEY_SHARES_FIELD_NUMBER: _ClassVar[int]
    self_shares: _containers.RepeatedCompositeFieldContainer[ShareEntry]
    key_shares: _containers.RepeatedCompositeFieldContainer[ShareEntry]
    def __init__(self, self_shares: _Optional[_Iterable[_Union[ShareEntry, _Mapping]]] = ..., key_shares: _Optional[_Iterable[_Union[ShareEntry, _Mapping]]] = ...) -> None: ...

class LedgerRows(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[LedgerRow]
    def __init__(self, rows: _Optional[_Iterable[_Union[LedgerRow, _Mapping]]] = ...) -> None: ...

class InputHash(_message.Message):
    __slots__ = ("input_digest", "total_bytes", "complaints", "signature")
    INPUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPLAINTS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    input_digest: bytes
    total_bytes: int
    complaints: _containers.RepeatedScalarFieldContainer[int]
    signature: bytes
    def __init__(self, input_digest: _Optional[bytes] = ..., total_bytes: _Optional[int] = ..., complaints: _Optional[_Iterable[int]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class EncryptedInput(_message.Message):
    __slots__ = ("input_digest", "total_bytes", "signature")
    INPUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    input_digest: bytes
    total_bytes: int
    signature: bytes
    def __init__(self, input_digest: _Optional[bytes] = ..., total_bytes: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class DecryptorKey(_message.Message):
    __slots__ = ("public_key", "signature")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    signature: bytes
    def __init__(self, public_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class OpenedSum(_message.Message):
    __slots__ = ("input_digest", "total_words", "signature")
    INPUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOTAL_WORDS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    input_digest: bytes
    total_words: int
    signature: bytes
    def __init__(self, input_digest: _Optional[bytes] = ..., total_words: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Withdraw(_message.Message):
    __slots__ = ("code", "what")
    CODE_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    code: str
    what: str
    def __init__(self, code: _Optional[str] = ..., what: _Optional[str] = ...) -> None: ...

class Statement(_message.Message):
    __slots__ = ("body", "signature")
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    signature: bytes
    def __init__(self, body: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ClientFrame(_message.Message):
    __slots__ = ("advertise_keys", "share_keys", "masked_input", "consistency_check", "unmasking_shares", "withdraw", "statement", "ledger_rows", "input_hash", "encrypted_input", "decryptor_key", "opened_sum")
    ADVERTISE_KEYS_FIELD_NUMBER: _ClassVar[int]
    SHARE_KEYS_FIELD_NUMBER: _ClassVar[int]
    MASKED_INPUT_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_CHECK_FIELD_NUMBER: _ClassVar[int]
    UNMASKING_SHARES_FIELD_NUMBER: _ClassVar[int]
    WITHDRAW_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    LEDGER_ROWS_FIELD_NUMBER: _ClassVar[int]
    INPUT_HASH_FIELD_NUMBER: _ClassVar[int]
    ENCRYPTED_INPUT_FIELD_NUMBER: _ClassVar[int]
    DECRYPTOR_KEY_FIELD_NUMBER: _ClassVar[int]
    OPENED_SUM_FIELD_NUMBER: _ClassVar[int]
    advertise_keys: AdvertiseKeys
    share_keys: ShareKeys
    masked_input: MaskedInput
    consistency_check: ConsistencyCheck
    unmasking_shares: UnmaskingShares
    withdraw: Withdraw
    statement: Statement
    ledger_rows: LedgerRows
    input_hash: InputHash
    encrypted_input: EncryptedInput
    decryptor_key: DecryptorKey
    opened_sum: OpenedSum
    def __init__(self, advertise_keys: _Optional[_Union[AdvertiseKeys, _Mapping]] = ..., share_keys: _Optional[_Union[ShareKeys, _Mapping]] = ..., masked_input: _Optional[_Union[MaskedInput, _Mapping]] = ..., consistency_check: _Optional[_Union[ConsistencyCheck, _Mapping]] = ..., unmasking_shares: _Optional[_Union[UnmaskingShares, _Mapping]] = ..., withdraw: _Optional[_Union[Withdraw, _Mapping]] = ..., statement: _Optional[_Union[Statement, _Mapping]] = ..., ledger_rows: _Optional[_Union[LedgerRows, _Mapping]] = ..., input_hash: _Optional[_Union[InputHash, _Mapping]] = ..., encrypted_input: _Optional[_Union[EncryptedInput, _Mapping]] = ..., decryptor_key: _Optional[_Union[DecryptorKey, _Mapping]] = ..., opened_sum: _Optional[_Union[OpenedSum, _Mapping]] = ...) -> None: ...

class Announcement(_message.Message):
    __slots__ = ("round", "attempt", "manifest_digest", "roster_root", "model_digest", "cohort", "ledger_seq")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROSTER_ROOT_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    LEDGER_SEQ_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    manifest_digest: bytes
    roster_root: bytes
    model_digest: bytes
    cohort: _containers.RepeatedScalarFieldContainer[int]
    ledger_seq: int
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ..., manifest_digest: _Optional[bytes] = ..., roster_root: _Optional[bytes] = ..., model_digest: _Optional[bytes] = ..., cohort: _Optional[_Iterable[int]] = ..., ledger_seq: _Optional[int] = ...) -> None: ...

class KeyList(_message.Message):
    __slots__ = ("advertised", "entries", "segment", "decryptor_key", "decryptor_signature")
    ADVERTISED_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    DECRYPTOR_KEY_FIELD_NUMBER: _ClassVar[int]
    DECRYPTOR_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    advertised: bytes
    entries: _containers.RepeatedCompositeFieldContainer[KeyEntry]
    segment: _containers.RepeatedCompositeFieldContainer[LedgerRow]
    decryptor_key: bytes
    decryptor_signature: bytes
    def __init__(self, advertised: _Optional[bytes] = ..., entries: _Optional[_Iterable[_Union[KeyEntry, _Mapping]]] = ..., segment: _Optional[_Iterable[_Union[LedgerRow, _Mapping]]] = ..., decryptor_key: _Optional[bytes] = ..., decryptor_signature: _Optional[bytes] = ...) -> None: ...

class PeerShares(_message.Message):
    __slots__ = ("shared", "shares")
    SHARED_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    shared: bytes
    shares: _containers.RepeatedCompositeFieldContainer[DealtShare]
    def __init__(self, shared: _Optional[bytes] = ..., shares: _Optional[_Iterable[_Union[DealtShare, _Mapping]]] = ...) -> None: ...

class InputHashes(_message.Message):
    __slots__ = ("listed", "digests")
    LISTED_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    listed: bytes
    digests: bytes
    def __init__(self, listed: _Optional[bytes] = ..., digests: _Optional[bytes] = ...) -> None: ...

class OpeningRequest(_message.Message):
    __slots__ = ("advertised", "tree_root", "shared", "listed", "digests", "masked", "ledger_seq", "ledger_head", "signatures")
    ADVERTISED_FIELD_NUMBER: _ClassVar[int]
    TREE_ROOT_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    LISTED_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    MASKED_FIELD_NUMBER: _ClassVar[int]
    LEDGER_SEQ_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    advertised: bytes
    tree_root: bytes
    shared: bytes
    listed: bytes
    digests: bytes
    masked: bytes
    ledger_seq: int
    ledger_head: bytes
    signatures: _containers.RepeatedCompositeFieldContainer[SignatureEntry]
    def __init__(self, advertised: _Optional[bytes] = ..., tree_root: _Optional[bytes] = ..., shared: _Optional[bytes] = ..., listed: _Optional[bytes] = ..., digests: _Optional[bytes] = ..., masked: _Optional[bytes] = ..., ledger_seq: _Optional[int] = ..., ledger_head: _Optional[bytes] = ..., signatures: _Optional[_Iterable[_Union[SignatureEntry, _Mapping]]] = ...) -> None: ...

class SurvivorNotice(_message.Message):
    __slots__ = ("masked", "row")
    MASKED_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    masked: bytes
    row: LedgerRow
    def __init__(self, masked: _Optional[bytes] = ..., row: _Optional[_Union[LedgerRow, _Mapping]] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("signatures",)
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    signatures: _containers.RepeatedCompositeFieldContainer[SignatureEntry]
    def __init__(self, signatures: _Optional[_Iterable[_Union[SignatureEntry, _Mapping]]] = ...) -> None: ...

class RoundResult(_message.Message):
    __slots__ = ("round", "attempt", "included", "aggregate_digest", "model_digest")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    INCLUDED_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    included: _containers.RepeatedScalarFieldContainer[int]
    aggregate_digest: bytes
    model_digest: bytes
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ..., included: _Optional[_Iterable[int]] = ..., aggregate_digest: _Optional[bytes] = ..., model_digest: _Optional[bytes] = ...) -> None: ...

class AttemptAborted(_message.Message):
    __slots__ = ("round", "attempt", "phase", "reason")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    phase: int
    reason: str
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ..., phase: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("rounds",)
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    rounds: int
    def __init__(self, rounds: _Optional[int] = ...) -> None: ...

class ServerFrame(_message.Message):
    __slots__ = ("announcement", "key_list", "peer_shares", "survivor_notice", "certificate", "round_result", "attempt_aborted", "finished", "input_hashes", "opening_request")
    ANNOUNCEMENT_FIELD_NUMBER: _ClassVar[int]
    KEY_LIST_FIELD_NUMBER: _ClassVar[int]
    PEER_SHARES_FIELD_NUMBER: _ClassVar[int]
    SURVIVOR_NOTICE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_RESULT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_ABORTED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    INPUT_HASHES_FIELD_NUMBER: _ClassVar[int]
    OPENING_REQUEST_FIELD_NUMBER: _ClassVar[int]
    announcement: Announcement
    key_list: KeyList
    peer_shares: PeerShares
    survivor_notice: SurvivorNotice
    certificate: Certificate
    round_result: RoundResult
    attempt_aborted: AttemptAborted
    finished: Finished
    input_hashes: InputHashes
    opening_request: OpeningRequest
    def __init__(self, announcement: _Optional[_Union[Announcement, _Mapping]] = ..., key_list: _Optional[_Union[KeyList, _Mapping]] = ..., peer_shares: _Optional[_Union[PeerShares, _Mapping]] = ..., survivor_notice: _Optional[_Union[SurvivorNotice, _Mapping]] = ..., certificate: _Optional[_Union[Certificate, _Mapping]] = ..., round_result: _Optional[_Union[RoundResult, _Mapping]] = ..., attempt_aborted: _Optional[_Union[AttemptAborted, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., input_hashes: _Optional[_Union[InputHashes, _Mapping]] = ..., opening_request: _Optional[_Union[OpeningRequest, _Mapping]] = ...) -> None: ...

class Cursor(_message.Message):
    __slots__ = ("token", "server", "index")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    server: bytes
    index: int
    def __init__(self, token: _Optional[bytes] = ..., server: _Optional[bytes] = ..., index: _Optional[int] = ...) -> None: ...

class Waiting(_message.Message):
    __slots__ = ("round", "attempt", "phase", "clients", "more")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    phase: int
    clients: _containers.RepeatedScalarFieldContainer[int]
    more: int
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ..., phase: _Optional[int] = ..., clients: _Optional[_Iterable[int]] = ..., more: _Optional[int] = ...) -> None: ...

class Delivery(_message.Message):
    __slots__ = ("server", "index", "frame", "waiting")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    server: bytes
    index: int
    frame: bytes
    waiting: Waiting
    def __init__(self, server: _Optional[bytes] = ..., index: _Optional[int] = ..., frame: _Optional[bytes] = ..., waiting: _Optional[_Union[Waiting, _Mapping]] = ...) -> None: ...

class Submission(_message.Message):
    __slots__ = ("token", "round", "attempt", "frame")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    round: int
    attempt: int
    frame: bytes
    def __init__(self, token: _Optional[bytes] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., frame: _Optional[bytes] = ...) -> None: ...

class UploadChunk(_message.Message):
    __slots__ = ("index", "data")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    index: int
    data: bytes
    def __init__(self, index: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadPart(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: Submission
    chunk: UploadChunk
    def __init__(self, header: _Optional[_Union[Submission, _Mapping]] = ..., chunk: _Optional[_Union[UploadChunk, _Mapping]] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("status", "reason", "received")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    status: int
    reason: str
    received: int
    def __init__(self, status: _Optional[int] = ..., reason: _Optional[str] = ..., received: _Optional[int] = ...) -> None: ...

class InputRequest(_message.Message):
    __slots__ = ("token", "round", "attempt", "client", "first")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    round: int
    attempt: int
    client: int
    first: int
    def __init__(self, token: _Optional[bytes] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., client: _Optional[int] = ..., first: _Optional[int] = ...) -> None: ...

class InputHeader(_message.Message):
    __slots__ = ("frame",)
    FRAME_FIELD_NUMBER: _ClassVar[int]
    frame: bytes
    def __init__(self, frame: _Optional[bytes] = ...) -> None: ...

class InputPart(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: InputHeader
    chunk: UploadChunk
    def __init__(self, header: _Optional[_Union[InputHeader, _Mapping]] = ..., chunk: _Optional[_Union[UploadChunk, _Mapping]] = ...) -> None: ...

class BlobRequest(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    def __init__(self, digest: _Optional[bytes] = ...) -> None: ...

class BlobChunk(_message.Message):
    __slots__ = ("total", "offset", "data")
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    total: int
    offset: int
    data: bytes
    def __init__(self, total: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

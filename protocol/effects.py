"""Effects: what a session asks its shell to do, as values and in order. The shell, not the session, does I/O.

"Persist X, then send Y" is two effects; a crash may fall between any two, and a simulator makes it do so.
"""

from dataclasses import dataclass, field
from typing import assert_never

from protocol.encrypted import EncryptedInput, OpenedSum
from protocol.messages import ClientMessage, LedgerRow, MaskedInput, ServerMessage, UploadHeader
from secagg.encoding import Values, Words
from secagg.labels import ENCRYPTED_INPUT, MASKED_INPUT, OPENED_SUM
from secagg.masking import Mask
from secagg.params import SecAggParams
from secagg.types import DECRYPTOR, ClientId, Phase


@dataclass(frozen=True, slots=True)
class JoinRecord:
    """Client journal: this attempt was joined; it is never joined again."""

    round: int
    attempt: int
    ctx: bytes


@dataclass(frozen=True, slots=True)
class SpentRecord:
    """Client journal: ConsistencyCheck of this round is about to be signed; every later attempt of it is refused."""

    round: int
    attempt: int
    rows: tuple[LedgerRow, ...]  # every row since the last record, the one of this attempt last
    head: bytes


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """Server journal: a release-ledger row, written before phase 3 starts, or when a client resupplied it."""

    row: LedgerRow
    head: bytes


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """Client journal, assurance "he" only: an input without masks is about to leave; every later attempt of this round
    is refused. The SpentRecord of the same attempt may follow."""

    round: int
    attempt: int


@dataclass(frozen=True, slots=True)
class OpeningRecord:
    """Decryptor's journal: this sum is about to be opened; nothing else of this round ever is."""

    round: int
    attempt: int
    ctx: bytes
    hash_u3: bytes


@dataclass(frozen=True, slots=True)
class ListRecord:
    """Server journal, assurance "he" only: the list of hashes is about to be sent; whoever uploads spends the round."""

    round: int
    attempt: int


Record = JoinRecord | SpentRecord | ReleaseRecord | ListRecord | UploadRecord | OpeningRecord


@dataclass(frozen=True, slots=True)
class Persist:
    """Write durably before the next effect."""

    record: Record


@dataclass(frozen=True, slots=True)
class Charge:
    """Charge the privacy ledger durably before the next effect. Never refunded."""

    round: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message; the client's shell has one recipient, the server."""

    message: ClientMessage | ServerMessage
    to: ClientId | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """Send the header, then the chunks of `words` (`secagg.masking.chunks`); replayable bit by bit."""

    header: MaskedInput | OpenedSum
    words: Words = field(repr=False)


@dataclass(frozen=True, slots=True)
class UploadCiphertext:
    """Send the header, then `data` in chunks of 8 * chunk_words bytes; replayable bit by bit."""

    header: EncryptedInput
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Fetch:
    """The decryptor's shell: the sum is over exactly these clients; get the encrypted input of each, in this order."""

    clients: tuple[ClientId, ...]


@dataclass(frozen=True, slots=True)
class AddBlock:
    """The decryptor's shell: add ciphertext `number` of this client's vector to the running sum."""

    client: ClientId
    number: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class OpenSum:
    """The decryptor's shell: open the running sum, forget the key, give the words to `DecryptorSession.opened`."""


@dataclass(frozen=True, slots=True)
class UploadShape:
    """What the chunks of an upload must be: digest under this label, bytes in all, bytes of each chunk but the last."""

    label: bytes
    digest: bytes
    total_bytes: int
    chunk_bytes: int

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole upload."""
        return -(-self.total_bytes // self.chunk_bytes)


def upload_shape(header: UploadHeader, params: SecAggParams) -> UploadShape:
    """What must follow this header."""
    match header:
        case MaskedInput():
            return UploadShape(MASKED_INPUT, header.input_digest, 8 * header.total_words, 8 * params.chunk_words)
        case OpenedSum():
            return UploadShape(OPENED_SUM, header.input_digest, 8 * header.total_words, 8 * params.chunk_words)
        case EncryptedInput():
            return UploadShape(ENCRYPTED_INPUT, header.input_digest, header.total_bytes, 8 * params.chunk_words)
    assert_never(header)


@dataclass(frozen=True, slots=True)
class AcceptUpload:
    """The server's shell may receive this client's chunks: exactly this many bytes with exactly this digest."""

    sender: ClientId
    header: UploadHeader


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Add the spooled uploads of `sources`, add `masks`, and give the words to `ServerSession.finish`."""

    masked: tuple[ClientId, ...]
    masks: tuple[Mask, ...] = field(repr=False)
    opened: bool = False

    @property
    def sources(self) -> tuple[ClientId, ...]:
        """Whose uploads: those of U3, or the decryptor's alone, which is their sum."""
        return (DECRYPTOR,) if self.opened else self.masked


@dataclass(frozen=True, slots=True)
class Released:
    """The attempt ended with the exact sum over `masked`: int64, in grid steps."""

    masked: tuple[ClientId, ...]
    total: Values = field(repr=False)


@dataclass(frozen=True, slots=True)
class Abort:
    """The attempt ended without a sum."""

    phase: Phase
    reason: str
    convicted: tuple[ClientId, ...] = ()  # dealers proved at fault: left out of the next attempts


Effect = (
    Persist
    | Charge
    | Send
    | Upload
    | UploadCiphertext
    | Fetch
    | AddBlock
    | OpenSum
    | AcceptUpload
    | Aggregate
    | Released
    | Abort
)
Effects = tuple[Effect, ...]

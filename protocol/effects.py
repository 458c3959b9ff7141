"""Effects: what a session asks its shell to do, as values and in order. The shell, not the session, does I/O.

"Persist X, then send Y" is two effects; a crash may fall between any two, and a simulator makes it do so.
"""

from dataclasses import dataclass, field

from protocol.messages import ClientMessage, LedgerRow, MaskedInput, ServerMessage
from secagg.encoding import Values, Words
from secagg.masking import Mask
from secagg.types import ClientId, Phase


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


Record = JoinRecord | SpentRecord | ReleaseRecord


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

    header: MaskedInput
    words: Words = field(repr=False)


@dataclass(frozen=True, slots=True)
class AcceptUpload:
    """The server's shell may receive this client's chunks: exactly this many words with exactly this digest."""

    sender: ClientId
    header: MaskedInput


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Add the spooled uploads of `masked`, add `masks`, and give the words to `ServerSession.finish`."""

    masked: tuple[ClientId, ...]
    masks: tuple[Mask, ...] = field(repr=False)


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


Effect = Persist | Charge | Send | Upload | AcceptUpload | Aggregate | Released | Abort
Effects = tuple[Effect, ...]

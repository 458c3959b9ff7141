"""Durable memory of the simulated shells: what was appended before a crash is there afterwards."""

from dataclasses import dataclass, field, replace

from protocol.client_states import ClientMemory
from protocol.effects import Record
from protocol.manifest import Manifest
from protocol.messages import Announcement, ClientMessage, LedgerRow
from protocol.release import ReleaseLedger
from secagg.encoding import Words
from secagg.types import ClientId
from tests.simulator import remember

Key = tuple[int, int]


class ClientBook:
    """Journal and privacy ledger of one client."""

    def __init__(self, manifest: Manifest) -> None:
        self._fresh = ClientMemory.fresh(manifest)
        self.records: list[Record] = []
        self.charges: list[tuple[Key, int]] = []  # (attempt, training): one charge pays for one training's update
        self.memory = self._fresh

    def record(self, record: Record) -> None:
        """Durable when it returns."""
        self.records.append(record)
        self.memory = remember(self.memory, record)

    def reopen(self) -> None:
        """Replay everything, as a new process does."""
        self.memory = self._fresh
        for record in self.records:
            self.memory = remember(self.memory, record)

    def paid(self, training: int) -> bool:
        """Whether this training's update was charged."""
        return any(known == training for _, known in self.charges)


@dataclass(frozen=True, slots=True)
class Received:
    """Log of an attempt: a message was handed to the session, from this process of the client."""

    sender: ClientId
    message: ClientMessage
    token: int


@dataclass(frozen=True, slots=True)
class UploadDone:
    """Log of an attempt: an upload is complete; its words are in the spool."""

    sender: ClientId


@dataclass(frozen=True, slots=True)
class PhaseClosed:
    """Log of an attempt: the open phase was closed here."""


LogEntry = Received | UploadDone | PhaseClosed


@dataclass(frozen=True)
class AttemptLog:
    """Everything that the running attempt can be rebuilt from."""

    announcement: Announcement
    ledger: ReleaseLedger  # as it was when the attempt began
    excluded: frozenset[ClientId]
    entries: list[LogEntry] = field(default_factory=list)
    spool: dict[ClientId, Words] = field(default_factory=dict)

    @property
    def announcement_key(self) -> Key:
        """(round, attempt)."""
        return self.announcement.round, self.announcement.attempt


@dataclass(frozen=True, slots=True)
class ServerBook:
    """The server's journal, as a value: a backup is an older one."""

    ledger: ReleaseLedger
    last: Key = (0, 0)
    released_round: int = 0
    excluded: frozenset[ClientId] = frozenset()

    def started(self, key: Key) -> "ServerBook":
        """An attempt is announced."""
        return replace(self, last=key)

    def opened(self, row: LedgerRow) -> "ServerBook":
        """A row of the release ledger."""
        return replace(self, ledger=self.ledger.extended(row))

    def ended(self, round_: int, convicted: tuple[ClientId, ...]) -> "ServerBook":
        """An attempt ended; `round_` is 0 without a sum."""
        return replace(
            self, released_round=max(self.released_round, round_), excluded=self.excluded | frozenset(convicted)
        )

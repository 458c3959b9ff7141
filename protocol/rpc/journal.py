"""Journals: what client and server must remember across a crash. Phases and digests, never secrets. SPEC 8.2.

Both stand on a hash-chained, durable book of their own file. Memory is rebuilt by replaying it, so what a session is
told after a restart is what was on disk before the last message went out.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, Final

from dp.errors import LedgerError
from dp.store import ChainedStore, Row
from protocol.client_states import ClientMemory
from protocol.decryptor import DecryptorMemory
from protocol.effects import JoinRecord, ListRecord, OpeningRecord, Record, ReleaseRecord, SpentRecord, UploadRecord
from protocol.errors import LocalProtocolError
from protocol.messages import Announcement, LedgerRow
from protocol.release import ReleaseLedger
from secagg.types import ClientId

VERSION: Final = 2

_JOIN: Final = "join"
_SPENT: Final = "spent"
_ATTEMPT: Final = "attempt"
_RELEASE: Final = "release"
_CONVICTED: Final = "convicted"
_UPLOAD: Final = "upload"
_LISTED: Final = "listed"
_OPENED: Final = "opened"
_MALFORMED: Final = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)  # JSON of another shape


class ClientJournal:
    """Attempts joined, rounds spent, release-ledger rows followed. One file per client and manifest.

    Raises LedgerError (of `dp.errors`) when the storage fails or was tampered with: the client must stop.
    """

    def __init__(self, path: Path, client: ClientId, manifest_digest: bytes) -> None:
        self._store = ChainedStore.open(
            path,
            {"book": "client journal", "version": VERSION, "client": client, "manifest": manifest_digest.hex()},
        )
        self._memory = ClientMemory((0, 0), 0, ReleaseLedger(manifest_digest))
        self._uploaded: tuple[int, int] | None = None  # by this process: another one has no session to go on with
        try:
            for row in self._store.rows()[1:]:
                self._memory = _replayed(self._memory, row)
        except BaseException:  # the file must not stay locked
            self._store.close()
            raise

    @property
    def memory(self) -> ClientMemory:
        """What a session of this client must know."""
        return self._memory

    def record(self, record: Record) -> None:
        """Durable when it returns. JoinRecord, UploadRecord, SpentRecord belong here; the release ledger only grows."""
        match record:
            case SpentRecord() if not _extends(self._memory.ledger, record.rows, record.head):
                raise LocalProtocolError(
                    "rows that do not extend the release ledger",
                    found=[row.seq for row in record.rows],
                    expected=f"rows after {self._memory.ledger.seq}, up to the head that is signed",
                )
            case JoinRecord() if (record.round, record.attempt) <= self._memory.joined:
                raise LocalProtocolError("attempts of a task only increase", found=(record.round, record.attempt))
            case UploadRecord() if (record.round, record.attempt) != self._memory.joined:
                raise LocalProtocolError("an upload of an attempt that was not joined", found=record.round)
            case SpentRecord() if (record.round, record.attempt) == self._uploaded:
                self._uploaded = None  # this very attempt spent the round before it uploaded
                row = self._store.append(_SPENT, _spent_json(record))
            case SpentRecord() | UploadRecord() if record.round <= self._memory.spent_round:
                # Two sessions of one client at a time would be a bug of the caller: one of them must not sign.
                raise LocalProtocolError("a round is spent once", found=record.round)
            case JoinRecord():
                row = self._store.append(
                    _JOIN, {"round": record.round, "attempt": record.attempt, "ctx": record.ctx.hex()}
                )
            case UploadRecord():
                row = self._store.append(_UPLOAD, {"round": record.round, "attempt": record.attempt})
                self._uploaded = (record.round, record.attempt)
            case SpentRecord():
                row = self._store.append(_SPENT, _spent_json(record))
            case ReleaseRecord() | ListRecord() | OpeningRecord():
                raise LocalProtocolError(f"a {type(record).__name__} does not belong into a client's journal")
        self._memory = _replayed(self._memory, row)

    def close(self) -> None:
        """Release the file."""
        self._store.close()


class DecryptorJournal:
    """Attempts that a key was made for, rounds that were opened. One file per decryptor and manifest. Never a key.

    Raises LedgerError (of `dp.errors`) when the storage fails or was tampered with: the decryptor must stop.
    """

    def __init__(self, path: Path, manifest_digest: bytes) -> None:
        self._store = ChainedStore.open(
            path, {"book": "decryptor journal", "version": VERSION, "manifest": manifest_digest.hex()}
        )
        self._memory = DecryptorMemory()
        try:
            for row in self._store.rows()[1:]:
                self._replay(row)
        except BaseException:  # the file must not stay locked
            self._store.close()
            raise

    @property
    def memory(self) -> DecryptorMemory:
        """What a session of this decryptor must know."""
        return self._memory

    def record(self, record: Record) -> None:
        """Durable when it returns. Attempts only increase, and a round is opened once."""
        match record:
            case JoinRecord() if (record.round, record.attempt) > self._memory.joined:
                body = {"round": record.round, "attempt": record.attempt, "ctx": record.ctx.hex()}
                self._replay(self._store.append(_JOIN, body))
            case OpeningRecord() if (record.round, record.attempt) == self._memory.joined and (
                record.round > self._memory.opened_round
            ):
                body = {"round": record.round, "attempt": record.attempt, "ctx": record.ctx.hex()}
                self._replay(self._store.append(_OPENED, {**body, "hash_u3": record.hash_u3.hex()}))
            case _:
                raise LocalProtocolError(
                    f"a {type(record).__name__} that does not fit a decryptor's journal",
                    found=getattr(record, "round", None),
                    expected="attempts that increase, and one opening per round",
                )

    def close(self) -> None:
        """Release the file."""
        self._store.close()

    def _replay(self, row: Row) -> None:
        try:
            body = row.value()
            key = (int(body["round"]), int(body["attempt"]))
            match row.kind:
                case "join":
                    self._memory = replace(self._memory, joined=max(self._memory.joined, key))
                case "opened":
                    self._memory = replace(self._memory, opened_round=max(self._memory.opened_round, key[0]))
                case _:
                    raise _damaged(row)
        except _MALFORMED:
            raise _damaged(row) from None


class ServerJournal:
    """Attempts started, release-ledger rows and convicted clients of one task. Attempts only increase, also across
    restarts. The log of the attempt that runs is a file of its own beside this one (`protocol.rpc.attempt_log`).

    Raises LedgerError (of `dp.errors`) when the storage fails or was tampered with: the server must stop.
    """

    def __init__(self, path: Path, manifest_digest: bytes) -> None:
        self.path = path
        self.manifest_digest = manifest_digest
        self._store = ChainedStore.open(
            path, {"book": "server journal", "version": VERSION, "manifest": manifest_digest.hex()}
        )
        self._last = (0, 0)
        self._listed = 0
        self._ledger = ReleaseLedger(manifest_digest)
        self._convicted: frozenset[ClientId] = frozenset()
        try:
            for row in self._store.rows()[1:]:
                self._replay(row)
        except BaseException:  # the file must not stay locked
            self._store.close()
            raise

    @property
    def ledger(self) -> ReleaseLedger:
        """Every row ever opened for release."""
        return self._ledger

    @property
    def last(self) -> tuple[int, int]:
        """Highest (round, attempt) ever announced; (0, 0) if none."""
        return self._last

    @property
    def spent_round(self) -> int:
        """Highest round that clients may refuse: its set was about to be opened, or its inputs uploaded ("he")."""
        return max(self._ledger.last_round, self._listed)

    @property
    def convicted(self) -> frozenset[ClientId]:
        """Dealers proved at fault in some attempt of this task."""
        return self._convicted

    def start(self, announcement: Announcement, ctx: bytes) -> None:
        """Write an attempt down before it is announced. Raises LocalProtocolError if it does not increase."""
        key = (announcement.round, announcement.attempt)
        if key <= self._last:
            raise LocalProtocolError(
                "attempts of a task only increase",
                found=f"round {key[0]}, attempt {key[1]}",
                expected=f"after round {self._last[0]}, attempt {self._last[1]}",
            )
        body = {
            "round": key[0],
            "attempt": key[1],
            "ctx": ctx.hex(),
            "model": announcement.model_digest.hex(),
            "cohort": list(announcement.cohort),
        }
        self._replay(self._store.append(_ATTEMPT, body))

    def record(self, record: Record) -> None:
        """Durable when it returns. Only ListRecord and ReleaseRecord belong here; the row of the latter must extend the
        ledger, or be the very row that stands in it: an attempt that is resumed writes its row again."""
        if isinstance(record, ListRecord):
            if record.round > self._listed:
                self._replay(self._store.append(_LISTED, {"round": record.round, "attempt": record.attempt}))
            return
        if not isinstance(record, ReleaseRecord):
            raise LocalProtocolError(f"a {type(record).__name__} does not belong into a server's journal")
        row, ledger = record.row, self._ledger
        if 1 <= row.seq <= ledger.seq and ledger.rows[row.seq - 1] == row and ledger.head_at(row.seq) == record.head:
            return
        if not _extends(ledger, (row,), record.head):
            raise LocalProtocolError("a release-ledger row that does not extend the ledger", found=row.seq)
        self._replay(self._store.append(_RELEASE, {"row": _row_json(row), "head": record.head.hex()}))

    def convict(self, clients: Iterable[ClientId]) -> None:
        """Remember, durably, who is left out of every further attempt."""
        fresh = sorted(set(clients) - self._convicted)
        if fresh:
            self._replay(self._store.append(_CONVICTED, {"clients": fresh}))

    def close(self) -> None:
        """Release the file."""
        self._store.close()

    def _replay(self, row: Row) -> None:
        try:
            body = row.value()
            match row.kind:
                case "attempt":
                    self._last = (int(body["round"]), int(body["attempt"]))
                case "release":
                    released = _row(body["row"])
                    if not _extends(self._ledger, (released,), bytes.fromhex(body["head"])):
                        raise _damaged(row)
                    self._ledger = self._ledger.extended(released)
                case "listed":
                    self._listed = max(self._listed, int(body["round"]))
                case "convicted":
                    self._convicted |= {ClientId(client) for client in body["clients"]}
                case _:
                    raise _damaged(row)
        except _MALFORMED:
            raise _damaged(row) from None


def _replayed(memory: ClientMemory, row: Row) -> ClientMemory:
    try:
        return _with_row(memory, row)
    except _MALFORMED:
        raise _damaged(row) from None


def _with_row(memory: ClientMemory, row: Row) -> ClientMemory:
    body = row.value()
    match row.kind:
        case "join":
            joined = max(memory.joined, (body["round"], body["attempt"]))
            return replace(memory, joined=joined)
        case "upload":
            return replace(memory, spent_round=max(memory.spent_round, body["round"]))
        case "spent":
            rows = tuple(_row(item) for item in body["rows"])
            if not _extends(memory.ledger, rows, bytes.fromhex(body["head"])):
                raise _damaged(row)
            ledger = reduce(ReleaseLedger.extended, rows, memory.ledger)
            return replace(memory, spent_round=max(memory.spent_round, body["round"]), ledger=ledger)
        case _:
            raise _damaged(row)


def _extends(ledger: ReleaseLedger, rows: tuple[LedgerRow, ...], head: bytes) -> bool:
    """Whether `rows` are the next ones and lead to `head`. Signatures were checked where the rows came from."""
    for row in rows:
        if row.seq != ledger.seq + 1:
            return False
        ledger = ledger.extended(row)
    return bool(rows) and ledger.head == head


def _spent_json(record: SpentRecord) -> dict[str, Any]:
    rows = [_row_json(row) for row in record.rows]
    return {"round": record.round, "attempt": record.attempt, "rows": rows, "head": record.head.hex()}


def _row_json(row: LedgerRow) -> dict[str, Any]:
    return {
        "seq": row.seq,
        "round": row.round,
        "attempt": row.attempt,
        "ctx": row.ctx.hex(),
        "root_u2": row.root_u2.hex(),
        "hash_u3": row.hash_u3.hex(),
        "signature": row.signature.hex(),
    }


def _row(body: dict[str, Any]) -> LedgerRow:
    fields = (bytes.fromhex(body[name]) for name in ("ctx", "root_u2", "hash_u3", "signature"))
    return LedgerRow(body["seq"], body["round"], body["attempt"], *fields)


def _damaged(row: Row) -> LedgerError:
    return LedgerError(
        "a row of the journal does not fit the rows before it",
        found=f"row {row.seq}, {row.kind!r}",
        expected="rows written by this version, in order",
        do="stop, keep the file, and compare its head with what the peers signed",
        code="E212",
    )

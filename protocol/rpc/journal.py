"""Journals: what client and server must remember across a crash. Phases and digests, never secrets. SPEC 8.2.

Both stand on a hash-chained, durable book of their own file. Memory is rebuilt by replaying it, so what a session is
told after a restart is what was on disk before the last message went out.
"""

from pathlib import Path
from typing import Any, Final

from dp.errors import LedgerError
from dp.store import ChainedStore, Row
from protocol.client_states import ClientMemory
from protocol.effects import JoinRecord, Record, ReleaseRecord, SpentRecord
from protocol.errors import LocalProtocolError
from protocol.messages import Announcement, LedgerRow, ledger_genesis
from protocol.release import ReleaseLedger
from secagg.types import ClientId

VERSION: Final = 1

_JOIN: Final = "join"
_SPENT: Final = "spent"
_ATTEMPT: Final = "attempt"
_RELEASE: Final = "release"


class ClientJournal:
    """Attempts joined, rounds spent, highest release-ledger head signed. One file per client and manifest.

    Raises LedgerError (of `dp.errors`) when the storage fails or was tampered with: the client must stop.
    """

    def __init__(self, path: Path, client: ClientId, manifest_digest: bytes) -> None:
        self._store = ChainedStore.open(
            path,
            {"book": "client journal", "version": VERSION, "client": client, "manifest": manifest_digest.hex()},
        )
        memory = ClientMemory((0, 0), 0, 0, ledger_genesis(manifest_digest))
        for row in self._store.rows()[1:]:
            memory = _replayed(memory, row)
        self._memory = memory

    @property
    def memory(self) -> ClientMemory:
        """What a session of this client must know."""
        return self._memory

    def record(self, record: Record) -> None:
        """Durable when it returns. Only JoinRecord and SpentRecord belong here, and the release ledger only grows."""
        match record:
            case SpentRecord() if record.row.seq <= self._memory.ledger_seq:
                raise LocalProtocolError(
                    "the release ledger would go back",
                    found=f"seq {record.row.seq}",
                    expected=f"more than {self._memory.ledger_seq}",
                )
            case JoinRecord() if (record.round, record.attempt) <= self._memory.joined:
                raise LocalProtocolError("attempts of a task only increase", found=(record.round, record.attempt))
            case SpentRecord() if record.round <= self._memory.spent_round:
                # Two sessions of one client at a time would be a bug of the caller: one of them must not sign.
                raise LocalProtocolError("a round is spent once", found=record.round)
            case JoinRecord():
                row = self._store.append(
                    _JOIN, {"round": record.round, "attempt": record.attempt, "ctx": record.ctx.hex()}
                )
            case SpentRecord():
                row = self._store.append(
                    _SPENT,
                    {
                        "round": record.round,
                        "attempt": record.attempt,
                        "row": _row_json(record.row),
                        "head": record.head.hex(),
                    },
                )
            case ReleaseRecord():
                raise LocalProtocolError("a ReleaseRecord does not belong into a client's journal")
        self._memory = _replayed(self._memory, row)

    def close(self) -> None:
        """Release the file."""
        self._store.close()


class ServerJournal:
    """Attempts started and release-ledger rows of one task. Attempts only increase, also across restarts.

    Raises LedgerError (of `dp.errors`) when the storage fails or was tampered with: the server must stop.
    """

    def __init__(self, path: Path, manifest_digest: bytes) -> None:
        self._store = ChainedStore.open(
            path, {"book": "server journal", "version": VERSION, "manifest": manifest_digest.hex()}
        )
        self._last = (0, 0)
        self._ledger = ReleaseLedger(manifest_digest)
        for row in self._store.rows()[1:]:
            self._replay(row)

    @property
    def ledger(self) -> ReleaseLedger:
        """Every row ever opened for release."""
        return self._ledger

    @property
    def last(self) -> tuple[int, int]:
        """Highest (round, attempt) ever announced; (0, 0) if none."""
        return self._last

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
        """Durable when it returns. Only ReleaseRecord belongs here; its row must extend the ledger."""
        if not isinstance(record, ReleaseRecord):
            raise LocalProtocolError(f"a {type(record).__name__} does not belong into a server's journal")
        if self._ledger.extended(record.row).head != record.head or record.row.seq != self._ledger.seq + 1:
            raise LocalProtocolError("a release-ledger row that does not extend the ledger", found=record.row.seq)
        self._replay(self._store.append(_RELEASE, {"row": _row_json(record.row), "head": record.head.hex()}))

    def close(self) -> None:
        """Release the file."""
        self._store.close()

    def _replay(self, row: Row) -> None:
        body = row.value()
        match row.kind:
            case "attempt":
                self._last = (body["round"], body["attempt"])
            case "release":
                ledger = self._ledger.extended(_row(body["row"]))
                if ledger.head.hex() != body["head"] or ledger.rows[-1].seq != ledger.seq:
                    raise _damaged(row)
                self._ledger = ledger
            case _:
                raise _damaged(row)


def _replayed(memory: ClientMemory, row: Row) -> ClientMemory:
    body = row.value()
    match row.kind:
        case "join":
            joined = max(memory.joined, (body["round"], body["attempt"]))
            return ClientMemory(joined, memory.spent_round, memory.ledger_seq, memory.ledger_head)
        case "spent":
            seq = _row(body["row"]).seq
            if seq <= memory.ledger_seq:
                raise _damaged(row)
            spent = max(memory.spent_round, body["round"])
            return ClientMemory(memory.joined, spent, seq, bytes.fromhex(body["head"]))
        case _:
            raise _damaged(row)


def _row_json(row: LedgerRow) -> dict[str, Any]:
    return {
        "seq": row.seq,
        "ctx": row.ctx.hex(),
        "root_u2": row.root_u2.hex(),
        "hash_u3": row.hash_u3.hex(),
        "signature": row.signature.hex(),
    }


def _row(body: dict[str, Any]) -> LedgerRow:
    fields = (bytes.fromhex(body[name]) for name in ("ctx", "root_u2", "hash_u3", "signature"))
    return LedgerRow(body["seq"], *fields)


def _damaged(row: Row) -> LedgerError:
    return LedgerError(
        "a row of the journal does not fit the rows before it",
        found=f"row {row.seq}, {row.kind!r}",
        expected="rows written by this version, in order",
        do="stop, keep the file, and compare its head with what the peers signed",
        code="E212",
    )

"""The log of the attempt that runs: what a server that was killed replays to go on with it. SPEC 11.4.

A ServerSession is deterministic, so the accepted messages and the closed phases, in order, are the whole attempt. A row
is durable before what it says can be seen outside: a message before its receipt, an upload before its receipt and after
its file, a closed phase before any frame that follows from it. So a replay gives the very bytes that were sent, and an
attempt never has a second U1, U2, U3 or ledger row. Frames of clients stand in it as they came: no secret of theirs but
the shares of phase 4, which this server was given to use; the file goes when the attempt has ended.
"""

import base64
import binascii
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dp.errors import LedgerError
from dp.store import ChainedStore, Row
from protocol.codec import decode_client, decode_server, encode_server
from protocol.errors import RemoteProtocolError
from protocol.messages import Announcement, ClientMessage
from protocol.rpc.frames import TOKEN_BYTES
from protocol.rpc.journal import ServerJournal
from protocol.rpc.spool import is_spool_name
from secagg.types import ClientId, Phase

VERSION: Final = 1

AttemptKey = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Begun:
    """First row: what the session was made from, besides the signed documents."""

    announcement: Announcement
    ctx: bytes
    excluded: frozenset[ClientId]
    started: int  # Unix seconds


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message that changed the session: taken, or its sender dropped for it. `spool`: file of an upload, or none."""

    client: ClientId
    token: bytes
    message: ClientMessage = field(repr=False)
    spool: str


@dataclass(frozen=True, slots=True)
class Uploaded:
    """All chunks of this client's upload are on stable storage."""

    client: ClientId


@dataclass(frozen=True, slots=True)
class Closed:
    """A phase was closed with these members."""

    phase: Phase
    members: tuple[ClientId, ...]


Entry = Accepted | Uploaded | Closed


class AttemptLog:
    """One file per attempt, beside the server's journal.

    Raises LedgerError (of `dp.errors`) when the storage fails: the server must stop.
    """

    def __init__(self, store: ChainedStore, path: Path, begun: Begun) -> None:
        self.begun = begun
        self.path = path
        self._store = store

    @classmethod
    def create(cls, journal: ServerJournal, begun: Begun) -> "AttemptLog":
        """A new log, durable when this returns. Logs of earlier attempts are removed: they have ended."""
        remove_logs(journal)
        path = _path(journal, (begun.announcement.round, begun.announcement.attempt))
        store = ChainedStore.open(path, _genesis(journal, begun.announcement))
        store.append(
            "attempt",
            {
                "announcement": _text(encode_server(begun.announcement)),
                "ctx": begun.ctx.hex(),
                "excluded": sorted(begun.excluded),
                "started": begun.started,
            },
        )
        return cls(store, path, begun)

    @classmethod
    def unfinished(cls, journal: ServerJournal) -> "AttemptLog | None":
        """The log of the last attempt that the journal knows, if that attempt did not end.

        Raises:
            LedgerError: E212 and others: there is a log, and it cannot be replayed. `remove_logs` gives it up.
        """
        path = _path(journal, journal.last)
        if journal.last == (0, 0) or not os.path.lexists(path):
            return None
        key = {"round": journal.last[0], "attempt": journal.last[1]}
        store = ChainedStore.open(path, _genesis_of(journal, key))
        try:
            rows = store.rows()[1:]
            if not rows:  # killed before the log was begun: nothing was announced
                raise _damaged("no attempt in it")
            return cls(store, path, _begun(rows[0], key))
        except BaseException:
            store.close()
            raise

    def accepted(self, client: ClientId, token: bytes, frame: bytes, spool: str = "") -> None:
        """Before the receipt of this ClientFrame leaves."""
        self._store.append("message", {"client": client, "token": token.hex(), "frame": _text(frame), "spool": spool})

    def uploaded(self, client: ClientId) -> None:
        """After the upload's file is on stable storage, before its receipt leaves."""
        self._store.append("upload", {"client": client})

    def closed(self, phase: Phase, members: tuple[ClientId, ...]) -> None:
        """Before any effect of closing this phase."""
        self._store.append("closed", {"phase": int(phase), "members": list(members)})

    def entries(self) -> Iterator[Entry]:
        """Everything after the first row, in order. Raises LedgerError E212 for a row that this version never wrote."""
        for row in self._store.rows()[2:]:
            yield _entry(row)

    def close(self) -> None:
        """Release the file; the attempt can still be resumed."""
        self._store.close()


def remove_logs(journal: ServerJournal) -> None:
    """Every log beside this journal: no attempt runs. Files that are gone already are nobody's loss."""
    for path in journal.path.parent.glob(f"{journal.path.stem}-attempt-*"):
        with suppress(FileNotFoundError):
            path.unlink()


def _path(journal: ServerJournal, key: AttemptKey) -> Path:
    return journal.path.with_name(f"{journal.path.stem}-attempt-{key[0]}-{key[1]}.sqlite")


def _genesis(journal: ServerJournal, announcement: Announcement) -> dict[str, Any]:
    return _genesis_of(journal, {"round": announcement.round, "attempt": announcement.attempt})


def _genesis_of(journal: ServerJournal, key: dict[str, int]) -> dict[str, Any]:
    return {"book": "attempt log", "version": VERSION, "manifest": journal.manifest_digest.hex(), **key}


def _begun(row: Row, key: dict[str, int]) -> Begun:
    try:
        body = row.value()
        announcement = decode_server(_bytes(body["announcement"]))
        if row.kind != "attempt" or not isinstance(announcement, Announcement):
            raise _damaged(f"row {row.seq}, {row.kind!r}")
        if {"round": announcement.round, "attempt": announcement.attempt} != key:
            raise _damaged(f"round {announcement.round}, attempt {announcement.attempt}")
        excluded = frozenset(ClientId(client) for client in body["excluded"])
        return Begun(announcement, bytes.fromhex(body["ctx"]), excluded, body["started"])
    except (KeyError, TypeError, ValueError, RemoteProtocolError) as error:
        raise _damaged(f"row {row.seq}: {type(error).__name__}") from error


def _entry(row: Row) -> Entry:
    try:
        body = row.value()
        match row.kind:
            case "message":
                message, token, spool = (
                    decode_client(_bytes(body["frame"])),
                    bytes.fromhex(body["token"]),
                    body["spool"],
                )
                if len(token) != TOKEN_BYTES or not (spool == "" or is_spool_name(spool)):
                    raise ValueError("no token, or no file of uploads")
                return Accepted(ClientId(body["client"]), token, message, spool)
            case "upload":
                return Uploaded(ClientId(body["client"]))
            case "closed":
                return Closed(Phase(body["phase"]), tuple(ClientId(client) for client in body["members"]))
    except (KeyError, TypeError, ValueError, RemoteProtocolError) as error:
        raise _damaged(f"row {row.seq}: {type(error).__name__}") from error
    raise _damaged(f"row {row.seq}, {row.kind!r}")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


def _damaged(found: str) -> LedgerError:
    return LedgerError(
        "the log of the running attempt cannot be replayed",
        found=found,
        expected="rows written by this version, in order",
        do="the attempt is given up; the server goes on with the next one",
        code="E218",
    )

"""Append-only hash-chained rows in one SQLite file: the book under every ledger and journal.

Order of preference in every error branch: secrecy > ledger > result > liveness. So a storage error closes the
store for good; the next open replays the whole chain and decides what is true.

SQLite alone does not notice bit rot (a flipped bit in the write-ahead log loses acknowledged commits silently), so
every row carries SHA-256 over its predecessor's hash, and the head is meant to live outside the file too (in peers'
receipts). The order of the pragmas matters: `synchronous=EXTRA` first, `locking_mode=EXCLUSIVE` second, WAL last;
WAL before synchronous loses acknowledged commits on power loss.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import stat
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rfc8785

from dp.errors import LedgerError

ROW_LABEL = b"secagg-ffm chained row v1"
GENESIS = "genesis"
NO_PREVIOUS = bytes(32)

# Codes of LedgerError; E203 stays for calls that make no sense.
STORAGE_FAILED, IN_USE, DAMAGED, TOO_OPEN, OTHER_BOOK = "E210", "E211", "E212", "E213", "E214"

_USER_VERSION = 1
_SCHEMA = (
    "CREATE TABLE chain (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL,"
    " previous BLOB NOT NULL, hash BLOB NOT NULL) STRICT",
    "CREATE TRIGGER no_update BEFORE UPDATE ON chain BEGIN SELECT RAISE(ABORT, 'append-only'); END",
    "CREATE TRIGGER no_delete BEFORE DELETE ON chain BEGIN SELECT RAISE(ABORT, 'append-only'); END",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `body` is canonical JSON (RFC 8785, no floats); `hash` covers everything else and the predecessor."""

    seq: int
    kind: str
    body: bytes
    previous: bytes
    hash: bytes

    def value(self) -> dict[str, Any]:
        """The body, parsed."""
        value: dict[str, Any] = json.loads(self.body)
        return value


def canonical(value: Any) -> bytes:
    """RFC 8785 bytes of a JSON value without floats (integers within +-(2^53 - 1)). Raises LedgerError."""
    _refuse_floats(value, "$")
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, ValueError, RecursionError) as error:
        raise LedgerError("the value has no canonical JSON form", found=type(error).__name__) from None


def row_hash(seq: int, kind: str, previous: bytes, body: bytes) -> bytes:
    """SHA-256 over label, seq (8 bytes big-endian), kind, previous hash, body; each length-prefixed (8 bytes)."""
    state = hashlib.sha256()
    for part in (ROW_LABEL, seq.to_bytes(8, "big"), kind.encode(), previous, body):
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()


def next_row(head: tuple[int, bytes] | None, kind: str, body: Mapping[str, Any]) -> Row:
    """The row that follows `head` (None: the genesis row, seq 0)."""
    seq, previous = (0, NO_PREVIOUS) if head is None else (head[0] + 1, head[1])
    encoded = canonical(body)
    return Row(seq, kind, encoded, previous, row_hash(seq, kind, previous, encoded))


# sqlite3 decodes the message of an error strictly: damaged text in the schema comes as a UnicodeDecodeError.
_STORAGE_ERRORS = (sqlite3.Error, UnicodeDecodeError)


def broken_link(rows: Sequence[Row]) -> int | None:
    """Position of the first row that does not follow from its predecessor, or None if the chain holds."""
    previous = NO_PREVIOUS
    for position, row in enumerate(rows):
        # A flipped bit in a record's header makes SQLite hand out NULL or another type, also from a STRICT table.
        typed = type(row.seq) is int and type(row.kind) is str
        typed = typed and {type(part) for part in (row.body, row.previous, row.hash)} == {bytes}
        if not typed or row.seq != position or row.previous != previous or (row.kind == GENESIS) != (position == 0):
            return position
        if row.hash != row_hash(row.seq, row.kind, row.previous, row.body):
            return position
        previous = row.hash
    return None


class ChainedStore:
    """An open book. Rows are durable when `append` returns; nothing is ever changed or deleted.

    One process, one connection. Any storage error closes the store for good (LedgerError, code E210): the same
    connection would happily accept the next commit.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, rows: Iterable[Row]) -> None:
        self._connection: sqlite3.Connection | None = connection
        self._path = path
        self._rows = list(rows)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path | str, genesis: Mapping[str, Any]) -> "ChainedStore":
        """Create the book, or open it and replay its whole chain.

        Args:
            path: The SQLite file. Its directory is created 0700 and the file 0600; looser ones are refused.
            genesis: What this book is (JSON without floats). It must equal the genesis row of an existing file.

        Raises:
            LedgerError: E210 storage failed, E211 in use, E212 damaged, E213 readable by others, E214 another book.
        """
        path = Path(path)
        first = next_row(None, GENESIS, genesis)
        _private_directory(path.parent)
        if not os.path.lexists(path):
            _create(path, first)
        _private_file(path)
        connection, rows = _load(path, first)
        return cls(connection, path, rows)

    def __repr__(self) -> str:
        return f"ChainedStore({str(self._path)!r}, rows={len(self._rows)})"

    def __enter__(self) -> "ChainedStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def head(self) -> tuple[int, bytes]:
        """(seq, hash) of the last row."""
        row = self._rows[-1]
        return row.seq, row.hash

    def rows(self, kind: str | None = None) -> tuple[Row, ...]:
        """All rows (of one kind), in order; the genesis row has seq 0."""
        return tuple(row for row in self._rows if kind is None or row.kind == kind)

    def append(self, kind: str, body: Mapping[str, Any]) -> Row:
        """Add one row, durably.

        Raises:
            LedgerError: The body is not canonical JSON, the store is closed, or storage failed (E210: the store is
                closed now and whether the row was kept is decided by the next open).
        """
        if kind == GENESIS or not kind:
            raise LedgerError("this kind of row cannot be appended", found=kind or "no kind", expected="a kind of row")
        with self._lock:
            connection = self._connection
            if connection is None:
                raise LedgerError(
                    "the book is closed", found=self._path.name, do="restart: the book is verified when it is opened"
                )
            row = next_row(self.head, kind, body)
            try:
                connection.execute("BEGIN IMMEDIATE")
                _insert(connection, row)
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._shut()
                raise _storage_failed(self._path, error) from error
            self._rows.append(row)
            return row

    def close(self) -> None:
        """Release the file. Further appends raise; rows already read stay readable."""
        with self._lock:
            self._shut()

    def _shut(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # What was acknowledged is on disk already: a failing close has nothing left to lose.
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def _load(path: Path, first: Row) -> tuple[sqlite3.Connection, list[Row]]:
    connection = _connect(path)
    try:
        rows = _replay(connection, path)
        if rows[0].body != first.body:
            raise LedgerError(
                f"{path.name} is another book",
                found=rows[0].body.decode(),
                expected=first.body.decode(),
                do="give each silo, population and purpose a file of its own",
                code=OTHER_BOOK,
            )
    except _STORAGE_ERRORS as error:
        connection.close()
        raise _storage_failed(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection, rows


def _replay(connection: sqlite3.Connection, path: Path) -> list[Row]:
    # A chain without its last rows is whole, and one flipped bit in a page's cell count takes rows away. SQLite's own
    # account of the bytes of each page shows that.
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise LedgerError(
            f"the pages of {path.name} are damaged",
            found=" ".join(problem.split()),
            expected="a file that SQLite finds whole",
            do="stop; keep the file as evidence and restore nothing older than the last head the peers hold",
            code=DAMAGED,
        )
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    schema = tuple(sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema ORDER BY rowid"))
    if version != _USER_VERSION or schema != _SCHEMA:
        raise LedgerError(
            f"{path.name} has another layout",
            found=f"version {version} with {len(schema)} objects",
            expected=f"version {_USER_VERSION} with exactly the objects of this version",
            do="open it with the version of secagg that wrote it",
            code=DAMAGED,
        )
    rows = [
        Row(*values) for values in connection.execute("SELECT seq, kind, body, previous, hash FROM chain ORDER BY seq")
    ]
    broken = broken_link(rows)
    if broken is not None or not rows:
        raise LedgerError(
            f"the hash chain of {path.name} is broken",
            found=f"row {broken} does not follow from the row before it" if rows else "no rows",
            expected="every row chained to its predecessor",
            do="stop; keep the file as evidence and restore nothing older than the last head the peers hold",
            code=DAMAGED,
        )
    return rows


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=0.2, isolation_level=None, check_same_thread=False
        )
    except _STORAGE_ERRORS as error:
        raise _storage_failed(path, error) from error
    try:
        connection.execute("PRAGMA synchronous=EXTRA")
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise LedgerError("no write-ahead log", found=f"journal mode {mode}", expected="wal", code=STORAGE_FAILED)
        for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0"):
            connection.execute(f"PRAGMA {pragma}")
        if connection.execute("PRAGMA synchronous").fetchone()[0] != 3:
            raise LedgerError("commits are not synchronous", expected="synchronous=EXTRA", code=STORAGE_FAILED)
        # Takes the exclusive lock now, so that a second process learns it here and not at its first append.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
    except _STORAGE_ERRORS as error:
        connection.close()
        raise _storage_failed(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path, first: Row) -> None:
    """Write schema and genesis beside the final name and link it into place when it is durable.

    So a file under the final name always holds a genesis row: an empty one is damage, never "new".
    """
    leftovers = [suffix for suffix in ("-wal", "-journal") if os.path.lexists(f"{path}{suffix}")]
    if leftovers:
        raise LedgerError(
            f"{path.name} is gone, but its log is still there",
            found=f"{path.name}{leftovers[0]} without {path.name}",
            expected="both or neither",
            do="restore the file; starting anew would forget what was spent",
            code=DAMAGED,
        )
    fresh = path.with_name(f"{path.name}.new-{os.getpid()}")
    try:
        if os.path.lexists(fresh):  # left by a crash of a process with our number, before anything was acknowledged
            fresh.unlink()
        os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR, 0o600))
        connection = _connect(fresh)
        try:
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={_USER_VERSION}")
            _insert(connection, first)
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()
        _fsync(fresh)
        try:
            os.link(fresh, path, follow_symlinks=False)
        except FileExistsError:
            pass  # somebody created the same book at the same time: theirs is opened below
        finally:
            fresh.unlink()
        _fsync(path.parent)
    except (OSError, *_STORAGE_ERRORS) as error:
        raise _storage_failed(path, error) from error


def _insert(connection: sqlite3.Connection, row: Row) -> None:
    connection.execute(
        "INSERT INTO chain (seq, kind, body, previous, hash) VALUES (?, ?, ?, ?, ?)",
        (row.seq, row.kind, row.body, row.previous, row.hash),
    )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _private_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = os.stat(directory)
    except OSError as error:
        raise _storage_failed(directory, error) from error
    _refuse_looser(directory, mode, "0700")


def _private_file(path: Path) -> None:
    # lstat, never open: closing a second descriptor would drop the POSIX locks of a connection in this process.
    try:
        mode = os.lstat(path)
    except OSError as error:
        raise _storage_failed(path, error) from error
    if not stat.S_ISREG(mode.st_mode):
        raise LedgerError(f"{path.name} is not a plain file", expected="a file, no link", code=TOO_OPEN)
    _refuse_looser(path, mode, "0600")


def _refuse_looser(path: Path, mode: os.stat_result, expected: str) -> None:
    if mode.st_uid != os.geteuid() or stat.S_IMODE(mode.st_mode) & 0o077:
        raise LedgerError(
            f"{path} can be read or replaced by others",
            found=f"mode {stat.S_IMODE(mode.st_mode):04o}, owner {mode.st_uid}",
            expected=f"mode {expected}, owner {os.geteuid()}",
            do=f"chmod {expected} {path}",
            code=TOO_OPEN,
        )


def _in_use(path: Path) -> LedgerError:
    return LedgerError(
        f"{path.name} is in use",
        found="another process or session has it open",
        expected="one at a time",
        do="stop the other one first",
        code=IN_USE,
    )


def _storage_failed(path: Path, error: Exception) -> LedgerError:
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return _in_use(path)
    damaged = isinstance(error, UnicodeDecodeError) or (
        isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
    )
    return LedgerError(
        f"the storage under {path.name} failed",
        found=str(error),
        expected="a readable and writable file",
        do="stop, check the disk, then start again: the book is verified when it is opened",
        code=DAMAGED if damaged else STORAGE_FAILED,
    )


def _refuse_floats(value: Any, path: str) -> None:
    if isinstance(value, float):
        raise LedgerError(
            "a float in a row", found=f"float at {path}", expected="integers, decimal strings, true, false, null"
        )
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_floats(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_floats(item, f"{path}[{index}]")

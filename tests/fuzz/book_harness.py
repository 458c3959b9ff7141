"""Ledgers and journals on disk: bits flipped, pages swapped, tails cut, rows rewritten under a good chain.

A damaged book gives LedgerError or exactly what was written. A damaged write-ahead log may also lose its last commits
without a word: SQLite ends the log at the first frame that does not fit (the reason why heads live with the peers too).
"""

import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from fuzz.attempts import N, consortium, recorded
from fuzz.dice import Dice
from fuzz.harness import Violation
from fuzz.json_mutate import JsonMutator
from simulator import Simulation, random_values

from dp.errors import PrivacyError
from dp.ledger import PrivacyLedger
from dp.store import ChainedStore, canonical
from ffm.client_run import round_charge
from protocol.codec import encode_client
from protocol.rpc.attempt_log import AttemptLog, Begun
from protocol.rpc.journal import ClientJournal, ServerJournal
from secagg.types import ClientId, Phase

ME: Final = ClientId(1)
WAL: Final = "-wal"


@dataclass(frozen=True)
class Book:
    """One kind of file: how it is opened, what it says, and steps that write to it."""

    name: str
    open: Callable[[Path], Any]
    content: Callable[[Any], Any]
    steps: Callable[[], tuple[Callable[[Any], object], ...]]


@dataclass(frozen=True)
class Images:
    """The bytes of a book: closed, and as a crash leaves it with the log beside it; and what it may say."""

    closed: bytes
    crashed: tuple[bytes, bytes]
    contents: tuple[Any, ...]  # after each step, the last one is what was written
    rows: tuple[tuple[str, bytes], ...]


def _open_ledger(path: Path) -> PrivacyLedger:
    return PrivacyLedger.open(path, silo="one", population="records")


def _ledger_steps() -> tuple[Callable[[Any], object], ...]:
    manifest = consortium().manifest
    return tuple(lambda book, r=r: book.charge(round_charge(manifest, r, 0)) for r in range(1, 6))


def _client_steps() -> tuple[Callable[[Any], object], ...]:
    return tuple(lambda book, r=r: book.record(r) for r in _records(ME))


def _server_steps() -> tuple[Callable[[Any], object], ...]:
    event = recorded().server[0].server
    releases = [lambda book, r=r: book.record(r) for r in _records(None)]
    return (
        lambda book: book.start(event.announcement, event.ctx),
        *releases,
        lambda book: book.convict([ClientId(N)]),
    )


def _records(of: ClientId | None) -> list[Any]:
    """What one party writes in two rounds."""
    federation = consortium()
    values = random_values(federation.manifest, federation.client_keys)
    first = Simulation(federation, values)
    first.run()
    second = Simulation(federation, values, ledger=first.server.ledger, memories=dict(first.memories), round=2)
    second.run()
    return [record for run in (first, second) for who, record in run.records if who == of]


def _open_log(path: Path) -> AttemptLog:
    """The log stands beside a journal that knows its attempt; only the log is damaged."""
    event = recorded().server[0].server
    journal = ServerJournal(path.with_name("server.sqlite"), consortium().manifest.digest())
    with closing(journal):
        key = (event.announcement.round, event.announcement.attempt)
        if journal.last < key:
            journal.start(event.announcement, event.ctx)
        there = path.with_name(f"server-attempt-{key[0]}-{key[1]}.sqlite")
        if not path.exists():
            return AttemptLog.create(journal, Begun(event.announcement, event.ctx, frozenset(), 0))
        for suffix in ("", WAL):
            if Path(f"{path}{suffix}").exists():
                Path(f"{path}{suffix}").rename(f"{there}{suffix}")
        log = AttemptLog.unfinished(journal)
        if log is None:
            raise Violation("the log of the last attempt was overlooked")
        return log


def _log_steps() -> tuple[Callable[[Any], object], ...]:
    steps: list[Callable[[Any], object]] = []
    for event in recorded().server[:12]:
        frame = encode_client(event.message)
        steps.append(partial(AttemptLog.accepted, client=event.sender, token=bytes(16), frame=frame))
    members = tuple(ClientId(c) for c in range(1, N + 1))
    steps += [lambda log: log.closed(Phase.ADVERTISE_KEYS, members), lambda log: log.uploaded(ME)]
    return tuple(steps)


BOOKS: Final = (
    Book("privacy ledger", _open_ledger, lambda book: (book.charges(), book.head), _ledger_steps),
    Book(
        "client journal",
        lambda path: ClientJournal(path, ME, consortium().manifest.digest()),
        lambda book: book.memory,
        _client_steps,
    ),
    Book(
        "server journal",
        lambda path: ServerJournal(path, consortium().manifest.digest()),
        lambda book: (book.last, book.ledger, book.convicted),
        _server_steps,
    ),
    Book("attempt log", _open_log, lambda log: (log.begun, tuple(log.entries())), _log_steps),
)


class BookHarness:
    """One kind of book."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.name = f"book/{book.name}"

    @cached_property
    def _images(self) -> Images:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "inner" / "book"
            with closing(self.book.open(path)) as book:
                contents = [self.book.content(book)]
                for step in self.book.steps():
                    step(book)
                    contents.append(self.book.content(book))
                rows = tuple((row.kind, row.body) for row in book._store.rows())
                real = Path(getattr(book, "path", path))
                crashed = (real.read_bytes(), Path(f"{real}{WAL}").read_bytes())
            return Images(real.read_bytes(), crashed, tuple(contents), rows)

    def run(self, dice: Dice) -> str:
        """One damaged file."""
        images = self._images
        with TemporaryDirectory() as folder:
            path = Path(folder) / "book"
            way = dice.below(5)
            if way == 0:
                return self._rewritten(path, dice)
            if way == 1:
                main, log = images.crashed
                _write(path, main)
                _write(Path(f"{path}{WAL}"), damaged(log, dice))
                allowed = images.contents
            else:
                _write(path, damaged(images.closed, dice))
                allowed = images.contents[-1:]
            return self._opened(path, allowed)

    def _opened(self, path: Path, allowed: tuple[Any, ...] | None) -> str:
        try:
            with closing(self.book.open(path)) as book:
                content = self.book.content(book)
        except PrivacyError as error:
            return f"refused: {error.code}"
        if allowed is not None and content not in allowed:
            raise Violation("a damaged book says something that was never written")
        return "unharmed" if allowed is None or content == allowed[-1] else "lost its last commits"

    def _rewritten(self, path: Path, dice: Dice) -> str:
        """Rows that somebody with the file changed, under a chain that holds."""
        rows = list(self._images.rows)
        at = dice.below(len(rows))
        body = JsonMutator(tuple(body for _, body in rows))(dice)
        try:
            value = json.loads(body)
            canonical(value)
        except (ValueError, PrivacyError, RecursionError):
            return "no row"
        if not isinstance(value, dict):
            return "no row"
        rows[at] = (rows[at][0], canonical(value))
        if dice.chance(4):
            rows.append(rows[dice.below(len(rows))])
        with closing(ChainedStore.open(path, json.loads(rows[0][1]))) as store:
            for kind, body in rows[1:]:
                if kind != "genesis":
                    store.append(kind, json.loads(body))
        return f"rewritten, {self._opened(path, None)}"

    def explain(self, dice: Dice) -> str:
        """The draws are all there is to show of a binary file; of a rewritten one, the row."""
        way = dice.below(5)
        if way:
            return f"damage of kind {way} to {self.book.name}"
        at = dice.below(len(self._images.rows))
        body = JsonMutator(tuple(body for _, body in self._images.rows))(dice)
        return f"row {at} ({self._images.rows[at][0]}) replaced by {body[:600]!r}"


def damaged(data: bytes, dice: Dice) -> bytes:
    """The same file with flipped bits, a lost tail, lost or swapped pages."""
    out, page = bytearray(data), 4096
    pages = max(1, len(out) // page)
    way = dice.below(8)
    if way < 3:
        out[dice.below(len(out))] ^= 1 << dice.below(8)
    elif way == 3:  # the header of a page, where one bit hides rows
        out[min(page * dice.below(pages) + dice.below(16), len(out) - 1)] ^= 1 << dice.below(8)
    elif way == 4:
        for _ in range(1 + dice.below(8)):
            out[dice.below(len(out))] ^= 1 << dice.below(8)
    elif way == 5:
        del out[dice.below(len(out) + 1) :]
    elif way == 6:
        at = page * dice.below(pages)
        out[at : at + page] = bytes(page) if dice.chance(2) else dice.bytes(page)
    else:
        a, b = page * dice.below(pages), page * dice.below(pages)
        out[a : a + page], out[b : b + page] = out[b : b + page], out[a : a + page]
    return bytes(out)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)

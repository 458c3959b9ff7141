"""The honest server on the real shell's books: journal, attempt log, spools and outboxes of `protocol.rpc`, in files.

Slower than `server_shell`, and no model of anything: a kill falls before or after any write or frame, files are all
that is left, and messages and frames go through the codec. Only the network and the round loop are simulated.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.codec import decode_client, decode_server, encode_client, encode_server
from protocol.effects import Abort, Record, Released, ReleaseRecord
from protocol.errors import LocalProtocolError, TransportError
from protocol.messages import Announcement, MaskedInput, RoundResult, ServerMessage, SurvivorNotice
from protocol.rpc.attempt import CANNOT_RESUME, Books, RunningAttempt
from protocol.rpc.attempt_log import AttemptLog, Begun, remove_logs
from protocol.rpc.frames import Receipt, Status, Submission
from protocol.rpc.journal import ServerJournal
from protocol.rpc.outbox import Outbox
from protocol.rpc.spool import Spool, SpoolRoom
from protocol.server import ServerSession
from secagg.masking import chunks
from secagg.types import ClientId, Phase
from tests.simulation.books import Key, ServerBook
from tests.simulation.client_shell import Request
from tests.simulation.oracle import ViolationError
from tests.simulation.server_shell import ATTEMPTS, KilledError
from tests.simulation.settings import Fault

if TYPE_CHECKING:
    from tests.simulation.world import World


class FallibleJournal(ServerJournal):
    """The real journal; the process may die before and after every row."""

    shell: "DiskServer"

    def record(self, record: Record) -> None:
        assert isinstance(record, ReleaseRecord)
        self.shell.point()
        super().record(record)
        self.shell.point(5)


class FallibleLog(AttemptLog):
    """The real log; the process may die before and after every row."""

    shell: "DiskServer"

    def accepted(self, client: ClientId, token: bytes, frame: bytes, spool: str = "") -> None:
        self.shell.point()
        super().accepted(client, token, frame, spool)
        self.shell.point()

    def uploaded(self, client: ClientId) -> None:
        self.shell.point()
        super().uploaded(client)
        self.shell.point()

    def closed(self, phase: Phase, members: tuple[ClientId, ...]) -> None:
        self.shell.point()
        super().closed(phase, members)
        self.shell.point()


class DiskServer:
    """One server over all its processes. The same interface to the world as `ServerShell`."""

    def __init__(self, world: "World", folder: Path) -> None:
        self.world = world
        self.params = world.params
        self.folder = folder
        self.path = folder / "journal.sqlite"
        self.backups: list[Path | None] = [None]
        self.ended: dict[Key, tuple[ClientId, ...]] = {}  # the run folder: outcomes that were written down
        self.up = False
        self.journal: FallibleJournal | None = None
        self.log: AttemptLog | None = None
        self.attempt: RunningAttempt | None = None
        self.boot()

    # -- processes ----------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """A new process on the old files."""
        self.up = True
        clients = self.world.settings.clients
        self.outboxes = {client: Outbox() for client in clients}
        self.indices = dict.fromkeys(clients, 0)
        self._back_up()
        manifest_digest = self.world.settings.federation.manifest.digest()
        self.journal = journal = FallibleJournal(self.path, manifest_digest)
        journal.shell = self
        self.spools = SpoolRoom(self.folder / "spools")
        self.log = self.attempt = None
        try:
            log = FallibleLog.unfinished(journal)
            if log is not None:
                self.log = log
                self._resume(journal, log)
        except KilledError:
            return
        except CANNOT_RESUME as error:
            self.world.note(f"burnt: {error}", "burnt")
            for outbox in self.outboxes.values():
                outbox.forget()
            self._settle()

    def _resume(self, journal: ServerJournal, log: AttemptLog) -> None:
        begun = log.begun
        log.shell = self  # type: ignore[attr-defined]
        key = begun.announcement.round, begun.announcement.attempt
        if key in self.ended:  # killed between the outcome and the clean-up
            self._settle()
            return
        self.world.count("resumed")
        then = journal.ledger.upto(begun.announcement.ledger_seq)
        running = self._running(begun.announcement, then, begun.excluded, log)
        if running.session.ctx != begun.ctx:
            raise ViolationError("one-view", "a resumed attempt has another ctx")
        running.reopen()
        running.replay(lambda client, token: self.outboxes[client].restore(token))
        self.attempt = running
        for client, request in self.world.receipts:
            known = [messages.get(client) for messages in running.session._messages.values()]
            if request.key == key and client not in running.session.drops and request.message not in known:
                raise ViolationError("receipt", f"a {type(request.message).__name__} of client {client} is forgotten")

    def kill(self) -> None:
        """SIGKILL. The files stay as they are."""
        phase = self.session.phase.name if self.session is not None and self.running else "IDLE"
        self.world.note("server killed", f"SERVER_CRASH@{phase}")
        self._drop()

    def _drop(self) -> None:
        self.up = False
        if self.attempt is not None:
            for spool in self.attempt._spools.values():
                spool._shut()
        self.attempt = None
        for book in (self.log, self.journal):
            if book is not None:
                book.close()
        self.log = self.journal = None

    def damage_log(self) -> None:
        """The header of the log's file is overwritten while the server is down."""
        for path in self.folder.glob("journal-attempt-*.sqlite"):
            self.world.note("log damaged", "LOG_DAMAGED")
            data = path.read_bytes()
            path.write_bytes(b"\xff" * min(64, len(data)) + data[64:])

    def restore(self, backup: int) -> None:
        """An older copy of the journal, without any log."""
        source = self.backups[backup]
        self.world.note(f"rewound to backup {backup}", "REWIND")
        before = self._rows()
        for path in self.folder.glob("journal*"):
            path.unlink()
        if source is not None:
            for path in source.glob("journal*"):
                shutil.copy(path, self.folder / path.name)
        self.ended.clear()
        self.world.receipts.clear()
        if self._rows() < before:
            self.world.count("REWIND@rows")
        del self.backups[backup + 1 :]

    def _rows(self) -> int:
        if not self.path.exists():
            return 0
        journal = ServerJournal(self.path, self.world.settings.federation.manifest.digest())
        try:
            return journal.ledger.seq
        finally:
            journal.close()

    def _back_up(self) -> None:
        if self.path.exists() and self.world.on(Fault.REWIND) and len(self.backups) < 8:
            target = self.folder / f"backup-{len(self.backups)}"
            target.mkdir(exist_ok=True)
            for path in (self.path, *self.folder.glob("journal.sqlite-*")):
                shutil.copy(path, target / path.name)
            self.backups.append(target)

    # -- what the world looks at --------------------------------------------------------------------------------------

    @property
    def session(self) -> ServerSession | None:
        """Of the running attempt."""
        return self.attempt.session if self.attempt is not None else None

    @property
    def running(self) -> bool:
        """Whether an attempt is under way."""
        if not self.up:
            return any(self.folder.glob("journal-attempt-*.sqlite"))
        return self.attempt is not None and self.attempt.outcome is None

    @property
    def book(self) -> ServerBook:
        """What is durable, as the world wants to see it."""
        assert self.journal is not None
        released = max((key[0] for key, members in self.ended.items() if members), default=0)
        return ServerBook(self.journal.ledger, self.journal.last, released, self.journal.convicted)

    @property
    def nearly_done(self) -> bool:
        """Whether the open phase waits for no more clients than an attempt can do without."""
        session = self.session
        if session is None or not self.running or not session.open:
            return False
        return 0 < len(session.missing()) <= self.params.max_dropouts

    # -- what clients call --------------------------------------------------------------------------------------------

    def knocks(self, client: ClientId, token: int) -> bool:
        """Whether a poll of this process would bring something, or would be its first."""
        outbox = self.outboxes[client]
        return self.up and (outbox.after(self.indices[client]) is not None or outbox.token != _token(token))

    def fetch(self, client: ClientId, token: int) -> ServerMessage | None:
        """A poll."""
        if not self.up or not self._admit(client, token):
            return None
        entry = self.outboxes[client].after(self.indices[client])
        if entry is None:
            return None
        self.indices[client] = entry.index
        return decode_server(entry.frame)

    def submit(self, request: Request) -> bool | None:
        """A call: accepted or refused; None if it never ends, or is not over yet."""
        if not self.up:
            return None
        if not self._admit(request.sender, request.token):
            return False
        running = self.attempt
        if running is None or running.key != request.key or running.outcome is not None:
            self.world.count("stale request")
            return False
        try:
            receipt = self._handed(running, request)
        except KilledError:
            return None
        if running.outcome is not None:
            self._ended(running)
        if receipt is None:
            return None
        if receipt.status is Status.REFUSED:
            reason = running.session.drops.get(request.sender)
            if reason is not None:
                self.world.dropped(request.sender, reason, running.session.phase)
        return receipt.status is Status.ACCEPTED

    def _handed(self, running: RunningAttempt, request: Request) -> Receipt | None:
        try:
            frame = encode_client(request.message)
        except LocalProtocolError:  # only a bent message: no frame of the wire says it
            self.world.count("not to be encoded")
            return Receipt(Status.REFUSED, "malformed")
        message = decode_client(frame)
        submission = Submission(_token(request.token), *request.key, frame)
        if not isinstance(message, MaskedInput):
            return running.submit(request.sender, submission, message)
        opened = running.open_upload(request.sender, submission, message)
        if isinstance(opened, Receipt):
            return opened
        if not request.opened and self.world.slow_upload(request.sender):
            request.opened = True
            return None
        return self._chunks(running, opened, request)

    def _chunks(self, running: RunningAttempt, spool: Spool, request: Request) -> Receipt | None:
        """From the first chunk that is missing; perhaps not to the end."""
        assert request.words is not None
        holder = spool.take()
        try:
            for index, chunk in enumerate(chunks(request.words, self.params)):
                if index < spool.received:
                    continue
                if self.world.strikes(Fault.CUT_UPLOAD, 8):
                    self.world.note(f"upload of {request.sender} cut off at {index}", "CUT_UPLOAD")
                    request.opened = False
                    return None
                spool._check(index, len(chunk))
                spool._write(index, chunk)
            spool._seal()
        except TransportError:
            return None
        except Exception as error:
            if getattr(error, "code", "") != "E411":
                raise
            self.world.count("upload with another digest")
            return Receipt(Status.REFUSED, str(error))
        finally:
            spool.pause(holder)
        return running.close_upload(request.sender, spool)

    def _admit(self, client: ClientId, token: int) -> bool:
        outbox, running = self.outboxes[client], self.attempt if self.running else None
        joinable = running.key if running is not None and running.joinable(client) else None
        return outbox.admit(_token(token), joinable, running.key if running is not None else None)

    # -- the round loop -----------------------------------------------------------------------------------------------

    def next_key(self) -> Key:
        """As `ffm.server_run`: a retry of this round while it has no row, or the next round."""
        assert self.journal is not None
        round_, attempt = self.journal.last
        opened = self.journal.ledger.last_round
        if round_ > opened and attempt + 1 < ATTEMPTS:
            return round_, attempt + 1
        return max(round_, opened) + 1, 0

    def begin(self, key: Key) -> None:
        """Announce an attempt: journal and log first."""
        journal = self.journal
        assert journal is not None
        announcement = self.world.settings.federation.announcement(*key, ledger_seq=journal.ledger.seq)
        self._settle()
        ctx = ServerSession(
            self.params, announcement, self._roster, self.world.settings.federation.server_key, journal.ledger
        ).ctx
        journal.start(announcement, ctx)
        try:
            self.point()
            log = FallibleLog.create(journal, Begun(announcement, ctx, journal.convicted, 0))
            log.shell = self  # type: ignore[attr-defined]
            self.log = log
            self.point()
            self.attempt = self._running(announcement, journal.ledger, journal.convicted, log)
            self.attempt.begin()
        except KilledError:
            return

    def act(self) -> bool:
        """What the server does by itself when nobody is missing; whether it did something."""
        running = self.attempt
        if not self.up or running is None or running.outcome is not None:
            return False
        if running.to_fold is None and running.session.missing():
            return False
        self.close()
        return True

    def close(self) -> None:
        """Close the open phase, or fold the uploads."""
        running = self.attempt
        assert running is not None
        try:
            if running.to_fold is not None:
                running.finish(running.fold(running.to_fold))
            else:
                phase = running.session.phase.name
                self.world.trace(lambda: f"server closes {phase}, missing {running.session.missing()}")
                self.world.count(f"closed {phase}")
                running.close_phase()
        except KilledError:
            return
        if running.outcome is not None:
            self._ended(running)

    # -- inside -------------------------------------------------------------------------------------------------------

    @property
    def _roster(self) -> Any:
        return self.world.settings.federation.roster

    def _running(
        self, announcement: Announcement, ledger: Any, excluded: frozenset[ClientId], log: AttemptLog
    ) -> RunningAttempt:
        assert self.journal is not None
        key = self.world.settings.federation.server_key
        session = ServerSession(self.params, announcement, self._roster, key, ledger, excluded)
        attempt_key = (announcement.round, announcement.attempt)

        def post(client: ClientId, message: ServerMessage) -> None:
            self.point()
            frame = encode_server(message)
            if isinstance(message, Announcement):
                self.outboxes[client].announce(frame, attempt_key)
                return
            if isinstance(message, SurvivorNotice) and self.journal is not None:
                self.world.oracle.noticed(message.row, self.journal.ledger)
            self.outboxes[client].put(frame, attempt_key)

        return RunningAttempt(session, Books(self.journal, log, self.spools), post)

    def _ended(self, running: RunningAttempt) -> None:
        """Write the outcome down, then clean up, then tell the clients."""
        outcome, session, world = running.outcome, running.session, self.world
        assert self.journal is not None
        if isinstance(outcome, Released):
            inputs = {c: world.clients[c].inputs[running.key] for c in outcome.masked}
            world.oracle.released(running.key, outcome, inputs)
            world.note(f"released {running.key}: {outcome.masked}", "released")
            self.ended[running.key] = outcome.masked
        elif isinstance(outcome, Abort):
            sets = (session.advertised, session.shared, session.masked, session.checked, session.unmasked)
            world.aborted(outcome, len(world.settings.clients) - len(sets[outcome.phase]))
            self.journal.convict(outcome.convicted)
            self.ended[running.key] = ()
        try:
            self.point()
        except KilledError:
            return
        self._settle()
        if isinstance(outcome, Released):
            frame = encode_server(RoundResult(*running.key, outcome.masked, bytes(32), bytes(32)))
            for outbox in self.outboxes.values():
                outbox.put(frame, None)

    def _settle(self) -> None:
        log, running = self.log, self.attempt
        self.log = self.attempt = None
        if log is not None:
            log.close()
        if self.journal is not None:
            remove_logs(self.journal)
        if running is not None:
            running.discard()

    def point(self, one_in: int = 40) -> None:
        """The process may die here."""
        if self.world.strikes(Fault.SERVER_CRASH, one_in):
            self.kill()
            raise KilledError


def _token(token: int) -> bytes:
    return token.to_bytes(16, "big")

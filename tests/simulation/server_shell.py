"""The honest server's shell: journal, log of the running attempt, outboxes, spool; killed, resumed, restored.

Order of writing: what a session makes of a message is logged before its receipt leaves, a closed phase before its
messages leave, a release-ledger row before the notice that names it. A restart replays the log.
"""

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from protocol.drops import DropReason
from protocol.effects import Abort, AcceptUpload, Aggregate, Effects, Persist, Released, ReleaseRecord, Send
from protocol.messages import Announcement, ClientMessage, MaskedInput, RoundResult, ServerMessage, SurvivorNotice
from protocol.release import ReleaseLedger
from protocol.server import ServerSession
from secagg.masking import InputDigest, add_masks, chunks
from secagg.types import ClientId, Phase
from tests.simulation.books import AttemptLog, Key, LogEntry, PhaseClosed, Received, ServerBook, UploadDone
from tests.simulation.client_shell import Request
from tests.simulation.oracle import ViolationError
from tests.simulation.settings import Fault

if TYPE_CHECKING:
    from tests.simulation.world import World

ATTEMPTS = 3  # of one round
MAX_OUTBOX = 16  # frames that wait for one client
MAX_LOG = 12  # log entries per client of one attempt


class KilledError(Exception):
    """The server process is gone; what it was doing is not finished."""


class ServerShell:
    """One server over all its processes."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.params = world.params
        fed = world.settings.federation
        self.book = ServerBook(ReleaseLedger(fed.manifest.digest()))
        self.backups = [self.book]
        self.log: AttemptLog | None = None
        self.up = False
        self.boot()

    # -- processes ----------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """A new process: the running attempt is rebuilt from its log, if there is one."""
        self.up = True
        self.session: ServerSession | None = None
        self.outboxes: dict[ClientId, deque[ServerMessage]] = {c: deque() for c in self.world.settings.clients}
        self.tokens: dict[ClientId, int] = {}
        self.gone: set[tuple[ClientId, int]] = set()
        self.hidden: set[ClientId] = set()
        self.gates: dict[ClientId, MaskedInput] = {}
        self.aggregate: Aggregate | None = None
        self.outcome: Released | Abort | None = None
        log = self.log
        if log is None:
            return
        self.world.count("resumed")
        try:
            self._open(log)
            for entry in list(log.entries):
                self._replay(log, entry)
        except KilledError:
            self.up = False
            return
        self._remembered(log)

    def _remembered(self, log: AttemptLog) -> None:
        """Whatever a client has a receipt for is there again."""
        session = self.session
        for client, request in self.world.receipts:
            if session is None or request.key != log.announcement_key or client in session.drops:
                continue
            if request.message not in [known.get(client) for known in session._messages.values()]:
                raise ViolationError("receipt", f"a {type(request.message).__name__} of client {client} is forgotten")

    def kill(self) -> None:
        """SIGKILL: the journal, the log and complete uploads are left."""
        phase = self.session.phase.name if self.session is not None and self.outcome is None else "IDLE"
        self.world.note("server killed", f"SERVER_CRASH@{phase}")
        self.up, self.session = False, None

    def damage_log(self) -> None:
        """The log of the running attempt cannot be read: the attempt is burned."""
        if self.log is not None:
            self.world.note("log lost", "LOG_DAMAGED")
            self.log = None

    def restore(self, backup: int) -> None:
        """An older backup of the journal, without any log."""
        book = self.backups[backup]
        self.world.note(f"rewound to {book.last}, seq {book.ledger.seq}", "REWIND")
        if book.ledger.seq < self.book.ledger.seq:
            self.world.count("REWIND@rows")
        self.book, self.log = book, None
        self.world.receipts.clear()  # what was promised since is lost with it
        del self.backups[backup + 1 :]

    # -- what clients call --------------------------------------------------------------------------------------------

    def knocks(self, client: ClientId, token: int) -> bool:
        """Whether a poll of this process would bring something, or would be its first."""
        return self.up and (bool(self.outboxes[client]) or self.tokens.get(client) != token)

    def fetch(self, client: ClientId, token: int) -> ServerMessage | None:
        """A poll."""
        if not self.up or not self._admit(client, token):
            return None
        box = self.outboxes[client]
        return box.popleft() if box else None

    def submit(self, request: Request) -> bool | None:
        """A call: accepted or refused; None if it never ends, or is not over yet."""
        if not self.up:
            return None
        if not self._admit(request.sender, request.token):
            return False
        try:
            return self._submit(request)
        except KilledError:
            return None

    def _submit(self, request: Request) -> bool | None:
        session, log, sender = self.session, self.log, request.sender
        if session is None or log is None or log.announcement_key != request.key or self.outcome is not None:
            self.world.count("stale request")
            return False
        if request.opened:
            late = session.open and len(session.missing()) <= self.params.max_dropouts
            if late and self.world.strikes(Fault.EARLY_CLOSE, 3):
                self.world.note("deadline within an upload", "EARLY_CLOSE@upload")
                self.close()
            return self._body(session, log, request)
        drops = len(session.drops)
        result = session.receive(sender, request.message)
        if isinstance(result, DropReason):
            self.world.dropped(sender, result, session.phase)
        if isinstance(result, tuple) or len(session.drops) > drops:
            self._point()
            log.entries.append(Received(sender, request.message, request.token))
            self._point()
        if isinstance(result, DropReason):
            return False
        self._apply(result)
        if any(isinstance(effect, AcceptUpload) for effect in result):
            request.opened = True
            if not self.world.slow_upload(sender):
                return self._body(session, log, request)
            return None
        return True

    def _body(self, session: ServerSession, log: AttemptLog, request: Request) -> bool | None:
        """The chunks of an upload, all of them, or cut off."""
        sender, words, header = request.sender, request.words, self.gates.get(request.sender)
        if self.world.strikes(Fault.CUT_UPLOAD, 8):
            self.world.note(f"upload of {sender} cut off", "CUT_UPLOAD")
            request.opened = False
            return None
        if header is None or header != request.message or words is None:
            return False
        hasher = InputDigest()
        for chunk in chunks(words, self.params):
            hasher.update(chunk)
        if hasher.digest() != header.input_digest:
            self.world.count("upload with another digest")
            return False
        log.spool[sender] = words.copy()  # spooled before it is in the log; without the entry it does not count
        self._point()
        result = session.upload_complete(sender)
        if isinstance(result, DropReason):
            self.world.dropped(sender, result, session.phase)
            return False
        log.entries.append(UploadDone(sender))
        self._point()
        self._apply(result)
        return True

    def _admit(self, client: ClientId, token: int) -> bool:
        """A newer process takes over; it sees only what it can still join."""
        if (client, token) in self.gone:
            return False
        known = self.tokens.get(client)
        if known != token:
            if known is not None:
                self.gone.add((client, known))
            self.tokens[client] = token
            self.hidden.discard(client)
            self.outboxes[client].clear()
            session = self.session
            if session is not None and self.outcome is None:
                if session.phase is Phase.ADVERTISE_KEYS and client in session.missing():
                    self.outboxes[client].append(session.announcement)
                else:
                    self.hidden.add(client)
        return True

    # -- the round loop -----------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether an attempt is under way."""
        return self.log is not None and self.outcome is None

    @property
    def nearly_done(self) -> bool:
        """Whether the open phase waits for no more clients than an attempt can do without."""
        session = self.session
        if not self.up or session is None or not self.running or not session.open:
            return False
        return 0 < len(session.missing()) <= self.params.max_dropouts

    def next_key(self) -> Key:
        """The next attempt: a retry of this round, or the next round."""
        (round_, attempt), ledger = self.book.last, self.book.ledger
        if round_ == 0 or round_ == self.book.released_round or attempt + 1 >= ATTEMPTS:
            return max(round_, ledger.last_round) + 1, 0
        return (round_, attempt + 1) if round_ >= ledger.last_round else (ledger.last_round + 1, 0)

    def begin(self, key: Key) -> None:
        """Announce an attempt: first written down, then said."""
        fed, book = self.world.settings.federation, self.book
        announcement = fed.announcement(*key, ledger_seq=book.ledger.seq)
        self._keep(book.started(key))
        self.hidden.clear()
        self.outcome = self.aggregate = None
        self.gates.clear()
        for box in self.outboxes.values():
            box.clear()
        self.log = AttemptLog(announcement, book.ledger, book.excluded)
        try:
            self._point()
            self._open(self.log)
        except KilledError:
            return

    def act(self) -> bool:
        """What the server does by itself when nobody is missing; whether it did something."""
        session, log = self.session, self.log
        if not self.up or session is None or log is None or self.outcome is not None:
            return False
        if self.aggregate is None and session.missing():
            return False
        self.close()
        return True

    def close(self) -> None:
        """Close the open phase, or fold the uploads."""
        session, log = self.session, self.log
        assert session is not None and log is not None
        try:
            if self.aggregate is not None:
                self._fold(session, log, self.aggregate)
                return
            self.world.trace(lambda: f"server closes {session.phase.name}, missing {session.missing()}")
            self.world.count(f"closed {session.phase.name}")
            effects = session.close_phase()
            if back := log.excluded & set(session.advertised):
                raise ViolationError("convicted", f"clients {sorted(back)} take part again")
            self._point()
            log.entries.append(PhaseClosed())
            self._apply(effects)
        except KilledError:
            return

    # -- inside -------------------------------------------------------------------------------------------------------

    def _open(self, log: AttemptLog) -> None:
        fed = self.world.settings.federation
        self.session = ServerSession(
            self.params, log.announcement, fed.roster, fed.server_key, log.ledger, log.excluded
        )
        self._apply(self.session.start())

    def _replay(self, log: AttemptLog, entry: LogEntry) -> None:
        session = self.session
        assert session is not None
        match entry:
            case Received(sender, message, token):
                self.tokens[sender] = token
                result = session.receive(sender, message)
            case UploadDone(sender):
                result = session.upload_complete(sender)
            case PhaseClosed():
                result = session.close_phase()
        if isinstance(result, tuple):
            self._apply(result)

    def _apply(self, effects: Effects) -> None:
        for effect in effects:
            self._point()
            match effect:
                case Persist(record):
                    assert isinstance(record, ReleaseRecord)
                    self._row(record)
                    self._point(5)
                case Send(message, to) if to is not None:
                    self._post(to, message)
                case AcceptUpload(sender, header):
                    self.gates[sender] = header
                case Aggregate():
                    self.aggregate = effect
                case Released() | Abort():
                    self._ended(effect)
                case _:
                    raise AssertionError(effect)

    def _row(self, record: ReleaseRecord) -> None:
        ledger, row = self.book.ledger, record.row
        if row.seq <= ledger.seq:  # replayed
            if ledger.rows[row.seq - 1] != row:
                raise ViolationError("ledger", f"the server signs two rows with seq {row.seq}")
            return
        self.world.oracle.row_written(row, ledger.seq)
        self._keep(self.book.opened(row))

    def _post(self, to: ClientId, message: "ServerMessage | ClientMessage") -> None:
        if to in self.hidden and not isinstance(message, Announcement):
            return
        if isinstance(message, SurvivorNotice):
            self.world.oracle.noticed(message.row, self.book.ledger)
        box = self.outboxes[to]
        box.append(message)  # type: ignore[arg-type]
        if len(box) > MAX_OUTBOX:
            raise ViolationError("memory", f"{len(box)} frames wait for client {to}")

    def _fold(self, session: ServerSession, log: AttemptLog, aggregate: Aggregate) -> None:
        total = np.zeros(self.params.total_words, dtype=np.uint64)
        for client in aggregate.masked:
            total += log.spool[client]
        add_masks(total, aggregate.masks)
        self._apply(session.finish(total))

    def _ended(self, outcome: Released | Abort) -> None:
        log, session, world = self.log, self.session, self.world
        assert log is not None and session is not None
        if len(log.entries) > MAX_LOG * len(world.settings.clients):
            raise ViolationError("memory", f"{len(log.entries)} entries in the log of one attempt")
        key = log.announcement_key
        if isinstance(outcome, Released):
            inputs = {c: world.clients[c].inputs[key] for c in outcome.masked}
            world.oracle.released(key, outcome, inputs)
            self._keep(self.book.ended(key[0], ()))
            result = RoundResult(*key, outcome.masked, bytes(32), bytes(32))
            world.note(f"released {key}: {outcome.masked}", "released")
        else:
            sets = (session.advertised, session.shared, session.masked, session.checked, session.unmasked)
            left = len(sets[outcome.phase])
            world.aborted(outcome, len(world.settings.clients) - left)
            self._keep(self.book.ended(0, outcome.convicted))
            result = None
        self.outcome = outcome
        self.log = None
        for box in self.outboxes.values():
            if result is not None:
                box.append(result)

    def _keep(self, book: ServerBook) -> None:
        self.book = book
        self.backups.append(book)

    def _point(self, one_in: int = 80) -> None:
        """Between any two effects the process may die."""
        if self.world.strikes(Fault.SERVER_CRASH, one_in):
            self.kill()
            raise KilledError

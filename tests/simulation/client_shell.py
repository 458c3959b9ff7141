"""A client's shell: a process with a journal, one request at a time, and an inbox that it reads between requests."""

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from protocol import release
from protocol.client import ClientSession
from protocol.effects import Charge, Effect, Persist, Send, Upload
from protocol.errors import RemoteProtocolError
from protocol.messages import (
    Announcement,
    AttemptAborted,
    ClientMessage,
    Finished,
    LedgerRows,
    MaskedInput,
    RoundResult,
    ServerMessage,
    Withdraw,
)
from secagg.encoding import Values, Words
from secagg.types import ClientId, Phase
from tests.simulation.books import ClientBook, Key
from tests.simulation.oracle import ViolationError
from tests.simulation.settings import LENGTH, Fault
from tests.simulator import insecure_rng

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass(slots=True)
class Request:
    """One call of a client process: repeated until a receipt comes back."""

    sender: ClientId
    token: int
    key: Key
    message: ClientMessage
    words: Words | None = None
    opened: bool = False  # an upload whose header was accepted


@dataclass(slots=True)
class Update:
    """An encoded update: what one training gave. Kept while its round is neither signed nor released."""

    round: int
    training: int
    values: Values


@dataclass(slots=True)
class Process:
    """What a crash takes away."""

    token: int
    session: ClientSession | None = None
    key: Key = (0, 0)
    update: Update | None = None
    untrained: bool = False
    late: bool = False  # its training takes longer than phases 0 and 1
    pending: deque[Effect] = field(default_factory=deque)
    request: Request | None = None
    over: bool = False  # the session was ended from outside, or ended by itself
    wrote: bool = False  # the last effect was a durable write
    handled: list[ServerMessage] = field(default_factory=list)

    @property
    def trainable(self) -> bool:
        """Whether the local training may end now: a late one ends after the shares of the others are there."""
        if not self.untrained or self.session is None:
            return False
        return not self.late or self.session.phase >= Phase.MASKED_INPUT

    @property
    def active(self) -> bool:
        """Whether it is in the middle of something."""
        waits = self.session is not None and self.session.phase is Phase.MASKED_INPUT
        return bool(self.pending or self.request or waits)


class ClientShell:
    """One client over all its processes."""

    def __init__(self, world: "World", me: ClientId) -> None:
        self.me = me
        self.world = world
        self.book = ClientBook(world.settings.federation.manifest)
        self.setup = world.setup(me)
        self.tokens = 0
        self.trainings = 0
        self.stalled = False
        self.inputs: dict[Key, Values] = {}  # what it masked, for the oracle
        self.process: Process | None = None
        self.boot()

    def boot(self) -> None:
        """A new process: journal and privacy ledger are what is left."""
        self.book.reopen()
        self.tokens += 1
        self.process = Process(self.tokens)

    def crash(self) -> None:
        """The process dies."""
        process = self.process
        if process is not None:
            phase = process.session.phase.name if process.session else "IDLE"
            self.world.note(f"crash {self.me}", f"CLIENT_CRASH@{phase}")
        self.process = None

    @property
    def ready(self) -> bool:
        """Whether it has something to do."""
        process = self.process
        if process is None or self.stalled:
            return False
        if process.request is not None or process.pending or process.trainable:
            return True
        return self.world.server.knocks(self.me, process.token)

    @property
    def uploading(self) -> bool:
        """Whether the header of its upload was accepted and the body is still to come."""
        process = self.process
        return process is not None and process.request is not None and process.request.opened

    def step(self) -> None:
        """One thing: an effect, a request, a message."""
        process, world = self.process, self.world
        assert process is not None
        if process.active and world.strikes(Fault.CLIENT_CRASH, 10 if process.wrote else 64):
            self.crash()
        elif process.request is not None:
            self._call(process, process.request)
        elif process.pending:
            self._apply(process, process.pending.popleft())
        elif process.trainable:
            if process.late and world.strikes(Fault.LATE_TRAINING, 2):
                world.count("LATE_TRAINING")
                return
            self._train(process)
        else:
            message = world.server.fetch(self.me, process.token)
            if message is not None:
                self._receive(process, message)

    # -- messages -----------------------------------------------------------------------------------------------------

    def _receive(self, process: Process, message: ServerMessage) -> None:
        world = self.world
        if isinstance(message, Announcement):
            if not (process.handled and process.handled[0] == message):
                self._announced(process, message)
            return
        if isinstance(message, RoundResult | Finished):
            if (
                process.update is not None
                and isinstance(message, RoundResult)
                and message.round >= process.update.round
            ):
                process.update = None
        elif not isinstance(message, AttemptAborted) and world.honest_server:
            for earlier in process.handled:  # a server that resumed sends again what it sent before
                if type(earlier) is type(message):
                    if earlier != message:
                        raise ViolationError("one-view", f"client {self.me} gets a second {type(message).__name__}")
                    return
            process.handled.append(message)
        session = process.session
        if session is None:
            return
        try:
            effects = session.receive(message)
        except RemoteProtocolError as error:
            self._refused(process, error)
            return
        world.trace(lambda: f"  {self.me} takes {type(message).__name__}")
        world.oracle.silent(session, effects, process.over)
        aborted = isinstance(message, AttemptAborted) and (message.round, message.attempt) == process.key
        process.over |= aborted or session.phase in (Phase.COMPLETED, Phase.ABORTED)
        process.pending.extend(effects)

    def _announced(self, process: Process, message: Announcement) -> None:
        world, memory, key = self.world, self.book.memory, (message.round, message.attempt)
        self._leave(process)
        process.handled = [message]
        rows = release.resupply(message, memory.ledger)
        if rows is not None:
            world.count("resupply")
            process.request = Request(self.me, process.token, key, rows)
            return
        rng = insecure_rng((self.me, self.tokens, key))
        try:
            session = ClientSession(self.setup, message, memory, rng)
        except RemoteProtocolError as error:
            world.refused(self.me, error)
            withdraw = Withdraw(error.code, type(error).__name__)  # nobody need wait for us
            process.request = Request(self.me, process.token, key, withdraw)
            return
        process.session, process.key, process.over = session, key, False
        if memory.spent_round >= message.round or memory.joined >= key:
            raise ViolationError("spent", f"client {self.me} joins {key} although its journal forbids it")
        world.oracle.joined(self.me, session, message)
        process.untrained, process.late = True, world.strikes(Fault.LATE_TRAINING, 2)
        if process.update is not None and process.update.round != message.round:
            process.update = None
        process.pending.extend(session.start())

    def _train(self, process: Process) -> None:
        """The update of this round: the kept one, or a fresh one. Client i adds bit i - 1."""
        process.untrained = False
        update, session = process.update, process.session
        if update is None:
            self.trainings += 1
            values = np.zeros(LENGTH, dtype=np.int64)
            values[:3] = 1 << (self.me - 1), process.key[0], self.trainings
            update = process.update = Update(process.key[0], self.trainings, values)
        else:
            self.world.count("kept update")
        if session is not None and session.phase < Phase.CONSISTENCY_CHECK:
            process.pending.extend(session.provide_input(update.values))

    def _refused(self, process: Process, error: RemoteProtocolError) -> None:
        self.world.refused(self.me, error)
        key = process.key
        self._leave(process)
        process.request = Request(self.me, process.token, key, Withdraw(error.code, type(error).__name__))

    def _leave(self, process: Process) -> None:
        session = process.session
        if session is not None:
            session.abort()
        process.session, process.untrained, process.request = None, False, None
        process.pending.clear()

    # -- effects ------------------------------------------------------------------------------------------------------

    def _apply(self, process: Process, effect: Effect) -> None:
        session, key = process.session, process.key
        assert session is not None
        process.wrote = isinstance(effect, Persist | Charge)
        match effect:
            case Persist(record):
                self.book.record(record)
                if record.round == key[0] and self.book.memory.spent_round == key[0]:
                    process.update = None  # signed: these bytes are never sent again
            case Charge(round_, attempt):
                assert process.update is not None
                if not self.book.paid(process.update.training):
                    self.book.charges.append(((round_, attempt), process.update.training))
            case Send(message, _):
                self._hand_over(process, message)  # type: ignore[arg-type]
            case Upload(header, words):
                self._hand_over(process, header, words)
            case _:
                raise AssertionError(effect)

    def _hand_over(self, process: Process, message: ClientMessage, words: Words | None = None) -> None:
        world, session = self.world, process.session
        assert session is not None
        if isinstance(message, MaskedInput):
            assert process.update is not None and words is not None
            update = process.update
            self.inputs[process.key] = update.values
            world.oracle.uploads(session, message, update.values, self.book.paid(update.training))
        else:
            world.oracle.leaves(session, message, self.book)
        request = Request(self.me, process.token, process.key, message, words)
        if self.me in world.settings.corrupt and world.on(Fault.SABOTAGE):
            request = world.saboteur.bend(self, request)
        process.request = request

    # -- requests -----------------------------------------------------------------------------------------------------

    def _call(self, process: Process, request: Request) -> None:
        world = self.world
        kind = type(request.message).__name__
        if world.strikes(Fault.LOST_REQUEST, 12):
            world.note(f"lost {kind} of {self.me}", f"LOST_REQUEST@{kind}")
            return
        if world.strikes(Fault.DUPLICATE, 12):
            world.note(f"copy of {kind} of {self.me}", f"DUPLICATE@{kind}")
            world.stale.append(Request(request.sender, request.token, request.key, request.message, request.words))
        accepted = world.server.submit(request)
        if accepted is None:  # the server is down, or died: asked again later; or an upload goes on
            return
        if world.strikes(Fault.LOST_ANSWER, 12):
            world.note(f"lost answer to {kind} of {self.me}", f"LOST_ANSWER@{kind}")
            request.opened = False
            return
        process.request = None
        if accepted and not isinstance(request.message, LedgerRows | Withdraw):
            world.receipts.append((self.me, request))
        world.trace(lambda: f"  {self.me} sent {kind}: {'accepted' if accepted else 'refused'}")
        if not accepted and process.session is not None and not isinstance(request.message, LedgerRows | Withdraw):
            process.session.abort("left out")
            process.over = True
            process.pending.clear()

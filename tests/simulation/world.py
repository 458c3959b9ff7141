"""One run: a schedule moves clients, server and network, one event after the other, and the oracle looks on.

Safety phase: faults strike as the schedule says. Then they stop, everything that is down comes up again, and a fresh
round must end with a sum (liveness phase).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from protocol.client_states import ClientSetup
from protocol.drops import DropReason
from protocol.effects import Abort
from protocol.errors import RemoteProtocolError
from secagg.types import ClientId, Phase
from tests.simulation.client_shell import ClientShell, Request
from tests.simulation.disk_shell import DiskServer
from tests.simulation.fast import watching
from tests.simulation.liar import Liar
from tests.simulation.oracle import Oracle, ViolationError
from tests.simulation.saboteur import Saboteur
from tests.simulation.schedule import Schedule, trimmed
from tests.simulation.server_shell import ServerShell
from tests.simulation.settings import Fault, Server, draw, small_rings

MAX_EVENTS: Final = 1200  # of the safety phase
MAX_CALM_EVENTS: Final = 4000
CALM_ATTEMPTS: Final = 16  # a server restored from an old backup counts up to the numbers that clients know

Honest = ServerShell | DiskServer

_NUMBER: Final = re.compile(r"\b\d+\b(?!-)")

# Refusals of an honest client that an honest server can bring about, by its own past or by corrupt clients.
EXPECTED_REFUSALS: Final = (
    "this attempt, or a later one, was already joined",
    "this round is spent",
    "too few shares opened",
    "the server's release ledger is no extension",
    "the release-ledger row is no signed extension",
    "unexpected message",
)


@dataclass
class Outcome:
    """What came of one schedule."""

    taken: list[int]
    counters: Counter[str]
    violation: ViolationError | None
    log: list[str] = field(default_factory=list)
    events: int = 0


class World:
    """Everything there is in one run."""

    def __init__(
        self,
        schedule: Schedule,
        tracing: bool,
        unseen: frozenset[str] = frozenset(),
        folder: Path | None = None,
    ) -> None:
        self.schedule = schedule
        self.settings = settings = draw(schedule)
        self.params = settings.federation.manifest.secagg_params()
        self.counters: Counter[str] = Counter()
        self.log: list[str] = []
        self.calm = False
        self.stale: list[Request] = []
        self.receipts: list[tuple[ClientId, Request]] = []  # what clients know to be accepted
        self.events = 0
        self._tracing = tracing
        self._setups: dict[ClientId, ClientSetup] = {}
        self.oracle = Oracle(settings, self.params, unseen)
        self.honest_server = settings.server is Server.HONEST
        self.saboteur = Saboteur(self)
        self.server: ServerShell | DiskServer | Liar
        if not self.honest_server:
            self.server = Liar(self)
        elif folder is not None:
            self.server = DiskServer(self, folder)
        else:
            self.server = ServerShell(self)
        self.clients = {client: ClientShell(self, client) for client in settings.clients if self._played(client)}
        self._async = [
            f for f in (Fault.CLIENT_CRASH, Fault.SERVER_CRASH, Fault.EARLY_CLOSE, Fault.STALL) if self.on(f)
        ]

    def _played(self, client: ClientId) -> bool:
        return self.honest_server or client not in self.settings.corrupt

    # -- for everybody in it ------------------------------------------------------------------------------------------

    def on(self, fault: Fault) -> bool:
        """Whether this fault may strike at all."""
        return fault in self.settings.faults and not self.calm

    def strikes(self, fault: Fault, one_in: int) -> bool:
        """Whether it strikes now."""
        return self.on(fault) and self.schedule.chance(one_in)

    def setup(self, client: ClientId) -> ClientSetup:
        """Who a client is."""
        return self.settings.federation.setup(client)

    def count(self, what: str) -> None:
        """Something that must happen sometimes."""
        self.counters[what] += 1

    def note(self, text: str, counter: str) -> None:
        """An event of its own kind: counted, and part of the trace."""
        self.counters[counter] += 1
        self.trace(lambda: text)

    def trace(self, text: Callable[[], str]) -> None:
        """One line of what happens."""
        if self._tracing:
            self.log.append(text())

    def dropped(self, client: ClientId, reason: DropReason, phase: Phase) -> None:
        """The server refuses a message."""
        self.note(f"  server: {client} {reason.name}", f"drop {reason.name}")
        blamed = {DropReason.BAD_SIGNATURE, DropReason.BAD_KEYS, DropReason.BAD_SHARES, DropReason.BAD_SHARE_LIST}
        blamed |= {DropReason.BAD_HEADER, DropReason.CHANGED_MESSAGE, DropReason.CONVICTED}
        if client not in self.settings.corrupt and reason in blamed:
            raise ViolationError("honest-blamed", f"client {client} is left out: {reason.name} in {phase.name}")

    def refused(self, client: ClientId, error: RemoteProtocolError) -> None:
        """A client rejects what it is told."""
        self.note(f"  {client} refuses: {error.what}", f"refused {error.what}")
        if self.honest_server and not error.what.startswith(EXPECTED_REFUSALS) and client not in self.settings.corrupt:
            raise ViolationError("honest-refused", f"client {client} refuses an honest server: {error.what}")

    def aborted(self, outcome: Abort, lost: int) -> None:
        """An attempt of the honest server ended without a sum."""
        self.note(f"aborted in {outcome.phase.name}: {outcome.reason}", f"abort {_NUMBER.sub('n', outcome.reason)}")
        self.oracle.aborted(outcome, lost)

    def slow_upload(self, sender: ClientId) -> bool:
        """Whether the body of an upload comes later than its header."""
        return self.strikes(Fault.CUT_UPLOAD, 3)

    # -- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play. Raises ViolationError."""
        if isinstance(self.server, Liar):
            self._run_lies(self.server)
            return
        server = self.server
        while self.events < MAX_EVENTS:
            self.events += 1
            if not server.running and server.up:
                key = server.next_key()
                if key[0] > self.settings.rounds:
                    break
                server.begin(key)
            self._faults(server)
            self._event(server)
        self._calm(server)

    def _run_lies(self, liar: Liar) -> None:
        while self.events < MAX_EVENTS:
            self.events += 1
            if self._async and self.schedule.chance(48):
                self._toggle_client()
            ready = [client for client in self.clients.values() if client.ready]
            if ready:
                self._choose(ready).step()
            elif not liar.act():
                break

    def _choose(self, ready: Sequence[ClientShell]) -> ClientShell:
        return ready[self.schedule.pick(len(ready))] if self.on(Fault.REORDER) and len(ready) > 1 else ready[0]

    def _event(self, server: Honest) -> None:
        if self.stale and not self.calm and self.schedule.chance(8):
            request = self.stale.pop(self.schedule.pick(len(self.stale)))
            self.trace(lambda: f"late {type(request.message).__name__} of {request.sender}")
            server.submit(request)
            return
        if server.nearly_done and self.strikes(Fault.EARLY_CLOSE, 12):
            self._deadline(server)
            return
        ready = [client for client in self.clients.values() if client.ready]
        ready.sort(key=lambda client: client.uploading)  # bodies of slow uploads come last
        if ready and server.up:
            self._choose(ready).step()
        elif not server.act():
            self._stuck(server)

    def _stuck(self, server: Honest) -> None:
        """Nobody moves: who is down comes up again, or the deadline passes."""
        if not server.up:
            self._restart_server(server)
            return
        away = [c for c in self.clients.values() if c.process is None or c.stalled]
        if away and self.schedule.pick(2):
            self._return(away[self.schedule.pick(len(away))])
        elif server.running:
            server.close()

    def _return(self, client: ClientShell) -> None:
        if client.process is None:
            self.trace(lambda: f"client {client.me} starts again")
            client.boot()
        client.stalled = False

    def _restart_server(self, server: Honest) -> None:
        if self.strikes(Fault.LOG_DAMAGED, 4):
            server.damage_log()
        if self.strikes(Fault.REWIND, 3):
            server.restore(self.schedule.pick(len(server.backups)))
        self.trace(lambda: "server starts again")
        server.boot()

    def _faults(self, server: Honest) -> None:
        """At most one thing that happens by itself."""
        if not self._async or not self.schedule.chance(24):
            return
        fault = self._async[self.schedule.pick(len(self._async))]
        match fault:
            case Fault.CLIENT_CRASH:
                self._toggle_client()
            case Fault.STALL:
                client = list(self.clients.values())[self.schedule.pick(len(self.clients))]
                client.stalled = not client.stalled
                phase = server.session.phase.name if server.session else "IDLE"
                self.note(f"client {client.me} {'cut off' if client.stalled else 'back'}", f"STALL@{phase}")
            case Fault.SERVER_CRASH if server.up:
                server.kill()
            case Fault.SERVER_CRASH:
                self._restart_server(server)
            case _ if server.up and server.running:
                self._deadline(server)

    def _deadline(self, server: Honest) -> None:
        if server.session is not None:
            self.note("deadline", f"EARLY_CLOSE@{server.session.phase.name}")
            server.close()

    def _toggle_client(self) -> None:
        client = list(self.clients.values())[self.schedule.pick(len(self.clients))]
        if client.process is None:
            self._return(client)
        else:
            client.crash()

    # -- liveness -----------------------------------------------------------------------------------------------------

    def _calm(self, server: Honest) -> None:
        """No more faults: the running attempt ends, and a fresh round must end with a sum."""
        self.trace(lambda: "-- faults stop")
        self.calm = True
        for client in self.clients.values():
            self._return(client)
        if not server.up:
            server.boot()
        attempts, done_before = 0, server.book.released_round
        fresh = max(server.book.last[0], *(c.book.memory.joined[0] for c in self.clients.values()), 0) + 1
        while server.running or server.book.released_round < fresh:
            if self.events > MAX_EVENTS + MAX_CALM_EVENTS:
                raise ViolationError("liveness", "without faults the attempt does not end")
            self.events += 1
            if not server.running:
                if attempts == CALM_ATTEMPTS:
                    break
                attempts += 1
                server.begin(server.next_key())
            self._event(server)
        if server.book.released_round >= fresh:
            self.count("released in the end")
        elif len(self._able(server)) >= max(self.params.required_advertised, self._needed):
            raise ViolationError("liveness", f"no sum without faults, the last one in round {done_before}")

    @property
    def _needed(self) -> int:
        """Clients with which an attempt must end with a sum."""
        params = self.params
        return params.required if params.graph == "complete" else params.num_clients - params.max_dropouts

    def _able(self, server: Honest) -> list[ClientId]:
        """Clients that this server can still work with: not convicted, and on the same release ledger."""
        rows = server.book.ledger.rows
        out = []
        for client in self.clients.values():
            known = client.book.memory.ledger.rows
            same = min(len(rows), len(known))
            if client.me not in server.book.excluded and rows[:same] == known[:same]:
                out.append(client.me)
        return out


def play(
    values: Sequence[int], tracing: bool = False, unseen: frozenset[str] = frozenset(), folder: Path | None = None
) -> Outcome:
    """Run one schedule.

    Args:
        values: The schedule.
        tracing: Whether to write down what happens.
        unseen: Invariants of the oracle that do not count.
        folder: An empty folder, for an honest server on the real books.
    """
    with small_rings():
        schedule = Schedule(values)
        world = World(schedule, tracing, unseen, folder)
        return _played(world, schedule)


def _played(world: World, schedule: Schedule) -> Outcome:
    violation: ViolationError | None = None
    try:
        with watching(world.oracle.derived):
            world.run()
    except ViolationError as error:
        violation = error
    except Exception as error:  # whatever the code under test raises here is its defect
        violation = ViolationError("crash", f"{type(error).__name__}: {error}")
        violation.__cause__ = error
    if violation is not None:
        found = violation
        world.trace(lambda: f"VIOLATION {found}")
    return Outcome(trimmed(schedule.taken), world.counters, violation, world.log, world.events)

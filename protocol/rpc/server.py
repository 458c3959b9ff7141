"""The aggregation server's shell: binds, runs attempts one after the other, publishes models. SPEC 9.

One loop drives an attempt: wait until everybody answered, the deadline passed, or everybody who is missing has gone;
then close the phase. All decisions are the session's.
"""

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from protocol.codec import encode_server
from protocol.effects import Abort, Released
from protocol.errors import LocalProtocolError, TransportError
from protocol.messages import (
    Announcement,
    AttemptAborted,
    ClientMessage,
    Finished,
    ServerMessage,
    Statement,
    UploadHeader,
    Withdraw,
)
from protocol.roster import Roster
from protocol.rpc import limits
from protocol.rpc.attempt import ACCEPTED, CANNOT_RESUME, Books, RunningAttempt
from protocol.rpc.attempt_log import AttemptLog, Begun, remove_logs
from protocol.rpc.credentials import server_credentials
from protocol.rpc.frames import MAX_NAMED, NO_ATTEMPT, TOKEN_BYTES, InputRequest, Receipt, Submission, Waiting
from protocol.rpc.journal import ServerJournal
from protocol.rpc.limits import Deadlines
from protocol.rpc.outbox import Outbox
from protocol.rpc.pki import TlsIdentity
from protocol.rpc.presence import Presence
from protocol.rpc.service import STALE, AggregationService
from protocol.rpc.spool import Spool, SpoolRoom
from protocol.server import ServerSession
from secagg.prg import choose_faster
from secagg.types import DECRYPTOR, ClientId, Phase

__all__ = ["AggregationServer", "Deadlines", "Event", "OnEvent", "ServerSetup"]

Event = dict[str, Any]  # JSON: {"event": ..., ...}; never a secret, never a value of a client
OnEvent = Callable[[Event], None]

_GONE = 5.0  # seconds without a call after which nothing more is expected of a client at the end of a task
_TICK = 1.0  # seconds between two looks at who is still there
_PROGRESS_EVENTS = 32  # per upload, at most about so many


@dataclass(frozen=True, slots=True)
class ServerSetup:
    """What a server needs before it can be bound. `spool_directory` belongs to it alone."""

    roster: Roster
    tls: TlsIdentity
    journal: ServerJournal
    spool_directory: Path
    on_event: OnEvent = lambda event: None


class AggregationServer:
    """One server of one task. All methods are called on one event loop."""

    def __init__(self, setup: ServerSetup) -> None:
        self.instance = os.urandom(TOKEN_BYTES)
        self._statements: dict[ClientId, Statement] = {}
        self._setup = setup
        self._emit = setup.on_event
        peers = setup.roster.ids if setup.roster.decryptor is None else (DECRYPTOR, *setup.roster.ids)
        self._presence = Presence(peers, time.monotonic)
        self._outboxes = {client: Outbox() for client in peers}
        self._blobs: OrderedDict[bytes, bytes] = OrderedDict()
        self._offered: dict[bytes, bytes] = {}
        self._running: RunningAttempt | None = None
        self._ended: RunningAttempt | None = None  # until it is settled
        self._log: AttemptLog | None = None
        self._failure: Exception | None = None
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._spools = SpoolRoom(setup.spool_directory)

    # -- for the round loop -------------------------------------------------------------------------------------------

    async def start(self, host: str, port: int) -> int:
        """Bind and serve; the port (the chosen one for port 0). Raises TransportError E340 if it cannot be had."""
        choose_faster(time.perf_counter)
        roster = self._setup.roster
        server = grpc.aio.server(options=limits.server_options(len(roster.clients)))
        service = AggregationService(roster, self, self._presence)
        server.add_generic_rpc_handlers((service.handler(),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = server.add_secure_port(address, server_credentials(self._setup.tls))
        except RuntimeError as error:
            await server.stop(None)
            raise TransportError(
                f"the server cannot listen on {address}",
                found="the port is in use, or the address is not one of this machine",
                expected="a free port on an address of this machine",
                do=f"stop what uses it (`ss -ltnp 'sport = :{port}'` names it), or choose another port",
                code="E340",
            ) from error
        await server.start()
        self._server = server
        self._emit({"event": "listening", "host": host, "port": bound})
        return bound

    async def stop(self, grace: float = 2.0) -> None:
        """Accept nothing new, let running calls end for `grace` seconds, close. The journal stays the caller's."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace)

    async def run_attempt(self, session: ServerSession, deadlines: Deadlines) -> Released | Abort:
        """Announce the session's attempt and drive it to its end; then `settle` it.

        Raises:
            LedgerError: Journal or log failed; the server must stop.
            LocalProtocolError: The attempt does not increase, or another one runs.
        """
        if self._running is not None:
            raise LocalProtocolError("one attempt at a time", found=self._running.key)
        await self.settle()
        self.sweep()
        journal, announcement = self._setup.journal, session.announcement
        journal.start(announcement, session.ctx)
        begun = Begun(announcement, session.ctx, journal.convicted, int(time.time()))
        self._log = AttemptLog.create(journal, begun)
        running = RunningAttempt(session, Books(journal, self._log, self._spools), self._post_of(session))
        self._running = running
        return await self._to_the_end(running, running.begin, (deadlines, time.monotonic()))

    async def restore(self, session: ServerSession, log: AttemptLog) -> None:
        """Bring back the attempt that ran when an earlier process was killed. Call it before `start`, so that no client
        finds a server that does not know its attempt; then `resume`.

        Args:
            session: A fresh one, made from what stands first in the log, with the release ledger of that moment.
            log: Of the attempt.

        Raises:
            CANNOT_RESUME: Log or uploads are damaged. The attempt is given up, nothing of it was sent again, and the
                next one can be run.
        """
        books = Books(self._setup.journal, log, self._spools)
        running = RunningAttempt(session, books, self._post_of(session))
        self._log, self._ended = log, running
        try:
            if session.ctx != log.begun.ctx:
                raise LocalProtocolError("the documents are not those of the attempt", found=session.ctx.hex()[:16])
            await asyncio.to_thread(running.reopen)
            running.replay(lambda client, token: self._outboxes[client].restore(token))
        except CANNOT_RESUME:
            for outbox in self._outboxes.values():
                outbox.forget()
            await self.settle()
            raise
        self._running, self._ended = running, None

    async def resume(self, deadlines: Deadlines) -> Released | Abort:
        """Drive the restored attempt to its end; then `settle` it. Raises as `run_attempt`."""
        running = self._running
        if running is None:
            raise LocalProtocolError("no attempt was restored")
        self._emit(self._event(running, "resumed", clients=running.session.missing()))
        return await self._to_the_end(running, lambda: None, (deadlines, time.monotonic() + limits.RETURNING))

    def sweep(self) -> None:
        """No attempt runs, and none is to be restored: the logs and uploads of an earlier process go."""
        remove_logs(self._setup.journal)
        self._spools.sweep()

    async def settle(self) -> None:
        """What became of the last attempt is written down elsewhere: its log and its uploads go."""
        log, ended = self._log, self._ended
        self._log = self._ended = None
        if log is not None:
            log.close()
            remove_logs(self._setup.journal)
        if ended is not None:
            await asyncio.to_thread(ended.discard)

    def publish(self, digest: bytes, blob: bytes) -> None:
        """Offer a model or an aggregate for download; the last `limits.MAX_BLOBS` are kept."""
        self._blobs[digest] = blob
        self._blobs.move_to_end(digest)
        while len(self._blobs) > limits.MAX_BLOBS:
            self._blobs.popitem(last=False)

    def offer(self, digest: bytes, blob: bytes) -> None:
        """Offer what clients may ask for during the whole task."""
        self._offered[digest] = blob

    def broadcast(self, message: ServerMessage) -> None:
        """To every client of the roster, whatever attempt it is in. `Finished` also reaches later processes."""
        frame = encode_server(message)
        for outbox in self._outboxes.values():
            if isinstance(message, Finished):
                outbox.put_last(frame)
            else:
                outbox.put(frame, None)

    async def wait_connected(self, clients: Iterable[ClientId], seconds: float) -> tuple[ClientId, ...]:
        """Wait until all of `clients` are there, at most `seconds`; those that are."""
        wanted = tuple(clients)
        end = time.monotonic() + seconds
        while True:
            there = tuple(client for client in wanted if self._presence.connected(client))
            left = end - time.monotonic()
            if len(there) == len(wanted) or left <= 0:
                return there
            await self._wait_for_change(min(left, _TICK))

    async def collect_statements(self, seconds: float) -> dict[ClientId, Statement]:
        """Wait at most `seconds` for a statement of every client that is not gone; all that came, unverified."""
        start = time.monotonic()
        while (now := time.monotonic()) < start + seconds:
            missing = [c for c in self._setup.roster.ids if c not in self._statements]
            away = [self._presence.away_since(c, start) for c in missing]
            if all(since is not None and now - since > _GONE for since in away):
                break
            await self._wait_for_change(_TICK)
        return dict(self._statements)

    # -- the desk of `protocol.rpc.service` ---------------------------------------------------------------------------

    def admit(self, client: ClientId, token: bytes) -> Outbox | None:
        """See `Desk`."""
        outbox, running = self._outboxes[client], self._running
        known = outbox.token
        current = None if running is None else running.key
        joinable = current if running is not None and running.joinable(client) else None
        if not outbox.admit(token, joinable, current):
            return None
        if known != token:
            self._emit({"event": "connected", "client": client, "again": known is not None})
            self._changed.set()
        return outbox

    def waiting(self) -> Waiting:
        """See `Desk`."""
        running = self._running
        if running is None:
            return Waiting(*NO_ATTEMPT, Phase.ADVERTISE_KEYS, ())
        missing = [client for client in running.session.missing() if client != DECRYPTOR]
        more = max(0, len(missing) - MAX_NAMED)
        return Waiting(*running.key, running.session.phase, tuple(missing[:MAX_NAMED]), more)

    def submit(self, client: ClientId, submission: Submission, message: ClientMessage) -> Receipt:
        """See `Desk`."""
        if isinstance(message, Statement) and client != DECRYPTOR:
            self._statements[client] = message
            self._changed.set()
            return ACCEPTED
        if isinstance(message, Withdraw):
            self._emit({"event": "withdraw", "client": client, "code": message.code, "what": message.what})
        running = self._of(submission)
        if running is None:
            return STALE
        receipt = running.submit(client, submission, message)
        self._changed.set()
        return receipt

    def open_upload(self, client: ClientId, submission: Submission, header: UploadHeader) -> Spool | Receipt:
        """See `Desk`."""
        running = self._of(submission)
        opened = STALE if running is None else running.open_upload(client, submission, header)
        self._changed.set()
        return opened

    def chunk_received(self, client: ClientId, spool: Spool) -> None:
        """See `Desk`."""
        every = -(-spool.total // _PROGRESS_EVENTS)
        if (spool.received % every == 0 or spool.full) and (running := self._running) is not None:
            self._emit(self._event(running, "upload", client=client, chunk=spool.received, of=spool.total))

    def close_upload(self, client: ClientId, spool: Spool) -> Receipt:
        """See `Desk`."""
        running = self._running
        receipt = STALE if running is None else running.close_upload(client, spool)
        self._changed.set()
        return receipt

    def encrypted_input(self, request: InputRequest) -> tuple[bytes, Spool] | None:
        """See `Desk`."""
        running = self._running
        if running is None or running.key != (request.round, request.attempt):
            return None
        return running.encrypted_input(request.client)

    def blob(self, digest: bytes) -> bytes | None:
        """See `Desk`."""
        return self._offered.get(digest) or self._blobs.get(digest)

    def failed(self, error: Exception) -> None:
        """See `Desk`. The running attempt ends with this error."""
        self._failure = error
        self._changed.set()

    # -- driving ------------------------------------------------------------------------------------------------------

    async def _to_the_end(
        self, running: RunningAttempt, begin: Callable[[], None], times: tuple[Deadlines, float]
    ) -> Released | Abort:
        try:
            begin()
            return await self._drive(running, *times)
        finally:
            self._running, self._ended = None, running
            if running.outcome is None:  # cancelled or failed: the clients must not wait for it
                self._give_up(running.session)
                await self.settle()

    async def _drive(self, running: RunningAttempt, deadlines: Deadlines, started: float) -> Released | Abort:
        """`started`: when a client that was not seen since counts as away."""
        session = running.session
        phase, since, reported = None, time.monotonic(), len(session.drops)
        while running.outcome is None:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            if running.to_fold is not None:
                self._emit(self._event(running, "aggregate", clients=running.to_fold.masked))
                running.finish(await asyncio.to_thread(running.fold, running.to_fold))
                continue
            reported = self._report_drops(running, reported)
            missing = session.missing()
            if session.phase is not phase:
                phase, since = session.phase, time.monotonic()
                self._emit(self._event(running, "phase", clients=missing))
            waited_for = [client for client in missing if self._outboxes[client].sees(running.key)]
            lasting = deadlines.opening if phase is Phase.UNMASKING and DECRYPTOR in missing else deadlines.of(phase)
            wake = self._next_look(waited_for, since, started, (lasting, deadlines.grace))
            if wake <= 0:
                running.close_phase()
                continue
            await self._wait_for_change(min(wake, _TICK))
        self._report_drops(running, reported)
        outcome = running.outcome
        if isinstance(outcome, Released):
            self._emit(self._event(running, "released", clients=outcome.masked))
        else:
            self._emit(self._event(running, "aborted", at=outcome.phase.name, reason=outcome.reason))
        return outcome

    def _next_look(
        self, waited_for: Sequence[ClientId], since: float, started: float, times: tuple[float, float]
    ) -> float:
        """Seconds until the phase may have to be closed; 0 or less: now. A client whose process was replaced by one
        that did not join is not waited for: it cannot answer any more. `times`: of the phase, and grace."""
        if not waited_for:
            return 0.0
        now = time.monotonic()
        away = [self._presence.away_since(client, started) for client in waited_for]
        deadline = since + times[0]
        if all(gone is not None for gone in away):
            deadline = min(deadline, max(gone for gone in away if gone is not None) + times[1])
        return deadline - now

    def _report_drops(self, running: RunningAttempt, reported: int) -> int:
        drops = list(running.session.drops.items())
        for client, reason in drops[reported:]:
            self._emit(self._event(running, "drop", client=client, reason=reason.name, text=reason.value))
        return len(drops)

    def _event(self, running: RunningAttempt, event: str, **more: Any) -> Event:
        phase = running.session.phase.name
        return {"event": event, "round": running.key[0], "attempt": running.key[1], "phase": phase, **more}

    def _of(self, submission: Submission) -> RunningAttempt | None:
        running = self._running
        return running if running is not None and running.key == (submission.round, submission.attempt) else None

    def _post_of(self, session: ServerSession) -> Callable[[ClientId, ServerMessage], None]:
        key = (session.announcement.round, session.announcement.attempt)

        said: ServerMessage | None = None
        frame = b""

        def post(client: ClientId, message: ServerMessage) -> None:
            nonlocal said, frame
            if message is not said:  # what goes to everybody is one object, and is encoded once
                said, frame = message, encode_server(message)
            if isinstance(message, Announcement):
                self._outboxes[client].announce(frame, key)
            else:
                self._outboxes[client].put(frame, key)

        return post

    def _give_up(self, session: ServerSession) -> None:
        post, announcement = self._post_of(session), session.announcement
        notice = AttemptAborted(announcement.round, announcement.attempt, session.phase, "the server stopped")
        for client in session.invited:
            post(client, notice)

    async def _wait_for_change(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return
        self._changed.clear()

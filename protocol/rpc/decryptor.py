"""The decryptor's shell: dials the server like a client, makes a key per attempt, reads, adds, opens once. SPEC 6.9.

It listens on no port. The secret key is in a process of its own; here is the loop around `DecryptorSession`. What it
cannot answer it refuses with a Withdraw, which ends the attempt; the next one gets a fresh key.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Protocol

from protocol.codec import clean_text
from protocol.decryptor import DecryptorSession, DecryptorSetup
from protocol.effects import AddBlock, Effects, Fetch, OpenSum, Persist, Send, Upload
from protocol.encrypted import EncryptedInput
from protocol.errors import LocalProtocolError, RemoteProtocolError, TransportError
from protocol.messages import Announcement, AttemptAborted, ClientMessage, Finished, ServerMessage, Withdraw
from protocol.rpc.client import AggregationClient
from protocol.rpc.frames import Receipt, Status
from protocol.rpc.journal import DecryptorJournal
from secagg.encoding import Words
from secagg.errors import SecAggError
from secagg.he.pipe import Begin
from secagg.masking import chunks
from secagg.types import ClientId

Event = Callable[[dict[str, Any]], None]


class SumInProgress(Protocol):
    """A key pair and a running sum in a process of their own. See `protocol.rpc.he_process`."""

    @property
    def public_key(self) -> bytes:
        """What the clients of this attempt encrypt with."""

    async def expect(self, clients: tuple[ClientId, ...]) -> None:
        """The sum is over exactly these; once, before the first `add`."""

    async def add(self, client: int, block: int, ciphertext: bytes) -> None:
        """One ciphertext; those of a client come in order."""

    async def open_(self) -> Words:
        """The sum modulo 2^64, once."""

    async def close(self) -> None:
        """Forget the key."""


KeyMaker = Callable[[Begin], Awaitable[SumInProgress]]  # `HeProcess.spawn`


class DecryptorRun:
    """All attempts of one task, one after the other."""

    def __init__(
        self, setup: DecryptorSetup, rpc: AggregationClient, journal: DecryptorJournal, make_key: KeyMaker
    ) -> None:
        self._setup = setup
        self._rpc = rpc
        self._journal = journal
        self._make_key = make_key
        self._session: DecryptorSession | None = None
        self._sum: SumInProgress | None = None
        self._work: asyncio.Task[None] | None = None
        self.on_event: Event = lambda event: None

    async def run(self) -> int:
        """Serve until the server ends the task; the number of sums that were opened.

        Raises:
            TransportError: The server cannot be reached.
            LedgerError: The journal failed: nothing is answered any more.
        """
        opened = 0
        incoming: asyncio.Task[ServerMessage] = asyncio.ensure_future(self._rpc.next())
        try:
            while True:
                waiting: set[asyncio.Task[Any]] = {incoming} | ({self._work} if self._work else set())
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if self._work in done and self._work is not None:
                    work, self._work = self._work, None
                    opened += await self._settled(work)
                if incoming not in done:
                    continue
                message = incoming.result()
                match message:
                    case Announcement():
                        await self._leave()
                        self._work = asyncio.ensure_future(self._join(message))
                    case Finished():
                        self.on_event({"event": "finished", "rounds": message.rounds})
                        return opened
                    case _:
                        await self._receive(message)
                incoming = asyncio.ensure_future(self._rpc.next())
        finally:
            incoming.cancel()
            await self._leave()

    async def _receive(self, message: ServerMessage) -> None:
        session = self._session
        if session is None:
            return  # left over from before this process made a key
        try:
            effects = session.receive(message)
        except RemoteProtocolError as error:
            await self._refuse(error)
            return
        if isinstance(message, AttemptAborted) and session.ended:
            self.on_event({"event": "aborted", "round": message.round, "reason": message.reason})
        if session.ended:
            await self._leave()
        elif effects and self._work is not None:
            await self._refuse(RemoteProtocolError("a request while another one is being answered"))
        elif effects:
            self._work = asyncio.ensure_future(self._apply(session, effects))

    async def _settled(self, work: "asyncio.Task[None]") -> int:
        """1 if a sum was handed over; what ends an attempt only is told to the server and to the operator."""
        try:
            work.result()
        except (RemoteProtocolError, TransportError, LocalProtocolError) as error:
            if isinstance(error, TransportError) and error.code == "E310":
                raise
            await self._refuse(error)
            return 0
        except SecAggError as error:
            await self._refuse(error)
            return 0
        return int(self._session is not None and self._sum is None and not self._session.ended)

    async def _join(self, message: Announcement) -> None:
        session = DecryptorSession(self._setup, message, self._journal.memory)
        params = self._setup.params
        made = self._sum = await self._make_key(Begin(params.bfv, params.total_words, message.cohort))
        self._session = session
        self.on_event({"event": "key", "round": message.round, "attempt": message.attempt})
        await self._apply(session, session.start(made.public_key))

    async def _apply(self, session: DecryptorSession, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Persist(record):
                    await asyncio.to_thread(self._journal.record, record)
                case Send(message, _):
                    self._heed(await self._rpc.send(message))  # type: ignore[arg-type]
                case Fetch(clients):
                    await self._running.expect(clients)
                    for client in clients:
                        await self._fetch(session, client)
                case AddBlock(client, number, data):
                    await self._running.add(client, number, data)
                case OpenSum():
                    running = self._running
                    words = await running.open_()
                    self._sum = None
                    await running.close()
                    self.on_event({"event": "opened", "round": session.announcement.round})
                    await self._apply(session, session.opened(words))
                case Upload(header, words):
                    self._heed(await self._rpc.upload(header, partial(self._pieces, words)))
                case _:
                    raise LocalProtocolError("an effect that a decryptor does not have", found=type(effect).__name__)

    async def _fetch(self, session: DecryptorSession, client: ClientId) -> None:
        """One client's ciphertext, added as it is read: at most one chunk and one block are held here."""
        async for part in self._rpc.fetch(client):
            if isinstance(part, EncryptedInput):
                session.begin(client, part)
            else:
                await self._apply(session, session.part(part))
        self.on_event({"event": "added", "round": session.announcement.round, "client": client})
        await self._apply(session, session.end())

    @property
    def _running(self) -> SumInProgress:
        if self._sum is None:
            raise LocalProtocolError("no key was made, or it is gone")
        return self._sum

    def _pieces(self, words: Words, first: int) -> Iterator[bytes]:
        return islice(chunks(words, self._setup.params), first, None)

    def _heed(self, receipt: Receipt) -> None:
        if receipt.status is not Status.ACCEPTED:
            reason = receipt.reason or receipt.status.name.lower()
            raise RemoteProtocolError("the server takes no answer of this attempt", found=reason)

    async def _refuse(self, error: SecAggError) -> None:
        """Say why, to operator and server; all that a reason names is public."""
        self.on_event({"event": "refused", "code": error.code, "reason": str(error)})
        await self._leave()
        notice: ClientMessage = Withdraw(error.code, clean_text(error.what))
        with contextlib.suppress(TransportError):
            await self._rpc.send(notice)

    async def _leave(self) -> None:
        """End the attempt that we are in, and its key."""
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        session, self._session = self._session, None
        if session is not None:
            session.abort()
        running, self._sum = self._sum, None
        if running is not None:
            await running.close()

"""A consortium over loopback: one real server, real clients, mutual TLS, journals on disk. Real parts only."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from simulator import Federation, make_manifest

from protocol.client import ClientSession
from protocol.effects import Abort, Charge, Effects, Persist, Released, Send, Upload, UploadCiphertext
from protocol.errors import RemoteProtocolError
from protocol.messages import Announcement, AttemptAborted, Finished, MaskedInput, RoundResult, ServerMessage
from protocol.release import ReleaseLedger, resupply
from protocol.roster import Roster
from protocol.rpc import pki
from protocol.rpc.attempt import CANNOT_RESUME
from protocol.rpc.attempt_log import AttemptLog
from protocol.rpc.client import AggregationClient
from protocol.rpc.decryptor import DecryptorRun
from protocol.rpc.frames import Receipt
from protocol.rpc.he_process import HeProcess
from protocol.rpc.journal import ClientJournal, DecryptorJournal, ServerJournal
from protocol.rpc.limits import Deadlines, Patience
from protocol.rpc.server import AggregationServer, ServerSetup
from protocol.server import ServerSession
from secagg.encoding import Values, Words
from secagg.he.pipe import Begin
from secagg.masking import chunks
from secagg.types import DECRYPTOR, ClientId, Phase

HOST = "127.0.0.1"
QUICK = Patience(unreachable=3.0, first_backoff=0.05, max_backoff=0.2, call=10.0)


@cache
def authority(name: str) -> pki.Authority:
    """A root; made once per run of the tests."""
    return pki.create_authority(name, datetime.now(UTC) - timedelta(days=200))


def leaf(root: pki.Authority, name: str, usage: pki.Usage, age: timedelta = timedelta(0)) -> pki.TlsIdentity:
    """A fresh key and its certificate, issued `age` ago."""
    key, issued = pki.new_key(), datetime.now(UTC) - age
    certificate = pki.issue_leaf(root, pki.signing_request(key, name), (name, usage, (HOST, "localhost")), issued)
    return pki.TlsIdentity(certificate, root.certificate, key)


@cache
def certificates(n: int, name: str = "test") -> tuple[pki.TlsIdentity, tuple[pki.TlsIdentity, ...]]:
    """Server's and clients' TLS identities; made once per run of the tests."""
    root = authority(name)
    clients = tuple(leaf(root, f"client-{i}", pki.Usage.CLIENT) for i in range(1, n + 1))
    return leaf(root, "server", pki.Usage.SERVER), clients


@cache
def decryptor_certificate(name: str = "test") -> pki.TlsIdentity:
    """The decryptor's TLS identity; made once per run of the tests."""
    return leaf(authority(name), "decryptor", pki.Usage.CLIENT)


def federation(n: int = 4, length: int = 200, **changes: Any) -> Federation:
    """Test consortium whose roster holds real TLS keys."""
    f = Federation.create(make_manifest(n, 1, 1, length, **changes))
    server, clients = certificates(n)
    decryptor = f.roster.decryptor
    if decryptor is not None:
        key = pki.spki_sha256(decryptor_certificate().certificate)
        decryptor = decryptor.model_copy(update={"tls_key_sha256": key})
    roster = Roster(
        consortium=f.roster.consortium,
        version=1,
        decryptor=decryptor,
        server=f.roster.server.model_copy(update={"tls_key_sha256": pki.spki_sha256(server.certificate)}),
        clients=tuple(
            m.model_copy(update={"tls_key_sha256": pki.spki_sha256(c.certificate)})
            for m, c in zip(f.roster.clients, clients, strict=True)
        ),
    )
    return replace(f, roster=roster)


@dataclass
class Hub:
    """The server side of a test, with every event that it emitted."""

    federation: Federation
    folder: Path
    port: int = 0
    tls: pki.TlsIdentity | None = None  # default: the one of `certificates`
    bound: bool = True  # or `bind` it later, when whoever runs the rounds has restored what was
    resumed: bool = False  # an attempt of a killed process was found
    burnt: str = ""  # why it could not be resumed
    events: list[dict[str, Any]] = field(default_factory=list)
    seen: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> "Hub":
        f = self.federation
        self.journal = ServerJournal(self.folder / "server" / "journal.sqlite", f.manifest.digest())
        tls = self.tls or certificates(len(f.client_keys))[0]
        self.server = AggregationServer(ServerSetup(f.roster, tls, self.journal, self.folder / "spool", self._on_event))
        if self.bound:
            await self._restore()
            await self.bind()
        return self

    async def bind(self) -> None:
        """From here on it can be reached."""
        self.port = await self.server.start(HOST, self.port)

    async def _restore(self) -> None:
        try:
            if (log := AttemptLog.unfinished(self.journal)) is not None:
                await self.server.restore(self._session_of(log), log)
                self.resumed = True
        except CANNOT_RESUME as error:
            self.burnt = str(error)

    async def __aexit__(self, *error: object) -> None:
        await self.server.stop(0.2)
        self.journal.close()

    def session(self, round_: int = 1, attempt: int = 0) -> ServerSession:
        f = self.federation
        journal, params = self.journal, f.manifest.secagg_params()
        announcement = f.announcement(round_, attempt, ledger_seq=journal.ledger.seq)
        return ServerSession(params, announcement, f.roster, f.server_key, journal.ledger, journal.convicted)

    def _session_of(self, log: AttemptLog) -> ServerSession:
        f, begun, ledger = self.federation, log.begun, self.journal.ledger
        seq = begun.announcement.ledger_seq
        then = ReleaseLedger(ledger.manifest_digest, ledger.rows[:seq], ledger.heads[:seq])
        params = f.manifest.secagg_params()
        return ServerSession(params, begun.announcement, f.roster, f.server_key, then, begun.excluded)

    async def run(self, deadlines: Deadlines, round_: int = 1, there: Iterable[int] | None = None) -> Released | Abort:
        """One attempt, begun when the clients `there` (default: all) have called: machines may be slow."""
        f = self.federation
        decryptor = () if f.roster.decryptor is None else (DECRYPTOR,)
        clients = [ClientId(c) for c in there] if there is not None else [*decryptor, *f.roster.ids]
        assert len(await self.server.wait_connected(clients, 10)) == len(clients)
        try:
            return await self.server.run_attempt(self.session(round_), deadlines)
        finally:
            await self.server.settle()

    def named(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == event]

    async def until(self, event: str, **values: Any) -> dict[str, Any]:
        """The first such event, waited for at most ten seconds."""

        async def look() -> dict[str, Any]:
            while True:
                for e in self.events:
                    if e["event"] == event and all(e.get(k) == v for k, v in values.items()):
                        return e
                self.seen.clear()
                await self.seen.wait()

        return await asyncio.wait_for(look(), 10)

    def _on_event(self, event: Any) -> None:
        self.events.append(dict(event))
        self.seen.set()


@dataclass
class Site:
    """One client process: journal, session and loop. `stop_at`: falls silent instead of answering in this phase."""

    hub: Hub
    client: ClientId
    values: Values
    stop_at: Phase | None = None
    rate_limit: int | None = None
    corrupt: bool = False  # uploads other words than it signed
    claim: int = 0  # added to the number of words in the header
    rpc: AggregationClient | None = None
    header: MaskedInput | None = None
    words: Words | None = None
    port: int = 0  # another way to the server than its own port
    patience: Patience = QUICK
    tls: pki.TlsIdentity | None = None  # default: the one of `certificates`
    sent: int = 0  # bytes of chunks, again and again
    charged: list[int] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    results: list[ServerMessage] = field(default_factory=list)

    async def run(self, attempts: int = 1) -> None:
        """Take part until `attempts` attempts ended, or the task is finished."""
        f = self.hub.federation
        tls = self.tls or certificates(len(f.client_keys))[1][self.client - 1]
        path = self.hub.folder / f"client-{self.client}" / "journal.sqlite"
        self.journal = ClientJournal(path, self.client, f.manifest.digest())
        session: ClientSession | None = None
        try:
            async with AggregationClient(HOST, self.port or self.hub.port, tls, patience=self.patience) as rpc:
                self.rpc = rpc
                while len(self.results) < attempts:
                    message = await rpc.next()
                    match message:
                        case Announcement() if (rows := resupply(message, self.journal.memory.ledger)) is not None:
                            self.receipts.append(await rpc.send(rows))
                        case Announcement():
                            try:
                                session = ClientSession(f.setup(self.client), message, self.journal.memory, os.urandom)
                                self.session = session
                            except RemoteProtocolError:
                                continue  # burnt
                            if not await self._apply(rpc, session.start()):
                                return
                            session.provide_input(self.values)
                        case RoundResult() | AttemptAborted() | Finished():
                            self.results.append(message)
                        case _ if session is not None:
                            if not await self._apply(rpc, await asyncio.to_thread(session.receive, message)):
                                return
        finally:
            self.journal.close()

    async def _apply(self, rpc: AggregationClient, effects: Effects) -> bool:
        for effect in effects:
            match effect:
                case Persist(record):
                    self.journal.record(record)
                case Charge(round_):
                    self.charged.append(round_)
                case Send(message):
                    if self.stop_at is not None and type(message).__name__ == _ANSWERS[self.stop_at]:
                        return False
                    self.receipts.append(await rpc.send(message))  # type: ignore[arg-type]
                case Upload(header, words):
                    if self.stop_at is Phase.MASKED_INPUT:
                        return False
                    header = replace(header, total_words=header.total_words + self.claim)
                    self.header, self.words = header, words
                    if self.corrupt:
                        words[0] += 1
                    self.receipts.append(await rpc.upload(header, self.pieces, self.rate_limit))
                case UploadCiphertext(encrypted_header, data):
                    if self.stop_at is Phase.MASKED_INPUT:
                        return False
                    size = 8 * self.hub.federation.manifest.aggregation.chunk_words
                    pieces = partial(_slices, data, size)
                    self.receipts.append(await rpc.upload(encrypted_header, pieces, self.rate_limit))
        return True

    def pieces(self, first: int = 0) -> Iterator[bytes]:
        """The chunks of the last upload, from chunk `first` on."""
        assert self.words is not None
        for chunk in islice(chunks(self.words, self.hub.federation.manifest.secagg_params()), first, None):
            self.sent += len(chunk)
            yield chunk


def _slices(data: bytes, size: int, first: int) -> Iterator[bytes]:
    for start in range(first * size, len(data), size):
        yield data[start : start + size]


@dataclass
class DecryptorSite:
    """The decryptor's process in one task: journal, connection, and a real HE process per attempt."""

    hub: Hub
    port: int = 0
    tls: pki.TlsIdentity | None = None
    patience: Patience = QUICK
    events: list[dict[str, Any]] = field(default_factory=list)
    processes: list[HeProcess] = field(default_factory=list)

    async def run(self, attempts: int = 1) -> int:
        """Serve until the task is finished."""
        f = self.hub.federation
        journal = DecryptorJournal(self.hub.folder / "decryptor" / "journal.sqlite", f.manifest.digest())
        try:
            tls = self.tls or decryptor_certificate()
            async with AggregationClient(HOST, self.port or self.hub.port, tls, patience=self.patience) as rpc:
                made = DecryptorRun(f.decryptor_setup, rpc, journal, self._make)
                made.on_event = self.events.append
                return await made.run()
        finally:
            self.memory = journal.memory
            journal.close()

    async def _make(self, begin: Begin) -> HeProcess:
        process = await HeProcess.spawn(begin)
        self.processes.append(process)
        return process


def save_consortium(f: Federation, folder: Path) -> None:
    """What a server of this federation in another process needs besides the manifest: roster and TLS identity."""
    tls, _ = certificates(len(f.client_keys))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "roster.json").write_bytes(f.roster.to_bytes())
    for name, data in (("leaf", tls.certificate_pem), ("ca", tls.authority_pem), ("key", tls.key_pem)):
        (folder / f"{name}.pem").write_bytes(data)


def load_consortium(f: Federation, folder: Path) -> tuple[Federation, pki.TlsIdentity]:
    """`f`, made with the same arguments, with the saved roster; and the server's TLS identity."""
    leaf_, ca = (x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes()) for name in ("leaf", "ca"))
    key = serialization.load_pem_private_key((folder / "key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    roster = Roster.model_validate_json((folder / "roster.json").read_bytes())
    return replace(f, roster=roster), pki.TlsIdentity(leaf_, ca, key)


class Line:
    """A network cable to a server on this machine that can be cut; what comes later gets through again.

    `cut_after`: numbers of bytes towards the server after each of which it is cut by itself.
    """

    def __init__(self, port: int, cut_after: Iterable[int] = ()) -> None:
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._cut_after = list(cut_after)
        self.port = 0
        self.cuts = 0
        self.sent = 0  # bytes towards the server

    async def __aenter__(self) -> "Line":
        self._listener = await asyncio.start_server(self._connect, HOST, 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection, whatever is under way on it."""
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, self._target)
        self._writers |= {writer, back}
        await asyncio.gather(_pump(reader, back, self._count), _pump(there, writer, lambda size: None))

    def _count(self, size: int) -> None:
        self.sent += size
        if self._cut_after and self.sent >= self._cut_after[0]:
            del self._cut_after[0]
            self.cut()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int], None]) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            count(len(data))
            await writer.drain()
    writer.transport.abort()


_ANSWERS = {
    Phase.ADVERTISE_KEYS: "AdvertiseKeys",
    Phase.SHARE_KEYS: "ShareKeys",
    Phase.MASKED_INPUT: "MaskedInput",
    Phase.CONSISTENCY_CHECK: "ConsistencyCheck",
    Phase.UNMASKING: "UnmaskingShares",
}


@asynccontextmanager
async def running(*sites: Site | DecryptorSite, attempts: int = 1) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """The sites as tasks, cancelled at the end."""
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(site.run(attempts)) for site in sites]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

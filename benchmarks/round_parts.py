"""The processes of `benchmarks.round`: one server and groups of clients over gRPC with mutual TLS on loopback.

Private: `ServerRun` and `ClientRun` as the product runs them, with journals, log, spool, checkpoints and the clients'
check of every published sum; only the training is left out: each client has its update at once. Plain: federated
averaging (McMahan et al. 2017) over the same transport: the same announcement, download, offer, chunks, hashed spool,
result and checkpoint, but the update travels as the float32 vector that it is, and the server averages what it can
read. The plain path exists here only.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from benchmarks.bench import memory_kib
from benchmarks.consortium import Consortium, Size
from dp.ledger import PrivacyLedger
from ffm import client_run as client_run_module
from ffm import server_run as server_run_module
from ffm.client_run import ClientRun
from ffm.run_folder import write_atomic
from ffm.server_run import ServerRun
from ffm.step import Model, model_bytes, model_from_bytes
from protocol import client_phases
from protocol.client_states import ClientSetup
from protocol.drops import DropReason
from protocol.effects import AcceptUpload, Aggregate, Effects, Released, Send
from protocol.messages import Announcement, ClientMessage, Finished, MaskedInput, RoundResult, Statement, Withdraw
from protocol.roster import Roster
from protocol.rpc import attempt, pki
from protocol.rpc.client import AggregationClient
from protocol.rpc.journal import ClientJournal, ServerJournal
from protocol.rpc.limits import Deadlines, Patience
from protocol.rpc.server import AggregationServer, ServerSetup
from protocol.rpc.spool import Spool
from protocol.server import ServerSession
from secagg.masking import InputDigest, Mask
from secagg.params import SecAggParams
from secagg.types import ClientId, Phase

HOST = "127.0.0.1"
PATIENT = Patience(unreachable=120.0, first_backoff=0.05, max_backoff=0.5, call=120.0)
DEADLINES = Deadlines(600.0, 600.0, 600.0, 600.0, 600.0, grace=60.0)
Clock = dict[str, float]


def timed(clock: Clock, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, which adds the seconds that it took to `clock[name]`; also for coroutines."""
    if asyncio.iscoroutinefunction(call):

        @wraps(call)
        async def waited(*arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return await call(*arguments, **options)
            finally:
                clock[name] = clock.get(name, 0.0) + time.perf_counter() - begun

        return waited

    @wraps(call)
    def called(*arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        try:
            return call(*arguments, **options)
        finally:
            clock[name] = clock.get(name, 0.0) + time.perf_counter() - begun

    return called


# ---- documents and certificates of one benchmark


def make(folder: Path, size: Size) -> None:
    """A roster with real TLS keys, and the keys."""
    consortium, now = Consortium(size, memo=False), datetime.now(UTC) - timedelta(days=1)
    root = pki.create_authority("benchmark", now)
    roster = consortium.roster
    names = ["server", *(member.name for member in roster.clients)]
    hashes = []
    for name in names:
        usage = pki.Usage.SERVER if name == "server" else pki.Usage.CLIENT
        key = pki.new_key()
        leaf = pki.issue_leaf(root, pki.signing_request(key, name), (name, usage, (HOST, "localhost")), now)
        (folder / f"{name}.pem").write_bytes(pki.pem(leaf) + pki.tls_key_pem(key))
        hashes.append(pki.spki_sha256(leaf))
    (folder / "ca.pem").write_bytes(pki.pem(root.certificate))
    server = roster.server.model_copy(update={"tls_key_sha256": hashes[0]})
    clients = [m.model_copy(update={"tls_key_sha256": h}) for m, h in zip(roster.clients, hashes[1:], strict=True)]
    made = Roster(consortium="benchmark", version=1, server=server, clients=tuple(clients))
    (folder / "roster.json").write_bytes(made.to_bytes())


def tls(folder: Path, name: str) -> pki.TlsIdentity:
    """What `make` wrote for one peer."""
    pem = (folder / f"{name}.pem").read_bytes()
    ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    key: Any = serialization.load_pem_private_key(pem, None)
    return pki.TlsIdentity(x509.load_pem_x509_certificate(pem), ca, key)


def update_of(consortium: Consortium, client: ClientId) -> Model:
    """The float32 update of one client, within the bound; the same in every round and on both paths."""
    scale = consortium.manifest.aggregation.scale
    return (consortium.values(client) / scale).astype(np.float32)


# ---- private


class Ready:
    """A Trainer that has the update already."""

    def __init__(self, update: Model) -> None:
        self._update = update

    async def train(self, round_: int, model: Model) -> Model:
        """At once."""
        return self._update


async def private_server(rpc: AggregationServer, journal: ServerJournal, folder: Path, c: Consortium) -> None:
    """The product's rounds."""
    run = ServerRun((c.manifest, c.roster), c.server_key, rpc, journal, folder / "run")
    run.deadlines, run.on_event = DEADLINES, rpc._emit
    await run.run(np.zeros(c.size.length, dtype=np.float32))
    await run.finish(30.0)


async def private_client(folder: Path, port: int, c: Consortium, client: ClientId) -> None:
    """The product's client."""
    digest, place = c.manifest.digest(), folder / f"client-{client}"
    setup = ClientSetup(client, c.client_key(client), c.roster, c.manifest, c.params)
    journal = ClientJournal(place / "journal.sqlite", client, digest)
    ledger = PrivacyLedger.open(place / "ledger.sqlite", silo=f"site-{client}", population="records")
    try:
        async with AggregationClient(HOST, port, tls(folder, f"client-{client}"), patience=PATIENT) as rpc:
            initial = np.zeros(c.size.length, dtype=np.float32)
            await ClientRun(setup, rpc, Ready(update_of(c, client)), (journal, ledger), initial).run()
    finally:
        journal.close()
        ledger.close()


# ---- plain


class PlainSession(ServerSession):
    """Federated averaging as one phase: everybody uploads, the server adds up what it reads. Nothing is private."""

    def start(self) -> Effects:
        """Announce; the keys and shares of the other path have no counterpart."""
        self.phase = Phase.MASKED_INPUT
        return tuple(Send(self.announcement, client) for client in self.announcement.cohort)

    def missing(self) -> tuple[ClientId, ...]:
        """Who has not uploaded yet."""
        answered = self._messages[Phase.MASKED_INPUT]
        return tuple(c for c in self.announcement.cohort if c not in answered) if self.open else ()

    def receive(self, sender: ClientId, message: ClientMessage) -> Effects | DropReason:
        """The header of an upload."""
        if isinstance(message, Withdraw) or not isinstance(message, MaskedInput):
            return DropReason.WITHDREW
        self._headers[sender] = message
        return (AcceptUpload(sender, message),)

    def close_phase(self) -> Effects:
        """Everybody is in."""
        members = tuple(sorted(self._messages[Phase.MASKED_INPUT]))
        self._sets[Phase.MASKED_INPUT] = self._sets[Phase.UNMASKING] = members
        self.phase = Phase.UNMASKING
        return (Aggregate(members, ()),)

    def finish(self, words: Any) -> Effects:
        """The mean is there."""
        self.phase = Phase.COMPLETED
        return (Released(self.masked, words),)


def plain_params(params: SecAggParams) -> SecAggParams:
    """The same chunks, but as many words as the float32 vector has: two values in each, no zero and no first word."""

    class Plain(SecAggParams):
        @property
        def total_words(self) -> int:
            return -(-self.vector_length // 2)

        @property
        def num_chunks(self) -> int:
            return -(-self.total_words // self.chunk_words)

    fields = {name: getattr(params, name) for name in SecAggParams.__dataclass_fields__}
    return Plain(**fields)


def average(spools: Sequence[Spool], masks: Sequence[Mask], params: SecAggParams) -> Any:
    """Mean of the uploads, chunk by chunk."""
    total = np.zeros(2 * params.total_words, dtype=np.float32)
    values = 2 * params.chunk_words
    for spool in spools:
        with spool.path.open("rb") as file:
            for start in range(0, len(total), values):
                part = total[start : start + values]
                np.add(part, np.frombuffer(file.read(part.nbytes), dtype="<f4"), out=part)
    total /= np.float32(len(spools))
    return total[: params.vector_length]


async def plain_server(rpc: AggregationServer, journal: ServerJournal, folder: Path, c: Consortium) -> None:
    """Rounds of federated averaging, with the same checkpoints."""
    params, model = plain_params(c.params), np.zeros(c.size.length, dtype=np.float32)
    for number in range(1, c.manifest.training.rounds + 1):
        data = model_bytes(model)
        digest = c.manifest.model_digest(data)
        rpc.publish(digest, data)
        rpc._emit({"event": "round", "round": number})
        announcement = Announcement(number, 0, c.manifest.digest(), c.roster.root(), digest, c.ids, 0)
        session = PlainSession(params, announcement, c.roster, c.server_key, journal.ledger)
        outcome = await rpc.run_attempt(session, DEADLINES)
        assert isinstance(outcome, Released)
        model = model + outcome.total
        await asyncio.to_thread(write_atomic, folder / "run" / "model.f32", model_bytes(model))
        await rpc.settle()
        following = c.manifest.model_digest(model_bytes(model))
        rpc.broadcast(RoundResult(number, 0, outcome.masked, bytes(32), following))
    rpc.broadcast(Finished(c.manifest.training.rounds))
    await rpc.collect_statements(30.0)


async def plain_client(folder: Path, port: int, c: Consortium, client: ClientId) -> None:
    """Download, upload, and so on."""
    params, update = plain_params(c.params), update_of(c, client)
    padded = np.zeros(2 * params.total_words, dtype="<f4")

    def pieces(first: int) -> Iterator[memoryview]:
        data, size = padded.view(np.uint8).data, 8 * params.chunk_words
        return (data[at : at + size] for at in range(first * size, len(data), size))

    async with AggregationClient(HOST, port, tls(folder, f"client-{client}"), patience=PATIENT) as rpc:
        while not isinstance(message := await rpc.next(), Finished):
            if not isinstance(message, Announcement):
                continue
            data = await rpc.download(message.model_digest, 4 * c.size.length)
            model_from_bytes(data, c.manifest, message.model_digest)
            padded[: len(update)] = update
            hasher = InputDigest()
            for piece in pieces(0):
                hasher.update(piece)
            header = MaskedInput(hasher.digest(), params.total_words, (), bytes(64))
            await rpc.upload(header, lambda first: (bytes(piece) for piece in pieces(first)))
        await rpc.send(Statement(b"{}", bytes(64)))


# ---- processes


@asynccontextmanager
async def server_of(folder: Path, port: int, c: Consortium, emit: Callable[[Any], None]) -> AsyncIterator[Any]:
    """A bound server and its journal."""
    journal = ServerJournal(folder / "server" / "journal.sqlite", c.manifest.digest())
    rpc = AggregationServer(ServerSetup(c.roster, tls(folder, "server"), journal, folder / "spool", emit))
    (folder / "run").mkdir(exist_ok=True)
    try:
        await rpc.start(HOST, port)
        await rpc.wait_connected(c.roster.ids, 120)
        yield rpc, journal
    finally:
        await rpc.stop(1.0)
        journal.close()


async def serve(mode: str, folder: Path, port: int, c: Consortium) -> None:
    """One process; prints the times of all events and of the long pieces of work."""
    events: list[tuple[float, str, int]] = []
    clock: Clock = {}
    cpu: dict[int, float] = {}

    def emit(event: Any) -> None:
        name = event.get("phase") if event["event"] == "phase" else event["event"]
        events.append((time.perf_counter(), str(name), int(event.get("round", 0))))
        if name == "round":
            cpu[event["round"]] = time.process_time()

    attempt.fold = timed(clock, "adding up", attempt.fold if mode == "private" else average)
    server_run_module.next_model = timed(clock, "next model", server_run_module.next_model)  # type: ignore[attr-defined]
    Spool._write = timed(clock, "spool and hash", Spool._write)  # type: ignore[method-assign]
    Spool._seal = timed(clock, "spool to disk", Spool._seal)  # type: ignore[method-assign]
    writer = timed(clock, "checkpoint", write_atomic)
    server_run_module.write_atomic = globals()["write_atomic"] = writer
    async with server_of(folder, port, c, emit) as (rpc, journal):
        await (private_server if mode == "private" else plain_server)(rpc, journal, folder, c)
    said = {"events": events, "clock": clock, "cpu": cpu, "peak_mib": memory_kib()["peak"] / 1024}
    print(json.dumps(said), flush=True)


async def take_part(mode: str, folder: Path, port: int, c: Consortium, clients: Sequence[int]) -> None:
    """Several clients of one process, each with a connection of its own."""
    clock: Clock = {}
    cpu: dict[int, float] = {}
    receive = AggregationClient.next

    async def noted(rpc: AggregationClient) -> Any:
        message = await receive(rpc)
        if isinstance(message, Announcement):
            cpu.setdefault(message.round, time.process_time())
        return message

    AggregationClient.next = noted  # type: ignore[method-assign]
    client_run_module.frame_real = timed(clock, "encode", client_run_module.frame_real)  # type: ignore[attr-defined]
    client_phases.mask_input = timed(clock, "mask and hash", client_phases.mask_input)
    client_run_module.verified_next = timed(clock, "check the sum", client_run_module.verified_next)  # type: ignore[attr-defined]
    AggregationClient.upload = timed(clock, "upload", AggregationClient.upload)  # type: ignore[method-assign]
    AggregationClient.download = timed(clock, "download", AggregationClient.download)  # type: ignore[method-assign]
    one = private_client if mode == "private" else plain_client
    await asyncio.gather(*(one(folder, port, c, ClientId(client)) for client in clients))
    print(json.dumps({"clock": clock, "cpu": cpu, "peak_mib": memory_kib()["peak"] / 1024}), flush=True)


def main() -> None:
    """server|clients MODE FOLDER PORT SIZE [CLIENT...]"""
    what, mode, folder, port, size, *clients = sys.argv[1:]
    values = json.loads(size)
    rounds = values.pop("rounds")
    consortium = Consortium(Size(**values), memo=False)
    consortium.roster = Roster.model_validate_json((Path(folder) / "roster.json").read_bytes())
    training = consortium.manifest.training.model_copy(update={"rounds": rounds})
    consortium.manifest = consortium.manifest.model_copy(update={"training": training})
    if what == "server":
        asyncio.run(serve(mode, Path(folder), int(port), consortium))
    else:
        asyncio.run(take_part(mode, Path(folder), int(port), consortium, [int(client) for client in clients]))


if __name__ == "__main__":
    main()

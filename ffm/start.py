"""From a site's folder to a running server or client: every check that needs no server is made before it is dialled.

Order at a client: documents and keys (`load_site`), own certificate, books, base model and records (in the training
process), the server's certificate; only then is the server dialled.
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dp.ledger import PrivacyLedger
from ffm.client_run import ClientRun
from ffm.consolidation import IMPORTANCE
from ffm.local_setup import Compute, LocalSetup, personal_file
from ffm.report_files import Documents, gather, update_report
from ffm.round_update import Trainer
from ffm.run_folder import MANIFEST, load_statements, write_atomic, write_statements
from ffm.server_run import ServerRun
from ffm.site import SIGNATURE, Site
from ffm.step import Model, Pull, floats, initial_model, model_bytes, parameters_of
from ffm.succession import fetch, find, pinned, pull_of
from ffm.training_process import TrainingProcess
from ffm.validation import Judge, Validation
from protocol.client_states import ClientSetup
from protocol.decryptor import DecryptorSetup
from protocol.errors import DocumentError, TransportError
from protocol.messages import Statement
from protocol.rpc.client import AggregationClient
from protocol.rpc.decryptor import DecryptorRun
from protocol.rpc.he_process import HeProcess
from protocol.rpc.journal import ClientJournal, DecryptorJournal, ServerJournal
from protocol.rpc.limits import Deadlines
from protocol.rpc.probe import probe_server
from protocol.rpc.server import AggregationServer, ServerSetup
from secagg.he.scheme import LIBRARY, AdditiveScheme
from secagg.types import DECRYPTOR, ClientId

POPULATION = "records"
"""One privacy ledger per site: renamed or extended data stay in it."""

EVALUATION_NOT_MEASURED = "not measured by the server: it holds no data"
Event = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What the operator of a server chooses."""

    run_folder: Path | None = None  # None: the one this task was begun in, or a new one
    deadlines: Deadlines = field(default_factory=Deadlines)
    wait_connected_s: float = 300.0
    wait_statements_s: float = 30.0
    validation: Validation | None = None  # judge every released model; end the task on a plateau


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """What the operator of a client chooses. Nothing here changes what is computed or noised."""

    data: Path | None = None
    device: str | None = None
    threads: int = 1
    upload_limit: int | None = None  # bytes per second


def _run_folder(state: Path, site: Site, wanted: Path | None) -> Path:
    """One run folder per task, remembered: a server that starts again goes on where it stopped.

    Raises:
        DocumentError: E423, the task was begun in another folder, or another task in this one.
    """
    note = state / f"run-{site.manifest.digest().hex()[:16]}"
    known = Path(note.read_text()) if note.exists() else None
    target = (wanted or known or site.folder / "runs" / new_run_id(datetime.now(UTC))).resolve()
    if known is not None and target != known:
        raise DocumentError(
            "this task was begun in another run folder",
            found=target,
            expected=known,
            do="leave --run away to go on there; a new run needs a new manifest, because rounds are never repeated",
            code="E423",
        )
    others = (other for other in state.glob("run-*") if other != note and other.suffix != ".new")
    held = target / MANIFEST  # of another server, or of one whose notes are gone: it would be overwritten
    foreign = held.exists() and held.read_bytes() != site.manifest.to_bytes()
    if foreign or any(Path(other.read_text()) == target for other in others):
        raise DocumentError(
            "another task was begun in this run folder",
            found=target,
            expected="a run folder of its own for each manifest",
            do="leave --run away, or name a new folder",
            code="E423",
        )
    target.mkdir(parents=True, exist_ok=True)
    write_atomic(note, str(target).encode())
    return target


def documents_of(site: Site) -> Documents:
    """The owner's documents as the report carries them."""
    return Documents(site.manifest, site.manifest_signature, site.roster, site.roster_signature, site.owner)


async def serve(site: Site, options: ServerOptions, on_event: Event) -> Path:
    """Run every round of the site's manifest and write the run folder; its path.

    Raises:
        DocumentError, TransportError, ProtocolError, LedgerError, ReportError: As named, each with what to do.
    """
    require_role(site, "server")
    site.check_certificate(datetime.now(UTC))
    state = private_state(site)
    run_folder = _run_folder(state, site, options.run_folder)
    journal = ServerJournal(state / f"journal-{site.manifest.digest().hex()[:16]}.sqlite", site.manifest.digest())
    rpc = AggregationServer(ServerSetup(site.roster, site.tls, journal, state / "spool", on_event))
    run = ServerRun((site.manifest, site.roster), site.identity, rpc, journal, run_folder)
    run.deadlines, run.on_event = options.deadlines, on_event
    kept = load_statements(run_folder)  # of clients that have ended
    write_atomic(run_folder / MANIFEST, site.manifest.to_bytes())
    write_atomic(run_folder / (MANIFEST + SIGNATURE), site.manifest_signature)
    judge = _judge(site, options.validation, run_folder, on_event)
    try:
        run.pull = _offer(site, rpc)
        begun = journal.last != (0, 0)
        resumed = begun and await run.restore(await asyncio.to_thread(_first_model, site))
        await rpc.start(*site.address)
        if judge is not None:
            await judge.open()
            run.over = judge.over
        if not resumed:
            second = () if site.manifest.aggregation.encryption is None else (DECRYPTOR,)
            ended = begun and await run.ended(await asyncio.to_thread(_first_model, site))
            awaited = _late(site, run, kept) if ended else (*second, *site.roster.ids)  # nothing is left to decrypt
            await rpc.wait_connected(awaited, options.wait_connected_s)
        model = await run.run(await asyncio.to_thread(_first_model, site))
        statements = {**kept, **await run.finish(options.wait_statements_s)}
        write_statements(run_folder, statements)
        await asyncio.to_thread(_write_adapter, site, model, run_folder / "adapter")
        if run.importance is not None:
            write_atomic(run_folder / IMPORTANCE, model_bytes(run.importance))
        if site.manifest.privacy.protocol != "none":
            facts = gather(documents_of(site), run.state, statements, (), EVALUATION_NOT_MEASURED)
            await asyncio.to_thread(update_report, run_folder, facts, site.identity, site.owner)
    finally:
        if judge is not None:
            await judge.close()
        await rpc.stop()
        journal.close()
    return run_folder


def _late(site: Site, run: ServerRun, kept: Mapping[ClientId, Statement]) -> tuple[ClientId, ...]:
    """Clients of a run that has ended who have not stated what it cost them, or did so before its last round."""
    stated = set(kept)
    if site.manifest.privacy.protocol != "none":  # else there is nothing that a statement could contradict
        facts = gather(documents_of(site), run.state, kept, (), EVALUATION_NOT_MEASURED)
        stated = {accepted.statement["client_id"] for accepted in facts.statements}
    return tuple(client for client in site.roster.ids if client not in stated)


def _offer(site: Site, rpc: AggregationServer) -> Pull | None:
    """Hold ready for clients what the task takes over from the one before. Raises DocumentError E358."""
    manifest = site.manifest
    vectors = {digest: find(site.folder, digest, manifest.adapter.size) for digest in pinned(manifest)}
    for digest, vector in vectors.items():
        rpc.offer(bytes.fromhex(digest), model_bytes(vector))
    held = manifest.training.consolidation
    if manifest.adapter.start is None or held is None or held.importance is None:
        return None
    return pull_of(vectors[manifest.adapter.start], vectors[held.importance])


def _judge(site: Site, chosen: Validation | None, run_folder: Path, on_event: Event) -> Judge | None:
    if chosen is None:
        return None
    own = site.settings
    compute = Compute(own.device, 1, own.precision, own.checkpointing, own.physical_batch)
    setup = LocalSetup(_base_model(site), chosen.data, site.task_file, compute=compute, judges=True)
    return Judge(site.manifest, setup, chosen, run_folder, on_event)


async def participate(site: Site, options: ClientOptions, on_event: Event) -> int:
    """Take part in the site's task until the server ends it; the number of rounds that counted our input.

    Raises:
        DocumentError, TransportError, ProtocolError, PrivacyError, SecAggError: As named, each with what to do.
    """
    with _books(site) as books:
        state = private_state(site)
        async with await TrainingProcess.spawn(options.threads, state / "training.log") as training:
            setup = await asyncio.to_thread(_local_setup, site, options)
            loaded = await training.load(site.manifest.to_bytes(), setup)
            on_event({"event": "loaded", "parameters": loaded.parameters})
            return (await _take_part(site, training, (books, loaded.initial), on_event, options.upload_limit))[0]


async def participate_with(site: Site, trainer: Trainer, initial: Model, on_event: Event) -> tuple[int, Model | None]:
    """As `participate`, with a trainer of the caller's own; also the last model that this client knows.

    `initial`: the parameters that the manifest's seed gives.
    """
    with _books(site) as books:
        return await _take_part(site, trainer, (books, initial), on_event)


Books = tuple[ClientJournal, PrivacyLedger]


@contextmanager
def _books(site: Site) -> Iterator[Books]:
    """A client's journal and privacy ledger, after the checks that need neither a server nor a model."""
    require_role(site, "client")
    site.check_certificate(datetime.now(UTC))
    _check_library(site)
    state, digest = private_state(site), site.manifest.digest()
    path = state / "ledger" / f"{POPULATION}.sqlite"
    with PrivacyLedger.open(path, silo=site.settings.name, population=POPULATION) as ledger:
        journal = ClientJournal(state / f"journal-{digest.hex()[:16]}.sqlite", site.client_id, digest)
        try:
            yield journal, ledger
        finally:
            journal.close()


async def _take_part(
    site: Site, trainer: Trainer, start: tuple[Books, Model], on_event: Event, upload_limit: int | None = None
) -> tuple[int, Model | None]:
    documents = (site.roster, site.manifest, site.manifest.secagg_params())
    setup = ClientSetup(site.client_id, site.identity, *documents, _scheme(site))
    await _reachable(site)
    books, seeded = start
    async with AggregationClient(*site.address, site.tls, _waiting(on_event)) as rpc:
        initial, pull = await fetch(site.manifest, rpc.download, seeded)
        run = ClientRun(setup, rpc, trainer, books, initial)
        run.on_event, run.upload_limit, run.pull = on_event, upload_limit, pull
        return await run.run(), run.last_model


async def decrypt(site: Site, on_event: Event) -> int:
    """Open the sums of the site's task until the server ends it; how many were opened.

    Raises:
        DocumentError, TransportError, ProtocolError, LedgerError, SecAggError: As named, each with what to do.
    """
    require_role(site, "decryptor")
    site.check_certificate(datetime.now(UTC))
    if site.manifest.aggregation.encryption is None:
        raise DocumentError(
            "this task encrypts nothing",
            found=f"assurance {site.manifest.aggregation.assurance!r}",
            expected='"dual" or "he"',
            do="nothing need run here",
            code="E357",
        )
    _check_library(site)
    state, digest = private_state(site), site.manifest.digest()
    setup = DecryptorSetup(site.identity, site.roster, site.manifest, site.manifest.secagg_params())
    journal = DecryptorJournal(state / f"journal-{digest.hex()[:16]}.sqlite", digest)
    try:
        await _reachable(site)
        async with AggregationClient(*site.address, site.tls, _waiting(on_event)) as rpc:
            run = DecryptorRun(setup, rpc, journal, HeProcess.spawn)
            run.on_event = on_event
            return await run.run()
    finally:
        journal.close()


def _scheme(site: Site) -> AdditiveScheme | None:
    """How this client encrypts; the native library is loaded only where the manifest asks for it."""
    if site.manifest.aggregation.encryption is None:
        return None
    _check_library(site)
    from secagg.he.bfv import Bfv

    return Bfv()


def _check_library(site: Site) -> None:
    encryption = site.manifest.aggregation.encryption
    if encryption is not None and encryption.library != LIBRARY:
        raise DocumentError(
            "the manifest names another HE library",
            found=encryption.library,
            expected=f"{LIBRARY}, whose formats this version reads",
            do="install the version of secagg that the owner used, or ask for a new manifest",
            code="E357",
        )


async def _reachable(site: Site, patience_s: float = 60.0) -> None:
    """One look at the server's certificate before dialling; a server that is not up yet is given a minute."""
    end = asyncio.get_running_loop().time() + patience_s
    while True:
        try:
            await asyncio.to_thread(probe_server, site.address, site.tls, site.roster)
            return
        except TransportError as error:
            refused = error.code == "E330"
            if not refused or asyncio.get_running_loop().time() > end:
                raise
        await asyncio.sleep(0.5)


def _waiting(on_event: Event) -> Callable[[Any], None]:
    def report(waiting: Any) -> None:
        where = {"round": waiting.round, "phase": waiting.phase.name}
        on_event({"event": "waiting", **where, "clients": [int(c) for c in waiting.clients]})

    return report


def require_role(site: Site, role: str) -> None:
    """Raises DocumentError E354 for the folder of another role."""
    if site.role != role:
        raise DocumentError(
            f"{site.folder} is the folder of a {site.role}",
            found=f"{site.role}.toml",
            expected=f"{role}.toml",
            do=f"secagg {site.role} {site.folder}",
            code="E354",
        )


def private_state(site: Site) -> Path:
    """The folder of a site's own state: journal, ledger, personal tensors."""
    (path := site.folder / "state").mkdir(mode=0o700, exist_ok=True)
    return path


def _local_setup(site: Site, options: ClientOptions) -> LocalSetup:
    chosen = site.settings
    device = options.device or chosen.device
    compute = Compute(device, options.threads, chosen.precision, chosen.checkpointing, chosen.physical_batch)
    personal = personal_file(private_state(site), site.manifest)
    return LocalSetup(_base_model(site), options.data or site.data, site.task_file, personal, compute)


def _base_model(site: Site) -> Path:
    from ffm.models import locate  # transformers is imported late: nothing but this needs it here

    return locate(site.settings.base_model or site.manifest.base_model.name)


def _first_model(site: Site) -> Model:
    return initial_model(_initial(site), site.manifest)


def _initial(site: Site) -> Model:
    """The manifest's initial adapter: what an earlier task left, or what the seed gives; that one is read from the
    server's folder if it was computed before."""
    if site.manifest.adapter.start is not None:
        return find(site.folder, site.manifest.adapter.start, site.manifest.adapter.size)
    path = private_state(site) / f"initial-{site.manifest.digest().hex()[:16]}.f32"  # the next manifest has another
    if path.exists():
        model = floats(path.read_bytes())
        if len(model) == site.manifest.adapter.size:
            return model
    initial: Model = _learner(site).initial()
    write_atomic(path, model_bytes(initial))
    return initial


def _write_adapter(site: Site, model: Model, folder: Path) -> None:
    from ffm.adapters import load_flat, save_adapter

    wrapped = _learner(site).model
    load_flat(wrapped, site.manifest.adapter, parameters_of(model, site.manifest))
    save_adapter(wrapped, site.manifest.adapter, folder, site.manifest.base_model.name)


def _learner(site: Site) -> Any:
    """The `ffm.learner.Learner` of the manifest, on the CPU; torch is imported here and no earlier."""
    from ffm.learner import Learner
    from ffm.models import verify_base_model

    base = _base_model(site)
    verify_base_model(site.manifest.base_model, base)
    return Learner.load(site.manifest, base, task_file=site.task_file)


def new_run_id(now: datetime) -> str:
    """Sortable and unique enough: UTC to the second and four random hex digits."""
    return f"{now:%Y%m%d-%H%M%S}-{os.urandom(2).hex()}"

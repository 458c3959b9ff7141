"""One client's whole run: budget, training, session, ledger and journal joined around the gRPC client.

Order of preference in every branch: secrecy, ledger, result, liveness. The budget is checked before a round is
joined; the ledger is charged before the first masked byte leaves; the update is encoded and range-checked here, where
alone it can be.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np

from dp.budget import Budget, check_next
from dp.errors import LedgerError, PrivacyError
from dp.events import step_event
from dp.ledger import Charge as LedgerCharge
from dp.ledger import PrivacyLedger
from dp.sampling import Csprng
from ffm.step import Model, aggregate_digest, model_bytes, model_from_bytes, next_model
from ffm.training_process import TrainingProcess
from protocol import signed
from protocol.client import ClientSession
from protocol.client_states import ClientSetup
from protocol.effects import Charge, Effects, Persist, Send, Upload
from protocol.errors import ProtocolError, RemoteProtocolError
from protocol.manifest import Manifest
from protocol.messages import Announcement, AttemptAborted, Finished, RoundResult, ServerMessage, Statement, Withdraw
from protocol.rpc.client import AggregationClient
from protocol.rpc.frames import Receipt, Status
from protocol.rpc.journal import ClientJournal
from secagg.encoding import Values
from secagg.errors import SecAggError
from secagg.masking import chunks
from secagg.types import Phase

log = logging.getLogger(__name__)

STATEMENT_KIND = "application/vnd.secagg.statement.v1+json"
Event = Callable[[dict[str, Any]], None]


def round_charge(manifest: Manifest, round_: int, attempt: int) -> LedgerCharge:
    """What one attempt of this manifest costs: `local_steps` sampled Gaussian steps, charged once."""
    p = manifest.privacy
    event = step_event(
        manifest.training.local_steps,
        (p.sampling_numerator, p.sampling_denominator),
        p.noise_steps,
        p.clip_steps,
    )
    return LedgerCharge(manifest.task, manifest.digest().hex(), round_, attempt, event)


def budget_of(manifest: Manifest) -> Budget:
    """The budget that the owner signed."""
    return Budget(Decimal(manifest.privacy.epsilon), Decimal(manifest.privacy.delta))


def statement_body(setup: ClientSetup, ledger: PrivacyLedger) -> dict[str, Any]:
    """The client's own account of its privacy ledger: every row, so that anybody can replay chain and charges."""
    seq, head = ledger.head
    member = setup.roster.member(setup.me)
    return {
        "client_id": int(setup.me),
        "name": member.name if member else "",
        "manifest_digest": setup.manifest.digest().hex(),
        "silo": ledger.silo,
        "population": ledger.population,
        "seq": seq,
        "head": head.hex(),
        "rows": [
            {
                "seq": row.seq,
                "kind": row.kind,
                "body": row.value(),
                "previous": row.previous.hex(),
                "hash": row.hash.hex(),
            }
            for row in ledger.rows()
        ],
    }


@dataclass(slots=True)
class _Joined:
    """The attempt that this client is in."""

    session: ClientSession
    announcement: Announcement
    model: Model
    training: asyncio.Task[Model] | None


class ClientRun:
    """The loop: one server message or one finished training at a time."""

    def __init__(
        self,
        setup: ClientSetup,
        rpc: AggregationClient,
        training: TrainingProcess,
        books: tuple[ClientJournal, PrivacyLedger],
        initial: Model,
    ) -> None:
        self._setup = setup
        self._rpc = rpc
        self._training = training
        self._journal, self._ledger = books
        self._initial_digest = setup.manifest.model_digest(model_bytes(initial))
        self._next_digest: bytes | None = None  # of the model that we computed ourselves
        self._joined: _Joined | None = None
        self.on_event: Event = lambda event: None
        self.upload_limit: int | None = None

    async def run(self) -> int:
        """Take part until the server ends the task; the number of rounds that ended with our masked input in the sum.

        Raises:
            BudgetExceededError: The next round would exceed the budget; the server was told, nothing was drawn.
            SecAggError, PrivacyError: As named; the server was told the code, never data.
        """
        included = 0
        incoming: asyncio.Task[ServerMessage] = asyncio.ensure_future(self._rpc.next())
        try:
            while True:
                trained = self._joined.training if self._joined else None
                waiting: set[asyncio.Task[Any]] = {incoming} | ({trained} if trained else set())
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if trained in done:
                    await self._trained()
                if incoming not in done:
                    continue
                message = incoming.result()
                match message:
                    case Announcement():
                        await self._announced(message)
                    case RoundResult():
                        included += self._setup.me in message.included
                        await self._result(message)
                    case Finished():
                        await self._finish(message)
                        return included
                    case _:
                        await self._receive(message)
                incoming = asyncio.ensure_future(self._rpc.next())
        except (SecAggError, PrivacyError) as error:
            await self._withdraw(error)
            raise
        finally:
            incoming.cancel()
            if self._joined and self._joined.training:
                self._joined.training.cancel()

    async def _announced(self, message: Announcement) -> None:
        """Join an attempt: budget first, then the model, then phase 0; training starts beside phases 0 and 1."""
        self._leave()
        setup, manifest = self._setup, self._setup.manifest
        if (message.round, message.attempt) <= self._journal.memory.joined:
            # Joined before this process started, or a replay: its secrets are gone, it is never joined again.
            self.on_event({"event": "skipped", "round": message.round, "attempt": message.attempt})
            return
        # One generator per attempt: with the secrets of an attempt goes the key that they were drawn with.
        session = ClientSession(setup, message, self._journal.memory, Csprng.from_os().take)
        if manifest.privacy.protocol == "R1":
            charge = round_charge(manifest, message.round, message.attempt)
            if any(known.key == charge.key for known in self._ledger.charges()):
                raise LedgerError(
                    "this attempt is charged already, but the journal does not know it",
                    found=f"round {message.round}, attempt {message.attempt} in the privacy ledger",
                    expected="a journal that is as old as the ledger",
                    do="restore the journal of this site; a second release would not be paid for",
                    code="E217",
                )
            after = await asyncio.to_thread(check_next, self._ledger.charges(), charge, budget_of(manifest))
            self.on_event(
                {
                    "event": "budget",
                    "round": message.round,
                    "epsilon_after": after.epsilon,
                    "delta": manifest.privacy.delta,
                }
            )
        if message.round == 1 and message.model_digest != self._initial_digest:
            raise RemoteProtocolError(
                "round 1 does not start from the manifest's initial adapter",
                found=f"digest {message.model_digest.hex()[:16]}...",
                expected=f"{self._initial_digest.hex()[:16]}... (seed {manifest.adapter.seed})",
                code="E432",
            )
        if self._next_digest is not None and message.model_digest != self._next_digest:
            raise RemoteProtocolError(
                "the announced model is not the last model plus the published sum",
                found=f"digest {message.model_digest.hex()[:16]}...",
                expected=f"{self._next_digest.hex()[:16]}...",
                do="the round was refused; ask the server's operator",
                code="E433",
            )
        self._next_digest = None  # known again when this round's sum is published and we recomputed it
        data = await self._rpc.download(message.model_digest, 4 * manifest.adapter.size)
        model = model_from_bytes(data, manifest, message.model_digest)
        effects = session.start()
        task = asyncio.ensure_future(self._training.train(message.round, model))
        self._joined = _Joined(session, message, model, task)
        self.on_event({"event": "joined", "round": message.round, "attempt": message.attempt})
        await self._apply(effects)

    async def _trained(self) -> None:
        joined = self._joined
        if joined is None or joined.training is None:
            return
        update, joined.training = joined.training.result(), None
        if joined.session.phase is Phase.ABORTED:
            return
        try:
            values = self._encode(update)
        except SecAggError:
            # That we withdraw now tells something of the update: pay for it as for the update itself.
            await self._apply((Charge(joined.announcement.round, joined.announcement.attempt),))
            raise
        self.on_event({"event": "trained", "round": joined.announcement.round})
        await self._apply(joined.session.provide_input(values))

    def _encode(self, update: Model) -> Values:
        """Fixed point with unbiased rounding; NaN and out-of-range values are refused here, before anything is sent."""
        if update.shape != (self._setup.manifest.adapter.size,):
            raise ProtocolError(
                "the update has the wrong shape",
                found=update.shape,
                expected=(self._setup.manifest.adapter.size,),
                code="E113",
            )
        return self._setup.params.encoding.quantize(update.astype(np.float64), Csprng.from_os().words(len(update)))

    async def _receive(self, message: ServerMessage) -> None:
        joined = self._joined
        if joined is None:
            return  # left over from before this process joined anything
        if isinstance(message, AttemptAborted):
            current = (joined.announcement.round, joined.announcement.attempt)
            self.on_event({"event": "aborted", "round": message.round, "reason": message.reason})
            if (message.round, message.attempt) != current:
                return
        if joined.session.phase is Phase.ABORTED:
            return  # we left it; what else it has to say is nothing to us
        await self._apply(joined.session.receive(message))

    async def _result(self, message: RoundResult) -> None:
        """Recompute the next model from the published sum wherever this client knows the model it started from."""
        joined, manifest = self._joined, self._setup.manifest
        self._next_digest = None
        self.on_event({"event": "result", "round": message.round, "included": list(message.included)})
        if joined is None or (message.round, message.attempt) != (
            joined.announcement.round,
            joined.announcement.attempt,
        ):
            return
        survivors = joined.session.survivors
        if survivors is not None and survivors != message.included:
            raise RemoteProtocolError("the published sum is over another set than the signed one", code="E434")
        size = 8 * manifest.adapter.size
        data = await self._rpc.download(message.aggregate_digest, size)
        if (
            len(data) != size
            or aggregate_digest(joined.session.ctx, message.included, data) != message.aggregate_digest
        ):
            raise RemoteProtocolError("the published sum does not have its digest", code="E435")
        total = np.frombuffer(data, dtype="<i8").astype(np.int64)
        model = next_model(joined.model, total, len(message.included), manifest)
        digest = manifest.model_digest(model_bytes(model))
        if digest != message.model_digest:
            raise RemoteProtocolError(
                "the next model is not the last model plus the published sum",
                found=f"digest {message.model_digest.hex()[:16]}...",
                expected=f"{digest.hex()[:16]}...",
                code="E433",
            )
        self._next_digest = digest

    async def _finish(self, message: Finished) -> None:
        self._leave()
        body = signed.canonical(statement_body(self._setup, self._ledger))
        await self._rpc.send(Statement(body, signed.sign(STATEMENT_KIND, body, self._setup.signing_key)))
        self.on_event({"event": "finished", "rounds": message.rounds})

    async def _apply(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Persist(record):
                    await asyncio.to_thread(self._journal.record, record)
                case Charge(round_, attempt):
                    if self._setup.manifest.privacy.protocol == "R1":
                        charge = round_charge(self._setup.manifest, round_, attempt)
                        await asyncio.to_thread(self._ledger.charge, charge)
                case Send(message, _):
                    self._heed(await self._rpc.send(message))  # type: ignore[arg-type]
                case Upload(header, words):
                    replay = partial(chunks, words, self._setup.params)
                    self._heed(await self._rpc.upload(header, replay, self.upload_limit))
                case _:
                    raise AssertionError(f"a client session has no effect {type(effect).__name__}")

    def _heed(self, receipt: Receipt) -> None:
        """Late or refused: this attempt goes on without us. What was charged stays charged; the next round counts."""
        if receipt.status is not Status.ACCEPTED and self._joined is not None:
            self._joined.session.abort(f"left out: {receipt.reason or receipt.status.name.lower()}")
            self.on_event({"event": "left-out", "reason": receipt.reason or receipt.status.name.lower()})

    def _leave(self) -> None:
        """End the attempt that we are in. Training is not interrupted half-way: its result is thrown away, and the next
        training waits for its turn at the process."""
        joined, self._joined = self._joined, None
        if joined is not None:
            joined.session.abort()
            if joined.training is not None:
                joined.training.add_done_callback(_forget)

    async def _withdraw(self, error: BaseException) -> None:
        """Tell the server the class of the error, never its content; it must not mask the error itself."""
        if self._joined is not None:
            self._joined.session.abort()
        code = getattr(error, "code", "E000")
        try:
            await asyncio.wait_for(self._rpc.send(Withdraw(str(code), type(error).__name__)), timeout=5)
        except (ProtocolError, TimeoutError):
            log.info("the server could not be told about %s", code)


def _forget(training: "asyncio.Task[Model]") -> None:
    """Nobody waits for this result; a failure shows again in the next training."""
    if not training.cancelled():
        training.exception()

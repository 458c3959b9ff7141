"""One client's whole run: budget, training, session, ledger and journal joined around the gRPC client.

Order of preference in every branch: secrecy, ledger, result, liveness. The budget is checked before a round is
joined; the ledger is charged before the first masked byte leaves; the update is encoded and range-checked here, where
alone it can be. An attempt that is aborted before this client signed its set is followed by another one of the same
round: it gets the very same encoded values, under fresh keys, and they are charged once.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import Any

from dp.budget import Budget, check_next
from dp.errors import LedgerError, PrivacyError
from dp.events import event_tree
from dp.ledger import Charge as LedgerCharge
from dp.ledger import PrivacyLedger
from dp.sampling import Csprng
from ffm.errors import NO_NUMBERS
from ffm.plan import attempt_mechanism
from ffm.published_sum import VALUE_BYTES, verified_next
from ffm.round_update import RoundUpdate, Trainer, Update, integers_only, reals_only
from ffm.step import Model, Pull, initial_model, model_bytes, model_from_bytes, parameters_of
from protocol import signed
from protocol.client import ClientSession
from protocol.client_states import ClientSetup
from protocol.effects import Charge, Effects, Persist, Send, SpentRecord, Upload, UploadCiphertext, UploadRecord
from protocol.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from protocol.manifest import Manifest
from protocol.messages import Announcement, AttemptAborted, Finished, RoundResult, ServerMessage, Statement, Withdraw
from protocol.release import resupply
from protocol.rpc.client import AggregationClient
from protocol.rpc.frames import Receipt, Status
from protocol.rpc.journal import ClientJournal
from secagg.encoding import Words
from secagg.errors import SecAggError
from secagg.masking import Framed, chunks, frame, frame_real
from secagg.types import Phase

log = logging.getLogger(__name__)

STATEMENT_KIND = "application/vnd.secagg.statement.v1+json"
Event = Callable[[dict[str, Any]], None]


def round_charge(manifest: Manifest, round_: int, attempt: int) -> LedgerCharge:
    """What one attempt of this manifest costs, charged once."""
    event = event_tree(attempt_mechanism(manifest))
    return LedgerCharge(manifest.task, manifest.digest().hex(), round_, attempt, event)


def budget_of(manifest: Manifest) -> Budget:
    """The budget that the owner signed."""
    return Budget(Decimal(manifest.privacy.epsilon), Decimal(manifest.privacy.delta), manifest.privacy.unit)


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


def _another_model(what: str, found: bytes, expected: bytes) -> RemoteProtocolError:
    return RemoteProtocolError(
        what,
        found=f"digest {found.hex()[:16]}...",
        expected=f"{expected.hex()[:16]}...",
        do="the round was refused; ask the server's operator",
        code="E433",
    )


@dataclass(slots=True)
class _Joined:
    """The attempt that this client is in."""

    session: ClientSession
    announcement: Announcement
    model: Model

    @property
    def attempt(self) -> tuple[int, int]:
        """Round and attempt."""
        return self.announcement.round, self.announcement.attempt


class ClientRun:
    """The loop: one server message or one finished training at a time."""

    def __init__(
        self,
        setup: ClientSetup,
        rpc: AggregationClient,
        training: Trainer,
        books: tuple[ClientJournal, PrivacyLedger],
        initial: Model,
    ) -> None:
        """`initial`: the parameters that round 1 starts from, by the manifest's seed or its `adapter.start`."""
        self._setup = setup
        self._rpc = rpc
        self._training = training
        self._journal, self._ledger = books
        self._initial_digest = setup.manifest.model_digest(model_bytes(initial_model(initial, setup.manifest)))
        self._next: tuple[bytes, Model] | None = None  # digest and model that the next attempt must start from
        self._followed = 0  # round of the last result that was recomputed here
        self._skipped = (0, 0)  # the last attempt that was announced and not joined
        self._joined: _Joined | None = None
        self._update: RoundUpdate | None = None
        self.on_event: Event = lambda event: None
        self.upload_limit: int | None = None
        self.pull: Pull | None = None  # what the manifest pins for consolidation, where it does
        self.last_model: Model | None = None  # that the last published sum gave, where this client could follow it

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
                trained = self._update.training if self._update else None
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
            if self._update and self._update.training:
                self._update.training.cancel()

    async def _announced(self, message: Announcement) -> None:
        """Join an attempt: budget first, then the model, then phase 0; training starts beside phases 0 and 1."""
        self._leave()
        setup, manifest, memory = self._setup, self._setup.manifest, self._journal.memory
        # First of all: a server that was restored also announces rounds that are long over.
        if (rows := resupply(message, memory.ledger)) is not None:
            receipt = await self._rpc.send(rows)
            self.on_event({"event": "resupplied", "rows": len(rows.rows), "accepted": receipt.status.name})
            return
        if (message.round, message.attempt) <= memory.joined or message.round <= memory.spent_round:
            # Joined before this process started, or a replay: its secrets are gone, it is never joined again. Or this
            # client signed the round's set: its update may be out, the next round counts.
            self._skipped = (message.round, message.attempt)
            self.on_event({"event": "skipped", "round": message.round, "attempt": message.attempt})
            await self._rpc.send(Withdraw("E436", "AlreadyJoined"))  # nobody need wait for us
            return
        # One generator per attempt: with the secrets of an attempt goes the key that they were drawn with.
        session = ClientSession(setup, message, memory, Csprng.from_os().take)
        update = self._carried(message)
        if manifest.privacy.protocol != "none" and not (update and update.charged):
            await self._check_budget(message)
        if message.round == 1 and message.model_digest != self._initial_digest:
            origin = f"seed {manifest.adapter.seed}" if manifest.adapter.start is None else "adapter.start"
            raise RemoteProtocolError(
                "round 1 does not start from the manifest's initial adapter",
                found=f"digest {message.model_digest.hex()[:16]}...",
                expected=f"{self._initial_digest.hex()[:16]}... ({origin})",
                code="E432",
            )
        model = await self._model(message.round, message.model_digest)
        effects = session.start()
        if update is None:
            task = asyncio.ensure_future(self._training.train(message.round, parameters_of(model, manifest)))
            update = self._update = RoundUpdate(message.round, message.attempt, message.model_digest, task)
        self._joined = _Joined(session, message, model)
        again = update.attempt != message.attempt
        self.on_event({"event": "joined", "round": message.round, "attempt": message.attempt, "same_update": again})
        await self._apply(effects)
        if update.values is not None:
            await self._apply(await asyncio.to_thread(session.provide_input, update.values))

    async def _model(self, round_: int, announced: bytes) -> Model:
        """The model that the attempt starts from: the one that we computed ourselves, if we could, or the server's."""
        expected, self._next = self._next, None  # known again when the sum is published, or the attempt was aborted
        if expected is None:
            if round_ > 1:  # nothing that this client knows leads to it
                self.on_event({"event": "unverified", "round": round_})
            data = await self._rpc.download(announced, 4 * self._setup.manifest.model_size)
            return model_from_bytes(data, self._setup.manifest, announced)
        digest, model = expected
        if announced != digest:
            what = "the announced model is not the last model plus the published sum"
            raise _another_model(what, announced, digest)
        return model

    def _carried(self, message: Announcement) -> RoundUpdate | None:
        """The update that an earlier attempt of this round was to carry, if this process made one: same model, same
        cohort (everybody, always), so the same values."""
        update = self._update
        if update is None or update.round != message.round:
            self._forget_update()
            return None
        if update.model_digest != message.model_digest:
            what = "a further attempt of a round starts from another model"
            raise _another_model(what, message.model_digest, update.model_digest)
        return update

    async def _check_budget(self, message: Announcement) -> None:
        """Refuse, before anything is drawn, what could not be paid for."""
        manifest, charge = self._setup.manifest, round_charge(self._setup.manifest, message.round, message.attempt)
        if any(known.key == charge.key for known in self._ledger.charges()):
            raise LedgerError(
                "this attempt is charged already, but the journal does not know it",
                found=f"round {message.round}, attempt {message.attempt} in the privacy ledger",
                expected="a journal that is as old as the ledger",
                do="restore the journal of this site; a second release would not be paid for",
                code="E217",
            )
        spent = self._ledger.charges()
        if not any(known.manifest_digest == charge.manifest_digest for known in spent):
            left = manifest.training.rounds - message.round + 1  # whoever begins shall be able to finish
            await asyncio.to_thread(check_next, spent, charge, budget_of(manifest), left)
        after = await asyncio.to_thread(check_next, spent, charge, budget_of(manifest))
        self.on_event(
            {
                "event": "budget",
                "round": message.round,
                "epsilon_after": after.epsilon,
                "delta": manifest.privacy.delta,
                "unit": manifest.privacy.unit,
            }
        )

    async def _trained(self) -> None:
        update, joined = self._update, self._joined
        if update is None or update.training is None:
            return
        try:
            trained, update.training = update.training.result(), None
            update.values = await asyncio.to_thread(self._encode, trained)
        except SecAggError as error:
            # That we withdraw over what came out tells something of the update: pay for it as for the update itself.
            if update.training is None or error.code == NO_NUMBERS:
                await self._pay(update.round, update.attempt)
            raise
        self.on_event({"event": "trained", "round": update.round})
        if joined is not None and joined.session.phase is not Phase.ABORTED:
            await self._apply(await asyncio.to_thread(joined.session.provide_input, update.values))

    def _encode(self, update: Update) -> Framed:
        """Fixed point with unbiased rounding; NaN and out-of-range values are refused here, before anything is sent.
        Integers with a share of the noise are encoded as they are: nothing may come after it."""
        params = self._setup.params
        if self._setup.manifest.noise_in_shares:
            return Framed(frame(integers_only(update), params), params)
        return frame_real(reals_only(update), params, Csprng.from_os().take)

    async def _receive(self, message: ServerMessage) -> None:
        joined = self._joined
        if joined is None:
            return  # left over from before this process joined anything
        if isinstance(message, AttemptAborted):
            self.on_event({"event": "aborted", "round": message.round, "reason": message.reason})
            if (message.round, message.attempt) != joined.attempt:
                return
            self._next = joined.announcement.model_digest, joined.model  # no sum, no other model
        if joined.session.phase is Phase.ABORTED:
            return  # we left it; what else it has to say is nothing to us
        # Masking and encrypting take their time: polls go on meanwhile.
        await self._apply(await asyncio.to_thread(joined.session.receive, message))

    async def _result(self, message: RoundResult) -> None:
        """Recompute the next model from the published sum wherever this client knows the model it started from."""
        joined, manifest, attempt = self._joined, self._setup.manifest, (message.round, message.attempt)
        if self._update is not None and self._update.round <= message.round:
            self._forget_update()
        self.on_event({"event": "result", "round": message.round, "included": list(message.included)})
        if joined is None or attempt != joined.attempt:
            # The model moves on without us, if the attempt is one that we heard of and know no result of.
            if attempt == self._skipped and message.round > self._followed:
                self._next = None
            return
        self._next = None
        survivors = joined.session.survivors
        joined.session.abort("the attempt ended")
        if survivors is not None and survivors != message.included:
            raise RemoteProtocolError("the published sum is over another set than the signed one", code="E434")
        data = await self._rpc.download(message.aggregate_digest, VALUE_BYTES * manifest.vector_length)
        before = joined.session.ctx, joined.model
        model = await asyncio.to_thread(verified_next, manifest, before, message, data, self.pull)
        self._next, self._followed = (message.model_digest, model), message.round
        self.last_model = model

    async def _finish(self, message: Finished) -> None:
        self._leave()
        self._forget_update()
        body = signed.canonical(statement_body(self._setup, self._ledger))
        await self._rpc.send(Statement(body, signed.sign(STATEMENT_KIND, body, self._setup.signing_key)))
        self.on_event({"event": "finished", "rounds": message.rounds})

    async def _apply(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Persist(record):
                    await asyncio.to_thread(self._journal.record, record)
                    if isinstance(record, SpentRecord | UploadRecord):
                        self._forget_update()
                case Charge(_, attempt):
                    if self._update is None:
                        raise LocalProtocolError("an upload without an update")
                    await self._charge(self._update, attempt)
                case Send(message, _):
                    self._heed(await self._rpc.send(message))  # type: ignore[arg-type]
                case Upload(header, words):
                    self._heed(await self._rpc.upload(header, partial(self._pieces, words), self.upload_limit))
                case UploadCiphertext(header, data):
                    self._heed(await self._rpc.upload(header, partial(self._slices, data), self.upload_limit))
                case _:
                    raise AssertionError(f"a client session has no effect {type(effect).__name__}")

    async def _charge(self, update: RoundUpdate, attempt: int) -> None:
        """Durably, before a byte of these values leaves; a further attempt that carries the same ones costs nothing."""
        if update.charged:
            return
        await self._pay(update.round, attempt)
        if self._setup.manifest.adapter.personal:
            await self._training.keep(update.round)  # never before: what is not paid for must not live on
        update.charged = True

    async def _pay(self, round_: int, attempt: int) -> None:
        if self._setup.manifest.privacy.protocol != "none":
            await asyncio.to_thread(self._ledger.charge, round_charge(self._setup.manifest, round_, attempt))

    def _pieces(self, words: Words, first: int) -> Iterator[bytes]:
        """Chunks of an upload from index `first` on."""
        return islice(chunks(words, self._setup.params), first, None)

    def _slices(self, data: bytes, first: int) -> Iterator[bytes]:
        """Chunks of an encrypted upload from index `first` on."""
        size = 8 * self._setup.params.chunk_words
        for start in range(first * size, len(data), size):
            yield data[start : start + size]

    def _heed(self, receipt: Receipt) -> None:
        """Late or refused: this attempt goes on without us. What was charged stays charged; the next round counts."""
        if receipt.status is not Status.ACCEPTED and self._joined is not None:
            self._joined.session.abort(f"left out: {receipt.reason or receipt.status.name.lower()}")
            self.on_event({"event": "left-out", "reason": receipt.reason or receipt.status.name.lower()})

    def _leave(self) -> None:
        """End the attempt that we are in. What it was to carry is kept: another attempt of the round may come."""
        joined, self._joined = self._joined, None
        if joined is not None:
            joined.session.abort()

    def _forget_update(self) -> None:
        """The round is spent or over."""
        update, self._update = self._update, None
        if update is not None:
            update.forget()

    async def _withdraw(self, error: BaseException) -> None:
        """Tell the server the class of the error, never its content; it must not mask the error itself."""
        if self._joined is not None:
            self._joined.session.abort()
        code = getattr(error, "code", "E000")
        try:
            await asyncio.wait_for(self._rpc.send(Withdraw(str(code), type(error).__name__)), timeout=5)
        except (ProtocolError, TimeoutError):
            log.info("the server could not be told about %s", code)

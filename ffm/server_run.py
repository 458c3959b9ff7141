"""The server's whole run: rounds of one task over the gRPC server, checkpoints, and the facts for the report.

The server needs no torch: a model is a flat vector. After each attempt the model and its facts are written to the run
folder by atomic rename. An aborted attempt is tried again, a few times, as the next attempt of its round, unless its
set was about to be opened: then clients may have signed, and the next round is due. A server that was killed goes on
with the running attempt; if that cannot be, with the next one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dp.errors import LedgerError
from ffm.published_sum import sum_bytes
from ffm.run_folder import RoundFacts, RunFolder, RunState
from ffm.step import Model, Pull, aggregate_digest, model_bytes, next_model
from protocol.effects import Abort, Released
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.messages import Announcement, Finished, LedgerRow, RoundResult, Statement
from protocol.release import ReleaseLedger
from protocol.roster import Roster
from protocol.rpc.attempt_log import AttemptLog
from protocol.rpc.journal import ServerJournal
from protocol.rpc.limits import Deadlines
from protocol.rpc.server import AggregationServer
from protocol.server import ServerSession
from secagg.errors import SecAggError
from secagg.signing import SigningKey
from secagg.types import ClientId

_log = logging.getLogger(__name__)

ATTEMPTS_PER_ROUND = 3
MAX_ABORTS_IN_A_ROW = 2 * ATTEMPTS_PER_ROUND
Event = Callable[[dict[str, Any]], None]
Over = Callable[[int, Model], Awaitable[bool]]
"""Asked before each attempt and after the last one, with the number of released rounds and the model after them: has
the task ended?"""


async def _never(released: int, model: Model) -> bool:
    return False


class ServerRun:
    """All rounds of one manifest."""

    def __init__(
        self,
        documents: tuple[Manifest, Roster],
        signer: SigningKey,
        rpc: AggregationServer,
        journal: ServerJournal,
        folder: Path,
    ) -> None:
        self.manifest, self.roster = documents
        self.params = self.manifest.secagg_params()
        self._signer = signer
        self._rpc = rpc
        self._journal = journal
        self._folder = RunFolder(folder, self.manifest)
        self.deadlines = Deadlines()
        self.on_event: Event = lambda event: None
        self.pull: Pull | None = None  # what the manifest pins for consolidation, where it does
        self._restored: tuple[ServerSession, int] | None = None  # and when it began
        self.over: Over = _never

    @property
    def state(self) -> RunState:
        """The facts of all attempts."""
        return self._folder.state

    async def restore(self, initial: Model) -> bool:
        """Before the server is bound: bring back what clients of an earlier process may ask for, and the attempt that
        ran when it was killed.

        Returns:
            Whether there is one to go on with. One whose log is damaged is given up, and `on_event` is told.
        """
        model = self._folder.checkpoint(initial)
        self._rpc.publish(self.manifest.model_digest(model_bytes(model)), model_bytes(model))
        self._tell_again()
        try:
            log = AttemptLog.unfinished(self._journal)
            if log is None:
                self._rpc.sweep()
                return False
            begun = log.begun
            if self._is_written(begun.announcement):  # killed between checkpoint and clean-up
                log.close()
                self._rpc.sweep()
                return False
            if begun.announcement.model_digest != self.manifest.model_digest(model_bytes(model)):
                log.close()
                raise ProtocolError("the running attempt began with another model than the checkpoint", code="E424")
            then = self._journal.ledger.upto(begun.announcement.ledger_seq)
            session = self._session(begun.announcement, then, begun.excluded)
            await self._rpc.restore(session, log)
        except (LedgerError, SecAggError) as error:
            round_, attempt = self._journal.last
            self.on_event({"event": "burnt", "round": round_, "attempt": attempt, "reason": str(error)})
            _log.warning("attempt %d of round %d cannot be resumed: %s", attempt, round_, error.code)
            return False
        self._restored = session, begun.started
        return True

    def _tell_again(self) -> None:
        """The last result, to clients that did not hear of it or still want the sum."""
        found = self._folder.last_sum()
        if found is None:
            return
        facts, total = found
        included = tuple(ClientId(client) for client in facts.masked)
        digest = aggregate_digest(bytes.fromhex(facts.ctx), included, total)
        if digest.hex() == facts.aggregate_digest:
            self._rpc.publish(digest, total)
            next_digest = bytes.fromhex(facts.model_digest)
            self._rpc.broadcast(RoundResult(facts.round, facts.attempt, included, digest, next_digest))

    async def run(self, initial: Model) -> Model:
        """Run the remaining rounds, or those until the task is `over`; the last model.

        Raises:
            ProtocolError: Several attempts in a row ended without a sum; and what `over` raises.
        """
        model = self._folder.checkpoint(initial)
        aborts = 0
        if self._restored is not None:
            session, started = self._restored
            self._restored = None
            self._publish(model, session.announcement)
            outcome = await self._rpc.resume(self.deadlines)
            model, released = await self._ended(session, outcome, model, started)
            aborts = 0 if released else 1
        self._account_for_rows(model)
        while not await self.over(self._released, model) and (key := self._next_key()) is not None:
            if aborts:  # who was lost a moment ago may be back in a moment
                await self._rpc.wait_connected(self.roster.ids, self.deadlines.grace)
            model, released = await self._attempt(key, model)
            self._account_for_rows(model)
            aborts = 0 if released else aborts + 1
            if aborts == MAX_ABORTS_IN_A_ROW:
                reason = self.state.rounds[-1].reason
                raise ProtocolError(
                    f"{aborts} attempts in a row ended without a sum",
                    found=reason,
                    expected=f"at least {self.params.required_advertised} clients that stay until the end",
                    do="look at the drops of the last rounds; start the server again when the clients are back",
                    code="E420",
                )
        return model

    async def ended(self, initial: Model) -> bool:
        """Whether an earlier process of this task has left no round to run. Raises what `over` raises."""
        return self._next_key() is None or await self.over(self._released, self._folder.checkpoint(initial))

    @property
    def _released(self) -> int:
        return sum(facts.status == "released" for facts in self.state.rounds)

    def _next_key(self) -> tuple[int, int] | None:
        """The attempt to run next, above everything known; None after the last round."""
        known = [self._journal.last, *((facts.round, facts.attempt) for facts in self.state.rounds[-1:])]
        round_, attempt = max(known)
        # Where a row was written clients may have signed: the round is spent, whatever became of it.
        rows = [facts.round for facts in self.state.rounds if facts.ledger_row is not None]
        opened = max([self._journal.spent_round, *rows])
        if round_ > opened and attempt + 1 < ATTEMPTS_PER_ROUND:
            key = (round_, attempt + 1)
        else:
            key = (max(round_, opened) + 1, 0)
        return key if key[0] <= self.manifest.training.rounds else None

    async def _attempt(self, key: tuple[int, int], model: Model) -> tuple[Model, bool]:
        ledger = self._journal.ledger
        announcement = Announcement(
            round=key[0],
            attempt=key[1],
            manifest_digest=self.manifest.digest(),
            roster_root=self.roster.root(),
            model_digest=self.manifest.model_digest(model_bytes(model)),
            cohort=self.roster.ids,
            ledger_seq=ledger.seq,
        )
        started = int(datetime.now(UTC).timestamp())
        session = self._session(announcement, ledger, self._journal.convicted)
        self._publish(model, announcement)
        outcome = await self._rpc.run_attempt(session, self.deadlines)
        return await self._ended(session, outcome, model, started)

    def _session(
        self, announcement: Announcement, ledger: ReleaseLedger, excluded: frozenset[ClientId]
    ) -> ServerSession:
        return ServerSession(self.params, announcement, self.roster, self._signer, ledger, excluded)

    def _publish(self, model: Model, announcement: Announcement) -> None:
        self._rpc.publish(announcement.model_digest, model_bytes(model))
        total, round_, attempt = self.manifest.training.rounds, announcement.round, announcement.attempt
        self.on_event({"event": "round", "round": round_, "attempt": attempt, "rounds": total})

    async def _ended(
        self, session: ServerSession, outcome: Released | Abort, model: Model, started: int
    ) -> tuple[Model, bool]:
        """Write down what became of an attempt, then tell the clients."""
        digest, total, released = b"", b"", isinstance(outcome, Released)
        if isinstance(outcome, Released):
            total, model = await asyncio.to_thread(self._step, outcome, model)
            if self._folder.tally is not None:
                key = session.announcement.round, session.announcement.attempt
                self._folder.tally.add(key, outcome.total, len(outcome.masked))
            digest = aggregate_digest(session.ctx, outcome.masked, total)
        else:
            self._journal.convict(outcome.convicted)
        facts = self._facts(session, outcome, digest, started)
        data = model_bytes(model)
        facts.model_digest = self.manifest.model_digest(data).hex()
        await asyncio.to_thread(self._folder.write, data, facts, total)
        await self._rpc.settle()
        if isinstance(outcome, Released):
            self._rpc.publish(digest, total)
            key, next_digest = (facts.round, facts.attempt), bytes.fromhex(facts.model_digest)
            self._rpc.broadcast(RoundResult(*key, outcome.masked, digest, next_digest))
        self.on_event({"event": "round-ended", **asdict(facts)})
        return model, released

    @property
    def importance(self) -> Model | None:
        """What a task that goes on must not forget; None where the manifest has nothing tallied."""
        if self._folder.tally is None:
            return None
        return self._folder.tally.importance(None if self.pull is None else self.pull.importance)

    def _step(self, outcome: Released, model: Model) -> tuple[bytes, Model]:
        """Bytes of the sum, and the model after it."""
        model = next_model(model, outcome.total, len(outcome.masked), self.manifest, self.pull)
        if not np.isfinite(model).all():
            raise ProtocolError("the aggregate makes the model infinite", code="E421")
        return sum_bytes(outcome.total), model

    def _is_written(self, announcement: Announcement) -> bool:
        key = (announcement.round, announcement.attempt)
        return any((facts.round, facts.attempt) == key for facts in self.state.rounds)

    def _account_for_rows(self, model: Model) -> None:
        """Facts for release-ledger rows of attempts that this server could not finish: the report shows every row."""
        now, digest = int(datetime.now(UTC).timestamp()), self.manifest.model_digest(model_bytes(model)).hex()
        for row, head in zip(self._journal.ledger.rows, self._journal.ledger.heads, strict=True):
            last = max(((facts.round, facts.attempt) for facts in self.state.rounds), default=(0, 0))
            if (row.round, row.attempt) <= last:
                continue
            facts = RoundFacts(
                round=row.round,
                attempt=row.attempt,
                status="aborted",
                reason="the server could not go on with this attempt after a restart",
                ctx=row.ctx.hex(),
                cohort=list(self.roster.ids),
                advertised=[],
                shared=[],
                masked=[],
                checked=[],
                unmasked=[],
                drops={},
                ledger_row=_row_facts(row, head),
                aggregate_digest="",
                model_digest=digest,
                started=now,
                ended=now,
            )
            self._folder.write(model_bytes(model), facts, b"")

    async def finish(self, wait_s: float) -> dict[ClientId, Statement]:
        """End the task; the signed privacy-ledger statements that arrive within `wait_s` seconds."""
        self._rpc.broadcast(Finished(len(self.state.rounds)))
        return await self._rpc.collect_statements(wait_s)

    def _facts(self, session: ServerSession, outcome: Released | Abort, digest: bytes, started: int) -> RoundFacts:
        row = next((r for r in session.ledger.rows[-1:] if r.ctx == session.ctx), None)
        released = isinstance(outcome, Released)
        return RoundFacts(
            round=session.announcement.round,
            attempt=session.announcement.attempt,
            status="released" if released else "aborted",
            reason=outcome.reason if isinstance(outcome, Abort) else "",
            ctx=session.ctx.hex(),
            cohort=list(session.announcement.cohort),
            advertised=list(session.advertised),
            shared=list(session.shared),
            masked=list(session.masked),
            checked=list(session.checked),
            unmasked=list(session.unmasked),
            drops={str(client): reason.name for client, reason in sorted(session.drops.items())},
            ledger_row=None if row is None else _row_facts(row, session.ledger.head),
            aggregate_digest=digest.hex(),
            model_digest="",
            started=started,
            ended=int(datetime.now(UTC).timestamp()),
        )


def _row_facts(row: LedgerRow, head: bytes) -> dict[str, Any]:
    return {
        "seq": row.seq,
        "ctx": row.ctx.hex(),
        "root_u2": row.root_u2.hex(),
        "hash_u3": row.hash_u3.hex(),
        "head": head.hex(),
        "signature": row.signature.hex(),
    }

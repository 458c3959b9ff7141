"""The server's whole run: rounds of one task over the gRPC server, checkpoints, and the facts for the report.

The server needs no torch: a model is a flat vector. After each round the new model and the round's facts are written
to the run folder by atomic rename; a server that was killed starts again at the next round number with the last
written model.
"""

import asyncio
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ffm.step import Model, aggregate_digest, model_bytes, next_model
from protocol.effects import Abort, Released
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.messages import Announcement, Finished, RoundResult, Statement
from protocol.roster import Roster
from protocol.rpc.journal import ServerJournal
from protocol.rpc.limits import Deadlines
from protocol.rpc.server import AggregationServer
from protocol.server import ServerSession
from secagg.signing import SigningKey
from secagg.types import ClientId

log = logging.getLogger(__name__)

MAX_ABORTS_IN_A_ROW = 3
Event = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class RoundFacts:
    """What the report says about one attempt. Sets are ascending client ids."""

    round: int
    attempt: int
    status: str  # "released" or "aborted"
    reason: str
    ctx: str
    cohort: list[int]
    advertised: list[int]
    shared: list[int]
    masked: list[int]
    checked: list[int]
    unmasked: list[int]
    drops: dict[str, str]
    ledger_row: dict[str, Any] | None
    aggregate_digest: str
    model_digest: str
    started: int  # Unix seconds
    ended: int


@dataclass(slots=True)
class RunState:
    """What a restart needs, besides the journal."""

    run_id: str
    started: int
    rounds: list[RoundFacts] = field(default_factory=list)


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
        self._folder = folder
        self.deadlines = Deadlines()
        self.on_event: Event = lambda event: None
        self.state = load_state(folder)

    async def run(self, initial: Model) -> Model:
        """Run the remaining rounds; the last model.

        Raises:
            ProtocolError: Several attempts in a row ended without a sum.
        """
        model = self._checkpoint(initial)
        write_atomic(self._folder / "state.json", json.dumps(asdict(self.state), indent=1).encode())
        first = self._journal.last[0] + 1
        aborts = 0
        for round_ in range(first, self.manifest.training.rounds + 1):
            model, released = await self._round(round_, model)
            aborts = 0 if released else aborts + 1
            if aborts == MAX_ABORTS_IN_A_ROW:
                reason = self.state.rounds[-1].reason
                raise ProtocolError(
                    f"{aborts} attempts in a row ended without a sum",
                    found=reason,
                    expected=f"at least {self.params.required} clients in every phase",
                    do="look at the drops of the last rounds; start the server again when the clients are back",
                    code="E420",
                )
        return model

    async def _round(self, round_: int, model: Model) -> tuple[Model, bool]:
        data = model_bytes(model)
        announcement = Announcement(
            round=round_,
            attempt=0,
            manifest_digest=self.manifest.digest(),
            roster_root=self.roster.root(),
            model_digest=self.manifest.model_digest(data),
            cohort=self.roster.ids,
        )
        started = int(datetime.now(UTC).timestamp())
        session = ServerSession(self.params, announcement, self.roster, self._signer, self._journal.ledger)
        self._rpc.publish(announcement.model_digest, data)
        self.on_event({"event": "round", "round": round_, "rounds": self.manifest.training.rounds})
        outcome = await self._rpc.run_attempt(session, self.deadlines)
        digest = b""
        if isinstance(outcome, Released):
            total = outcome.total.astype("<i8").tobytes()
            digest = aggregate_digest(session.ctx, outcome.masked, total)
            model = next_model(model, outcome.total, len(outcome.masked), self.manifest)
            if not np.isfinite(model).all():
                raise ProtocolError("the aggregate makes the model infinite", code="E421")
        facts = self._facts(session, outcome, digest, started)
        facts.model_digest = self.manifest.model_digest(model_bytes(model)).hex()
        await asyncio.to_thread(self._write, model, facts)
        if isinstance(outcome, Released):
            self._rpc.publish(digest, total)
            self._rpc.broadcast(
                RoundResult(round_, 0, outcome.masked, digest, self.manifest.model_digest(model_bytes(model)))
            )
        self.on_event({"event": "round-ended", **asdict(facts)})
        return model, isinstance(outcome, Released)

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
            ledger_row=None
            if row is None
            else {
                "seq": row.seq,
                "ctx": row.ctx.hex(),
                "root_u2": row.root_u2.hex(),
                "hash_u3": row.hash_u3.hex(),
                "head": session.ledger.head.hex(),
                "signature": row.signature.hex(),
            },
            aggregate_digest=digest.hex(),
            model_digest="",
            started=started,
            ended=int(datetime.now(UTC).timestamp()),
        )

    # -- the run folder -----------------------------------------------------------------------------------------------

    def _checkpoint(self, initial: Model) -> Model:
        """The model to go on from: the last written one, or the manifest's initial adapter."""
        path = self._folder / "model.f32"
        if not path.exists():
            return initial
        model = np.frombuffer(path.read_bytes(), dtype="<f4").astype(np.float32)
        if len(model) != self.manifest.adapter.size:
            raise ProtocolError(
                "the checkpoint belongs to another manifest", found=len(model), expected=self.manifest.adapter.size
            )
        return model

    def _write(self, model: Model, facts: RoundFacts) -> None:
        self.state.rounds.append(facts)
        write_atomic(self._folder / "model.f32", model_bytes(model))
        write_atomic(self._folder / "state.json", json.dumps(asdict(self.state), indent=1).encode())


def load_state(folder: Path) -> RunState:
    """The facts that a run folder holds; fresh ones if there are none yet."""
    path = folder / "state.json"
    if not path.exists():
        return RunState(folder.name, int(datetime.now(UTC).timestamp()))
    raw = json.loads(path.read_bytes())
    return RunState(raw["run_id"], raw["started"], [RoundFacts(**row) for row in raw["rounds"]])


def write_atomic(path: Path, data: bytes) -> None:
    """Write, fsync, rename: a reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)

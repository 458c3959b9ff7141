"""The server's run folder: model, last sum and the facts of every attempt, changed together. It outlives the process.

| file | what |
|---|---|
| `manifest.json`, `.sig` | what the owner signed |
| `model.f32` | the model after the last attempt; with FedAdam or FedYogi its moments behind it |
| `sum.i32` | the last released sum |
| `state.json` | what the report says about each attempt |
| `squares-R-A.safetensors` | where the manifest has them tallied: squares of the sums up to attempt A of round R |
| `statements/` | of each client that has ended, what it charged, signed |
| `importance.f32` | the same, at the end: what the next task must not forget (`ffm.consolidation`) |
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ffm.consolidation import Tally
from ffm.step import Model, floats, model_bytes
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.messages import Statement
from secagg.types import ClientId

MODEL, NEXT_MODEL, SUM, STATE = "model.f32", "model-next.f32", "sum.i32", "state.json"
MANIFEST = "manifest.json"


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


class RunFolder:
    """One task's folder at its server."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Raises ProtocolError E422 where what the state names is gone."""
        self.path, self._manifest = path, manifest
        self.state = load_state(path)
        self.tally = self._restored_tally()

    def checkpoint(self, initial: Model) -> Model:
        """The model to go on from: the last written one, or the manifest's initial adapter.

        Raises:
            ProtocolError: E422, no file of the run folder is the model that the last facts name.
        """
        model, written = initial, self.path / MODEL
        expected = self.state.rounds[-1].model_digest if self.state.rounds else None
        if expected is None and not written.exists():
            write_atomic(self.path / STATE, self._state_json())
            return model
        for path in (written, self.path / NEXT_MODEL):
            if not path.exists():
                continue
            model = floats(path.read_bytes())
            if expected in (None, self._manifest.model_digest(model_bytes(model)).hex()):
                if path != written:  # killed between the facts and the renaming
                    os.replace(path, written)
                return model
        if expected == self._manifest.model_digest(model_bytes(initial)).hex():
            return initial
        raise ProtocolError(
            "the run folder does not hold the model of its last round",
            found=f"no {MODEL} with the digest {(expected or '')[:16]}...",
            expected="the files of one run, as this server wrote them",
            do="restore model and state of this run folder together",
            code="E422",
        )

    def write(self, model: bytes, facts: RoundFacts, total: bytes) -> None:
        """Model and facts change together: a server that is killed in between finds the right one of two models."""
        self.state.rounds.append(facts)
        if total:
            write_atomic(self.path / SUM, total)
        if total and self.tally is not None:  # under its sum's name: of two, the one that the facts name counts
            write_atomic(self.path / _tally_name(facts.round, facts.attempt), self.tally.save())
        write_atomic(self.path / NEXT_MODEL, model)
        write_atomic(self.path / STATE, self._state_json())
        os.replace(self.path / NEXT_MODEL, self.path / MODEL)
        for older in self.path.glob(_tally_name("*", "*")) if total else ():
            if older.name != _tally_name(facts.round, facts.attempt):
                older.unlink()

    def last_sum(self) -> tuple[RoundFacts, bytes] | None:
        """The facts of the last attempt with its sum, if it released one that is still there."""
        facts = self.state.rounds[-1] if self.state.rounds else None
        path = self.path / SUM
        return None if facts is None or facts.status != "released" or not path.exists() else (facts, path.read_bytes())

    def _state_json(self) -> bytes:
        return json.dumps(asdict(self.state), indent=1).encode()

    def _restored_tally(self) -> Tally | None:
        """Fresh, or as it stood after the last sum; None where the manifest has nothing tallied."""
        if self._manifest.training.consolidation is None:
            return None
        last = next((facts for facts in reversed(self.state.rounds) if facts.status == "released"), None)
        if last is None:
            return Tally(self._manifest)
        path = self.path / _tally_name(last.round, last.attempt)
        if not path.exists():
            raise ProtocolError(
                "the run folder has lost what the sums so far told of the parameters",
                found=f"no {path.name}",
                expected=f"the squares of the sums up to round {last.round}",
                do="restore the run folder from a backup",
                code="E422",
            )
        return Tally.restored(self._manifest, path.read_bytes())


def _tally_name(round_: int | str, attempt: int | str) -> str:
    return f"squares-{round_}-{attempt}.safetensors"


def load_state(folder: Path) -> RunState:
    """The facts that a run folder holds; fresh ones if there are none yet."""
    path = folder / STATE
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


def write_statements(run: Path, statements: Mapping[ClientId, Statement]) -> None:
    """One signed document per client."""
    folder = run / "statements"
    folder.mkdir(exist_ok=True)
    for client, statement in statements.items():
        write_atomic(folder / f"{client}.json.sig", statement.signature)  # first: who is killed has no body without it
        write_atomic(folder / f"{client}.json", statement.body)


def load_statements(run: Path) -> dict[ClientId, Statement]:
    """What `write_statements` wrote."""
    return {
        ClientId(int(path.stem)): Statement(path.read_bytes(), path.with_name(path.name + ".sig").read_bytes())
        for path in (run / "statements").glob("*.json")
    }

"""The server judges each released model on public records, and ends the task when the loss has stopped falling.

The rule reads released models and public records alone, so it costs no privacy; rounds that are not run are not charged
(docs/adr/0062). The server's own process stays without torch: a process like a client's training process computes the
loss (`ffm.worker`). While there is doubt whether another round is wanted, none is begun: a process that fails is
replaced once, then the server stops with E425, and goes on from the last released round when it is started again.

`validation.json` in the run folder keeps the losses, so that a restart decides as its predecessor would have done.

| code | meaning |
|---|---|
| E425 | a released model could not be judged |
| E426 | the losses of the run folder are of other validation records, or cannot be read |
"""

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ffm.errors import TrainingProcessError
from ffm.local_setup import LocalSetup
from ffm.plateau import Plateau, comparable
from ffm.run_folder import write_atomic
from ffm.step import Model, parameters_of
from ffm.training_process import TrainingProcess
from protocol.errors import ProtocolError
from protocol.manifest import Manifest

LOSSES, LOG = "validation.json", "validation.log"
Event = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Validation:
    """What the operator of a server chooses. `data`: public records, in the form that the task reads at a client."""

    data: Path
    plateau: Plateau = field(default_factory=Plateau)
    limit_s: float = 600.0  # for loading, and for each judgement


class Judge:
    """One run's losses and the process that computes them. `open` before the first `over`; then `close`."""

    def __init__(
        self, manifest: Manifest, setup: LocalSetup, validation: Validation, run: Path, on_event: Event
    ) -> None:
        """`setup`: where this machine has the base model; its `data` are those of `validation`. `run`: run folder."""
        self._manifest, self._setup = manifest, setup
        self._plateau, self._limit = validation.plateau, validation.limit_s
        self._run, self._on_event = run, on_event
        self._process: TrainingProcess | None = None
        self._digest = ""
        self._told = 0  # the round of a plateau that was told
        self._losses: dict[int, float] = {}  # by the number of released rounds, ascending

    async def open(self) -> None:
        """Load model and records, and what an earlier process of this run found.

        Raises:
            TrainingProcessError: As `TrainingProcess.load`; E521 also when it takes longer than the limit.
            ProtocolError: E426.
        """
        self.remember()
        await self._start()

    def remember(self) -> None:
        """What an earlier process of this run found. Raises ProtocolError E426."""
        data = self._setup.data
        self._digest = hashlib.sha256(data.read_bytes()).hexdigest() if data.is_file() else ""  # loading will say so
        self._losses = self._read()

    async def over(self, released: int, model: Model) -> bool:
        """Whether the task ends with the `released`-th released sum, which made `model`; 0: not begun.

        Raises:
            ProtocolError: E425, nobody could tell, and there are rounds left: none may be begun.
        """
        rounds = self._manifest.training.rounds
        if released not in self._losses:
            try:
                loss = await self._loss(released, model)
            except ProtocolError:
                if released < rounds:
                    raise
                return True  # nothing is in doubt after the last round
            self._losses = dict(sorted({**self._losses, released: loss}.items()))
            await asyncio.to_thread(write_atomic, self._run / LOSSES, self._json())
            self._on_event({"event": "validated", "round": released, "loss": loss})
        if not self._plateau.reached([loss for number, loss in self._losses.items() if number <= released]):
            return False
        if released < rounds and self._told != released:
            self._told = released
            self._on_event({"event": "plateau", "round": released, "rounds": rounds})
        return True

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            await process.close()

    async def _start(self) -> None:
        await self.close()
        process = await TrainingProcess.spawn(self._setup.compute.threads, self._run / LOG)
        try:
            async with asyncio.timeout(self._limit):
                await process.load(self._manifest.to_bytes(), self._setup)
        except TimeoutError as error:
            await process.close()
            raise TrainingProcessError(
                "the validation process does not get ready", found=f"{self._limit:.0f} s", do=f"read {LOG}"
            ) from error
        except BaseException:
            await process.close()
            raise
        self._process = process

    async def _loss(self, released: int, model: Model) -> float:
        vector = parameters_of(model, self._manifest)
        for last in (False, True):
            try:
                if self._process is None:
                    await self._start()
                assert self._process is not None  # noqa: S101 - started above
                async with asyncio.timeout(self._limit):
                    scores = await self._process.scores(released, vector)
                if "loss" not in scores:
                    raise TrainingProcessError("the task gives no loss", found=", ".join(scores), expected="loss")
                return comparable(scores["loss"])
            except (TrainingProcessError, TimeoutError) as error:
                await self.close()
                if last:
                    raise self._undecided(released, error) from error
                self._on_event({"event": "validation-failed", "round": released, "reason": _told(error)})
        raise AssertionError("the second failure is raised")

    def _undecided(self, released: int, error: Exception) -> ProtocolError:
        return ProtocolError(
            f"the model after {released} released rounds could not be judged",
            found=_told(error),
            expected="a loss on the validation records",
            do=f"read {self._run / LOG}; start the server again, which goes on after the last released round, or "
            "without --validation to run all rounds of the manifest",
            code="E425",
        )

    def _json(self) -> bytes:
        losses = {str(number): loss for number, loss in self._losses.items()}
        return json.dumps({"records": self._digest, "losses": losses}, indent=1).encode()

    def _read(self) -> dict[int, float]:
        path = self._run / LOSSES
        if not path.exists():
            return {}
        try:
            raw = json.loads(path.read_bytes())
            losses = {int(number): float(loss) for number, loss in raw["losses"].items()}
            found = str(raw["records"])
        except (ValueError, LookupError, TypeError, AttributeError):
            found, losses = "a file that cannot be read", {}
        if found != self._digest:
            raise ProtocolError(
                "the losses of this run are of other validation records",
                found=f"{found[:16]}... in {path}",
                expected=f"{self._digest[:16]}..., the SHA-256 of {self._setup.data.name}",
                do="give the file that the run was begun with",
                code="E426",
            )
        return dict(sorted(losses.items()))


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, TrainingProcessError) else "no answer within the limit"

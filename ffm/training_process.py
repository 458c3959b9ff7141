"""A client's view of its training process (`ffm.worker`): start it, load, train, close.

The client's event loop keeps answering while the process computes. A request that is cancelled kills the process:
half an answer in the pipe must never be taken for the next one.
"""

import asyncio
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

import ffm
from ffm import frames
from ffm.errors import TrainingProcessError
from ffm.local_setup import LocalSetup
from ffm.round_update import Update
from ffm.step import floats
from protocol.manifest import Manifest
from protocol.roster import parse_model

_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a loaded training process reports, and no count of records.

    `initial` is the flat vector that the manifest's seed gives, float32, shape (parameters,): round 1 starts there.
    """

    parameters: int
    initial: npt.NDArray[np.float32] = field(repr=False)


class TrainingProcess:
    """One spawned `python -m ffm.worker`. Use `await TrainingProcess.spawn()`, or as `async with`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()
        self._integers = 0  # that `train` answers; 0: reals, as many as it is given

    @classmethod
    async def spawn(cls, threads: int = 1, log: Path | None = None) -> "TrainingProcess":
        """Start the process (about 5 s until torch is loaded; `load` waits for it).

        Args:
            threads: CPU threads for training.
            log: File that takes its standard error; without it the client's own standard error.
        """
        root = str(Path(ffm.__path__[0]).parent)  # the child finds the packages that this process runs
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        errors = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "ffm.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,  # Ctrl-C at the terminal is the parent's to answer
            )
        except OSError as error:
            raise TrainingProcessError(
                "the training process cannot be started", found=type(error).__name__, do="check memory and limits"
            ) from error
        finally:
            if errors is not None:
                os.close(errors)
        return cls(process)

    @property
    def pid(self) -> int:
        """Process id, for the operator's table and for tests."""
        return self._process.pid

    async def load(self, manifest: bytes, setup: LocalSetup) -> Loaded:
        """Load base model, adapter and records. `manifest`: its exact bytes, already verified against the owner's key.

        Raises:
            TrainingProcessError: with the worker's own code, text and advice (E501 changed base model, E511 to E514
                data, E503, E505 and E507 adapter, E509 personal tensors, E524 and E525 device, E531 and E532 task);
                E521 if the process ended.
        """
        document = parse_model(Manifest, "manifest", manifest)
        self._integers = document.vector_length if document.noise_in_shares else 0
        header, body = await self._request({"op": "load", **setup.header()}, manifest)
        initial = floats(body)
        return Loaded(int(header["parameters"]), initial)

    async def train(self, round: int, vector: npt.NDArray[np.float32]) -> Update:
        """Local update of one round: trained minus `vector` (float32, flat), same shape; where noise comes in shares
        integers.

        Raises:
            TrainingProcessError: E503 or E504 for a vector that does not fit or is not finite, E522 before `load`,
                E523 device failure, E521 if the process ended; codes of `dp.errors` as they are.
        """
        _, body = await self._request({"op": "train", "round": round}, vector.astype("<f4").tobytes())
        expected = 8 * self._integers or 4 * vector.size
        if len(body) != expected:
            raise TrainingProcessError(
                "the training process sent an update of another length",
                found=len(body),
                expected=expected,
                code="E522",
            )
        if self._integers:
            return np.frombuffer(body, dtype="<i8").astype(np.int64)
        return floats(body)

    async def keep(self, round: int) -> None:
        """The round's training is paid for: what it made of the personal tensors is kept. Raises as `train`."""
        await self._request({"op": "keep", "round": round}, b"")

    async def scores(self, round: int, vector: npt.NDArray[np.float32]) -> dict[str, float]:
        """How the task judges the parameters `vector` on the loaded records, by name; NaN for what is no finite number.

        Raises:
            TrainingProcessError: As `train`.
        """
        header, _ = await self._request({"op": "score", "round": round}, vector.astype("<f4").tobytes())
        return {name: math.nan if score is None else float(score) for name, score in header["scores"].items()}

    async def close(self) -> None:
        """End the process: its input is closed, and it is killed if it has not gone within five seconds."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._ended()

    async def __aenter__(self) -> "TrainingProcess":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._kill()  # it holds nothing that is worth a wait
        await self.close()

    async def _ended(self) -> int:
        """Exit status, at the latest after the grace time: then the process is killed."""
        try:
            return await asyncio.wait_for(self._process.wait(), _GRACE_S)
        except TimeoutError:
            self._kill()
            return await self._process.wait()

    def _kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()

    async def _request(self, header: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        async with self._turn:
            try:
                answer, content = await self._exchange(frames.pack(header, body))
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                code = await self._ended()
                raise TrainingProcessError(
                    "the training process ended",
                    found=f"signal {-code}" if code < 0 else f"exit status {code}",
                    expected="an answer",
                    do="look at its log; signal 9 is usually a machine without enough memory",
                ) from error
            except BaseException:
                self._kill()  # cancelled or out of step: what is still in the pipe belongs to nobody
                raise
        if "error" in answer:
            failed = answer["error"]
            raise TrainingProcessError(
                failed["what"], found=failed["found"], expected=failed["expected"], do=failed["do"], code=failed["code"]
            )
        if answer.get("ok") != header["op"]:
            self._kill()
            raise TrainingProcessError("an answer to another request", expected=header["op"], code="E522")
        return answer, content

    async def _exchange(self, frame: bytes) -> tuple[dict[str, Any], bytes]:
        to, back = self._process.stdin, self._process.stdout
        if to is None or back is None:
            raise TrainingProcessError("the training process has no pipes", do="start it with TrainingProcess.spawn")
        to.write(frame)
        await to.drain()
        length = frames.header_length(await back.readexactly(frames.PREFIX))
        header, size = frames.parse_header(await back.readexactly(length))
        return header, await back.readexactly(size)

"""`python -m ffm.worker`: the process that trains for one client, and the only one that holds its records in memory.

It speaks `ffm.frames` on standard input and output, one request at a time:

    load   header: as `ffm.local_setup.LocalSetup.header`; body: the manifest's exact bytes, whose signature the parent
           has checked. Answers tensors, parameters, records (a count that stays on this machine), and as body the
           initial flat vector.
    train  header: round; body: the global parameters, float32 little-endian. Answers the local update, trained minus
           global, in the same form; under protocol R1 it is post-processing of noised steps. Under protocols R2
           and C it answers integers with a share of the noise, int64 little-endian: the sum of clipped gradients; the
           clipped and rounded update.
    keep   header: round, whose training is paid for: the personal tensors that it left are this site's from now on.
           They are never in an answer.
    score  header: round; body: parameters as in train. Answers how the task judges them on the loaded records, which
           at a server are public ones.

A failure is answered as {"error": {code, what, found, expected, do}} and leaves the process ready for the next request.
It never imports grpc (whose threads do not survive a fork, and which has no business near the records), ends when its
standard input ends, also in the middle of training, and ignores SIGINT: the parent decides.
"""

import math
import os
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn

from dp.errors import PrivacyError
from dp.objective import Dataset
from dp.sampling import Csprng
from ffm import frames
from ffm.errors import AdapterError, DataError, TrainingProcessError
from ffm.learner import Learner, Update, plan_of
from ffm.local_setup import LocalSetup
from ffm.models import offline, verify_base_model
from ffm.personal import PersonalState
from ffm.tasks import Scores, find
from protocol.manifest import Manifest
from protocol.roster import parse_model
from secagg.errors import SecAggError


@dataclass(frozen=True, slots=True)
class LocalTraining:
    """A loaded model and a site's records; `rng` draws everything random of this process and is never seen outside."""

    learner: Learner
    dataset: Dataset = field(repr=False)
    personal: PersonalState = field(repr=False)
    rng: Csprng = field(repr=False)

    @classmethod
    def load(cls, manifest: Manifest, setup: LocalSetup) -> "LocalTraining":
        """Check the base model against the manifest, build the adapter, read and tokenise the records."""
        verify_base_model(manifest.base_model, setup.base_model)
        records = find(manifest.training.task, setup.task_file).read(setup.data, manifest.training)
        # δ and the headroom of the sum stand on this bound; what is only judged on is in neither.
        if len(records) > manifest.privacy.max_records and not setup.judges:
            raise DataError(
                f"{setup.data.name} holds more records than the manifest allows for all sites together",
                found="more",  # the count stays at this site
                expected=f"at most {manifest.privacy.max_records}",
                do="ask the owner for a manifest with a larger max_records",
                code="E517",
            )
        learner = Learner.load(manifest, setup.base_model, setup.compute, setup.task_file)
        personal = PersonalState.open(manifest, setup.personal, learner.personal())
        dataset = learner.tensors(records)
        learner.check(dataset)
        return cls(learner, dataset, personal, Csprng.from_os())

    @property
    def model(self) -> nn.Module:
        """Base model with its adapter."""
        return self.learner.model

    def update(self, vector: np.ndarray[Any, np.dtype[np.float32]], round_: int) -> Update:
        """One round by the manifest's plan; see `Learner.update`."""
        self.learner.put_personal(self.personal.kept)
        update = self.learner.update(vector, self.dataset, plan_of(self.learner.manifest), self.rng, round_)
        try:
            self.personal.propose(round_, self.learner.personal())
        except AdapterError:  # not finite
            if self.learner.manifest.privacy.protocol != "C":
                raise
            self.personal.propose(round_, self.personal.kept)  # that training broke down is seen by nobody
        return update

    def scores(self, vector: np.ndarray[Any, np.dtype[np.float32]]) -> Scores:
        """How the task judges the model at `vector`, with the personal tensors as they are kept, on the records."""
        self.learner.put_personal(self.personal.kept)
        return self.learner.scores(vector, self.dataset)


def refuse_grpc() -> None:
    """Raise TrainingProcessError if grpc is loaded in this process."""
    if any(name == "grpc" or name.startswith("grpc.") for name in sys.modules):
        raise TrainingProcessError(
            "grpc is loaded in the training process",
            expected="no network library here",
            do="report this bug",
            code="E523",
        )


class Worker:
    """Requests in, answers out; at most one `LocalTraining` at a time."""

    def __init__(self, after_load: Callable[[], None]) -> None:
        """`after_load` runs when everything is imported; what it raises is the answer."""
        self._training: LocalTraining | None = None
        self._judges = False
        self._after_load = after_load

    def answer(self, header: Mapping[str, Any], body: bytes) -> bytes:
        """The frame that answers one request."""
        try:
            match header.get("op"):
                case "load":
                    return self._load(header, body)
                case "train":
                    return self._train(header, body)
                case "keep":
                    return self._keep(header)
                case "score":
                    return self._score(header, body)
                case _:
                    expected = '"load", "train", "keep" or "score"'
                    raise TrainingProcessError("an unknown request", expected=expected, code="E522")
        except (SecAggError, PrivacyError) as error:
            return failure(error.code, error.what, error.found, error.expected, error.do)
        except (RuntimeError, MemoryError) as error:
            # What a device reports when it is full or lost. The text may quote tensors, so only its kind is passed on.
            return failure(
                "E523",
                "training failed on this device",
                type(error).__name__,
                "enough free memory and a working device",
                "free memory, or use --device cpu",
            )

    def _load(self, header: Mapping[str, Any], body: bytes) -> bytes:
        self._training = None
        setup = LocalSetup.parse(header)
        torch.set_num_threads(max(1, setup.compute.threads))
        loaded = LocalTraining.load(parse_model(Manifest, "manifest", body), setup)
        self._after_load()
        self._training, self._judges = loaded, setup.judges
        manifest = loaded.learner.manifest
        initial = loaded.learner.initial()  # what the manifest's seed gives: round 1 must start here
        return frames.pack({"ok": "load", "parameters": manifest.adapter.size}, initial.astype("<f4").tobytes())

    def _train(self, header: Mapping[str, Any], body: bytes) -> bytes:
        training, round_ = self._loaded(header)
        if self._judges:
            raise TrainingProcessError("train on records that are only judged on", expected="score", code="E522")
        update = training.update(_vector(body), round_)
        return frames.pack({"ok": "train"}, update.astype(update.dtype.newbyteorder("<")).tobytes())

    def _keep(self, header: Mapping[str, Any]) -> bytes:
        training, round_ = self._loaded(header)
        training.personal.keep(round_)
        return frames.pack({"ok": "keep"}, b"")

    def _score(self, header: Mapping[str, Any], body: bytes) -> bytes:
        training, _ = self._loaded(header)
        scores = {name: float(score) for name, score in training.scores(_vector(body)).items()}
        # Of a model that has diverged: what is no number in JSON stays away, the rest is answered.
        return frames.pack({"ok": "score", "scores": {n: s if math.isfinite(s) else None for n, s in scores.items()}})

    def _loaded(self, header: Mapping[str, Any]) -> tuple[LocalTraining, int]:
        if self._training is None:
            raise TrainingProcessError(f"{header['op']} before load", expected="load first", code="E522")
        if type(header.get("round")) is not int:
            raise TrainingProcessError("an incomplete request", expected="round", code="E522")
        return self._training, header["round"]


def _vector(body: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Empty for a body of another kind: refused where it is used, with both lengths in the message."""
    return np.frombuffer(b"" if len(body) % 4 else body, dtype="<f4").astype(np.float32)


def failure(code: str, what: str, found: object, expected: object, do: str | None) -> bytes:
    """An error as a frame; `found` and `expected` as text, as a person would read them."""
    error = {
        "code": code,
        "what": what,
        "found": None if found is None else str(found)[:1000],
        "expected": None if expected is None else str(expected)[:1000],
        "do": do,
    }
    return frames.pack({"error": error})


def _listen(stream: BinaryIO, requests: "queue.Queue[tuple[dict[str, Any], bytes]]") -> None:
    """Read requests until standard input ends, which is also how the death of the parent shows; then end at once,
    training or not: nobody is left to take an answer."""
    status = 0
    try:
        while (frame := frames.read(stream)) is not None:
            requests.put(frame)
    except TrainingProcessError as error:
        status = 1
        print(f"error {error.code} {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Standard output belongs to the frames: whatever else prints, in Python or below it, lands on standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout = sys.stderr
    warnings.filterwarnings("ignore", category=FutureWarning)
    offline()
    refuse_grpc()
    requests: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue(maxsize=1)
    threading.Thread(target=_listen, args=(sys.stdin.buffer, requests), daemon=True).start()
    worker = Worker(refuse_grpc)  # nothing that loading imports may bring it along
    while True:
        answers.write(worker.answer(*requests.get()))
        answers.flush()


if __name__ == "__main__":
    main()

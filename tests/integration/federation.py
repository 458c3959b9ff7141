"""A small real consortium on disk, and its processes: what the end-to-end tests start, watch and kill."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ffm.consortium import Consortium, ConsortiumConfig, ServerConfig, create_consortium
from ffm.data import icd10_records, write_records
from ffm.demo import free_port
from ffm.task import TaskSettings, build_manifest
from protocol.manifest import Manifest

ROOT = Path(__file__).parents[2]
NAMES = ("north", "east", "south", "west")
SETTINGS: dict[str, Any] = {
    "task": "small-task",
    "adapter_seed": 7,
    "data": {"description": "a few code texts", "sites": 4, "dirichlet": "1/1", "cap_per_class": 100, "seed": 1},
    "privacy": {"protocol": "R1", "epsilon": "8", "delta": "0.00001", "max_records": 1000, "spare_rounds": 0},
    "aggregation": {
        "num_clients": 4,
        "max_corrupt": 1,
        "max_dropouts": 1,
        "min_cohort": 3,
        "slots_per_word": 3,
        "chunk_words": 64,
    },
    "models": {
        "bert-tiny": {
            "base_model": "bert-tiny",
            "rank": 1,
            "alpha": 2,
            "target_modules": ("layer.1.attention.self.query",),
            "max_length": 16,
            "optimizer": "sgd",
            "learning_rate": "0.1",
            "rounds": 3,
            "local_steps": 2,
            "expected_batch": 10,
            "sampling": "1/8",
            "scale": 65536,
            "clip_steps": 65536,
            "noise_steps": 65536,
            "aggregation_scale": 65536,
            "aggregation_bound": 131072,
        }
    },
}


def settings(**model: Any) -> TaskSettings:
    """The small task with some model settings changed."""
    body = {**SETTINGS, "models": {"bert-tiny": {**SETTINGS["models"]["bert-tiny"], **model}}}
    return TaskSettings.model_validate(body)


def make(folder: Path, **model: Any) -> tuple[Consortium, Manifest]:
    """All folders of a consortium of four clients with 60 real texts each."""
    records = icd10_records()
    manifest = build_manifest(settings(**model), "bert-tiny")
    config = ConsortiumConfig(
        consortium="test", task="-", server=ServerConfig(host="127.0.0.1", port=free_port()), clients=NAMES
    )
    made = create_consortium(config, folder, manifest)
    for number, site in enumerate(made.clients.values()):
        write_records(site / "records.csv", records[number * 60 : (number + 1) * 60])
    return made, manifest


class Process:
    """One `python -m secagg ...` with its JSON events."""

    def __init__(self, *arguments: object) -> None:
        self.events: list[dict[str, Any]] = []
        self._arrived = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "secagg", *map(str, arguments), "--format", "json"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        self._errors: list[str] = []
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._arrived:
                self.events.append(json.loads(line))
                self._arrived.notify_all()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors.append(self._process.stderr.read())

    def wait_for(self, matches: Callable[[dict[str, Any]], bool], seconds: float = 300) -> dict[str, Any]:
        """The first event that matches."""
        end = time.monotonic() + seconds
        with self._arrived:
            while True:
                for event in self.events:
                    if matches(event):
                        return event
                if time.monotonic() > end or self._process.poll() is not None:
                    raise AssertionError(f"no such event; events {self.events[-5:]}, errors {self._errors}")
                self._arrived.wait(0.2)

    def kill(self) -> None:
        """SIGKILL, as a crash or a power cut would be."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def ended(self, seconds: float = 300) -> int:
        """Exit status, once it has ended by itself."""
        code = self._process.wait(seconds)
        for reader in self._readers:
            reader.join()
        return code

    @property
    def error(self) -> dict[str, Any]:
        """The error object on standard error, of an ended process."""
        lines = [line for line in "".join(self._errors).splitlines() if line.startswith('{"error"')]
        assert len(lines) == 1, self._errors
        value: dict[str, Any] = json.loads(lines[0])
        return value

    @property
    def stderr(self) -> str:
        """All of standard error, of an ended process."""
        return "".join(self._errors)

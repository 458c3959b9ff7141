"""The server's judge: a process of its own, losses that outlive it, and no round in doubt."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import language_settings, save_tiny_masked_bert

from ffm.errors import TrainingProcessError
from ffm.learner import Learner
from ffm.local_setup import LocalSetup
from ffm.plateau import Plateau
from ffm.task import build_manifest
from ffm.validation import LOSSES, Judge, Validation
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from secagg.errors import SecAggError

METHOD = {"method": "ffa-lora", "virtual_tokens": 0, "rank": 2, "alpha": 4, "target_modules": ("query",)}
WORDS = ("fever", "cough", "fracture of the femur", "acute bronchitis", "type 2 diabetes mellitus")


@dataclass
class Bench:
    """A run folder, a base model that only this test has, and public records."""

    folder: Path
    manifest: Manifest
    base: Path
    records: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    def judge(self, validation: Validation | None = None) -> Judge:
        chosen = validation or Validation(self.records, Plateau(patience=1, least=0.5))
        run = self.folder / "run"
        run.mkdir(exist_ok=True)
        return Judge(self.manifest, LocalSetup(self.base, chosen.data), chosen, run, self.events.append)

    def model(self, seed: int) -> np.ndarray:
        return np.sin(seed * np.arange(self.manifest.adapter.size)).astype(np.float32)

    def named(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == event]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("judge")
    base = save_tiny_masked_bert(folder / "bert")
    return base, build_manifest(language_settings(base, "masked-lm", **METHOD, rounds=5), "small")


@pytest.fixture
def bench(made: tuple[Path, Manifest], tmp_path: Path) -> Bench:
    records = tmp_path / "public.csv"
    records.write_text("text\n" + "".join(f"{a} with {b}\n" for a in WORDS for b in WORDS))
    return Bench(tmp_path, made[1], Path(shutil.copytree(made[0], tmp_path / "bert")), records)


def play(judge: Judge, scenario: Callable[[Judge], Awaitable[None]]) -> None:
    async def main() -> None:
        try:
            await judge.open()
            await asyncio.wait_for(scenario(judge), 120)
        finally:
            await judge.close()

    asyncio.run(main())


def refused(code: str, kind: type[SecAggError], judge: Judge, scenario: Callable[[Judge], Awaitable[None]]) -> str:
    with pytest.raises(kind) as caught:
        play(judge, scenario)
    assert caught.value.code == code, str(caught.value)
    return str(caught.value)


async def nothing(judge: Judge) -> None:
    return None


def test_losses_are_the_tasks_until_nobody_answers_and_they_outlive_the_process(bench: Bench) -> None:
    start, first = np.zeros(bench.manifest.adapter.size, np.float32), bench.model(1)
    diverged = np.full(bench.manifest.adapter.size, 3e38, np.float32)

    async def scenario(judge: Judge) -> None:
        assert not await judge.over(0, start)
        assert await judge.over(1, first)  # half of the first loss is not reached in one round
        assert await judge.over(1, first) and len(bench.named("validated")) == 2  # nobody is asked again
        assert await judge.over(2, diverged)
        assert judge._process is not None
        pid = judge._process.pid
        os.kill(pid, signal.SIGSTOP)
        judge._limit = 0.3
        try:
            await judge.over(3, first)
        finally:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    assert "after 3 released rounds" in refused("E425", ProtocolError, bench.judge(), scenario)
    assert [e["reason"] for e in bench.named("validation-failed")] == ["no answer within the limit"]
    learner = Learner.load(bench.manifest, bench.base)
    dataset = learner.tensors(learner.task.read(bench.records, bench.manifest.training))
    expected = [learner.scores(vector, dataset)["loss"] for vector in (start, first)]
    losses = [e["loss"] for e in bench.named("validated")]
    assert losses[:2] == pytest.approx(expected, rel=1e-5) and expected[0] != expected[1] and losses[2] > 1e300
    assert bench.named("plateau")[0] == {"event": "plateau", "round": 1, "rounds": 5}

    bench.events.clear()
    again = bench.judge()  # a restarted server, with no process to ask
    again.remember()
    assert asyncio.run(again.over(2, start)) and not asyncio.run(again.over(0, start))
    assert bench.events == [{"event": "plateau", "round": 2, "rounds": 5}]
    kept = json.loads((bench.folder / "run" / LOSSES).read_bytes())["losses"]
    assert list(kept) == ["0", "1", "2"] and list(kept.values()) == losses


def test_losses_of_other_records_are_not_gone_on_with(bench: Bench) -> None:
    judge = bench.judge()
    judge.remember()
    (bench.folder / "run" / LOSSES).write_bytes(judge._json())
    bench.judge().remember()
    bench.records.write_text("text\nanother text\n")
    for content in (judge._json(), b'{"records": 1', b"[]"):
        (bench.folder / "run" / LOSSES).write_bytes(content)
        refused("E426", ProtocolError, bench.judge(), nothing)


def test_a_process_that_does_not_get_ready_is_an_error(bench: Bench) -> None:
    refused("E521", TrainingProcessError, bench.judge(Validation(bench.records, limit_s=0.01)), nothing)


@pytest.mark.slow
def test_a_process_that_was_killed_is_replaced_once(bench: Bench) -> None:
    async def scenario(judge: Judge) -> None:
        assert judge._process is not None
        os.kill(judge._process.pid, signal.SIGKILL)
        assert not await judge.over(0, bench.model(1))
        assert len(bench.named("validated")) == len(bench.named("validation-failed")) == 1
        os.kill(judge._process.pid, signal.SIGKILL)
        shutil.rmtree(bench.base)  # the next one cannot begin
        await judge.over(1, bench.model(2))

    assert "after 1 released rounds" in refused("E425", ProtocolError, bench.judge(), scenario)
    assert list(json.loads((bench.folder / "run" / LOSSES).read_bytes())["losses"]) == ["0"]


@pytest.mark.slow
def test_what_can_be_known_before_round_1_is_said_before_it(bench: Bench) -> None:
    refused("E511", TrainingProcessError, bench.judge(Validation(bench.folder / "none.csv")), nothing)

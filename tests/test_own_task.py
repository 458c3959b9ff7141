"""The example of a task of one's own: one short file, through the same private path as every other task."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dp.errors import PrivacyError
from dp.ledger import PrivacyLedger
from dp.sampling import Csprng
from ffm import frames
from ffm.data import Record
from ffm.errors import DataError, TaskError
from ffm.federation import Federation
from ffm.heart import SEVERITY
from ffm.learner import Learner
from ffm.local_setup import LocalSetup
from ffm.models import locate
from ffm.sources import TableSource
from ffm.task import TaskSettings, build_manifest, load_settings
from ffm.tasks import MEMBERS, find
from ffm.worker import Worker
from protocol.manifest import Manifest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "own_task"
FILE = EXAMPLE / "severity.py"


@pytest.fixture(scope="module")
def settings() -> TaskSettings:
    return load_settings(EXAMPLE / "settings.toml")


@pytest.fixture(scope="module")
def manifest(settings: TaskSettings) -> Manifest:
    made = build_manifest(settings, "bert-tiny")
    return Manifest.model_validate({**made.model_dump(), "training": made.training.model_dump() | {"rounds": 3}})


@pytest.fixture(scope="module")
def learner(manifest: Manifest) -> Learner:
    return Learner.load(manifest, locate("bert-tiny"), task_file=FILE)


def patients(count: int) -> list[tuple[Record, ...]]:
    train, _ = SEVERITY.split(1)
    return [SEVERITY.records(rows[:count]) for rows in train.values()]


def test_it_is_one_short_file_that_touches_neither_protocol_nor_core(manifest: Manifest) -> None:
    text = FILE.read_text()
    assert len(text.splitlines()) < 100
    assert set(re.findall(r"^(?:from|import) (protocol\S*|secagg\S*)", text, re.M)) == {"protocol.manifest"}
    assert manifest.training.task == "severity" and str(FILE) not in manifest.to_bytes().decode()


def test_without_its_file_the_task_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(TaskError) as refused:
        Learner.load(manifest, locate("bert-tiny"))
    assert refused.value.code == "E531"
    other = tmp_path / "other.py"
    other.write_text(FILE.read_text().replace('name = "severity"', 'name = "mildness"'))
    with pytest.raises(TaskError) as refused:
        Learner.load(manifest, locate("bert-tiny"), task_file=other)
    assert refused.value.code == "E532"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("raise RuntimeError('a word of a record')", "RuntimeError"),
        ("{}['x']", "KeyError"),
        ("TASK = 1 / 0", "ZeroDivisionError"),
        ("def TASK(:", "SyntaxError"),
        ("other = 1", "AttributeError"),
        ("class Task:\n    pass\nTASK = Task()", "no check, fields, headline, load, losses"),
        ("class Task:\n    name = 'severity'\nTASK = Task()", "no check, fields, headline, load, losses"),
    ],
)
def test_a_file_that_holds_no_task_is_one_error(text: str, found: str, tmp_path: Path) -> None:
    """Whatever it raises, and whatever its TASK lacks: said when it is loaded, not in the middle of a round."""
    file = tmp_path / "task.py"
    file.write_text(text + "\n")
    with pytest.raises(TaskError) as refused:
        find("severity", file)
    assert refused.value.code == "E532" and str(refused.value.found).startswith(found)
    assert "a word of a record" not in str(refused.value)
    assert len(MEMBERS) == 12


def test_a_file_may_hold_what_every_module_may(tmp_path: Path) -> None:
    """A dataclass looks up the module that it stands in."""
    file = tmp_path / "task.py"
    more = "from dataclasses import dataclass\n@dataclass\nclass Weights:\n    first: int = 1\n"
    text = FILE.read_text().replace("class Severity", more + "class Severity")
    file.write_text(text.replace("from collections", "from __future__ import annotations\nfrom collections", 1))
    assert find("severity", file).headline == "kappa"


def test_the_loss_is_that_of_every_step_of_the_scale(learner: Learner) -> None:
    records = patients(3)[0]
    batch = learner.tensors(records)
    assert [SEVERITY.labels[i] for i in batch["labels"]] == [record.label for record in records]
    logits = learner.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach()
    assert logits.shape == (3, 4)
    worse = torch.sigmoid(logits.double())
    expected = [
        -sum(torch.log(p if int(level) > k else 1 - p) for k, p in enumerate(row)).item()
        for row, level in zip(worse, batch["labels"], strict=True)
    ]
    assert learner.task.losses(learner.model, batch).tolist() == pytest.approx(expected, rel=1e-5)


def test_kappa_by_hand(learner: Learner) -> None:
    weighted = type(learner.task).scores.__globals__["weighted_kappa"]
    assert weighted(np.diag([3, 4, 5])) == 1.0
    assert weighted(np.array([[1, 1], [1, 1]])) == 0.0
    assert weighted(np.array([[2, 0, 0], [0, 0, 0], [1, 0, 1]])) == 0.5  # 1 - (4 · 1) / (4 · 1.5 + 4 · 0.5)
    assert weighted(np.array([[4, 0], [0, 0]])) == 0.0


def test_a_private_federation_in_process_learns_by_it(learner: Learner) -> None:
    federation = Federation.of(learner, patients(12))
    _, test = SEVERITY.split(1)
    held = learner.tensors([r for rows in test.values() for r in SEVERITY.records(rows[:8])])
    before = federation.scores(federation.start, held)
    after = federation.scores(federation.federated(Csprng(bytes(32))), held)
    assert set(before) == set(after) == {"kappa", "mean_error", "accuracy"} and before != after
    assert -1 <= after["kappa"] <= 1 and 0 <= after["mean_error"] <= 4


# -- errors before anything is spent ----------------------------------------------------------------------------------


def test_a_level_beyond_the_scale_is_refused_where_it_is_loaded(learner: Learner) -> None:
    dataset = learner.tensors(patients(2)[0])
    learner.check(dataset)
    for shift in (5, -1):
        with pytest.raises(PrivacyError) as refused:
            learner.check({**dataset, "labels": torch.full_like(dataset["labels"], shift)})
        assert refused.value.code == "E226" and refused.value.expected == "0 to 4"


def test_labels_out_of_range_and_an_empty_client_end_at_load_with_nothing_charged(
    manifest: Manifest, settings: TaskSettings, tmp_path: Path
) -> None:
    """As the client's training process answers them; its parent dials the server only after a load that went well."""
    assert isinstance(settings.data, TableSource)
    written = settings.data.write(tmp_path)
    site = written.sites["hungary"]
    worker = Worker(lambda: None)

    def load(data: Path, task_file: Path = FILE) -> bytes:
        setup = LocalSetup(locate("bert-tiny"), data, task_file=task_file)
        return worker.answer({"op": "load", **setup.header()}, manifest.to_bytes())

    careless = tmp_path / "careless.py"  # a task whose tensors do not fit its model
    careless.write_text(
        FILE.read_text().replace(
            "return tokenize(tokenizer, records, training.labels, training.max_length)",
            "found = tokenize(tokenizer, records, training.labels, training.max_length)\n"
            '        return {**found, "labels": found["labels"] + 4}',
        )
    )
    empty, foreign = tmp_path / "empty.csv", tmp_path / "foreign.csv"
    empty.write_text("text,label\n")
    foreign.write_text("text,label\nman,none\nwoman,five\n")
    with PrivacyLedger.open(tmp_path / "book.sqlite", silo="hungary", population="records") as book:
        for answer, code in ((load(empty), "E514"), (load(foreign), "E513"), (load(site, careless), "E226")):
            frame = frames.read(io.BytesIO(answer))
            assert frame is not None
            error = frame[0]["error"]
            assert error["code"] == code and error["expected"] and error["found"]
            assert "five" not in str(error)
        assert book.charges() == () and book.last_charged is None
    assert b'"ok": "load"' in load(site) or b'"ok":"load"' in load(site)


def test_in_one_process_too(learner: Learner) -> None:
    with pytest.raises(DataError) as refused:
        Federation.of(learner, [*patients(2)[:3], ()])
    assert refused.value.code == "E514"
    with pytest.raises(DataError) as refused:
        Federation.of(learner, [*patients(2)[:3], (Record("man", "five"),)])
    assert refused.value.code == "E513"


# -- over the wire ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_federation_plays_it_and_its_report_verifies(tmp_path: Path) -> None:
    """`secagg demo run` on a copy of the example with three rounds: processes, TLS, a killed client, the report."""
    shutil.copy(FILE, tmp_path)
    text = (EXAMPLE / "settings.toml").read_text().replace("rounds = 30", "rounds = 3")
    (tmp_path / "settings.toml").write_text(text)
    command = [sys.executable, "-m", "secagg"]
    played = subprocess.run(
        [*command, "demo", "run", str(tmp_path / "settings.toml"), "--out", str(tmp_path / "runs"), "--format", "json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    events = [json.loads(line) for line in played.stdout.splitlines()]
    result = events[-1]
    assert result["result"] == "finished"
    rows = {"federated", "federated, no DP", "before training", *(f"{site} alone" for site in SEVERITY.read())}
    assert set(result["scores"]) == rows
    assert all(set(scores) == {"kappa", "mean_error", "accuracy"} for scores in result["scores"].values())
    assert sum(event.get("event") == "killed" for event in events) == 1
    report = Path(result["run"]) / "report.json"
    verified = subprocess.run([*command, "report", "verify", str(report)], cwd=ROOT, stdout=subprocess.DEVNULL)
    assert verified.returncode == 0
    assert json.loads(report.read_bytes())["facts"]["manifest"]["document"]["training"]["task"] == "severity"

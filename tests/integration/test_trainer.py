"""examples/trainer as it stands, with fewer rounds: three processes with Hugging Face Trainers and a server, gRPC on
loopback, masks and all."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from ffm import models
from ffm.data import icd10_records, label_names, read_records
from ffm.tasks.finetune import predict
from tests.small_models import save_tiny_bert

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "trainer"


@pytest.mark.slow
def test_three_trainers_learn_one_model(tmp_path: Path) -> None:
    text = (EXAMPLE / "settings.toml").read_text().replace("rounds = 5", "rounds = 2")
    (tmp_path / "settings.toml").write_text(text.replace("cap_per_class = 120", "cap_per_class = 20"))
    arguments = [sys.executable, str(EXAMPLE / "run.py"), str(tmp_path / "all"), str(tmp_path / "settings.toml")]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=420)
    assert done.returncode == 0, done.stderr[-3000:]
    said = re.findall(r"(\d+) steps; accuracy of the common model .* ([0-9.]+)$", done.stdout, re.MULTILINE)
    assert [steps for steps, _ in said] == ["20"] * 3  # two rounds of ten

    # Every Trainer ended with the model that the server published: it scores alike, loaded by plain PEFT.
    sites = sorted((tmp_path / "all" / "consortium" / "sites").glob("*/records.csv"))
    labels = label_names(icd10_records())
    plain = AutoModelForSequenceClassification.from_pretrained(str(models.locate("bert-tiny")), num_labels=18)
    model = PeftModel.from_pretrained(plain, str(tmp_path / "all" / "run" / "adapter"))
    tokenizer = models.load_tokenizer(models.locate("bert-tiny"))
    expected = []
    for path in sites:
        records = read_records(path, labels)
        rows = tokenizer([r.text for r in records], truncation=True, max_length=32, padding=True, return_tensors="pt")
        truth = torch.tensor([labels.index(r.label) for r in records])
        guesses = predict(model, {**rows, "labels": truth}).argmax(axis=1)
        expected.append(f"{float((guesses == truth.numpy()).mean()):.3f}")
    assert sorted(score for _, score in said) == sorted(expected)


def _two(base: Path, out: Path, method: str) -> subprocess.CompletedProcess[str]:
    out.mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ["-m", "tests.integration.two_processes", str(base), str(out), method]
    return subprocess.run(
        [*launch, *script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=420,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


@pytest.mark.slow
def test_two_processes_of_one_client_train_together(tmp_path: Path) -> None:
    base = save_tiny_bert(tmp_path / "base")
    done = _two(base, tmp_path / "out", "fedsa-lora")
    assert done.returncode == 0, done.stderr[-3000:]
    out = {path.name: np.frombuffer(path.read_bytes(), np.float32) for path in (tmp_path / "out").glob("*.f32")}
    assert "updates-1.f32" not in out  # the first alone speaks to the server
    updates = out["updates-0.f32"].reshape(3, -1)
    assert all(np.count_nonzero(update) > 0.4 * update.size for update in updates)
    for rank in (0, 1):  # equal copies: the last common model, and one state of personal tensors
        assert np.array_equal(out[f"model-{rank}.f32"], out["last-0.f32"])
        assert np.array_equal(out[f"personal-{rank}.f32"], out["personal-0.f32"])
    refused = _two(base, tmp_path / "halves", "rolora")
    assert refused.returncode != 0
    assert "train the same tensors in every round" in refused.stderr

"""examples/trainer as it stands, with fewer rounds: three processes with Hugging Face Trainers and a server, gRPC on
loopback, masks and all."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from ffm import models
from ffm.data import icd10_records, label_names, read_records
from ffm.tasks.finetune import predict

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

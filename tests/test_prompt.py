"""Soft prompts: gradients of each record's own, nothing but the prompt leaves, and plain PEFT reads what is saved."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from peft import PeftModel
from safetensors.torch import load_file
from simulator import random_values
from small_models import LLAMA_POSITIONS, language_settings, save_tiny_llama
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from wire import Hub, Line, Site, federation, running

from dp.objective import IDS, MASK
from dp.sampling import Csprng
from dp.training import _per_sample_gradients, _train_mode
from ffm import models
from ffm.adapters import AdapterSettings, adapter_spec, build, flatten, save_adapter
from ffm.data import Record
from ffm.errors import AdapterError, ModelError
from ffm.federation import Federation
from ffm.models import locate
from ffm.task import build_manifest
from ffm.tasks import find
from protocol.rpc.limits import Deadlines
from secagg.types import ClientId

TEXTS = ("Type 2 diabetes mellitus without complications", "Acute bronchitis", "Fracture of the left femur", "Fever")
SETTINGS = AdapterSettings(0, 0, (), 7, "prompt", 4)
LANGUAGE = ("causal-lm", "instruction-tuning", "masked-lm")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


def folder_of(name: str, llama: Path) -> Path:
    return llama if name in ("causal-lm", "instruction-tuning") else locate("bert-tiny")


def prompted(name: str, llama: Path) -> tuple[Any, nn.Module, dict[str, Tensor]]:
    """(task, model with a soft prompt, one batch)."""
    folder, task = folder_of(name, llama), find(name)
    how = build_manifest(language_settings(folder, name, max_length=56), "small").training
    model = build(task.load(folder, how, 1), SETTINGS, task.peft_type)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()).reshape(parameter.shape))
    records = [Record(text, "no" if name == "sequence-classification" else "an answer") for text in TEXTS]
    batch = task.tensors(models.load_tokenizer(folder), records, how)
    return task, model, dict(task.prepare(batch, Csprng(bytes(32))))


def one_at_a_time(task: Any, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    rows = []
    for row in range(len(batch[IDS])):
        model.zero_grad()
        task.losses(model, {key: value[row : row + 1] for key, value in batch.items()}).sum().backward()
        rows.append(torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.requires_grad]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["sequence-classification", *LANGUAGE])
def test_gradients_per_record_are_those_of_one_at_a_time(name: str, llama: Path) -> None:
    task, model, batch = prompted(name, llama)
    model = model.double()  # so that a mistake cannot hide in rounding
    parameters = [p for p in model.parameters() if p.requires_grad]
    with _train_mode(model), _per_sample_gradients(model, parameters, wanted=True):
        task.losses(model, batch).sum().backward()
        found = torch.cat([p.grad_sample.reshape(len(TEXTS), -1) for p in parameters], dim=1)
    expected = one_at_a_time(task, model, batch)
    assert float(expected.norm(dim=1).max()) > 1e-3
    assert float((found - expected).abs().max()) <= 1e-6 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", ["sequence-classification", "causal-lm"])
def test_ghost_norms_are_those_of_one_at_a_time(name: str, llama: Path) -> None:
    task, model, batch = prompted(name, llama)
    expected = one_at_a_time(task, model, batch).norm(dim=1)
    model.train()
    ghost = GradSampleModuleFastGradientClipping(model, batch_first=True, loss_reduction="sum", max_grad_norm=1.0)
    task.losses(ghost, batch).sum().backward()
    assert torch.allclose(ghost.get_norm_sample(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sequence-classification", *LANGUAGE])
def test_only_the_prompt_and_a_head_are_trained(name: str, llama: Path) -> None:
    _, model, _ = prompted(name, llama)
    names = [tensor.name for tensor in adapter_spec(model, SETTINGS).tensors]
    head = ["base_model.classifier.weight", "base_model.classifier.bias"] if name == "sequence-classification" else []
    assert names == [*head, "prompt_embeddings"]


def test_the_prompt_starts_at_words_that_the_seed_draws(llama: Path) -> None:
    task = find("causal-lm")
    base = task.load(llama, build_manifest(language_settings(llama), "small").training, 1)
    words = base.get_input_embeddings().weight.detach().clone()
    model = build(base, SETTINGS, task.peft_type)
    prompt = flatten(model, adapter_spec(model, SETTINGS)).reshape(4, -1)
    assert all(bool((words == torch.from_numpy(row)).all(dim=1).any()) for row in prompt)
    other = build(task.load(llama, build_manifest(language_settings(llama), "small").training, 1),
                  AdapterSettings(0, 0, (), 8, "prompt", 4), task.peft_type)  # fmt: skip
    assert not np.array_equal(prompt, flatten(other, adapter_spec(other, SETTINGS)).reshape(4, -1))


@pytest.mark.parametrize("name", ["sequence-classification", "causal-lm"])
def test_plain_peft_loads_it_without_a_network(
    name: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, batch = prompted(name, llama)
    save_adapter(model, adapter_spec(model, SETTINGS), tmp_path / "adapter", "base")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert str(llama.parent) not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert stored["prompt_embeddings"].shape[0] == 4

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    if name == "causal-lm":
        plain: Any = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    else:
        plain = AutoModelForSequenceClassification.from_pretrained(
            locate("bert-tiny"), num_labels=2, dtype=torch.float32
        )
    plain = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    plain.eval()
    model.eval()
    with torch.no_grad():
        inputs = {IDS: batch[IDS], "attention_mask": batch[MASK]}
        assert torch.equal(plain(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("protocol", ["R1", "none"])
def test_a_federation_learns_a_prompt(protocol: str, llama: Path) -> None:
    changes = {"learning_rate": "0.5", "noise_steps": 0 if protocol == "none" else 262144, "optimizer": "adam"}
    settings = language_settings(llama, **changes)
    privacy = settings.privacy.model_copy(update={"protocol": protocol})
    manifest = build_manifest(settings.model_copy(update={"privacy": privacy}), "small")
    sites = [[Record(text, "") for text in TEXTS]] * 4
    run = Federation.load(manifest, llama, sites)
    model = run.federated(Csprng(bytes(32)))
    test = run.learner.tensors(sites[0])
    assert not np.array_equal(model, run.start)
    if protocol == "none":
        assert run.scores(model, test)["perplexity"] < run.scores(run.start, test)["perplexity"]


def test_a_decoder_classifier_is_refused(llama: Path) -> None:
    with pytest.raises(AdapterError, match="padding") as caught:
        build(models.load_classifier(llama, ("no", "yes"), 1), SETTINGS, "SEQ_CLS")
    assert caught.value.code == "E505"


def test_prompt_and_text_must_fit_into_the_context(llama: Path) -> None:
    build_manifest(language_settings(llama, max_length=LLAMA_POSITIONS - 4), "small")
    with pytest.raises(ModelError, match="context") as caught:
        build_manifest(language_settings(llama, max_length=LLAMA_POSITIONS - 3), "small")
    assert caught.value.code == "E510"


def test_a_prompt_is_not_merged(llama: Path) -> None:
    from ffm.adapters import find as method

    _, model, _ = prompted("causal-lm", llama)
    with pytest.raises(AdapterError) as caught:
        method("prompt").merged(model)
    assert caught.value.code == "E508"


@pytest.mark.parametrize("clients, tokens, slots", [(4, 19, 3), (10, 16, 3), (5, 12, 2)])
def test_a_client_sends_at_most_32_kib_a_round_for_smollm2(
    clients: int, tokens: int, slots: int, tmp_path: Path
) -> None:
    """So many virtual tokens of 576 values in slots of 21 or 32 bits: the bytes on the wire, TLS and all included."""
    made = federation(clients, tokens * 576, aggregation__slots_per_word=slots, aggregation__chunk_words=1024)
    ids = [ClientId(i) for i in range(1, clients + 1)]
    values = random_values(made.manifest, ids)

    async def main() -> list[int]:
        async with Hub(made, tmp_path) as hub, Line(hub.port) as line:
            sites = [Site(hub, i, values[i], port=line.port if i == 1 else 0) for i in ids]
            sent = []
            async with running(*sites, attempts=3):
                for round_ in (1, 2):  # the first one has the handshake of TLS
                    await hub.run(Deadlines(grace=2.0), round_)
                    sent.append(line.sent)
            return sent

    first, second = asyncio.run(asyncio.wait_for(main(), 60))
    print(f"{clients} clients, {tokens} virtual tokens: {first} bytes up in round 1, {second - first} in round 2")
    assert tokens * 576 // slots * 8 < second - first <= 32 * 1024


PROMPT = {"virtual_tokens": 19}
LORA = {"method": "ffa-lora", "virtual_tokens": 0, "rank": 4, "alpha": 8, "target_modules": ("q_proj", "v_proj")}


@pytest.mark.slow
@pytest.mark.parametrize("changes, size", [(PROMPT, 19 * 576), (LORA, 30 * 4 * (576 + 192))])
def test_smollm2_learns_under_dp(changes: dict[str, Any], size: int, tmp_path: Path) -> None:
    """The real model: gradients of each record, one private round, and a file that plain PEFT loads."""
    plan = {"max_length": 64, "rounds": 1, "local_steps": 1, **changes}
    manifest = build_manifest(language_settings(Path("smollm2"), "instruction-tuning", **plan), "small")
    assert manifest.base_model.name == "smollm2" and manifest.adapter.size == size
    records = [Record(text, "An answer.") for text in TEXTS[1:3]]
    run = Federation.load(manifest, locate("smollm2"), [records] * 4)
    model, task, batch = run.learner.model, run.learner.task, dict(run.sites[0])
    model.double()  # so that a mistake cannot hide in rounding
    parameters = [p for p in model.parameters() if p.requires_grad]
    with _train_mode(model), _per_sample_gradients(model, parameters, wanted=True):
        task.losses(model, batch).sum().backward()
        found = torch.cat([p.grad_sample.reshape(2, -1) for p in parameters], dim=1)  # type: ignore[attr-defined]
    expected = one_at_a_time(task, model, batch)
    assert float((found - expected).abs().max()) <= 1e-9 * float(expected.abs().max())
    model.float()
    trained = run.federated(Csprng(bytes(32)))
    assert not np.array_equal(trained, run.start)
    save_adapter(model, manifest.adapter, tmp_path, "smollm2")
    plain: Any = AutoModelForCausalLM.from_pretrained(locate("smollm2"), dtype=torch.float32)
    plain = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    with torch.no_grad():
        inputs = {IDS: batch[IDS], "attention_mask": batch[MASK]}
        assert torch.equal(plain(**inputs).logits, model.eval()(**inputs).logits)

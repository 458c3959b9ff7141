"""FFA-LoRA: what is trained, the flat vector, and the plain PEFT form on disk."""

import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from transformers import AutoModelForSequenceClassification

from ffm import adapters, models
from ffm.adapters import AdapterSettings
from ffm.errors import AdapterError
from protocol.manifest import AdapterSpec, TensorSpec

LABELS = ("heart", "lung", "skin")
SETTINGS = AdapterSettings(rank=2, alpha=4, target_modules=("layer.1.output.dense", "query"), seed=11)
PINNED_A = "d079c192afd8babed4b5443fa3189fe61c5c2730c2aa1da407be2aceafb3a88e"


def fresh(settings: AdapterSettings = SETTINGS) -> tuple[PeftModel, AdapterSpec]:
    base = models.load_classifier(models.locate("bert-tiny"), LABELS, settings.seed)
    model = adapters.build(base, settings)
    return model, adapters.adapter_spec(model, settings)


@pytest.fixture(scope="module")
def shared() -> tuple[PeftModel, AdapterSpec]:
    """For tests that overwrite the trainable tensors or only read."""
    return fresh()


def tokens() -> torch.Tensor:
    return torch.randint(1000, 2000, (4, 9), generator=torch.Generator().manual_seed(3))


def test_exactly_b_and_head_are_trained(shared: tuple[PeftModel, AdapterSpec]) -> None:
    model, spec = shared
    layer = "base_model.model.bert.encoder.layer"
    assert [(t.name, t.shape) for t in spec.tensors] == [
        (f"{layer}.0.attention.self.query.lora_B.weight", (128, 2)),
        (f"{layer}.1.attention.self.query.lora_B.weight", (128, 2)),
        (f"{layer}.1.output.dense.lora_B.weight", (128, 2)),
        ("base_model.model.classifier.weight", (3, 128)),
        ("base_model.model.classifier.bias", (3,)),
    ]
    assert spec.size == sum(p.numel() for p in model.parameters() if p.requires_grad) == 3 * 256 + 387


def test_a_is_drawn_from_the_manifests_seed_alone() -> None:
    def start(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        model, _ = fresh(AdapterSettings(2, 4, ("query",), seed))
        return {name: p.detach() for name, p in model.named_parameters() if ".lora_A." in name}

    one, two, other = start(11, 1), start(11, 2), start(12, 1)
    assert one
    for name, value in one.items():
        assert torch.equal(value, two[name])
        assert not torch.equal(value, other[name])
        assert value.abs().max() <= 1 / np.sqrt(128)
    blob = b"".join(one[name].numpy().astype("<f4").tobytes() for name in sorted(one))
    assert hashlib.sha256(blob).hexdigest() == PINNED_A


def test_the_adapter_starts_as_the_base_model() -> None:
    base = models.load_classifier(models.locate("bert-tiny"), LABELS, SETTINGS.seed)
    before = base(input_ids=tokens()).logits.detach()
    assert torch.equal(adapters.build(base, SETTINGS)(input_ids=tokens()).logits, before)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_flat_vector_round_trips(shared: tuple[PeftModel, AdapterSpec], seed: int) -> None:
    model, spec = shared
    bits = torch.randn(spec.size, generator=torch.Generator().manual_seed(seed)).numpy()
    adapters.load_flat(model, spec, bits)
    assert np.array_equal(adapters.flatten(model, spec), bits)
    # Row-major, in the order of the manifest's tensors.
    head = dict(model.named_parameters())["base_model.model.classifier.modules_to_save.default.weight"]
    assert np.array_equal(head.detach().numpy(), bits[-387:-3].reshape(3, 128))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_and_not_written(
    shared: tuple[PeftModel, AdapterSpec], value: float
) -> None:
    model, spec = shared
    good = np.full(spec.size, 0.5, dtype=np.float32)
    adapters.load_flat(model, spec, good)
    bad = good * 2
    bad[-1] = value
    with pytest.raises(AdapterError, match="1 of 1155") as caught:
        adapters.load_flat(model, spec, bad)
    assert caught.value.code == "E504"
    assert np.array_equal(adapters.flatten(model, spec), good)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad)[0, 0] = value
    with pytest.raises(AdapterError) as caught:
        adapters.flatten(model, spec)
    assert caught.value.code == "E504"


@pytest.mark.parametrize(
    "vector",
    [np.zeros(1154, np.float32), np.zeros(1156, np.float32), np.zeros((1, 1155), np.float32), np.zeros(1155)],
    ids=["short", "long", "matrix", "float64"],
)
def test_vectors_of_another_form_are_refused(
    shared: tuple[PeftModel, AdapterSpec],
    vector: np.ndarray,
) -> None:
    model, spec = shared
    with pytest.raises(AdapterError, match="wrong shape") as caught:
        adapters.load_flat(model, spec, vector)
    assert caught.value.code == "E503"


def _changed(spec: AdapterSpec, tensors: tuple[TensorSpec, ...]) -> AdapterSpec:
    return spec.model_copy(update={"tensors": tensors})


def test_a_manifest_with_another_adapter_is_refused(shared: tuple[PeftModel, AdapterSpec]) -> None:
    _, spec = shared
    base = models.load_classifier(models.locate("bert-tiny"), LABELS, SETTINGS.seed)
    wrong_shape = TensorSpec(name=spec.tensors[0].name, shape=(128, 3))
    renamed = TensorSpec(name="base_model.model.other.lora_B.weight", shape=(128, 2))
    cases = {
        "is not as the manifest says": _changed(spec, (wrong_shape, *spec.tensors[1:])),
        "other.lora_B": _changed(spec, (renamed, *spec.tensors[1:])),
        "does not name": _changed(spec, spec.tensors[1:]),
    }
    for text, wrong in cases.items():
        with pytest.raises(AdapterError, match=text) as caught:
            adapters.build_from_spec(base, wrong)
        assert caught.value.code == "E503"
        base = models.load_classifier(models.locate("bert-tiny"), LABELS, SETTINGS.seed)
    assert adapters.adapter_spec(adapters.build_from_spec(base, spec), SETTINGS) == spec


def test_target_that_matches_nothing_is_refused() -> None:
    base = models.load_classifier(models.locate("bert-tiny"), LABELS, 1)
    with pytest.raises(AdapterError, match="q_proj") as caught:
        adapters.build(base, AdapterSettings(2, 4, ("query", "q_proj"), 1))
    assert caught.value.code == "E505"
    assert "query" in str(caught.value.found)
    with pytest.raises(AdapterError) as caught:
        adapters.build(base, AdapterSettings(0, 4, ("query",), 1))
    assert caught.value.code == "E505"


def test_saved_adapter_is_plain_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has only transformers and PEFT gets the same logits: trained B, frozen A, head, and new pooler."""
    model, spec = fresh()
    moved = torch.randn(spec.size, generator=torch.Generator().manual_seed(5)).numpy() * np.float32(0.3)
    adapters.load_flat(model, spec, moved)
    with torch.no_grad():  # so that a pooler which is not saved would show
        dict(model.named_parameters())["base_model.model.bert.pooler.modules_to_save.default.dense.weight"].mul_(1.5)

    def refuse(*_: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    adapters.save_adapter(model, spec, tmp_path / "adapter", "bert-tiny")
    torch.manual_seed(99)  # the plain head is random until the adapter replaces it
    plain = AutoModelForSequenceClassification.from_pretrained(
        str(models.locate("bert-tiny")), num_labels=3, local_files_only=True
    )
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    assert loaded.active_adapter == "default"
    assert torch.allclose(loaded(input_ids=tokens()).logits, model.eval()(input_ids=tokens()).logits, atol=1e-6)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "bert-tiny"  # no path of this machine
    assert str(models.locate("bert-tiny")) not in (tmp_path / "adapter" / "README.md").read_text()


def test_names_are_those_of_the_saved_file(shared: tuple[PeftModel, AdapterSpec]) -> None:
    model, spec = shared
    assert {t.name for t in spec.tensors} <= set(get_peft_model_state_dict(model, save_embedding_layers=False))


def test_average_of_adapters_is_the_adapter_of_the_average() -> None:
    """The reason for FFA-LoRA: with A frozen, averaging vectors averages the effective weights exactly."""
    model, spec = fresh()
    draw = torch.Generator().manual_seed(8)
    vectors = [torch.randn(spec.size, generator=draw).numpy() for _ in range(3)]
    layer: Any = model.get_submodule("base_model.model.bert.encoder.layer.1.output.dense")

    def effective(vector: np.ndarray) -> torch.Tensor:
        adapters.load_flat(model, spec, vector)
        weight: torch.Tensor = layer.get_delta_weight("default").detach().clone()
        return weight

    mean = np.mean(vectors, axis=0).astype(np.float32)
    together = torch.stack([effective(vector) for vector in vectors]).mean(dim=0)
    assert torch.allclose(effective(mean), together, atol=1e-5)
    assert together.abs().max() > 0.1

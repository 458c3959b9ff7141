"""Every method of adaptation: start, spec, gradient of each record, files, merged model, and what is refused."""

import hashlib
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from dp import training
from dp.mechanism import GaussianMechanism
from dp.objective import CLASSIFICATION, Records
from dp.sampling import Csprng
from ffm import adapters, models
from ffm.adapters import AdapterSettings
from ffm.errors import AdapterError
from protocol.manifest import AggregationSpec, Manifest, ServerSpec, TensorSpec, TrainingSpec
from tests.small_models import save_tiny_bert

LABELS = ("heart", "lung", "skin")
LORA = ("ffa-lora", "lora", "rolora", "fedsa-lora")
ALL = (*LORA, "bitfit", "prefix", "full")
PINNED_A = "beecd3530faad5c5ca8c776aef0f84c9f95f2a6048ff4d3d8e719f03131bd48a"
PINNED = {
    "ffa-lora": PINNED_A,
    "lora": PINNED_A,
    "prefix": "f1d5fe5b5a938005a7eccab7ef0b688804e1e7f2b908a4482c715c454e8a0b36",
}


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("base"))


def settings(method: str, **changes: Any) -> AdapterSettings:
    own: dict[str, Any] = {"rank": 0, "alpha": 0, "target_modules": ()}
    if method in LORA:
        own = {"rank": 2, "alpha": 4, "target_modules": ("query", "output.dense")}
    if method == "prefix":
        own["virtual_tokens"] = 3
    return AdapterSettings(seed=11, method=method, **{**own, **changes})


def fresh(folder: Path, method: str, **changes: Any) -> tuple[nn.Module, adapters.AdapterSpec]:
    chosen = settings(method, **changes)
    model = adapters.build(models.load_classifier(folder, LABELS, 11), chosen)
    return model, adapters.adapter_spec(model, chosen)


def records() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    mask = (torch.arange(9) < torch.tensor([9, 2, 5, 9, 7])[:, None]).long()
    return {
        "input_ids": torch.randint(5, 60, (5, 9), generator=draw) * mask,
        "attention_mask": mask,
        "labels": torch.tensor([0, 1, 2, 0, 1]),
    }


def logits(model: nn.Module) -> Tensor:
    some = records()
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=some["input_ids"], attention_mask=some["attention_mask"]).logits
    return found


def moved(model: nn.Module) -> nn.Module:
    """Away from the start, where B = 0 would hide mistakes."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return model


# ---- start and spec ----


@pytest.mark.parametrize("method", ALL)
def test_the_start_is_the_manifests_alone(tiny_bert: Path, method: str) -> None:
    starts = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        model, spec = fresh(tiny_bert, method)
        state = torch.get_rng_state()
        again = adapters.build_from_spec(models.load_classifier(tiny_bert, LABELS, 11), spec)
        assert torch.equal(state, torch.get_rng_state())  # the caller's generator does not notice
        for one in (model, again):
            starts.append(np.concatenate([adapters.flatten(one, spec), adapters.flatten_personal(one, spec)]))
    assert all(np.array_equal(starts[0], other) for other in starts[1:])
    if method in PINNED:  # another machine, other versions: the same bits
        names = {n: p for n, p in model.named_parameters() if "lora_A" in n or "prompt_encoder" in n}
        blob = b"".join(names[name].detach().numpy().astype("<f4").tobytes() for name in sorted(names))
        assert hashlib.sha256(blob).hexdigest() == PINNED[method]


def test_what_each_method_trains(tiny_bert: Path) -> None:
    def names(method: str, **changes: Any) -> tuple[set[str], set[str]]:
        _, spec = fresh(tiny_bert, method, **changes)

        def kinds(tensors: tuple[TensorSpec, ...]) -> set[str]:
            return {".".join(tensor.name.split(".")[-2:]) for tensor in tensors}

        return kinds(spec.tensors), kinds(spec.personal)

    head, a, b = {"classifier.weight", "classifier.bias"}, {"lora_A.weight"}, {"lora_B.weight"}
    assert names("ffa-lora") == (b | head, set())
    assert names("lora") == (a | b | head, set())
    assert names("rolora") == (a | b | head, set())
    assert names("fedsa-lora") == (a | head, b)
    assert names("fedsa-lora", personal_head=True) == (a, b | head)
    assert names("ffa-lora", personal_head=True) == (b, head)
    assert names("prefix") == ({"prompt_embeddings"} | head, set())
    shared, personal = names("bitfit")
    assert not personal
    assert all(name.endswith("bias") for name in shared - head)
    assert {"query.bias", "LayerNorm.bias", "classifier.weight"} <= shared
    model, spec = fresh(tiny_bert, "full")
    assert spec.size == sum(p.numel() for p in model.parameters())


def test_rolora_moves_b_and_head_then_a(tiny_bert: Path) -> None:
    model, spec = fresh(tiny_bert, "rolora")
    for round_ in (1, 2, 3):
        with adapters.only_moving(model, spec, round_) as moving:
            here = {name for name, p in model.named_parameters() if p.requires_grad}
        assert here
        assert all(("lora_A" in name) == (round_ == 2) for name in here)
        a = np.concatenate([np.full(int(np.prod(t.shape)), "lora_A" in t.name) for t in spec.tensors])
        assert (moving == (a == (round_ == 2))).all()
    assert len(adapters.flatten(model, spec)) == spec.size  # all of it again


# ---- the gradient of each record ----


def _llama(classes: int = 3) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=60,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            initializer_range=0.3,
            pad_token_id=0,
            num_labels=classes,
        )
        return LlamaForSequenceClassification(config)


def _rows(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Gradients (records, d) by our loop's own hooks, and by plain autograd with one record at a time."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    data = records()
    losses = training._Losses(model, CLASSIFICATION)
    with training._per_sample_gradients(model, parameters, wanted=True):
        losses.backward(data)
        ours = torch.cat(training._collect(parameters, 5), dim=1)
    rows = []
    for i in range(5):
        loss = CLASSIFICATION.losses(model, {name: field[i : i + 1] for name, field in data.items()}).sum()
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)]))
    return ours, torch.stack(rows)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_gradients_of_records_are_those_of_each_record_alone(tiny_bert: Path, method: str, architecture: str) -> None:
    if architecture == "bert":
        model, _ = fresh(tiny_bert, method)
    elif method == "bitfit":
        return  # refused, see below
    else:
        own = {"target_modules": ("q_proj", "down_proj")} if method in LORA else {}
        model = adapters.build(_llama(), settings(method, **own))
    ours, reference = _rows(moved(model))
    assert reference.abs().max() > 0.05
    assert (ours - reference).abs().max() < 1e-5
    for parameter, part in zip(
        [p for p in model.parameters() if p.requires_grad],
        reference.split([p.numel() for p in model.parameters() if p.requires_grad], dim=1),
        strict=True,
    ):
        keys = architecture == "bert" and parameter.ndim == 1  # a key's bias moves every score alike: its gradient is 0
        assert keys or part.abs().max() > 0


def test_a_record_without_neighbours_in_the_step(tiny_bert: Path) -> None:
    """What leaves a client under R2 is the sum of these rows: one record at a time or all at once, for all methods."""
    mechanism = GaussianMechanism(scale=2**16, clip_steps=2**16, noise_steps=10)
    for method in ("full", "prefix", "bitfit"):
        model, _ = fresh(tiny_bert, method)
        moved(model).train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        sums = []
        for size in (1, 5):
            passes = Records(model, records(), CLASSIFICATION).passes(np.arange(5), size, Csprng.from_os())
            with training._per_sample_gradients(model, parameters, True):
                sums.append(
                    training._bounded_sum(training._Losses(model, CLASSIFICATION), parameters, passes, mechanism)
                )
        assert np.abs(sums[0]).max() > 100
        assert np.abs(sums[0] - sums[1]).max() <= 5


# ---- on disk ----


@pytest.mark.parametrize("method", ALL)
def test_saved_and_merged_models_have_the_same_logits_in_plain_libraries(
    tiny_bert: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model, spec = fresh(tiny_bert, method)
    expected = logits(moved(model))
    adapters.save_adapter(model, spec, tmp_path / "adapter", "some-base")
    torch.manual_seed(99)  # the plain head and pooler are random until the adapter replaces them
    plain: Any = AutoModelForSequenceClassification.from_pretrained(str(tiny_bert), num_labels=3, local_files_only=True)
    if method in ("bitfit", "full"):
        assert not plain.load_state_dict(load_file(tmp_path / "adapter" / "trained.safetensors"), strict=False)[1]
    else:
        plain = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    assert torch.equal(logits(plain), expected)

    if method == "prefix":
        with pytest.raises(AdapterError) as caught:
            adapters.merge(model, spec, tmp_path / "merged", tiny_bert)
        assert caught.value.code == "E508"
    else:
        adapters.merge(model, spec, tmp_path / "merged", tiny_bert)
        whole = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "merged"), local_files_only=True)
        assert (logits(whole) - expected).abs().max() < 1e-5
        # The next phase's base model: pinned and loaded like any other, with nothing new in it.
        names = [file.path for file in models.base_model_spec(str(tmp_path / "merged")).files]
        assert names == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        again: Any = models.load_classifier(tmp_path / "merged", LABELS, 5)
        assert again.new_parameters == ()
        assert (logits(again) - expected).abs().max() < 1e-5
        assert models.load_tokenizer(tmp_path / "merged")("myocardial infarction")["input_ids"]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert str(tiny_bert).encode() not in path.read_bytes(), path  # no path of this machine


# ---- what is refused ----


def refused(folder: Path, method: str, **changes: Any) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        fresh(folder, method, **changes)
    assert caught.value.do or caught.value.expected
    return caught.value


def test_settings_that_do_not_fit_a_method_are_refused(tiny_bert: Path) -> None:
    for method, changes, text in (
        ("lora", {"rank": 0}, "needs rank"),
        ("lora", {"alpha": 0}, "needs alpha"),
        ("fedsa-lora", {"target_modules": ()}, "needs target_modules"),
        ("rolora", {"target_modules": ("q_proj",)}, "matches the target module 'q_proj'"),
        ("lora", {"virtual_tokens": 3}, "has no virtual_tokens"),
        ("prefix", {"virtual_tokens": 0}, "needs virtual_tokens"),
        ("prefix", {"rank": 2}, "has no rank"),
        ("bitfit", {"target_modules": ("query",)}, "has no target_modules"),
        ("full", {"rank": 1}, "has no rank"),
    ):
        error = refused(tiny_bert, method, **changes)
        assert error.code == "E505"
        assert text in str(error)
    with pytest.raises(AdapterError, match="no method 'dora'") as caught:
        adapters.find("dora")
    assert caught.value.code == "E505"


def test_models_that_a_method_does_not_fit_are_refused() -> None:
    with pytest.raises(AdapterError, match="has none") as caught:
        adapters.build(_llama(), settings("bitfit"))
    assert caught.value.code == "E505"
    for chosen in (settings("prefix"), settings("ffa-lora")):  # no attention to prefix; no linear layer to adapt
        with pytest.raises(AdapterError) as caught:
            adapters.build(_convolutional(), chosen)
        assert caught.value.code == "E505"


def _convolutional() -> PreTrainedModel:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], num_channels=1))


def test_a_spec_that_shares_what_is_personal_is_refused(tiny_bert: Path) -> None:
    _, spec = fresh(tiny_bert, "fedsa-lora")
    shares_all = spec.model_copy(update={"tensors": (*spec.tensors, *spec.personal), "personal": ()})
    keeps_too_much = spec.model_copy(
        update={"tensors": spec.tensors[1:], "personal": (spec.tensors[0], *spec.personal)}
    )
    for wrong in (shares_all, keeps_too_much):
        with pytest.raises(AdapterError) as caught:
            adapters.build_from_spec(models.load_classifier(tiny_bert, LABELS, 11), wrong)
        assert caught.value.code == "E503"
    _, spec = fresh(tiny_bert, "lora")
    swapped = spec.model_copy(update={"tensors": (spec.tensors[1], spec.tensors[0], *spec.tensors[2:])})
    with pytest.raises(AdapterError, match="another order") as caught:
        adapters.build_from_spec(models.load_classifier(tiny_bert, LABELS, 11), swapped)
    assert caught.value.code == "E503"


def test_rolora_under_moments_or_a_rotation_is_refused(tiny_bert: Path) -> None:
    _, spec = fresh(tiny_bert, "rolora")
    plain = ServerSpec(optimizer="fedavg", learning_rate="1", beta1="0", beta2="0", tau="0")
    moments = ServerSpec(optimizer="fedyogi", learning_rate="1", beta1="0.9", beta2="0.99", tau="0.001")

    def under(server: ServerSpec, rotation: Any = None) -> Manifest:
        training, aggregation = (
            TrainingSpec.model_construct(server=server),
            AggregationSpec.model_construct(rotation=rotation),
        )
        return Manifest.model_construct(adapter=spec, training=training, aggregation=aggregation)

    adapters.refuse(under(plain))
    for wrong, why in ((under(moments), "moments"), (under(plain, "hadamard"), "rotation")):
        with pytest.raises(AdapterError, match=why) as caught:
            adapters.refuse(wrong)
        assert caught.value.code == "E507"

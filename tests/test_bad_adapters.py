"""Wrong model class, targets that match nothing, an adapter that trains nothing: one clear error each, from the owner's
settings and at a client. The training process loads before the server is dialled: nothing is drawn, trained or
charged."""

import io
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForSequenceClassification, ResNetConfig, ResNetForImageClassification

from ffm import frames
from ffm.adapters import AdapterSettings
from ffm.data import write_records
from ffm.errors import AdapterError, ModelError
from ffm.local_setup import LocalSetup
from ffm.models import base_model_spec
from ffm.worker import Worker
from protocol.manifest import Manifest
from tests.small_models import save_tiny_bert
from tests.test_personal import manifest_of, records


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("site") / "records.csv"
    write_records(path, records(0))
    return path


def answer_of(manifest: Manifest, base: Path, site: Path) -> dict[str, Any]:
    """What a client's training process says to this manifest."""
    frame = frames.read(
        io.BytesIO(Worker(lambda: None).answer({"op": "load", **LocalSetup(base, site).header()}, manifest.to_bytes()))
    )
    assert frame is not None
    error: dict[str, Any] = frame[0]["error"]
    assert error["do"] and error["found"]
    return error


def vision(folder: Path) -> Path:
    """Safetensors and a config, but no text model."""
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], num_channels=1)
    ResNetForImageClassification(config).save_pretrained(folder)
    return folder


def test_a_model_of_another_class(base: Path, site: Path, tmp_path: Path) -> None:
    folder = vision(tmp_path / "vision")
    with pytest.raises(ModelError, match="text classifier") as caught:
        manifest_of(folder, "ffa-lora")
    assert caught.value.code == "E506" and caught.value.do
    signed = manifest_of(base, "ffa-lora").model_copy(update={"base_model": base_model_spec(str(folder))})
    assert answer_of(signed, folder, site)["code"] == "E506"


def test_targets_that_match_nothing(base: Path, site: Path) -> None:
    with pytest.raises(AdapterError, match="'q_proj'") as caught:
        manifest_of(base, "lora", target_modules=("query", "q_proj"))
    assert caught.value.code == "E505"
    assert "query" in str(caught.value.found)  # what there is
    good = manifest_of(base, "lora")
    signed = good.model_copy(update={"adapter": good.adapter.model_copy(update={"target_modules": ("q_proj",)})})
    assert answer_of(signed, base, site)["code"] == "E505"


def test_an_adapter_that_trains_nothing(base: Path, site: Path, tmp_path: Path) -> None:
    for method, changes, text in (
        ("lora", {"target_modules": ()}, "needs target_modules"),
        ("lora", {"rank": 0}, "needs rank"),
        ("prefix", {}, "needs virtual_tokens"),
    ):
        with pytest.raises(AdapterError, match=text) as caught:
            manifest_of(base, method, **changes)
        assert caught.value.code == "E505"
    folder = tmp_path / "llama"
    config = LlamaConfig(
        vocab_size=30522, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForSequenceClassification(config).model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    with pytest.raises(AdapterError, match="has none") as caught:
        manifest_of(folder, "bitfit")
    assert caught.value.code == "E505"
    good = manifest_of(base, "bitfit")
    signed = good.model_copy(update={"base_model": base_model_spec(str(folder))})
    assert answer_of(signed, folder, site)["code"] == "E505"


def test_a_method_that_is_not_installed_and_one_that_the_server_step_breaks(base: Path, site: Path) -> None:
    good = manifest_of(base, "rolora")
    unknown = good.model_copy(update={"adapter": good.adapter.model_copy(update={"method": "dora"})})
    assert answer_of(unknown, base, site)["code"] == "E505"
    moments = {"optimizer": "fedadam", "learning_rate": "1", "beta1": "0.9", "beta2": "0.99", "tau": "0.001"}
    with pytest.raises(AdapterError, match="moments") as caught:
        manifest_of(base, "rolora", server=moments)
    assert caught.value.code == "E507"
    server = good.training.server.model_copy(update=moments)
    signed = good.model_copy(update={"training": good.training.model_copy(update={"server": server})})
    assert answer_of(signed, base, site)["code"] == "E507"


def test_a_method_without_a_head_has_no_personal_one(base: Path) -> None:
    from transformers import AutoModelForMaskedLM

    from ffm import adapters

    model = AutoModelForMaskedLM.from_pretrained(str(base))
    settings = AdapterSettings(2, 4, ("query",), 7, "lora", personal_head=True)
    with pytest.raises(AdapterError, match="no head") as caught:
        adapters.build(model, settings, "FEATURE_EXTRACTION")
    assert caught.value.code == "E505"

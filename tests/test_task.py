"""Settings -> manifest: what the owner signs is complete, feasible and within the budget."""

from dataclasses import replace
from pathlib import Path

import pytest

from ffm import task
from ffm.adapters import build_from_spec
from ffm.errors import DataError
from ffm.models import load_classifier, locate, verify_base_model
from ffm.plan import attempt_mechanism
from protocol.manifest import Manifest
from protocol.roster import parse_model

HOSPITAL = Path(__file__).parent.parent / "examples" / "hospital" / "settings.toml"
LABELS = tuple(f"chapter {number:02d}" for number in range(18))


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return task.build_manifest(task.load_settings(HOSPITAL).model_copy(update={"labels": LABELS}), "bert-tiny")


def test_hospital_settings_become_a_manifest_that_clients_accept(manifest: Manifest) -> None:
    assert parse_model(Manifest, "manifest", manifest.to_bytes()) == manifest
    folder = locate("bert-tiny")
    verify_base_model(manifest.base_model, folder)
    model = build_from_spec(load_classifier(folder, LABELS, manifest.adapter.seed), manifest.adapter)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == manifest.adapter.size


def test_adam_cannot_leave_the_range_of_the_encoding(manifest: Manifest) -> None:
    """A step of Adam is at most lr * (1 - beta1) / sqrt(1 - beta2) < 3.17 lr long in any coordinate."""
    assert manifest.training.optimizer == "adam"
    farthest = manifest.training.local_steps * 3.17 * float(manifest.training.learning_rate)
    assert farthest < manifest.aggregation.bound / manifest.aggregation.scale


def test_a_plan_beyond_the_budget_is_refused(manifest: Manifest) -> None:
    settings = task.load_settings(HOSPITAL)
    steps = (manifest.training.rounds + settings.privacy.spare_rounds) * manifest.training.local_steps
    planned = replace(attempt_mechanism(manifest), count=steps)
    task.check_budget(manifest.privacy, planned)
    with pytest.raises(DataError, match="do not fit") as caught:
        task.check_budget(manifest.privacy, replace(planned, count=steps * 3 // 2))
    assert caught.value.code == "E516"


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("adapter_seed = 2026", "adapter_seed = -1", "adapter_seed"),
        ('protocol = "R1"', 'protocol = "R3"', "privacy.protocol"),
        ("spare_rounds = 1", "spare_rounds = 1\nclip = 2", "privacy.clip"),
        ('epsilon = "8"', "epsilon = 8", "privacy.epsilon"),
        ("min_cohort = 4", "", "aggregation.min_cohort"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, old: str, new: str, where: str) -> None:
    text = HOSPITAL.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "settings.toml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        task.load_settings(tmp_path / "settings.toml")
    assert caught.value.code == "E515"
    assert where in str(caught.value.found)


def test_a_section_takes_from_another_what_it_does_not_say(tmp_path: Path) -> None:
    text = HOSPITAL.read_text(encoding="utf-8")
    path = tmp_path / "settings.toml"
    path.write_text(text + '[models.b]\nlike = "a"\nmethod = "lora"\n[models.a]\nlike = "minilm"\nrounds = 3\n')
    models = task.load_settings(path).models
    assert models["b"] == models["minilm"].model_copy(update={"rounds": 3, "method": "lora"})
    assert list(models) == ["bert-tiny", "minilm", "b", "a"]
    for wrong in ('"b"', '"c"', "7", '["minilm"]', '"minilm.server"'):
        path.write_text(f'{text}[models.b]\nlike = "d"\n[models.d]\nlike = {wrong}\n')
        with pytest.raises(DataError, match=r"models\.d cannot take") as caught:
            task.load_settings(path)
        assert caught.value.code == "E515" and "models.d.like" in str(caught.value.found)


def test_missing_settings_and_models_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        task.load_settings(tmp_path / "none.toml")
    assert caught.value.code == "E511"
    (tmp_path / "bad.toml").write_text("task = ")
    with pytest.raises(DataError) as caught:
        task.load_settings(tmp_path / "bad.toml")
    assert caught.value.code == "E511"
    with pytest.raises(DataError, match="no model 'other'") as caught:
        task.load_settings(HOSPITAL).model("other")
    assert caught.value.code == "E515"

"""The table of methods of adaptation: what a row says, what is refused, what is claimed, and how it is shown."""

import json
import math
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ffm.adapters import METHODS
from ffm.cli.app import app
from ffm.errors import DataError
from ffm.evaluate.adapters import COMMON, ERROR, HEAD, OWN, Bench, claims, label
from ffm.evaluate.arms import Split, split_of, without_dp
from ffm.evaluate.page import markdown, render, table
from ffm.evaluate.study import NO_DP, Row, Study
from ffm.task import TaskSettings, build_manifest, load_settings
from tests.small_models import save_tiny_bert

SETTINGS = Path(__file__).parent.parent / "examples" / "hospital" / "adapters.toml"
R2 = "R2, ε = 8"


@pytest.fixture(scope="module")
def settings() -> TaskSettings:
    return load_settings(SETTINGS)


@pytest.fixture(scope="module")
def small(settings: TaskSettings, tmp_path_factory: pytest.TempPathFactory) -> TaskSettings:
    """The example's own sections on a tiny model, few records, and two rounds."""
    base = str(save_tiny_bert(tmp_path_factory.mktemp("base")))
    plain: dict[str, Any] = {"base_model": base, "rounds": 2, "sampling": "1/2", "local_steps": 3}
    private = {"base_model": base, "rounds": 2}
    models = {
        name: model.model_copy(update=private if model.noise_steps else plain)
        for name, model in settings.models.items()
    }
    data = settings.data.model_copy(update={"cap_per_class": 30})
    return settings.model_copy(update={"data": data, "models": models})


@pytest.fixture(scope="module")
def split(small: TaskSettings) -> Split:
    whole = split_of(small, build_manifest(small, "ffa-lora-private").training)
    sites, tests = ({name: part[:50] for name, part in parts.items()} for parts in (whole.sites, whole.tests))
    return Split(sites, whole.test[:50], tests)


def judged(settings: TaskSettings, name: str, split: Split) -> tuple[Row, Bench]:
    bench = Bench(settings.model_copy(update={"models": {name: settings.models[name]}}))
    arms = bench.load(name, 7, split)
    assert arms is not None
    return bench.judged(arms, settings.models[name]), bench


def test_every_method_is_tried_with_dp_and_without(settings: TaskSettings) -> None:
    rows = {label(model) for model in settings.models.values()}
    assert rows == {*METHODS, "ffa-lora" + HEAD, "fedsa-lora" + HEAD}
    private = {label(model) for model in settings.models.values() if model.noise_steps}
    assert rows == private


def test_what_r2_refuses_is_refused_by_the_manifest_and_the_method(small: TaskSettings) -> None:
    bench = Bench(small)
    refused = [name for name, model in small.models.items() if model.noise_steps and refuses(bench, name)]
    kept = "no personal tensors: a client would train them with its share of the noise alone"
    for method in ("fedsa-lora", "ffa-lora" + HEAD, "fedsa-lora" + HEAD):
        reason = bench.refused[f"{method}, R2 with fedadam"]
        assert reason.startswith("E515") and kept in reason
    assert bench.refused["rolora, R2 with fedadam"].startswith("E507, rolora needs a server step without moments")
    assert len(bench.refused) == len(refused) == 4


def refuses(bench: Bench, name: str) -> bool:
    """Without the sections that are trained: the quick run trains them."""
    model = bench.settings.models[name]
    personal = model.personal_head or model.method == "fedsa-lora"
    return (personal or name == "rolora-private") and bench.load(name, 1) is None


@pytest.mark.parametrize("name", ["ffa-lora-private", "full-private"])
def test_plans_fit_their_budget(settings: TaskSettings, name: str) -> None:
    manifest = build_manifest(settings, name)
    assert manifest.privacy.protocol == "R2" and manifest.largest_contribution() <= manifest.aggregation.bound


def test_a_section_without_noise_is_never_refused_quietly(settings: TaskSettings) -> None:
    wrong = settings.models["lora"].model_copy(update={"aggregation_bound": 2**40})
    bench = Bench(settings.model_copy(update={"models": {"lora": wrong}}))
    with pytest.raises(DataError, match="no manifest"):
        bench.load("lora", 1)


def test_a_row_says_what_is_shared_what_stays_and_what_averaging_does(small: TaskSettings, split: Split) -> None:
    ffa, _ = judged(small, "ffa-lora", split)
    lora, bench = judged(small, "lora", split)
    assert ffa.facts["exact"] == "yes" and ffa.scores[ERROR] < 1e-6
    assert lora.facts["exact"] == "no" and lora.scores[ERROR] > 1e-3
    assert OWN not in lora.scores and lora.facts["personal"] == 0
    (layers,) = bench.layers.values()
    error, mean = (math.hypot(*(layer[name] for layer in layers)) for name in ("error", "mean"))
    assert error / mean == pytest.approx(lora.scores[ERROR]) and len(layers) == 12
    assert ffa.bytes_up < lora.bytes_up == 8 * -(-int(lora.facts["shared"]) // 2)


def test_what_a_site_keeps_is_judged_beside_the_common_model(small: TaskSettings, split: Split) -> None:
    row, bench = judged(small, "fedsa-lora-head", split)
    lora = build_manifest(without_dp(small), "lora").adapter
    head = 18 * 8 + 18
    assert row.facts["exact"] == "no" and int(row.facts["shared"]) + int(row.facts["personal"]) == lora.size
    assert row.facts["shared"] == sum(prod(t.shape) for t in lora.tensors if ".lora_A." in t.name) < lora.size - head
    assert row.scores[OWN] > row.scores[COMMON]  # whose head is as it was drawn
    assert bench.layers.keys() == {f"fedsa-lora{HEAD}, seed 7"}


def test_under_r2_there_is_no_error_and_every_method_is_exact(small: TaskSettings, split: Split) -> None:
    row, _ = judged(small, "lora-private", split)
    assert row.privacy == R2 and row.facts["exact"] == "yes" and ERROR not in row.scores
    assert set(row.scores) == {"accuracy", COMMON}


def study(**changes: float) -> Study:
    figures = {"exact": 1e-16, "inexact": 0.1, "common": 0.5, "own": 0.6} | changes
    rows = (
        Row(
            "ffa-lora",
            NO_DP,
            1,
            {"accuracy": 0.5, COMMON: figures["common"], ERROR: figures["exact"]},
            facts={"exact": "yes"},
        ),
        Row(
            "lora",
            NO_DP,
            1,
            {"accuracy": 0.5, COMMON: figures["common"], ERROR: figures["inexact"]},
            facts={"exact": "no"},
        ),
        *(
            Row(
                method,
                NO_DP,
                1,
                {"accuracy": 0.1, COMMON: 0.1, OWN: figures["own"]},
                facts={"exact": "no", "personal": 9},
            )
            for method in ("ffa-lora" + HEAD, "fedsa-lora", "fedsa-lora" + HEAD)
        ),
        Row("lora", R2, 1, {"accuracy": 0.9, COMMON: 0.9}, facts={"exact": "yes"}),
    )
    whole = Study("adapters", "A title", "What was done.", "accuracy", rows)
    return whole.with_claims(claims(whole))


def test_claims_fall_as_the_figures_do() -> None:
    assert [claim.holds for claim in study().claims] == [True] * 5
    assert [claim.holds for claim in study(exact=1e-5).claims] == [False, True, True, True, True]
    assert [claim.holds for claim in study(inexact=1e-16).claims] == [True, False, True, True, True]
    assert [claim.holds for claim in study(own=0.4).claims] == [True, True, False, False, False]
    assert [claim.value for claim in study(own=0.4).claims[2:]] == [pytest.approx(-0.1)] * 3
    without = replace(study(), rows=())
    assert not any(claim.holds for claim in claims(without))


def test_facts_are_columns_and_a_rounding_error_is_told_by_its_magnitude() -> None:
    columns, lines = table(study())
    assert columns[:5] == ["method", "privacy", "exact", "personal", "accuracy"]
    assert (
        columns.index(OWN) and lines[0][columns.index(ERROR)] == "1e-16" and lines[1][columns.index(ERROR)] == "0.100"
    )
    assert lines[-1][columns.index(ERROR)] == lines[0][columns.index("personal")] == "–"
    value = json.loads(json.dumps(study().as_json(), allow_nan=False))
    assert (
        value["claims"][0]["value"] == value["summary"][0][ERROR][0] == 1e-16 and value["summary"][2]["personal"] == 9
    )
    assert "itself exact: 1e-16, at most 1e-06: holds" in markdown(study()) and ">1e-16<" in render(study())


@pytest.mark.slow
def test_a_quick_run_has_every_method_or_its_refusal() -> None:
    done = CliRunner().invoke(app, ["evaluate", "--task", "adapters", "--quick", "--format", "json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.output.strip().splitlines()[-1])
    assert value["quick"] and not value["evidence"]
    rows = {(line["method"], line["privacy"]) for line in value["summary"]}
    heads = {"ffa-lora" + HEAD, "fedsa-lora" + HEAD}
    assert rows == {(m, NO_DP) for m in {*METHODS} | heads} | {(m, R2) for m in {*METHODS} - {"fedsa-lora"}}
    assert len(value["refused"]) == len(value["notes"]) == 4
    assert value["claims"][0]["holds"] and value["claims"][1]["holds"]

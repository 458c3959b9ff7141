"""Evaluation: what rows say together, the page, and one quick run from split to table."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dp.budget import check_next
from dp.errors import BudgetExceededError
from ffm.cli.app import app
from ffm.cli.evaluate import STUDIES
from ffm.client_run import budget_of, round_charge
from ffm.data import Record, split_like
from ffm.evaluate import continual
from ffm.evaluate.arms import best_alone, upload_bytes
from ffm.evaluate.page import markdown, render, table
from ffm.evaluate.study import NO_DP, Claim, Row, Study
from ffm.scores import bag_of_words, multinomial_regression
from ffm.task import build_manifest, load_settings

HOSPITAL = Path(__file__).parent.parent / "examples" / "hospital" / "evaluate.toml"


def study(**changes: object) -> Study:
    rows = tuple(
        Row("federated <b>", NO_DP, seed, {"accuracy": score, "macro_f1": score / 2}, train=score + 0.1, samples=100)
        for seed, score in ((1, 0.5), (2, 0.7))
    )
    alone = tuple(
        Row("alone", NO_DP, seed, {"accuracy": score}, outside=score - 0.1, site=site)
        for seed in (1, 2)
        for site, score in (("a", 0.2), ("b", 0.3 + seed / 100))
    )
    whole = Study("finetune", "A title", "What was done.", "accuracy", rows + alone)
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_a_summary_is_mean_and_interval_over_seeds() -> None:
    value = study().as_json()
    first = value["summary"][0]
    half = 12.706 * (0.1 * math.sqrt(2)) / math.sqrt(2)  # Student's t with one degree of freedom
    assert first["accuracy"] == [0.6, pytest.approx(half, abs=1e-3)]
    assert first["train minus test"] == [0.1, 0.0] and first["outside"] == [None, None]
    alone = value["summary"][1]  # four rows, but two draws: sites of one seed share its split
    assert alone["accuracy"] == [0.2575, pytest.approx(12.706 * 0.0025, abs=1e-3)] and alone["runs"] == 4
    assert alone["outside"][0] == 0.1575
    assert value["seeds"] == [1, 2] and value["evidence"] is True
    json.dumps(value, allow_nan=False)


def test_the_best_single_site_is_chosen_for_each_seed() -> None:
    best = best_alone(study().rows, "accuracy", lower=False)
    assert [(row.seed, row.site) for row in best] == [(1, "b"), (2, "b")]
    assert [row.site for row in best_alone(study().rows, "accuracy", lower=True)] == ["a", "a"]
    named = [replace(row, method=f"prompt, {row.method}") for row in study().rows]
    assert {row.method for row in best_alone(named, "accuracy", False, "prompt, alone")} == {"prompt, best alone"}


def test_a_claim_without_a_figure_does_not_hold() -> None:
    assert not Claim("x", math.nan, 0.0, True).holds and not Claim("x", math.nan, 0.0, False).holds
    assert (
        Claim("x", 0.1, 0.1, True).holds and Claim("x", 0.1, 0.1, False).holds and not Claim("x", 0.2, 0.1, False).holds
    )


def test_the_page_escapes_marks_a_quick_run_and_has_every_figure() -> None:
    whole = study(quick=True, claims=(Claim("a < b", 0.25, 0.1, False),), notes=("a note",))
    page = render(whole)
    assert "federated &lt;b&gt;" in page and "<b>" not in page and "no figure on this page is evidence" in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    _, lines = table(whole)
    for line in lines:
        assert all(cell in page for cell in line[2:])
    assert "evidence" not in render(study()) and "No figure" not in markdown(study())
    assert "DOES NOT HOLD" in markdown(whole) and "A quick run" in markdown(whole)


def test_held_out_records_follow_the_proportions_of_the_sites() -> None:
    sites = [[Record("x", "a")] * 90 + [Record("x", "b")] * 10, [Record("x", "a")] * 10 + [Record("x", "c")] * 5]
    test = [Record(f"{label} {n}", label) for label in "abcd" for n in range(100)]
    parts = split_like(test, sites, 3)
    assert sorted(r.text for part in parts for r in part) == sorted(r.text for r in test)
    count = [{label: sum(r.label == label for r in part) for label in "abcd"} for part in parts]
    assert count[0]["b"] == 100 and count[1]["c"] == 100 and 75 <= count[0]["a"] <= 98
    assert split_like(test, sites, 3) == parts != split_like(test, sites, 4)
    assert count[0]["d"] and count[1]["d"]  # known to nobody: anywhere


def test_words_and_regression_find_the_word_that_decides() -> None:
    texts = [f"word{n % 3} filler{n}" for n in range(60)]
    labels = np.array([n % 3 for n in range(60)])
    train, test = bag_of_words(texts, ["word0 new", "WORD2", "unknown"])
    assert train.shape[1] == 64 and test.sum() == 2 + 3  # two known words, and the constant
    logits = multinomial_regression(train, labels, 3)(test)
    assert logits[:2].argmax(axis=1).tolist() == [0, 2]
    assert np.ptp(logits[2]) < 0.2


def test_settings_of_the_evaluation_make_manifests_and_state_their_upload() -> None:
    settings = load_settings(HOSPITAL)
    manifest = build_manifest(settings, "private")
    assert manifest.privacy.protocol == "R2" and manifest.largest_contribution() <= manifest.aggregation.bound
    assert upload_bytes(manifest) == 8 * -(-manifest.adapter.size // 2)


def test_the_life_in_periods_fits_its_budget() -> None:
    settings = load_settings(HOSPITAL.with_name("continual.toml"))
    manifest = build_manifest(settings, "bert-tiny")
    assert manifest.largest_contribution() <= manifest.aggregation.bound
    assert len(continual.stream(settings)) == continual.PERIODS
    charges = [round_charge(manifest, round_, 0) for round_ in range(continual.PERIODS * manifest.training.rounds)]
    check_next(charges, round_charge(manifest, 100, 0), budget_of(manifest), settings.privacy.spare_rounds)
    with pytest.raises(BudgetExceededError):
        check_next(charges, round_charge(manifest, 100, 0), budget_of(manifest), settings.privacy.spare_rounds + 1)


def test_unknown_evaluations_are_named() -> None:
    done = CliRunner().invoke(app, ["evaluate", "--task", "nonsense", "--format", "json"])
    assert done.exit_code != 0 and "E531" in done.output


@pytest.mark.parametrize("task", [task for task in STUDIES if task != "prompt-lm"])  # as prompt, and takes longer
def test_an_evaluation_computes_where_it_is_told_to(task: str) -> None:
    done = CliRunner().invoke(app, ["evaluate", "--task", task, "--quick", "--device", "cuda:99", "--format", "json"])
    assert done.exit_code != 0 and "E524" in done.output


def test_a_quick_run_does_not_take_the_place_of_evidence(tmp_path: Path) -> None:
    (tmp_path / "finetune.json").write_text(json.dumps(study().as_json()))
    done = CliRunner().invoke(app, ["evaluate", "--task", "finetune", "--quick", "--out", str(tmp_path)])
    assert done.exit_code == 2 and "evidence" in done.output
    assert json.loads((tmp_path / "finetune.json").read_text()) == study().as_json()


@pytest.mark.slow
def test_a_life_in_periods_is_told_with_its_ledger(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", "--task", "continual", "--quick", "--format", "json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.output.strip().splitlines()[-1])
    lines = {(line["method"], line["privacy"]): line for line in value["summary"]}
    beside = {f"{continual.COMPARED}, {who}" for who in ("centralised", "alone", "best alone")}
    ways = {*continual.WAYS, "everything at once", *beside}
    drifting = {(way + continual.DRIFT, NO_DP) for way in ("sequential", "replay")}
    assert set(lines) == {(way, privacy) for way in ways for privacy in (NO_DP, "R2, ε = 8")} | drifting
    assert value["quick"] and "{" not in value["what"]
    assert all(line["average"][0] is not None for line in lines.values())
    for privacy in (NO_DP, "R2, ε = 8"):
        at_once, plain, small, whole = (
            lines[way, privacy]["samples"] for way in ("everything at once", "sequential", continual.SMALL, "replay")
        )
        assert at_once == pytest.approx(plain, abs=3)
        assert plain < small < whole
    for privacy in (NO_DP, "R2, ε = 8"):
        assert lines["adapter-per-period", privacy]["forgetting"][0] == 0.0
    (said,) = value["notes"]  # all ways charge alike
    assert "last charged in round 4 of diagnosis-periods-3" in said


@pytest.mark.slow
def test_a_quick_run_prints_every_method_and_is_no_evidence(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["evaluate", "--task", "finetune", "--quick", "--format", "json", "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    value = json.loads(done.output.strip().splitlines()[-1])
    assert value["quick"] and not value["evidence"]
    methods = {(line["method"], line["privacy"]) for line in value["summary"]}
    everybody = {"ffa-lora", "centralised", "alone", "best alone", "best alone, as many samples"}
    assert {(who, privacy) for who in everybody for privacy in (NO_DP, "R2, ε = 8")} <= methods
    seen = {(line["method"], line["privacy"]): line["samples"] for line in value["summary"]}
    for privacy in (NO_DP, "R2, ε = 8"):
        together, longer = seen["ffa-lora", privacy], seen["best alone, as many samples", privacy]
        assert seen["best alone", privacy] < together <= longer + 1 < 2 * together
    assert (tmp_path / "finetune.html").stat().st_size < 200 * 1024
    assert json.loads((tmp_path / "finetune.json").read_text()) == value

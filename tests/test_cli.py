"""The command line: three lines for people, one object for programs, documented exit codes, no traceback."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dp.errors import BudgetExceededError
from ffm.cli.app import app
from ffm.cli.errors import EXIT_CODES, exit_code, render
from ffm.cli.output import describe, ids
from ffm.errors import DataError
from ffm.models import locate
from ffm.task import GENERIC_TARGETS, TaskSettings, build_manifest, example_settings, load_settings

RUN = CliRunner()


def test_an_error_is_three_lines_and_an_exit_code() -> None:
    error = BudgetExceededError("over budget", found="ε = 8.1", expected="at most ε = 8", do="stop")
    assert render(error).splitlines() == [
        "error E201 over budget",
        "  found ε = 8.1, expected at most ε = 8",
        "  do    stop",
    ]
    assert exit_code(error.code) == 20
    assert all(0 < code < 125 for code in EXIT_CODES.values())
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        (["report", "verify", "/nowhere/report.json"], "E602", 60),
        (["client", "/nowhere"], "E354", 30),
        (["server", "/nowhere"], "E354", 30),
        (["init", "/nowhere/consortium.toml"], "E319", 30),
        (["join", "request", "/dev/null/x", "a-site"], None, 30),
        (["demo", "hospital", "--out", "/dev/null/runs"], "E323", 30),
        (["demo", "hospital", "--settings", "/nowhere.toml"], "E511", 50),
        (["audit", "/nowhere"], "E702", 70),
    ],
)
def test_wrong_input_is_one_json_object(arguments: list[str], code: str | None, status: int, tmp_path: Path) -> None:
    result = RUN.invoke(app, [*arguments, "--format", "json"])
    assert result.exit_code == status
    error = json.loads(result.stderr.splitlines()[-1])
    assert code is None or error["error"] == code
    assert error["what"]
    assert "Traceback" not in result.stderr


def test_a_model_that_the_settings_lack_is_named(tmp_path: Path) -> None:
    result = RUN.invoke(app, ["demo", "hospital", "--model", "foo", "--out", str(tmp_path)])
    assert result.exit_code == 50
    assert "error E515" in result.stderr


def test_help_and_version() -> None:
    assert RUN.invoke(app, ["--help"]).exit_code == 0
    assert RUN.invoke(app, ["--version"]).output.strip() == "0.1.0"


def test_a_folder_stands_in_for_a_packaged_model() -> None:
    settings = load_settings(example_settings("hospital"))
    folder = str(locate("bert-tiny"))
    manifest = build_manifest(settings, folder)
    assert manifest.base_model.name == Path(folder).name  # no path of this machine in a signed document
    assert manifest.adapter.target_modules == GENERIC_TARGETS
    assert {tensor.name.split(".")[-3] for tensor in manifest.adapter.tensors} >= set(GENERIC_TARGETS)


def test_settings_that_make_no_manifest_are_one_error() -> None:
    settings = load_settings(example_settings("hospital"))
    broken = settings.aggregation.model_copy(update={"max_dropouts": 4})
    changed: TaskSettings = settings.model_copy(update={"aggregation": broken})
    with pytest.raises(DataError, match="settings make no manifest"):
        build_manifest(changed, "bert-tiny")


def test_events_read_as_sentences() -> None:
    assert ids([1]) == "client 1"
    assert ids([1, 2, 5]) == "clients 1, 2 and 5"
    budget = {"event": "budget", "round": 3, "epsilon_after": "3.1", "delta": "0.00001"}
    assert "ε = 3.1 at δ = 0.00001, record, add/remove" in describe(budget)  # never a bare ε
    ended = {"event": "round-ended", "round": 2, "status": "released", "masked": [1, 2, 4]}
    assert describe(ended) == "round 2: exact sum over clients 1, 2 and 4 released"

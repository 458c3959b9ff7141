"""`secagg privacy`: the noise for an ε, and what a plan costs, as people and programs read it."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ffm.cli.app import app

SETTINGS = Path(__file__).parent.parent / "examples" / "heart" / "settings.toml"
QUESTION = ("--epsilon", "3", "--delta", "0.0001", "--sampling", "1/2", "--steps", "32", "--shares", "2")


def answer(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return value


def test_the_noise_of_the_heart_example_is_the_smallest() -> None:
    found = answer("privacy", "calibrate", *QUESTION)
    assert f"noise_steps = {found['noise_steps']} " in SETTINGS.read_text(encoding="utf-8")
    assert Decimal(found["epsilon"]) <= 3 and found["steps"] == 32


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("--epsilon", "x"), ("--epsilon", "-1"), ("--delta", "nan"), ("--sampling", "3/2"), ("--sampling", "1/0")],
)
def test_wrong_numbers_are_named(name: str, wrong: str) -> None:
    arguments = list(QUESTION)
    arguments[arguments.index(name) + 1] = wrong
    result = CliRunner().invoke(app, ["privacy", "calibrate", *arguments])
    assert 0 < result.exit_code < 125 and name in result.output and wrong in result.output


def test_a_plan_names_every_adversary_with_its_noise() -> None:
    plan = answer("privacy", "plan", str(SETTINGS))
    rows = {row["adversary"].split(",")[0]: row for row in plan["trust"]}
    server = rows["malicious server with up to 1 client on its side"]
    assert Decimal(server["epsilon"]) <= Decimal(plan["budget"]) == 3
    assert Decimal(rows["recipient of the final adapter"]["epsilon"]) < Decimal(server["epsilon"])
    assert Decimal(rows["anybody"]["epsilon"]) > 3 and rows["the silo's own operator"]["epsilon"] == "none"
    assert plan["steps"] == (plan["rounds"] + plan["spare_rounds"]) and 0 < float(plan["signal_to_noise"]) < 1

"""`secagg privacy`: the noise for an ε, and what a plan costs, as people and programs read it."""

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dp.accountant import epsilon
from dp.events import SampledGaussian, event_tree
from dp.ledger import Charge, PrivacyLedger
from ffm.cli.app import app
from ffm.client_run import round_charge
from ffm.start import POPULATION
from tests.integration.federation import make

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


def test_a_site_is_told_what_its_population_spent_and_when_it_was_last_charged(tmp_path: Path) -> None:
    """Over all tasks: the ledger belongs to the population, not to a manifest."""
    consortium, manifest = make(tmp_path / "consortium")
    site = consortium.clients["west"]
    assert answer("privacy", "spent", str(site)) == {"silo": "west", "charges": 0}
    (site / "state").mkdir(mode=0o700)
    earlier = Charge("earlier", "ab" * 32, 9, 0, event_tree(SampledGaussian(2, Fraction(1, 8), 65536, 65536)))
    charges = [earlier, *(round_charge(manifest, round_, 0) for round_ in (1, 2))]
    with PrivacyLedger.open(
        site / "state" / "ledger" / f"{POPULATION}.sqlite", silo="west", population=POPULATION
    ) as ledger:
        for charge in charges:
            ledger.charge(charge)
    told = answer("privacy", "spent", str(site))
    assert told["charges"] == 3 and told["budget"] == manifest.privacy.epsilon
    assert told["epsilon"] == epsilon(charges, Decimal(manifest.privacy.delta)).epsilon
    last = {"task": manifest.task, "manifest": manifest.digest().hex(), "round": 2}
    assert told["last_charged"] == last
    said = CliRunner().invoke(app, ["privacy", "spent", str(site)]).output
    assert "earlier" in said and f"last charged: round 2 of {manifest.task}" in said

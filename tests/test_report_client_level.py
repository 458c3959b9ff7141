"""The report under protocol C: its unit, its trust table, and what the same charges mean for one record."""

import copy
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from math import isqrt
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from report_sample import DIGEST, ROOT, attempt, facts, group, manifest, roster, statement

from dp.accountant import epsilon
from dp.errors import PrivacyError
from dp.events import SampledGaussian
from dp.ledger import Charge
from dp.report import SignedDocument, SignedStatement, build_report, verify_report
from dp.report_figures import planned_event
from dp.report_html import render_html
from dp.report_markdown import render_markdown
from dp.report_opendp import opendp_entry
from dp.report_schema import schema
from dp.rounding import norm_bound

DELTA, CLIENTS, COHORT, CORRUPT, ROUNDS = Decimal("0.000001"), 504, 500, 24, 3
SHARES, NOISE = COHORT - CORRUPT, 6 * 65536
BOUND = norm_bound(65536, 128 * 4 + 3 * 128)


def document(**privacy: Any) -> dict[str, Any]:
    value = manifest()
    value["privacy"] |= {"protocol": "C", "unit": "client", "adjacency": "zero-out", "noise_steps": NOISE, **privacy}
    value["aggregation"] |= {"graph": "ring", "num_clients": CLIENTS, "max_corrupt": CORRUPT, "max_dropouts": 4}
    value["aggregation"] |= {"min_cohort": COHORT}
    return value


def report(foreign: Charge | None = None, **privacy: Any) -> dict[str, Any]:
    """Two clients stated their ledgers; what the others spent follows from the rounds."""
    chosen, everybody = document(**privacy), list(range(1, CLIENTS + 1))
    own = [Charge("icd-chapters", DIGEST, r, 0, planned_event(chosen)) for r in range(1, ROUNDS + 1)]
    both = [own, own if foreign is None else [foreign, *own]]
    clients = [
        {"client_id": k, "name": f"site-{k}", "identity_key": f"{k:064x}", "tls_key_sha256": f"{k + 1000:064x}"}
        for k in everybody
    ]
    sets = dict.fromkeys(("cohort", "advertised", "shared", "masked", "checked", "unmasked"), everybody)
    return build_report(
        facts(
            manifest=SignedDocument(chosen, DIGEST, "a1" * 64),
            roster=SignedDocument(roster() | {"clients": clients}, ROOT, "c2" * 64),
            statements=[SignedStatement(statement(k, both[k - 1]), "e3" * 64) for k in (1, 2)],
            rounds=[attempt(r, 0, **sets) for r in range(1, ROUNDS + 1)],
            ended=1_760_000_000 + 4000,
            utility=(),
            evaluation_people="no-evaluation",
        ),
        prv=False,
    )


@lru_cache(maxsize=1)
def whole() -> dict[str, Any]:
    return report()


def cost(noise: int, sensitivity: int = BOUND) -> str:
    return epsilon([SampledGaussian(ROUNDS, Fraction(1), noise, sensitivity, SHARES)], DELTA, prv=False).epsilon


def test_the_headline_is_of_a_client_and_zero_out() -> None:
    headline = group(whole(), "guarantee")["headline"]
    assert (headline["unit"], headline["adjacency"], headline["row"]) == ("client", "zero-out", "malicious-server")
    assert headline["epsilon"] == cost(NOISE) and headline["steps"] == ROUNDS  # not local steps
    assert "client, zero-out" in headline["sentence"] and "noised sums" in headline["sentence"]
    rows = {row["id"]: row for row in group(whole(), "guarantee")["per_adversary"]}
    for name, unknown in {"recipient": COHORT, "other-client": COHORT - 1, "aggregation-broken": 1}.items():
        assert rows[name]["noise"]["noise_steps"] == isqrt(NOISE**2 * unknown // SHARES), name
    assert "zeros in its place" in group(whole(), "unit")["meaning"]
    assert "one given client's data" in group(whole(), "risk")["plain_words"][0]


def test_the_mechanism_is_told_in_its_own_sensitivity() -> None:
    units = group(whole(), "mechanism")
    assert units["integer_units"]["sensitivity_steps"] == BOUND > units["integer_units"]["clip_steps"]
    assert units["real_units"]["sampling_probability"] == "1"
    assert units["real_units"]["noise_multiplier"].startswith("5.99")


def test_the_record_level_stands_in_an_account_of_its_own() -> None:
    level = group(whole(), "accounting")["record_level"]
    assert (level["unit"], level["adjacency"]) == ("record", "add-or-remove-one")
    assert level["sensitivity_steps"] == 2 * BOUND
    assert {row["epsilon_per_record"] for row in level["per_client"]} == {cost(NOISE, 2 * BOUND)}


def test_it_verifies_is_valid_and_renders() -> None:
    assert [c.name for c in verify_report(whole(), prv=False) if not c.ok] == []
    Draft202012Validator(schema()).validate(whole())
    html, text = render_html(whole()), render_markdown(whole())
    for page in (html, text):
        assert "client, zero-out" in page and "ε of one record, add/remove, at the same δ" in page
    assert opendp_entry(whole())["deployment"]["privacy_loss"]["privacy_unit"] == "client"


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"min_cohort": 400}, "clients behind every sum of protocol C"),
        ({"unit": "record"}, "unit and adjacency of the protocol"),
    ],
)
def test_a_claim_without_a_proof_does_not_verify(change: dict[str, Any], finding: str) -> None:
    edited = copy.deepcopy(whole())
    for section in ("privacy", "aggregation"):
        target = edited["facts"]["manifest"]["document"][section]
        target |= {key: value for key, value in change.items() if key in target}
    assert any(finding in c.name for c in verify_report(edited, prv=False) if not c.ok)


def test_an_edited_record_level_is_found() -> None:
    edited = copy.deepcopy(whole())
    group(edited, "accounting")["record_level"]["per_client"][0]["epsilon_per_record"] = cost(NOISE)
    assert any("epsilon_per_record" in c.name for c in verify_report(edited, prv=False) if not c.ok)


def test_record_level_charges_leave_no_client_level_claim() -> None:
    foreign = Charge("pilot", "77" * 32, 1, 0, planned_event(manifest()))
    with pytest.raises(PrivacyError):
        report(foreign)

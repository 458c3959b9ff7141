"""The report under R2: the trust table with the noise that each adversary does not know, figure by figure."""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from math import isqrt
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from report_sample import DIGEST, ROOT, attempt, facts, group, manifest, roster, statement

from dp.accountant import ABOVE_CEILING, epsilon, membership_advantage
from dp.errors import ReportError
from dp.events import SampledGaussian, event_tree
from dp.ledger import Charge
from dp.report import SignedDocument, SignedStatement, build_report, verify_report
from dp.report_figures import NO_CERTIFICATE, planned_event
from dp.report_html import render_html
from dp.report_schema import schema
from dp.report_trust import adversaries
from dp.rotation import DITHER
from dp.rounding import norm_bound

DELTA = Decimal("0.000001")
COHORT, CORRUPT = 4, 1
SHARES = COHORT - CORRUPT


def distributed(**privacy: Any) -> dict[str, Any]:
    value = manifest()
    value["training"] |= {"local_steps": 1, "rounds": 40, "optimizer": "sgd"}
    value["aggregation"] |= {"min_cohort": COHORT, "max_corrupt": CORRUPT, "max_dropouts": 0}
    value["privacy"] |= {"protocol": "R2", "noise_steps": 98304, **privacy}
    return value


def report(last: int = 6, **privacy: Any) -> dict[str, Any]:
    document = distributed(**privacy)
    event = planned_event(document)
    rounds = range(1, last + 1)
    own = [Charge("icd-chapters", DIGEST, r, 0, event) for r in rounds]
    foreign = Charge("pilot", "77" * 32, 1, 0, planned_event(manifest()))  # of another task, under R1
    statements = [SignedStatement(statement(k, [foreign, *own] if k == 2 else own), "e3" * 64) for k in (1, 2, 3, 4)]
    return build_report(
        facts(
            manifest=SignedDocument(document, DIGEST, "a1" * 64),
            statements=statements,
            rounds=[attempt(r, 0) for r in rounds],
            ended=1_760_000_000 + 4000,
            utility=(),
            evaluation_people="no-evaluation",
        ),
        prv=False,
    )


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return report()


def test_each_row_has_the_noise_that_is_left(whole: dict[str, Any]) -> None:
    rows = {row["id"]: row for row in group(whole, "guarantee")["per_adversary"]}
    unknown = {
        "recipient": COHORT,
        "honest-but-curious-server": COHORT,
        "malicious-server": SHARES,
        "other-client": COHORT - 1,
        "aggregation-broken": 1,
    }
    for name, count in unknown.items():
        noise = isqrt(98304**2 * count // SHARES)
        assert rows[name]["noise"]["noise_steps"] == noise, name
        assert (rows[name]["noise"]["shares_unknown_to_it"], rows[name]["noise"]["shares_charged"]) == (count, SHARES)
        expected = epsilon([SampledGaussian(6, Fraction(1, 8), noise, 65536, SHARES)], DELTA, prv=False)
        assert {c["client_id"]: c["epsilon"] for c in rows[name]["per_client"]}[1] == expected.epsilon, name
        foreign = SampledGaussian(10, Fraction(1, 8), 98304, 65536)  # R1: its noise is whole for everybody
        both = epsilon([SampledGaussian(6, Fraction(1, 8), noise, 65536, SHARES), foreign], DELTA, prv=False)
        assert rows[name]["epsilon"] == both.epsilon and rows[name]["worst"]["client_id"] == 2
    assert Decimal(rows["recipient"]["epsilon"]) < Decimal(rows["malicious-server"]["epsilon"])
    assert Decimal(rows["aggregation-broken"]["epsilon"]) > Decimal(rows["malicious-server"]["epsilon"])
    assert rows["own-operator"]["noise"] is None


def test_the_headline_is_the_malicious_server_and_what_was_charged(whole: dict[str, Any]) -> None:
    headline = group(whole, "guarantee")["headline"]
    assert headline["row"] == "malicious-server" and headline["client_id"] == 2
    assert headline["epsilon"] == group(whole, "accounting")["per_client"][1]["figures"]["epsilon"]
    risk = group(whole, "risk")["per_client"][0]
    assert risk["membership_advantage"] == membership_advantage(
        [SampledGaussian(6, Fraction(1, 8), 98304, 65536, SHARES)]
    )


def test_it_verifies_is_valid_and_renders(whole: dict[str, Any]) -> None:
    assert [c.name for c in verify_report(whole, prv=False) if not c.ok] == []
    Draft202012Validator(schema()).validate(whole)
    html = render_html(whole)
    assert "3 of 3" in html and "1 of 3" in html and "4 of 3" in html
    realised = group(whole, "participation")["realised_noise"]
    assert {row["variance_over_charged"] for row in realised} == {"1.33333333333"}


def test_a_rotated_sum_is_told_in_steps_of_its_own_grid() -> None:
    document = distributed()
    document["aggregation"] |= {"rotation": "hadamard", "scale": 2048, "slots_per_word": 3, "bound": 200_000}
    own = [Charge("icd-chapters", DIGEST, 1, 0, planned_event(document))]
    statements = [SignedStatement(statement(k, own), "e3" * 64) for k in (1, 2, 3, 4)]
    rotated = build_report(
        facts(
            manifest=SignedDocument(document, DIGEST, "a1" * 64),
            statements=statements,
            rounds=[attempt(1, 0)],
            utility=(),
            evaluation_people="no-evaluation",
        ),
        prv=False,
    )
    mechanism = group(rotated, "mechanism")
    units, sensitivity = mechanism["integer_units"], norm_bound(2048, 896, DITHER)
    assert (units["noised_scale"], units["noise_steps"], units["sensitivity_steps"]) == (2048, 3072, sensitivity)
    assert units["clip_steps"] == 65536 and "56 blocks of 16 values" in mechanism["rotation"]
    assert mechanism["real_units"]["noise_standard_deviation"] == "1.5"
    expected = epsilon([SampledGaussian(1, Fraction(1, 8), 3072, sensitivity, SHARES)], DELTA, prv=False)
    assert group(rotated, "guarantee")["headline"]["epsilon"] == expected.epsilon
    assert [c.name for c in verify_report(rotated, prv=False) if not c.ok] == []
    Draft202012Validator(schema()).validate(rotated)


def test_an_edited_row_is_found(whole: dict[str, Any]) -> None:
    edited = report()
    row = next(r for r in group(edited, "guarantee")["per_adversary"] if r["id"] == "aggregation-broken")
    row["epsilon"] = group(edited, "guarantee")["headline"]["epsilon"]
    assert any("aggregation-broken.epsilon" in c.name for c in verify_report(edited, prv=False) if not c.ok)


def test_one_upload_alone_may_have_no_certificate() -> None:
    # 170 grid steps in 3 shares: 98 a share, below what a certificate needs
    few = report(noise_steps=170, clip_steps=100)
    rows = {row["id"]: row for row in group(few, "guarantee")["per_adversary"]}
    assert rows["aggregation-broken"]["epsilon"] == NO_CERTIFICATE
    assert rows["malicious-server"]["epsilon"] not in (NO_CERTIFICATE, ABOVE_CEILING)
    Draft202012Validator(schema()).validate(few)
    assert "no certificate" in render_html(few)


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param({"sampling_denominator": 1, "noise_steps": 983040}, id="q = 1"),
        pytest.param({}, id="mixture", marks=pytest.mark.slow),
    ],
)
def test_several_records_of_a_person_cost_more(sampling: dict[str, int]) -> None:
    several = report(1, records_per_person=2, people_in_several_silos="within-bound", **sampling)
    one, two = (
        group(r, "guarantee")["per_client"][0]["epsilon"] for r in (report(1, **sampling), several)
    )  # client 1 has no other task in its ledger
    assert Decimal(two) > Decimal("1.2") * Decimal(one)
    assert "up to 2" in group(several, "unit")["meaning"]
    assert [c.name for c in verify_report(several, prv=False) if not c.ok] == []


def test_a_decryptor_is_a_member_and_a_row() -> None:
    document, members = distributed(), roster()
    document["aggregation"]["assurance"] = "dual"
    members["decryptor"] = {"name": "keyholder", "identity_key": "ab" * 32, "tls_key_sha256": "cd" * 32}
    assert [a.id for a in adversaries(distributed())].count("decryptor") == 0
    row = next(a for a in adversaries(document) if a.id == "decryptor")
    assert row.declared and row.shares == (COHORT, SHARES)
    document["privacy"]["protocol"] = "R1"
    with_one = build_report(
        facts(
            manifest=SignedDocument(document, DIGEST, ""),
            roster=SignedDocument(members, ROOT, ""),
            statements=(),
            rounds=(),
            utility=(),
            evaluation_people="no-evaluation",
        ),
        prv=False,
    )
    assert group(with_one, "identity")["members"][1] == {
        "role": "decryptor",
        "name": "keyholder",
        "identity_key": "ab" * 32,
    }
    assert "the decryptor" in render_html(with_one)


def test_a_charge_that_another_clients_own_share_undercuts_does_not_verify() -> None:
    """`max_corrupt` 0: all shares are charged, and every client knows one of them."""
    document = distributed()
    document["aggregation"]["max_corrupt"] = 0
    with pytest.raises(ReportError, match="shares of the noise do not count"):
        of_tasks(document)


def test_another_task_in_shares_costs_what_was_charged_against_everybody_declared() -> None:
    """Its cohort is not known; that its charge leaves the shares of one client out is."""
    document = distributed()
    earlier = SampledGaussian(3, Fraction(1, 8), 98304, 65536, SHARES)
    rows = {row["id"]: row for row in group(of_tasks(document, earlier), "guarantee")["per_adversary"]}
    own, single = replace(earlier, count=1), isqrt(98304**2 // SHARES)
    quiet = replace(own, noise_steps=isqrt(98304**2 * COHORT // SHARES))
    assert rows["recipient"]["epsilon"] == epsilon([quiet, earlier], DELTA, prv=False).epsilon
    broken = [replace(event, noise_steps=single) for event in (own, earlier)]
    assert rows["aggregation-broken"]["epsilon"] == epsilon(broken, DELTA, prv=False).epsilon
    charged = epsilon([own, earlier], DELTA, prv=False).epsilon
    assert rows["malicious-server"]["epsilon"] == rows["other-client"]["epsilon"] == charged


def of_tasks(document: dict[str, Any], *earlier: SampledGaussian) -> dict[str, Any]:
    """One round under `document`, after rounds of other tasks."""
    before = [Charge("earlier", "77" * 32, k, 0, event_tree(event)) for k, event in enumerate(earlier, 1)]
    own = [*before, Charge("icd-chapters", DIGEST, 1, 0, planned_event(document))]
    statements = [SignedStatement(statement(k, own), "e3" * 64) for k in (1, 2, 3, 4)]
    return build_report(
        facts(
            manifest=SignedDocument(document, DIGEST, "a1" * 64),
            statements=statements,
            rounds=[attempt(1, 0)],
            utility=(),
            evaluation_people="no-evaluation",
        ),
        prv=False,
    )

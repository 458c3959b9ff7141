"""Markdown, registry entry and comparison: complete, escaped, valid, and made from the JSON alone."""

import copy
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml  # noqa: TID251 - a second reader of what our own emitter writes, with the safe loader only
from jsonschema import Draft202012Validator
from report_sample import ROOT, charges, facts, group, roster, sample_report, statement

from dp.report import SignedDocument, SignedStatement, build_report
from dp.report_diff import diff_json, diff_reports, diff_words
from dp.report_labels import plain_cell
from dp.report_markdown import escape, render_markdown
from dp.report_opendp import REQUIRED, REQUIRED_BASIC, opendp_entry, render_opendp

REGISTRY = Path(__file__).parent.parent.parent / "shared" / "data" / "opendp-registry" / "deployments-schema.yaml"


# -- Markdown ---------------------------------------------------------------------------------------------------------


def test_markdown_has_all_groups_and_whole_tables() -> None:
    report = sample_report()
    text = render_markdown(report)
    assert [int(n) for n in re.findall(r"^## (\d+) ", text, re.MULTILINE)] == list(range(1, 16))
    assert text == render_markdown(report)
    width = 0
    for line in text.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        width = width or cells
        assert cells == width, line
    assert escape(group(report, "guarantee")["headline"]["sentence"]) in text
    for row in group(report, "accounting")["delta_curve"]["points"]:
        assert f"| {row['epsilon']} | {row['delta']} |" in text
    for match in re.finditer(r"ε =? ?>?[0-9]", text):
        assert re.match(r".{0,24}at δ = [0-9.]+, record, add/remove", text[match.start() :]), text[match.start() :][:80]


def test_no_text_becomes_markup() -> None:
    hostile = roster()
    hostile["consortium"] = "x|y\n# <script>alert(1)</script> [a](http://b) `c` **d** &lt;"
    text = render_markdown(build_report(facts(roster=SignedDocument(hostile, ROOT, "")), prv=False))
    assert "<script" not in text.replace("\\<script", "")
    assert not re.search(r"(?<!\\)\[a", text) and not re.search(r"^# .*script", text, re.MULTILINE)
    assert "x\\|y \\# \\<script\\>" in text


# -- registry entry ---------------------------------------------------------------------------------------------------


def test_the_entry_is_the_same_value_to_an_independent_reader() -> None:
    report = sample_report()
    entry = opendp_entry(report)
    read = yaml.safe_load(render_opendp(report))
    assert read == json.loads(json.dumps(entry, default=float))
    assert all(read[key] for key in REQUIRED) and all(read["deployment"]["basic"][key] for key in REQUIRED_BASIC)
    parameters = entry["deployment"]["privacy_loss"]["privacy_parameters"]
    assert parameters["epsilon"] == Decimal(group(report, "guarantee")["headline"]["epsilon"])
    assert read["tier"] == 3 and read["status"] == "Draft"
    assert read["deployment"]["basic"]["intended_use"] == "coding of diagnoses, version 3"


@pytest.mark.skipif(not REGISTRY.exists(), reason="the registry's schema is not beside this checkout (../shared/data)")
@pytest.mark.parametrize("complete", [True, False])
def test_the_entry_is_valid_for_the_registry(complete: bool) -> None:
    rules = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))
    report = sample_report() if complete else build_report(facts(governance={}, audit=None, rounds=()), prv=False)
    validator = Draft202012Validator(rules, format_checker=Draft202012Validator.FORMAT_CHECKER)
    entry = yaml.safe_load(render_opendp(report))
    validator.validate(entry)
    assert set(rules["required"]) == set(REQUIRED)
    assert set(rules["properties"]["deployment"]["properties"]["basic"]["required"]) == set(REQUIRED_BASIC)
    del entry["deployment"]["basic"]["publication_date"]
    assert not validator.is_valid(entry)


def test_hostile_texts_stay_texts_in_yaml() -> None:
    hostile = roster()
    hostile["consortium"] = 'a"\n- b: !!python/object/apply:os.system ["x"]\x7f\u2028\u0085 \\ #c ε 😀'
    report = build_report(facts(roster=SignedDocument(hostile, ROOT, "")), prv=False)
    assert yaml.safe_load(render_opendp(report))["deployment"]["basic"]["name"].startswith(hostile["consortium"])


# -- comparison -------------------------------------------------------------------------------------------------------


def other() -> dict[str, Any]:
    """Client 2 sent nothing for another task; one round less was charged by client 4; other results."""
    some = facts()
    statements = [
        SignedStatement(statement(k, charges((1, 0), (2, 0), (2, 1))) if k == 2 else s.statement, s.signature)
        for k, s in enumerate(some.statements, start=1)
    ]
    return build_report(facts(statements=statements, run_id="run-2", utility=some.utility[1:]), prv=False)


def test_a_report_does_not_differ_from_itself() -> None:
    report = sample_report()
    assert diff_reports(report, copy.deepcopy(report)) == []
    assert diff_json(report, report)["result"] == "same"


def test_changes_are_told_in_words_and_in_full() -> None:
    a, b = sample_report(), other()
    value = diff_json(a, b)
    json.dumps(value)
    before, after = (group(r, "guarantee")["headline"]["epsilon"] for r in (a, b))
    assert value["words"][0].startswith(
        f"guarantee: ε = {before} at δ = 0.000001, record, add/remove, then ε = {after}"
    )
    assert value["words"][0].endswith(f"stronger by {Decimal(before) - Decimal(after)}")
    assert any(line.startswith("accuracy of federated-dp") for line in value["words"])
    assert value["words"][-1] == "both ran under the same manifest"
    changed = {c["path"]: c for c in value["changes"] if c["group"] == 4}
    assert changed["headline.epsilon"]["difference"].startswith("-")
    assert changed["per_client[client 2, name site-2].epsilon"]["after"] == after
    assert {c["group"] for c in value["changes"]} >= {1, 4, 6, 8, 12, 13}
    # turned round, everything is said the other way round
    back = {c.path: c for c in diff_reports(b, a) if c.group == 4}
    assert back["headline.epsilon"].before == changed["headline.epsilon"]["after"]


def test_every_leaf_that_differs_is_told() -> None:
    a = sample_report()
    for number, leaf, value in [
        (1, ("base_model_files", 0, "sha256"), "13" * 32),
        (2, ("vector_length",), 7),
        (5, ("real_units", "noise_multiplier"), "1.6"),
        (11, ("checks", 0, "found"), "nothing"),
        (12, ("methods", 0, "correct"), 78),
        (14, ("checklist", 3, "topic"), "other"),
    ]:
        b = copy.deepcopy(a)
        place: Any = b["groups"][number - 1]
        for key in leaf[:-1]:
            place = place[key]
        was, place[leaf[-1]] = place[leaf[-1]], value
        found = [(c.group, c.before, c.after) for c in diff_reports(a, b)]
        # a changed name is another row: then both rows are told
        assert any(c[0] == number and plain_cell(value, "") in c[2] for c in found), leaf
        assert any(plain_cell(was, "") in c[1] for c in found), leaf


def test_a_guarantee_of_another_kind_is_not_compared_by_number() -> None:
    a, b = sample_report(), sample_report()
    group(b, "guarantee")["headline"]["qualifier"] = "at δ = 0.00001, client, zero-out"
    assert "not comparable by ε alone" in diff_words(a, b)[0]

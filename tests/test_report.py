"""The accounting report: complete, recomputable, and no digit in it can be changed unseen."""

import copy
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_sample import (
    DIGEST,
    ROOT,
    T0,
    attempt,
    built,
    charges,
    facts,
    group,
    manifest,
    roster,
    sample_report,
    statement,
)

from dp import report_facts as shape
from dp.accountant import epsilon
from dp.errors import ReportError
from dp.report import (
    MethodResult,
    SignedDocument,
    SignedStatement,
    build_report,
    render_html,
    verify_report,
)
from dp.report_findings import compare
from dp.report_utility import macro_f1
from dp.store import GENESIS, broken_link, canonical, next_row


@pytest.fixture
def report() -> dict[str, Any]:
    return sample_report()


def failures(report: dict[str, Any]) -> list[str]:
    return [check.name for check in verify_report(report, prv=False) if not check.ok]


def test_a_report_has_fifteen_groups_and_verifies(report: dict[str, Any]) -> None:
    assert [g["number"] for g in report["groups"]] == list(range(1, 16))
    assert failures(report) == []
    assert canonical(report) == built()  # no floats, canonical as it is


def test_the_headline_is_the_worst_hospital_with_everything_that_it_ever_charged(report: dict[str, Any]) -> None:
    headline = group(report, "guarantee")["headline"]
    four = epsilon([c for c in charges((1, 0), (2, 0), (3, 0), (4, 0))], Decimal("0.000001"), prv=False)
    assert (headline["client_id"], headline["epsilon"], headline["rounds"]) == (2, four.epsilon, 2)
    assert headline["steps"] == 40 and headline["complete"] is True
    assert "δ = 0.000001" in headline["sentence"] and "record, add/remove" in headline["sentence"]
    rows = group(report, "guarantee")["per_adversary"]
    assert all(row["per_client"][1]["epsilon"] == four.epsilon for row in rows[:-1])
    assert all(row["epsilon"] == four.epsilon and row["worst"]["client_id"] == 2 for row in rows[:-1])
    assert rows[-1]["epsilon"].startswith("none") and rows[-1]["per_client"] == []
    assert [row["within_threat_model"] for row in rows] == [True] * 4 + [False] * 2
    curve = {c["client_id"]: c["points"] for c in group(report, "accounting")["budget_curve"]}
    assert [len(curve[k]) for k in (1, 2, 3, 4)] == [3, 4, 3, 2] and curve[2][-1]["epsilon"] == four.epsilon


def test_drops_utility_and_units_are_derived(report: dict[str, Any]) -> None:
    rounds = group(report, "secure_aggregation")["rounds"]
    assert rounds[2]["dropped"] == [
        {"client_id": 4, "first_missing_in": "share-keys", "reason": "TIMED_OUT", "in_the_sum": False}
    ]
    assert group(report, "secure_aggregation")["quorum"] == 3
    first = group(report, "utility")["methods"][0]
    assert (first["correct"], first["test_records"], first["accuracy"]) == (79, 100, "0.7900")
    assert first["samples_per_client"] == 5120
    units = group(report, "mechanism")["real_units"]
    assert (units["clip_norm"], units["noise_multiplier"], units["sampling_probability"]) == ("1", "1.5", "0.125")
    assert group(report, "participation")["clients"][3]["charged_but_not_in_a_sum"] == 1
    assert group(report, "release")["vector_length"] == 128 * 4 + 3 * 128


@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=3, max_size=3))
def test_macro_f1_against_the_definition(confusion: list[list[int]]) -> None:
    scores = []
    for k in range(3):
        tp, predicted, true = confusion[k][k], sum(row[k] for row in confusion), sum(confusion[k])
        precision, recall = tp / predicted if predicted else 0.0, tp / true if true else 0.0
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    assert float(macro_f1(confusion)) == pytest.approx(sum(scores) / 3)


# -- edited digits ----------------------------------------------------------------------------------------------------

Path_ = tuple[str | int, ...]

# What only a signature binds: the caller checks these against the owner's, the clients' and the server's keys.
SIGNATURES_ONLY = re.compile(r"facts\.(manifest|roster|statements\.\d+|rounds\.\d+\.ledger_row)\.signature")


def leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path, value


def edits(value: Any) -> Iterator[Any]:
    """The last digit changed by one, in integers and in every text that holds one; in numbers the first one too."""
    if isinstance(value, bool) or value is None:
        return
    text = str(value)
    places = [i for i, c in enumerate(text) if c.isdigit()]
    number = isinstance(value, int) or text.replace(".", "").isdigit()
    for i in dict.fromkeys([*places[-1:], *(places[:1] if number else [])]):
        changed = text[:i] + str((int(text[i]) + 1) % 10) + text[i + 1 :]
        yield int(changed) if isinstance(value, int) else changed


def test_every_edited_digit_is_found(report: dict[str, Any]) -> None:
    survivors, tried = set(), 0
    expected = copy.deepcopy(report["groups"])
    for path, value in list(leaves(report)):
        place: Any = report
        for key in path[:-1]:
            place = place[key]
        for changed in edits(value):
            tried += 1
            place[path[-1]] = changed
            # The same facts give the same groups: mostly compared as verification does, without deriving them anew.
            quick = path[0] == "groups" and tried % 50
            found = list(compare("groups", report["groups"], expected)) if quick else failures(report)
            if not found:
                survivors.add(".".join(map(str, path)))
        place[path[-1]] = value
    assert tried > 1500
    assert canonical(report) == built()
    assert {s for s in survivors if not SIGNATURES_ONLY.fullmatch(s)} == set()
    assert len(survivors) == 2 + 4 + 2  # the walk does reach the leaves that only a signature binds


def test_keys_of_the_maps_and_unknown_fields_are_found(report: dict[str, Any]) -> None:
    for path in [("facts",), ("facts", "run"), ("facts", "rounds", 0), ("facts", "statements", 0, "statement"), ()]:
        edited = copy.deepcopy(report)
        place: Any = edited
        for key in path:
            place = place[key]
        place["extra"] = 1
        assert failures(edited), path
    edited = copy.deepcopy(report)
    edited["facts"]["rounds"][2]["drops"] = {"3": "TIMED_OUT"}
    assert failures(edited)


def rechained(report: dict[str, Any], client: int, bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """A ledger rewritten with a whole chain, as if its owner had signed it anew."""
    edited = copy.deepcopy(report)
    target = edited["facts"]["statements"][client - 1]["statement"]
    rows = [next_row(None, GENESIS, target["rows"][0]["body"])]
    for body in bodies:
        rows.append(next_row((rows[-1].seq, rows[-1].hash), "charge", body))
    assert broken_link(rows) is None
    target["rows"] = [
        {"seq": r.seq, "kind": r.kind, "body": r.value(), "previous": r.previous.hex(), "hash": r.hash.hex()}
        for r in rows
    ]
    target["seq"], target["head"] = rows[-1].seq, rows[-1].hash.hex()
    return edited


def test_a_rewritten_ledger_with_a_whole_chain_is_found(report: dict[str, Any]) -> None:
    bodies = [row["body"] for row in report["facts"]["statements"][0]["statement"]["rows"][1:]]
    assert failures(rechained(report, 1, bodies)) == []
    assert "client 1: every upload was charged" in failures(rechained(report, 1, bodies[:1]))
    # the second attempt of round 2 may have sent the values of the first, under its charge; never the other way round
    assert "client 1: every upload was charged" not in failures(rechained(report, 1, bodies[:-1]))
    assert "client 1: every upload was charged" in failures(rechained(report, 1, [bodies[0], bodies[2]]))
    cheaper = copy.deepcopy(bodies)
    cheaper[0]["event"]["count"] = 9
    assert "client 1: charges equal the manifest's event" in failures(rechained(report, 1, cheaper))
    assert "client 1: each attempt charged once" in failures(rechained(report, 1, [*bodies, bodies[0]]))
    late = [*bodies, {**bodies[0], "round": 9}]
    assert "client 1: rounds of the charges" in failures(rechained(report, 1, late))


def test_a_whole_forgery_of_derived_figures_is_found(report: dict[str, Any]) -> None:
    text = json.dumps(report["groups"], ensure_ascii=False)
    spent = group(report, "guarantee")["headline"]["epsilon"]
    forged = {**report, "groups": json.loads(text.replace(spent, "1.0001"))}
    assert any(name.startswith("groups.guarantee.headline.epsilon") for name in failures(forged))


def test_prv_is_held_against_pld_where_it_cannot_be_recomputed(report: dict[str, Any]) -> None:
    figures = group(report, "accounting")["per_client"][0]["figures"]
    figures["prv"] = str(Decimal(figures["epsilon"]) + Decimal("0.0100"))
    assert failures(report) == []
    figures["prv"] = str(Decimal(figures["epsilon"]) + Decimal("0.1"))
    assert failures(report) == ["PRV cross-check"]
    figures["prv"] = "fine"
    assert failures(report) == ["PRV cross-check"]


def test_the_prv_figure_is_recomputed_where_opacus_is_installed() -> None:
    report = build_report(facts())
    figures = group(report, "accounting")["per_client"][0]["figures"]
    assert Decimal(figures["epsilon"]) <= Decimal(figures["prv"]) <= Decimal(figures["epsilon"]) + Decimal("0.02")
    assert [c.name for c in verify_report(report) if not c.ok] == []
    assert failures(report) == []  # and it is held against PLD where it is not
    figures["prv"] = str(Decimal(figures["prv"]) + Decimal("0.0001"))
    assert [c.name for c in verify_report(report) if not c.ok] == ["groups.accounting.per_client.0.figures.prv"]


def test_overspending_is_found(report: dict[str, Any]) -> None:
    changed = manifest()
    changed["privacy"]["epsilon"] = "0.5"
    over = build_report(facts(manifest=SignedDocument(changed, DIGEST, "a1" * 64)), prv=False)
    assert failures(over) == [f"client {k}: within the budget" for k in (1, 2, 3, 4)]


def test_a_client_without_statement_is_named_and_not_made_up() -> None:
    some = facts()
    report = build_report(facts(statements=some.statements[:3]), prv=False)
    entry = group(report, "guarantee")["per_client"][3]
    assert entry["basis"].startswith("no statement received") and entry["steps"] == 20
    assert group(report, "guarantee")["headline"]["complete"] is False
    assert "Not every client has sent" in render_html(report)
    assert failures(report) == []


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"rounds": [attempt(1, 0, masked=[1, 2, 3, 5])]}, "sets nested"),
        ({"rounds": [attempt(1, 0, masked=[1, 2], checked=[1, 2], unmasked=[1, 2])]}, "clients in the sum"),
        ({"rounds": [attempt(1, 0), attempt(1, 1)]}, "round released once"),
        ({"rounds": [attempt(3, 0)]}, "every upload was charged"),
        ({"rounds": [attempt(1, 0, started=T0 - 1)]}, "times run forward"),
        ({"utility": [MethodResult("majority", ((1, 0, 0), (1, 0, 0)), 0)]}, "confusion matrix"),
        ({"manifest": SignedDocument(manifest(), "00" * 32, "")}, "manifest of the statement"),
        ({"rounds": [attempt(1, 0, status="done")]}, "status"),
        ({"rounds": [attempt(1, 0, reason="too few")]}, "no abort reason"),
        ({"rounds": [attempt(1, 0, aggregate_digest="")]}, "sum digest"),
        ({"rounds": [attempt(1, 0, ledger_row=None)]}, "release-ledger row"),
        ({"rounds": [attempt(2, 0), attempt(1, 0)]}, "ascending order"),
        ({"rounds": [attempt(1, 0, drops={"9": "TIMED_OUT"})]}, "drops are members"),
        ({"rounds": [attempt(1, 0, cohort=[1, 2, 3])]}, "sets nested"),
        ({"rounds": [attempt(1, 0, **{name: [1, 2, 3] for name in shape.SETS})]}, "cohort"),
        ({"rounds": [attempt(1, 0, unmasked=[1, 2])]}, "clients that unmasked"),
        ({"rounds": [attempt(1, 0, checked=[1, 2], unmasked=[1, 2])]}, "signers of one set"),
        ({"rounds": [attempt(1, 0, ctx="00" * 32)]}, "ctx of the release-ledger row"),
        ({"utility": [MethodResult("majority", ((1, 0, 0), (1, 0, 0), (0, 0, 1)), 10)]}, "steps within the manifest"),
        ({"utility": [MethodResult("federated-dp", ((1, 0, 0), (1, 0, 0), (0, 0, -1)), 10)]}, "confusion matrix"),
        ({"utility": [MethodResult("alone-dp", ((1, 0, 0), (1, 0, 0), (0, 0, 1)), 10)]}, "a known method"),
        ({"utility": [MethodResult("federated-dp", ((1, 0, 0), (1, 0, 0), (0, 0, 1)), 10, 2)]}, "a known method"),
        ({"utility": [MethodResult("majority", ((1, 0, 0), (1, 0, 0), (0, 0, 1)), 0)] * 2}, "a known method, once"),
        ({"statements": [SignedStatement({**statement(1, []), "client_id": 9}, "")]}, "of a roster member"),
        ({"statements": [SignedStatement(statement(1, charges((1, 0), (2, 0), (2, 1))), "")] * 2}, "one statement"),
        ({"statements": [SignedStatement({**statement(1, []), "silo": "other"}, "")]}, "genesis row"),
    ],
)
def test_contradicting_facts_give_no_report(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ReportError, match=what):
        build_report(facts(**changes), prv=False)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    json_values, st.sampled_from(["schema", "facts", "groups", "run", "manifest", "rounds", "statements", "utility"])
)
def test_verify_never_raises_and_never_accepts_garbage(value: Any, where: str) -> None:
    report: dict[str, Any] = json.loads(built())
    target = report if where in report else report["facts"]
    if value == target[where]:
        return
    target[where] = value
    assert failures(report)
    assert [c.ok for c in verify_report(value, prv=False)] == [False]


# -- the page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what the accessibility checks look at."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "br", "rect", "circle", "polygon", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def test_the_page_is_self_contained_accessible_and_small(report: dict[str, Any]) -> None:
    html = render_html(report)
    page = Page(html)
    names = [tag for tag, _ in page.tags]
    assert page.open == [] and len(html.encode()) < 200 * 1024
    assert ("html", {"lang": "en"}) in page.tags and names.count("h1") == 1 and names.count("title") == 6
    assert not set(names) & {"script", "link", "img", "iframe", "object", "form"}
    assert not any(key in attrs for _, attrs in page.tags for key in ("src", "onclick", "onload"))
    assert all((attrs.get("href") or "#").startswith("#group-") or "href" not in attrs for _, attrs in page.tags)
    policy = [a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert all(a.get("scope") in ("row", "col") for t, a in page.tags if t == "th")
    assert all(a.get("role") == "img" and a.get("aria-labelledby") for t, a in page.tags if t == "svg")
    assert names.count("svg") == 5 and names.count("desc") == 5
    assert names.count("caption") == names.count("table")
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert render_html(report) == html


def test_page_one_says_it_to_a_lay_reader_and_no_epsilon_stands_alone(report: dict[str, Any]) -> None:
    text = " ".join("".join(Page(render_html(report)).text).split())
    first = text[: text.index("Contents Who, what and when")]
    for phrase in (
        "What was protected",
        "Who learns what",
        "not a legal determination",
        "Not covered",
        "one person in a hundred",
    ):
        assert phrase in first
    for match in re.finditer(r"ε =? ?>?[0-9]", text):
        assert re.match(r".{0,24}at δ = [0-9.]+, record, add/remove", text[match.start() :]), text[match.start() :][:80]


def test_many_clients_fit_into_the_plot(report: dict[str, Any]) -> None:
    curves = group(report, "accounting")["budget_curve"]
    names = group(report, "guarantee")["per_client"]
    for k in range(5, 40):
        curves.append({**curves[0], "client_id": k})
        names.append({**names[0], "client_id": k, "name": f"site-{k}"})
        for row in group(report, "guarantee")["per_adversary"][:-1]:
            row["per_client"].append({**row["per_client"][0], "client_id": k})
    html = render_html(report)
    heights = [float(y) for y in re.findall(r'<text x="[0-9.]+" y="([0-9.]+)"', html)]
    assert "and 27 more" in html and max(heights) <= 320


def test_texts_are_escaped(report: dict[str, Any]) -> None:
    hostile = roster()
    hostile["consortium"] = "<script>alert(1)</script>"
    html = render_html(build_report(facts(roster=SignedDocument(hostile, ROOT, "")), prv=False))
    assert "<script" not in html and "&lt;script&gt;" in html

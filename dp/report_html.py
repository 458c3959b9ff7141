"""The accounting report for people: one self-contained HTML page without scripts, from the JSON alone.

Every text passes Jinja's autoescape; the plots are our own SVG. An ε never stands without its δ, unit and adjacency.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from dp.accountant import ABOVE_CEILING
from dp.report_figures import order
from dp.report_labels import label, ordered
from dp.report_svg import COLOURS, Bar, Caption, Dot, Point, bar_plot, dot_plot, line_plot

_DIGESTS = ("ctx", "root_u2", "hash_u3", "release_seq", "release_head", "aggregate_digest", "model_digest")
_PLOTTED = ("federated-dp", "federated-no-dp", "alone-dp", "centralised-dp", "logistic-regression", "majority")
_NUMBERED = frozenset({"client_id", "test_client_id", "round", "attempt", "seq", "seed", "release_seq", "value"})
_NUMBER = re.compile(r"-?[0-9]{1,16}(\.[0-9]+)?")  # shorter than any digest
_LINE = 90
_MOST_HOSPITALS = 40  # beyond, a plot says less than its table

Groups = Mapping[str, Any]


def render_html(report: Mapping[str, Any]) -> str:
    """A page of less than 200 KiB for a consortium of ordinary size; deterministic. Expects a verified report."""
    groups = {group["id"]: group for group in report["groups"]}
    headline = groups["guarantee"]["headline"]
    qualifier = headline["qualifier"]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["ordered"] = ordered
    environment.filters["label"] = lambda key: label(str(key), qualifier)
    environment.filters["numeric"] = _numeric
    environment.filters["brief"] = _brief
    template = environment.from_string(files("dp").joinpath("templates/report.html.j2").read_text("utf-8"))
    return template.render(
        schema=report["schema"],
        groups=report["groups"],
        g=groups,
        headline=headline,
        qualifier=qualifier,
        sign="" if order(headline["epsilon"]).is_infinite() else "= ",
        plots={
            "guarantee": _trust_plot(groups, qualifier),
            "budget": _budget_plot(groups, qualifier),
            "delta": _delta_plot(groups, headline),
            "audit": _audit_plot(groups["audit"]),
            "utility": _utility_plot(groups["utility"]),
        },
        digests=("round", "attempt", *_DIGESTS),
        counts=[key for key in ordered(_example(groups)) if key not in (*_DIGESTS, "dropped", "reported_faults")],
    )


def _example(groups: Groups) -> Iterable[str]:
    return next(iter(groups["secure_aggregation"]["rounds"]), {})


def _numeric(value: Any, key: str) -> bool:
    """Whether a cell is set in figures, at the right; names of things are not, even if they are numbers."""
    if isinstance(value, bool) or key in _NUMBERED:
        return False
    return isinstance(value, int) or (isinstance(value, str) and _NUMBER.fullmatch(value) is not None)


def _brief(value: Any) -> bool:
    """What fits into one line of a table: one value, or a few short ones."""
    if isinstance(value, list):
        whole = all(isinstance(item, str | int) for item in value)
        return whole and sum(len(str(item)) + 2 for item in value) <= _LINE
    return not isinstance(value, Mapping)


def _trust_plot(groups: Groups, qualifier: str) -> Markup:
    rows = groups["guarantee"]["per_adversary"]
    values = [Decimal(row["epsilon"]) for row in rows if not order(_number(row)).is_infinite()]
    limit = Decimal(groups["accounting"]["budget"]["epsilon"])
    top = max([*values, limit, Decimal("0.0001")])
    bars = []
    for row in rows:
        value = order(_number(row))
        bars.append(
            Bar(
                row["adversary"],
                1.0 if value.is_infinite() else float(value / top),
                row["epsilon"] if not value.is_infinite() or row["epsilon"] == ABOVE_CEILING else "no guarantee",
                COLOURS[0] if row["within_threat_model"] else "#8a94a0",
                None if value.is_infinite() else float(limit / top),
            )
        )
    description = f"ε of the worst organisation {qualifier}, against each adversary; the table has the figures"
    return bar_plot(
        bars,
        Caption("trust-plot", "ε per adversary", description),
        "stroke: the budget; grey: outside the claim",
    )


def _number(row: Mapping[str, Any]) -> str:
    return str(row["epsilon"]) if row["epsilon"][:1].isdigit() else ABOVE_CEILING


def _budget_plot(groups: Groups, qualifier: str) -> Markup:
    accounting = groups["accounting"]
    names = {c["client_id"]: c["name"] for c in groups["guarantee"]["per_client"]}
    lines: list[tuple[str, Sequence[Point]]] = [
        (names[c["client_id"]], [(0.0, 0.0), *_climb([p["epsilon"] for p in c["points"]])])
        for c in accounting["budget_curve"]
    ]
    limit = float(accounting["budget"]["epsilon"])
    longest = max([points[-1][0] for _, points in lines], default=1.0)
    lines.append(("budget", [(0.0, limit), (max(longest, 1.0), limit)]))
    description = f"ε spent after each charged attempt, {qualifier}; the table has the figures"
    return line_plot(
        lines, Caption("budget-plot", "Privacy budget spent", description), ("charged attempts", "ε spent")
    )


def _climb(epsilons: Sequence[str]) -> list[Point]:
    return [(float(k), float(e)) for k, e in enumerate(epsilons, start=1) if e != ABOVE_CEILING]


def _delta_plot(groups: Groups, headline: Mapping[str, Any]) -> Markup | None:
    points = [
        (float(p["epsilon"]), float(Decimal(p["delta"]).log10())) for p in groups["accounting"]["delta_curve"]["points"]
    ]
    if not points:
        return None
    description = f"For each ε the smallest δ, on a logarithmic axis; {headline['name']}, {headline['unit']}"
    return line_plot(
        [(str(headline["name"]), points)],
        Caption("delta-plot", "δ for every ε", description),
        ("ε (each with the δ on the axis)", "log10 of δ"),
    )


def _audit_plot(audit: Mapping[str, Any]) -> Markup | None:
    bounds = [b for b in audit["bounds"] if _NUMBER.fullmatch(b["value"]) and _NUMBER.fullmatch(b["claim"])]
    if not bounds:
        return None
    top = max(Decimal(b[key]) for b in bounds for key in ("value", "claim")) or Decimal(1)
    bars = [
        Bar(
            b["name"],
            float(Decimal(b["value"]) / top),
            f"{b['value']} of {b['claim']}",
            COLOURS[0] if Decimal(b["value"]) <= Decimal(b["claim"]) else COLOURS[1],
            float(Decimal(b["claim"]) / top),
        )
        for b in bounds
    ]
    description = "Bar: what the audit measured; stroke: what is claimed; the table has the figures"
    return bar_plot(
        bars, Caption("audit-plot", "Audit bounds against the claim", description), "the stroke is the claim"
    )


def _utility_plot(utility: Mapping[str, Any]) -> Markup | None:
    hospitals = utility["per_hospital"]
    present = {figure["method"] for row in hospitals for figure in row["figures"]}
    series = [method for method in _PLOTTED if method in present]
    if not series or len(hospitals) > _MOST_HOSPITALS:
        return None
    rows = [
        (
            row["name"],
            [
                Dot(series.index(f["method"]), float(f["accuracy"]))
                for f in reversed(row["figures"])
                if f["method"] in series
            ],
        )
        for row in hospitals
    ]
    description = "Accuracy of each method at each hospital, from 0 to 1; the table has the figures"
    return dot_plot(rows, series, Caption("utility-plot", "Accuracy per hospital", description))

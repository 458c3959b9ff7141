"""The accounting report for people: one self-contained HTML page without scripts, from the JSON alone.

Every text passes Jinja's autoescape; the plots are our own SVG, drawn from numbers only. An ε never stands without
its δ, unit and adjacency.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from importlib.resources import files
from itertools import pairwise
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from dp.accountant import ABOVE_CEILING

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 150, 16, 44
LEGEND = 16  # entries that fit
COLOURS = ("#0b5394", "#a61c00", "#38761d", "#741b47", "#7f6000", "#134f5c")
DASHES = ("none", "6 3", "2 3", "8 3 2 3")

Point = tuple[float, float]

_LABELS = {
    "epsilon": "ε",
    "continuous": "ε, continuous noise (not certified)",
    "rdp": "ε by RDP",
    "prv": "ε by PRV",
    "closed_form": "ε, closed form",
    "second_grid": "ε, second grid",
    "delta": "δ",
    "macro_f1": "macro-F1",
    "tpr_at_1_percent_fpr": "true-positive rate at 1 % false positives",
    "ctx": "context digest",
}
# Canonical JSON sorts keys by name; people want to know first what a row is about.
_FIRST = ("round", "attempt", "client_id", "name", "adversary", "against", "method", "task", "status", "seq", "epsilon")
_DIGESTS = ("ctx", "root_u2", "hash_u3", "release_seq", "release_head", "aggregate_digest", "model_digest")
_EPSILONS = frozenset({"epsilon", "continuous", "rdp", "prv", "closed_form", "second_grid"})


def render_html(report: Mapping[str, Any]) -> str:
    """A page of less than 200 KiB for a consortium of ordinary size; deterministic. Expects a verified report."""
    groups = {group["id"]: group for group in report["groups"]}
    headline = groups["guarantee"]["headline"]
    qualifier = f"at δ = {headline['delta']}, {headline['unit']}, add/remove"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["ordered"] = _ordered
    environment.filters["label"] = lambda key: _label(str(key), qualifier)
    template = environment.from_string(files("dp").joinpath("templates/report.html.j2").read_text("utf-8"))
    return template.render(
        schema=report["schema"],
        groups=report["groups"],
        g=groups,
        headline=headline,
        qualifier=qualifier,
        above=ABOVE_CEILING,
        budget_plot=_budget_plot(groups, qualifier),
        delta_plot=_delta_plot(groups["accounting"]["delta_curve"], headline),
        hidden=("number", "id", "title"),
        digests=("round", "attempt", *_DIGESTS),
        counts=[key for key in _ordered(_example(groups)) if key not in _DIGESTS],
    )


def _ordered(keys: Iterable[str]) -> list[str]:
    return sorted(keys, key=lambda key: (_FIRST.index(key) if key in _FIRST else len(_FIRST), key))


def _example(groups: Mapping[str, Any]) -> Iterable[str]:
    return next(iter(groups["secure_aggregation"]["rounds"]), {})


def _label(key: str, qualifier: str) -> str:
    text = _LABELS.get(key, key.replace("_", " "))
    return f"{text} ({qualifier})" if key in _EPSILONS else text


def _budget_plot(groups: Mapping[str, Any], qualifier: str) -> Markup:
    accounting = groups["accounting"]
    names = {c["client_id"]: c["name"] for c in groups["guarantee"]["per_client"]}
    lines = [
        (names[c["client_id"]], [(0.0, 0.0), *_climb([p["epsilon"] for p in c["points"]])])
        for c in accounting["budget_curve"]
    ]
    limit = float(accounting["budget"]["epsilon"])
    longest = max([points[-1][0] for _, points in lines], default=1.0)
    lines.append(("budget", [(0.0, limit), (max(longest, 1.0), limit)]))
    return _svg(
        lines,
        (
            "budget-plot",
            "Privacy budget spent",
            f"ε spent after each charged attempt, {qualifier}; the table has the figures",
        ),
        ("charged attempts", "ε spent"),
    )


def _climb(epsilons: Sequence[str]) -> list[Point]:
    return [(float(k), float(e)) for k, e in enumerate(epsilons, start=1) if e != ABOVE_CEILING]


def _delta_plot(curve: Mapping[str, Any], headline: Mapping[str, Any]) -> Markup:
    points = [(float(p["epsilon"]), float(Decimal(p["delta"]).log10())) for p in curve["points"]]
    return _svg(
        [(str(headline["name"]), points)] if points else [],
        (
            "delta-plot",
            "δ for every ε",
            "For each ε the smallest δ, on a logarithmic axis; worst silo, unit record, add/remove",
        ),
        ("ε (each with the δ on the axis)", "log10 of δ"),
    )


def _svg(lines: Sequence[tuple[str, Sequence[Point]]], text: tuple[str, str, str], axes: tuple[str, str]) -> Markup:
    """A line plot; `text` is (id, title, description)."""
    points = [point for _, line in lines for point in line] or [(0.0, 0.0)]
    x0, x1 = min(0.0, *(x for x, _ in points), 0.0), max(x for x, _ in points) or 1.0
    y0, y1 = min(0.0, *(y for _, y in points), 0.0), max(0.0, *(y for _, y in points), 0.0)
    y1 = y1 if y1 > y0 else y0 + 1.0

    def place(x: float, y: float) -> Point:
        across, up = (x - x0) / ((x1 - x0) or 1.0), (y - y0) / (y1 - y0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    name, title, description = text
    parts = [
        Markup(
            '<svg viewBox="0 0 {} {}" role="img" aria-labelledby="{}-t {}-d"><title id="{}-t">{}</title>'
            '<desc id="{}-d">{}</desc>'
        ).format(WIDTH, HEIGHT, name, name, name, title, name, description)
    ]
    for k in range(5):
        x, y = x0 + (x1 - x0) * k / 4, y0 + (y1 - y0) * k / 4
        (px, _), (_, py) = place(x, y0), place(x0, y)
        parts.append(_line((LEFT, py), (WIDTH - RIGHT, py), "#d0d0d0"))
        parts.append(_text(LEFT - 6, py + 4, f"{y:.3g}", "end"))
        parts.append(_text(px, HEIGHT - BOTTOM + 16, f"{x:.3g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, axes[0], "middle"))
    parts.append(
        Markup('<text x="14" y="{}" transform="rotate(-90 14 {})" text-anchor="middle">{}</text>').format(
            (HEIGHT - BOTTOM + TOP) // 2, (HEIGHT - BOTTOM + TOP) // 2, axes[1]
        )
    )
    for k, (label, line) in enumerate(lines):
        colour, dash = COLOURS[k % len(COLOURS)], DASHES[k % len(DASHES)]
        parts += [_line(place(*a), place(*b), colour, dash) for a, b in pairwise(line)]
        if k >= LEGEND - 1 and len(lines) > LEGEND:
            label, colour = f"and {len(lines) - LEGEND + 1} more", "#d0d0d0"
        if k >= LEGEND:
            continue
        y = TOP + 14 + 16 * k
        parts.append(_line((WIDTH - RIGHT + 10, y - 4), (WIDTH - RIGHT + 34, y - 4), colour, dash))
        parts.append(_text(WIDTH - RIGHT + 40, y, label, "start"))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def _line(a: Point, b: Point, colour: str, dash: str = "none") -> Markup:
    return Markup(
        '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}" stroke-width="{}" stroke-dasharray="{}"/>'
    ).format(*a, *b, colour, 1 if colour == "#d0d0d0" else 2, dash)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(text))

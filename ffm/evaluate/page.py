"""A study for people: the lines of its table, and a page without scripts that works offline."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, StrictUndefined

from dp.report_svg import COLOURS, Bar, Caption, bar_plot
from ffm.evaluate.study import NO_DP, TINY, Study

PACKAGES: Final = ("secagg-ffm", "torch", "transformers", "peft", "opacus", "numpy")
_AFTER: Final = ("train minus test", "outside", "worst site")


def versions() -> dict[str, str]:
    """Of what decides the figures."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def table(study: Study) -> tuple[list[str], list[list[str]]]:
    """(columns, lines): method, privacy, what holds of it, every score, what follows from them, cost."""
    summary = study.as_json()["summary"]
    scores = list(dict.fromkeys(name for row in study.rows for name in row.scores))
    scores.sort(key=lambda name: name != study.headline)
    facts = list(dict.fromkeys(name for row in study.rows for name in row.facts))
    shown = [name for name in _AFTER if any(line[name][0] is not None for line in summary)]
    columns = ["method", "privacy", *facts, *scores, *shown, "samples", "KiB up", "KiB down", "seconds"]
    lines = []
    for line in summary:
        cells = [str(line["method"]), str(line["privacy"])]
        cells += [str(line.get(name, "–")) for name in facts]
        cells += [_spread(line.get(name)) for name in (*scores, *shown)]
        cells += [
            str(line["samples"] or "–"),
            _kib(line["bytes up"]),
            _kib(line["bytes down"]),
            _spread(line["seconds"]),
        ]
        lines.append(cells)
    return columns, lines


def render(study: Study) -> str:
    """The page; deterministic for the same study and versions."""
    columns, lines = table(study)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("ffm").joinpath("templates/study.html.j2").read_text("utf-8"))
    value = {**study.as_json(), "versions": versions()}
    return template.render(s=value, columns=columns, lines=lines, plot=_plot(study, value["summary"]))


def _plot(study: Study, summary: list[dict[str, Any]]) -> str:
    means = [line[study.headline][0] for line in summary if study.headline in line]
    most = max((mean for mean in means if mean is not None), default=1.0)
    scale = 1.0 if most <= 1.0 else most
    bars = [
        Bar(
            f"{line['method']}, {line['privacy']}",
            (line[study.headline][0] or 0.0) / scale,
            _spread(line[study.headline]),
            COLOURS[0] if line["privacy"] == NO_DP else COLOURS[1],
        )
        for line in summary
        if study.headline in line
    ]
    caption = Caption("headline", f"{study.headline} by method", "Bars; the same figures stand in the table.")
    note = f"{study.headline}, from 0 to {scale:.3g}; {'lower' if study.lower_is_better else 'higher'} is better"
    return bar_plot(bars, caption, note)


def _spread(value: Any) -> str:
    mean, half = value or (None, None)
    if mean is None:
        return "–"
    if 0 < abs(mean) < TINY:
        return f"{mean:.0e}"
    digits = 3 if abs(mean) < 100 else 1
    return f"{mean:.{digits}f}" if half is None else f"{mean:.{digits}f} ± {half:.{digits}f}"


def _kib(count: int) -> str:
    return f"{count / 1024:.1f}" if count else "–"


def markdown(study: Study) -> str:
    """The table as it is kept beside the JSON."""
    columns, lines = table(study)
    about: Mapping[str, str] = versions()
    parts = [f"# {study.title}", "", study.what, ""]
    if study.quick:
        parts += ["**A quick run: no figure is evidence.**", ""]
    parts += [f"Seeds {', '.join(map(str, study.seeds))}; " + ", ".join(f"{k} {v}" for k, v in about.items()) + ".", ""]
    parts += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    parts += ["| " + " | ".join(line) + " |" for line in lines]
    parts.append("")
    for claim in study.claims:
        sense = "at least" if claim.at_least else "at most"
        verdict = "holds" if claim.holds else "DOES NOT HOLD"
        parts.append(f"* {claim.text}: {claim.shown}, {sense} {claim.limit:g}: {verdict}")
    parts += [f"* {note}" for note in study.notes]
    return "\n".join(parts).rstrip() + "\n"

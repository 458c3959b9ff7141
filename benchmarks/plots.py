"""Small SVG figures of benchmark results, drawn by hand: no plotting library, the same bytes for the same numbers.

python -m benchmarks.plots FOLDER       peers.json and scale.json -> peers.svg and scale.svg
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.bench import ROOT

COLORS = ("#1b5e9b", "#c2571a", "#3d7a3a")
WIDTH, HEIGHT = 380, 260  # of one panel
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 40, 46


@dataclass(frozen=True, slots=True)
class Series:
    """One line: (x, y) pairs, both positive."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of logarithmic axes with lines."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class Bars:
    """Groups of horizontal bars on one logarithmic axis: (group, values in the order of `names`)."""

    title: str
    names: tuple[str, ...]
    groups: tuple[tuple[str, tuple[float, ...]], ...]


def lines(title: str, text: str, panels: Sequence[Panel]) -> str:
    """Panels side by side. Raises ValueError for a value that has no logarithm."""
    body = [_panel(panel, index * WIDTH) for index, panel in enumerate(panels)]
    return _document(title, text, (WIDTH * len(panels), HEIGHT), body)


def bars(title: str, text: str, chart: Bars) -> str:
    """Horizontal bars with their values. Raises ValueError for a value that has no logarithm."""
    rows = len(chart.names)
    step, width, left = 16 * rows + 14, 2 * WIDTH, 200
    values = [value for _, group in chart.groups for value in group]
    low, high = 10 ** math.floor(math.log10(min(values)) - 0.3), max(values)

    def along(value: float) -> float:
        return left + (width - left - 90) * math.log10(value / low) / math.log10(high / low)

    body = [_text(12, 22, chart.title, "start", bold=True)]
    for index, name in enumerate(chart.names):
        x = left + 130 * index
        body += [f'<rect x="{x}" y="32" width="10" height="10" fill="{COLORS[index]}"/>', _text(x + 15, 41, name)]
    for row, (group, found) in enumerate(chart.groups):
        top = 56 + row * step
        body.append(_text(left - 8, top + 8 * rows + 3, group, "end"))
        for index, value in enumerate(found):
            y, end = top + 16 * index, along(value)
            body.append(
                f'<rect x="{left}" y="{y}" width="{end - left:.1f}" height="13" fill="{COLORS[index]}"/>'
                + _text(end + 5, y + 11, _short(value))
            )
    return _document(title, text, (width, 64 + len(chart.groups) * step), body)


def _panel(panel: Panel, offset: int) -> str:
    xs = [x for line in panel.series for x, _ in line.points]
    ys = [y for line in panel.series for _, y in line.points]
    across = _scale(xs, offset + LEFT, offset + WIDTH - RIGHT)
    up = _scale(ys, HEIGHT - BOTTOM, TOP)
    out = [_text(offset + LEFT, 22, panel.title, "start", bold=True)]
    for value in _decades(ys):
        y = up(value)
        out.append(f'<path d="M{offset + LEFT} {y:.1f}H{offset + WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(_text(offset + LEFT - 6, y + 4, _short(value), "end"))
    for value in _decades(xs):
        x = across(value)
        out.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        out.append(_text(x, HEIGHT - BOTTOM + 16, _short(value), "middle"))
    out.append(_text(offset + (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, panel.x_label, "middle"))
    for index, line in enumerate(panel.series):
        color = COLORS[index]
        path = "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in line.points)
        out.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        out += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{color}"/>' for x, y in line.points]
        if line.name:
            out.append(_text(offset + LEFT + 8, TOP + 14 + 15 * index, line.name, "start", color))
    out.append(_text(offset + LEFT, 34, panel.y_label, "start"))
    return "".join(out)


def _scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    ends = _decades(values)
    low, high = math.log10(ends[0]), math.log10(ends[-1])
    return lambda value: start + (end - start) * (math.log10(value) - low) / (high - low)


def _decades(values: Sequence[float]) -> list[float]:
    """Powers of ten around all values; at least two."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**power for power in range(low, max(high, low + 1) + 1)]


def _short(value: float) -> str:
    for limit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{sign}"
    return f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str = "start", color: str = "#222", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}"{weight}>{escape(text)}</text>'


def _document(title: str, text: str, size: tuple[int, int], body: Sequence[str]) -> str:
    width, height = size
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="12"><title>{escape(title)}</title>'
        f'<desc>{escape(text)}</desc><rect width="{width}" height="{height}" fill="#fff"/>{"".join(body)}</svg>\n'
    )


def scale_figure(result: dict[str, Any]) -> str:
    """Time and memory over clients, and over parameters, from the JSON object of `benchmarks.scale`."""
    rounds = result["rounds"]
    few = min(found["clients"] for found in rounds)
    grown = [found for found in rounds if found["clients"] != few]
    long = [found for found in rounds if found["clients"] == few]
    panels = []
    for name, chosen, key in (("clients", grown, "clients"), ("parameters", long, "length")):
        if len(chosen) < 2:
            continue
        seconds = tuple((float(found[key]), float(found["seconds"])) for found in chosen)
        memory = [
            Series(who, tuple((float(found[key]), found[f"{field}_peak_bytes"] / 2**20) for found in chosen))
            for who, field in (("server", "server"), ("all clients", "client"))
        ]
        panels.append(Panel(f"Time by {name}", name, "seconds", (Series("", seconds),)))
        panels.append(Panel(f"Peak memory by {name}", name, "MiB", tuple(memory)))
    return lines("Growth of a round", "Time and peak memory; the numbers stand in scale.md.", panels)


def peers_figure(result: dict[str, Any]) -> str:
    """Ours and Flower's, from the JSON object of `benchmarks.peers`; the first encoding only."""
    encoding = result["rows"][0]["our encoding"]
    chosen = [row for row in result["rows"] if row["our encoding"] == encoding and min(row["ours"], row["Flower"]) > 0]
    groups = tuple((row["what"], (row["ours"], row["Flower"])) for row in chosen)
    chart = Bars("Beside Flower's SecAgg+ (logarithmic)", (f"ours, {encoding}", "Flower"), groups)
    return bars("Beside Flower's SecAgg+", "Ours and Flower's; the numbers stand in peers.md.", chart)


FIGURES: dict[str, Callable[[dict[str, Any]], str]] = {"peers": peers_figure, "scale": scale_figure}


def draw(folder: Path) -> list[Path]:
    """Write a figure beside each result in `folder` that has one."""
    made = []
    for name, figure in FIGURES.items():
        source = folder / f"{name}.json"
        if source.exists():
            source.with_suffix(".svg").write_text(figure(json.loads(source.read_text(encoding="utf-8"))), "utf-8")
            made.append(source.with_suffix(".svg"))
    return made


if __name__ == "__main__":
    for written in draw(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results"):
        print(written)

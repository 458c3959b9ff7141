"""Our own plots: small deterministic SVG, drawn from numbers only; every figure stands in a table beside."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 168, 18, 48
LEGEND = 14  # entries that fit
COLOURS = ("#1f4e79", "#a3331f", "#3b6b2a", "#6a3d7c", "#7a5a00", "#17666b")
DASHES = ("none", "7 3", "2 3", "9 3 2 3")
GRID, INK = "#d9dde2", "#1c2630"

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Caption:
    """What a screen reader says about a plot."""

    id: str
    title: str
    description: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a bar plot: a length in [0, 1], the text at its end, and an optional mark."""

    label: str
    share: float
    value: str
    colour: str = COLOURS[0]
    mark: float | None = None


def line_plot(lines: Sequence[tuple[str, Sequence[Point]]], caption: Caption, axes: tuple[str, str]) -> Markup:
    """Lines over a common pair of axes, with a legend at the right."""
    points = [point for _, line in lines for point in line] or [(0.0, 0.0)]
    x0, x1 = min(0.0, *(x for x, _ in points)), max(x for x, _ in points) or 1.0
    y0, y1 = min(0.0, *(y for _, y in points)), max(0.0, *(y for _, y in points))
    y1 = y1 if y1 > y0 else y0 + 1.0

    def place(x: float, y: float) -> Point:
        across, up = (x - x0) / ((x1 - x0) or 1.0), (y - y0) / (y1 - y0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [_open(caption, HEIGHT)]
    for k in range(5):
        x, y = x0 + (x1 - x0) * k / 4, y0 + (y1 - y0) * k / 4
        (px, _), (_, py) = place(x, y0), place(x0, y)
        parts.append(_line((LEFT, py), (WIDTH - RIGHT, py), GRID))
        parts.append(_text(LEFT - 8, py + 4, f"{y:.3g}", "end"))
        parts.append(_text(px, HEIGHT - BOTTOM + 18, f"{x:.3g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, axes[0], "middle"))
    middle = (HEIGHT - BOTTOM + TOP) // 2
    parts.append(
        Markup('<text x="14" y="{}" transform="rotate(-90 14 {})" text-anchor="middle">{}</text>').format(
            middle, middle, axes[1]
        )
    )
    for k, (label, line) in enumerate(lines):
        colour, dash = COLOURS[k % len(COLOURS)], DASHES[k % len(DASHES)]
        if len(line) > 1:
            way = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
            parts.append(
                Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="2" stroke-dasharray="{}"/>').format(
                    way, colour, dash
                )
            )
        if k >= LEGEND - 1 and len(lines) > LEGEND:
            label, colour = f"and {len(lines) - LEGEND + 1} more", GRID
        if k < LEGEND:
            y = TOP + 14 + 17 * k
            parts.append(_line((WIDTH - RIGHT + 12, y - 4), (WIDTH - RIGHT + 38, y - 4), colour, dash))
            parts.append(_text(WIDTH - RIGHT + 44, y, _short(label, 17), "start"))
    return Markup("").join([*parts, Markup("</svg>")])


def bar_plot(bars: Sequence[Bar], caption: Caption, note: str) -> Markup:
    """Horizontal bars, one a line; a mark is a vertical stroke across its bar."""
    step, left, right = 26, 250, 150
    height = TOP + step * len(bars) + 30
    parts = [_open(caption, height)]
    across = WIDTH - left - right
    for k in range(5):
        x = left + across * k / 4
        parts.append(_line((x, TOP), (x, TOP + step * len(bars)), GRID))
    for k, bar in enumerate(bars):
        y = TOP + step * k
        parts.append(_text(left - 10, y + 17, _short(bar.label, 38), "end"))
        parts.append(
            Markup('<rect x="{}" y="{}" width="{:.1f}" height="14" fill="{}"/>').format(
                left, y + 6, max(1.0, across * min(max(bar.share, 0.0), 1.0)), bar.colour
            )
        )
        if bar.mark is not None:
            x = left + across * min(max(bar.mark, 0.0), 1.0)
            parts.append(_line((x, y + 2), (x, y + 24), INK))
        parts.append(_text(left + across + 10, y + 17, bar.value, "start"))
    parts.append(_text(left, height - 8, note, "start"))
    return Markup("").join([*parts, Markup("</svg>")])


@dataclass(frozen=True, slots=True)
class Dot:
    """One value of a dot plot, in [0, 1]."""

    series: int
    share: float


def dot_plot(rows: Sequence[tuple[str, Sequence[Dot]]], series: Sequence[str], caption: Caption) -> Markup:
    """One line per row with a dot per series, on a scale from 0 to 1; shape and colour tell the series apart."""
    step, left, right, legend = 26, 190, 30, 22 * ((len(series) + 1) // 2)
    height = TOP + step * len(rows) + 34 + legend
    across = WIDTH - left - right
    parts = [_open(caption, height)]
    for k in range(6):
        x = left + across * k / 5
        parts.append(_line((x, TOP), (x, TOP + step * len(rows)), GRID))
        parts.append(_text(x, TOP + step * len(rows) + 18, f"{k / 5:.1f}", "middle"))
    for k, (label, dots) in enumerate(rows):
        y = TOP + step * k + step / 2
        parts.append(_text(left - 10, y + 4, _short(label, 28), "end"))
        parts += [_mark(dot.series, left + across * min(max(dot.share, 0.0), 1.0), y) for dot in dots]
    for k, label in enumerate(series):
        x, y = 20 + 350 * (k % 2), height - legend + 22 * (k // 2) + 4
        parts += [_mark(k, x, y), _text(x + 14, y + 4, label, "start")]
    return Markup("").join([*parts, Markup("</svg>")])


def _mark(series: int, x: float, y: float) -> Markup:
    colour = COLOURS[series % len(COLOURS)]
    match series % 4:
        case 0:
            return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="6" fill="{}"/>').format(x, y, colour)
        case 1:
            return Markup('<rect x="{:.1f}" y="{:.1f}" width="10" height="10" fill="{}"/>').format(x - 5, y - 5, colour)
        case 2:
            corners = f"{x:.1f},{y - 6:.1f} {x + 6:.1f},{y + 5:.1f} {x - 6:.1f},{y + 5:.1f}"
            return Markup('<polygon points="{}" fill="{}"/>').format(corners, colour)
        case _:
            return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5" fill="#fff" stroke="{}" stroke-width="2"/>').format(
                x, y, colour
            )


def _open(caption: Caption, height: int) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-labelledby="{}-t {}-d"><title id="{}-t">{}</title>'
        '<desc id="{}-d">{}</desc>'
    ).format(WIDTH, height, *[caption.id] * 3, caption.title, caption.id, caption.description)


def _line(a: Point, b: Point, colour: str, dash: str = "none") -> Markup:
    return Markup(
        '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}" stroke-width="{}" stroke-dasharray="{}"/>'
    ).format(*a, *b, colour, 1 if colour == GRID else 2, dash)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(text))


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"

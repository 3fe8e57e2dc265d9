"""Figures as SVG text: data, network, learning curves, decision regions.

Each figure has a white ground of its own, so that it can be read on light and dark pages, and
colours from Okabe and Ito's palette, which the colour-blind can tell apart.
"""

import html
import math
from collections.abc import Iterable, Sequence
from itertools import cycle, groupby, pairwise
from typing import Any, NamedTuple

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = SERIES_COLORS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
)  # fmt: skip
INK, FAINT = "#222222", "#dddddd"
SMALLEST, LARGEST = 1e-100, 1e100  # losses on an axis; their quotient is a float too
MOST_DECADES = 15  # with a tick each
TOP = 40  # of the axes in every figure
UNIT_SQUARE = {
    "left": 60, "width": 400, "height": 400, "x_range": (0, 1), "y_range": (0, 1),
    "x_label": "x₁", "y_label": "x₂",
}  # fmt: skip
Point = tuple[float, float]


class Curve(NamedTuple):
    """One line of learning_curves: a value an epoch, and a band around it where there is one."""

    label: str
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False


def disk_data(points, labels, center: Point, radius: float) -> str:
    """The points of the unit square, by label, and the disk that labels them.

    points is a sequence of (x, y), labels one of 0 and 1.
    """
    place, frame = _axes(**UNIT_SQUARE, title="Training points")
    pairs = [(place(*point), label) for point, label in zip(points, labels, strict=True)]
    outside, inside = ([at for at, label in pairs if label == wanted] for wanted in (0, 1))
    marks = _dots(outside, SKY, 4.5), _dots(inside, BLUE, 4.5), _circle(place, center, radius)
    entries = [
        (_dots([(0, 0)], BLUE, 8), "inside: label 1"),
        (_dots([(0, 0)], SKY, 8), "outside: label 0"),
        (_line([(-9, 0), (9, 0)], INK), "the disk"),
    ]
    return figure(630, 500, "The disk data set", [*frame, *marks, _legend(480, 60, entries)])


def decision_regions(scores, mistakes, labels, center: Point, radius: float) -> str:
    """Where the network says inside, and the test points of which it is wrong.

    scores[i][j] says whether the network puts the centre of cell (column j, row i from below) of
    an even grid over the unit square inside. mistakes is a sequence of points, labels theirs.
    """
    place, frame = _axes(**UNIT_SQUARE, title="Decision regions")
    (left, bottom), (right, top) = place(0, 0), place(1, 1)
    cell = (right - left) / len(scores)
    path = ""  # a rectangle for each run of cells inside
    for row, inside in enumerate(scores):
        for is_inside, run in groupby(enumerate(inside), lambda entry: entry[1]):
            if is_inside:
                columns = [column for column, _ in run]
                x, y = left + columns[0] * cell, bottom - (row + 1) * cell
                path += f"M{x:.2f} {y:.2f}h{len(columns) * cell:.2f}v{cell:.2f}H{x:.2f}z"
    all_inside, all_outside = (
        {"fill": BLUE, "fill_opacity": 0.45},
        {"fill": SKY, "fill_opacity": 0.15},
    )
    marks = [
        _element("rect", x=left, y=top, width=right - left, height=bottom - top, **all_outside),
        _element("path", d=path, **all_inside, shape_rendering="crispEdges"),
        _circle(place, center, radius),
        *(_mistake(place(*point), label) for point, label in zip(mistakes, labels, strict=True)),
    ]
    square = {"x": -8, "y": -7, "width": 16, "height": 14, "stroke": INK, "stroke_width": 0.5}
    entries = [
        (_element("rect", **square, **all_inside), "network: inside"),
        (_element("rect", **square, **all_outside), "network: outside"),
        (_line([(-9, 0), (9, 0)], INK), "the disk"),
        (_mistake((0, 0), 1), f"inside, missed: {[*labels].count(1)}"),
        (_mistake((0, 0), 0), f"outside, missed: {[*labels].count(0)}"),
    ]
    body = [*frame[:-1], *marks, frame[-1], _legend(480, 60, entries)]
    return figure(630, 500, "Decision regions and misclassified test points", body)


def network(params: Any, activations: Sequence[str]) -> str:
    """The network's units and weights, from the shapes of its params.

    params is a Sequential's: its entries {"W": (dim_out, dim_in), ...} are the layers drawn.
    activations names what follows each.
    """
    shapes = [entry["W"].shape for entry in params if "W" in entry]
    widths = [shapes[0][1], *(dim_out for dim_out, _ in shapes)]
    gap, height, most = 150, 380, 25
    columns, lines, units = [], [], []
    for index, (width, name) in enumerate(zip(widths, ["input", *activations], strict=True)):
        shown, x = min(width, most), 60 + index * gap
        step = min(26, (height - 60) / shown)
        columns.append([(x, height / 2 + (i - (shown - 1) / 2) * step) for i in range(shown)])
        color = SKY if index == 0 else VERMILLION if index == len(widths) - 1 else BLUE
        unit = f"{width} units" if width <= most else f"{width} units, {most} drawn"
        units += [
            _dots(columns[-1], color, min(10, (height - 60) / shown * 0.8)),
            text(x, height, unit),
            text(x, height + 18, name, color=color),
        ]
    for start, end in pairwise(columns):
        path = "".join(f"M{a} {b:.1f}L{c} {d:.1f}" for a, b in start for c, d in end)
        lines.append(_element("path", d=path, stroke=INK, stroke_opacity=0.18, stroke_width=0.5))
    for index, (dim_out, dim_in) in enumerate(shapes):
        units.append(text(60 + (index + 0.5) * gap, 24, f"W {dim_out} by {dim_in}, b {dim_out}"))
    title = f"The network {'-'.join(map(str, widths))}"
    return figure(120 + gap * len(shapes), height + 34, title, [*lines, *units])


def learning_curves(panels: Sequence[tuple[str, Sequence[Curve]]], title: str) -> str:
    """Values over epochs, a panel for each (y label, curves); labels ending in % are fractions.

    A panel of losses, which are positive, has a logarithmic axis; one of fractions a linear one.
    Values beyond an axis are drawn at its end. A line is broken where a value is not finite.
    """
    body = []
    for index, (y_label, curves) in enumerate(panels):
        fractions = y_label.endswith("%")
        low, high = _y_range(fractions, curves)
        epochs = max(4, *(len(curve.values) for curve in curves))
        place, frame = _axes(
            70 + 420 * index, 330, 270, (0, epochs), (low, high), "epoch", y_label,
            log=not fractions,
        )  # fmt: skip
        body += frame

        def bounded(epoch, value, place=place, low=low, high=high, scale=100 if fractions else 1):
            return place(epoch, min(max(low, scale * value), high))

        for color, curve in zip(cycle(SERIES_COLORS), curves):
            for lows, highs in _runs(bounded, curve.low, curve.high):
                band = _pairs([*lows, *reversed(highs)])
                body.append(_element("polygon", points=band, fill=color, fill_opacity=0.2))
            for (line,) in _runs(bounded, curve.values):
                body.append(_line(line, color, curve.dashed) if line[1:] else _dots(line, color, 5))
    _, curves = panels[0]
    for index, (color, curve) in enumerate(zip(cycle(SERIES_COLORS), curves)):
        entry = _line([(-12, 0), (12, 0)], color, curve.dashed), curve.label
        body.append(_legend(80 + 260 * (index % 3), 380 + 22 * (index // 3), [entry]))
    body.append(text(420, 22, title, size=15))
    return figure(840, 400 + 22 * ((len(curves) - 1) // 3), title, body)


def _y_range(fractions, curves):
    """The range of a panel's axis: of the values, in percent for fractions."""
    least, most = (0, 1) if fractions else (SMALLEST, LARGEST)
    all_values = (value for _, *columns, _ in curves for column in columns for value in column)
    shown = [v for v in all_values if math.isfinite(v) and (fractions or v > 0)]
    shown = [min(max(least, value), most) for value in shown] or [1]
    return (100 * min(shown) - 1, 100) if fractions else (min(shown) / 1.1, max(shown) * 1.1)


def _runs(place, *columns):
    """The places of each column's values, in runs of epochs in which all values are finite."""
    rows = enumerate(zip(*columns, strict=True), 1)
    for finite, run in groupby(rows, lambda row: all(map(math.isfinite, row[1]))):
        if finite:
            places = ([place(epoch, value) for value in values] for epoch, values in run)
            yield [*zip(*places, strict=True)]


def _axes(left, width, height, x_range, y_range, x_label, y_label, title="", log=False):
    """place(x, y), which gives a point's pixels, and the frame: grid, ticks, labels, border."""
    bend = math.log if log else float

    def fraction(value, low, high, bend=float):
        return (bend(value) - bend(low)) / (bend(high) - bend(low))

    def place(x, y):
        across, up = fraction(x, *x_range), fraction(y, *y_range, bend)
        return round(left + width * across, 2), round(TOP + height * (1 - up), 2)

    bottom, frame = TOP + height, []
    for tick in _ticks(*x_range):
        x, _ = place(tick, y_range[0])
        frame.append(_element("path", d=f"M{x} {TOP}V{bottom}", stroke=FAINT))
        frame.append(text(x, bottom + 18, f"{tick:g}", size=12))
    for tick in _log_ticks(*y_range) if log else _ticks(*y_range):
        _, y = place(x_range[0], tick)
        frame.append(_element("path", d=f"M{left} {y}H{left + width}", stroke=FAINT))
        frame.append(text(left - 7, y + 4, f"{tick:g}", size=12, anchor="end"))
    middle = TOP + height / 2
    frame += [
        text(left + width / 2, bottom + 38, x_label),
        f'<g transform="rotate(-90 {left - 46} {middle})">{text(left - 46, middle, y_label)}</g>',
        text(left + width / 2, TOP - 14, title, size=15),
        _element("rect", x=left, y=TOP, width=width, height=height, stroke=INK),
    ]
    return place, frame


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from low to high."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high: all, or some of many, or with their multiples by 2 and 5.

    Where not even two of them fit, the ticks are evenly spaced round numbers.
    """
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades < 3 else (1,)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    exponents = range(first, last + 1, math.ceil(decades / MOST_DECADES))
    ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    inside = [tick for tick in ticks if low <= tick <= high]
    return inside if len(inside) > 1 else _ticks(low, high)


def figure(width: float, height: float, title: str, body: Iterable[str]) -> str:
    content = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" fill="none" '
        f'font-family="system-ui, sans-serif">\n<title>{html.escape(title)}</title>\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>\n{content}\n</svg>\n'
    )


def text(x, y, content, size=13, anchor="middle", color=INK):
    return (
        f'<text x="{x}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="{color}">{html.escape(content)}</text>'
    )


def _element(name, **attributes):
    """An SVG element without content; SVG writes "-" for the "_" in the attributes' names."""
    pairs = (f'{key.replace("_", "-")}="{value}"' for key, value in attributes.items())
    return f"<{name} {' '.join(pairs)}/>"


def _legend(x, y, entries):
    """Pairs (mark drawn around the origin, label), one below the other."""
    return "".join(
        f'<g transform="translate({x} {y + 22 * row})">{mark}'
        f"{text(18, 4, label, anchor='start')}</g>"
        for row, (mark, label) in enumerate(entries)
    )


def _dots(places, color, diameter):
    path = "".join(f"M{x:g} {y:g}h0" for x, y in places)
    width = f"{diameter:g}"
    return _element("path", d=path, stroke=color, stroke_width=width, stroke_linecap="round")


def _line(places, color, dashed=False):
    dash = {"stroke_dasharray": "6 4"} if dashed else {}
    return _element("polyline", points=_pairs(places), stroke=color, stroke_width=1.8, **dash)


def _pairs(places):
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def _circle(place, center, radius):
    (x, y), (edge, _) = place(*center), place(center[0] + radius, center[1])
    return _element("circle", cx=x, cy=y, r=f"{edge - x:.2f}", stroke=INK, stroke_width=1.8)


def _mistake(at, label):
    """A ring at an outer point, which the network puts inside, or a cross at an inner one."""
    (x, y), pen = at, {"stroke": VERMILLION, "stroke_width": 2.2}
    cross = f"M{x - 4.5:g} {y - 4.5:g}l9 9m0 -9l-9 9"
    return (
        _element("path", d=cross, **pen) if label else _element("circle", cx=x, cy=y, r=4.5, **pen)
    )

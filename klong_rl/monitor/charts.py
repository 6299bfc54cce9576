"""Numbers into the geometry of a chart: where the lines, ticks, bands and hover boxes of an SVG go.

Pure: no markup here, `report.html` draws what this computes. Lengths are SVG user units, the origin is at the top left.

    +------------------------------ chart.width ------------------------------+
    |          stage 1         |          stage 2         |   stage 3         |  bands, every other one shaded
    | 1.0 ----------------------------------------------------------------- |  y ticks
    | 0.5 ------------______/``````----------------------------------------- |
    | 0.0 ----------------------------------------------------------------- |
    |     1         10         20         30         40                     |  x ticks: steps
    +-------------------------------------------------------------------------+
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HEIGHT, TOP, BOTTOM = 230, 26, 204
LEFT, RIGHT_MARGIN = 48, 10
MAX_HOVERS = 300  # hover boxes in a chart: more would be narrower than a pixel or two
SMALLEST_TOP = 1e-12  # a linear scale below this is a flat line at 0
LOG_FLOOR = 1e-9  # zeros on a logarithmic scale are drawn here


@dataclass(frozen=True)
class Series:
    """One line, or one layer of a stack. `color` is the number of a colour of the page."""

    name: str
    color: int
    values: Sequence[float]


@dataclass(frozen=True)
class Band:
    """A stage: the steps from `first` to `last`, as positions in the series, both included."""

    label: str
    first: int
    last: int


@dataclass(frozen=True)
class Chart:
    """What to draw. `kind` is line or stack, `scale` is linear (from 0) or log; `top` fixes the highest value."""

    title: str
    note: str
    series: tuple[Series, ...]
    show: Callable[[float], str]
    kind: str = "line"
    scale: str = "linear"
    top: float | None = None
    whole: bool = False  # the values are whole numbers, so the ticks are too
    width: int = 560

    @property
    def right(self) -> int:
        return self.width - RIGHT_MARGIN


@dataclass(frozen=True)
class Hover:
    """The box over a step, the dots on the lines under it, and what it says."""

    left: float
    width: float
    x: float
    title: str
    rows: tuple[tuple[int, str, str], ...]  # color, name, value
    dots: tuple[tuple[float, int], ...]  # y, color


@dataclass(frozen=True)
class Plot:
    """A chart, placed. Ticks are (position, label), shapes are (SVG path, color), bands (left, width, label)."""

    chart: Chart
    lines: tuple[tuple[str, int], ...]
    areas: tuple[tuple[str, int], ...]
    bands: tuple[tuple[float, float, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    hovers: tuple[Hover, ...]


def nice_step(top: float, at_most: int, whole: bool = False) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten of which `at_most` reach `top`."""
    size = 10.0 ** math.floor(math.log10(top / at_most))
    step = next(size * factor for factor in (1, 2, 5, 10) if top / (size * factor) <= at_most)
    return max(step, 1.0) if whole else step


def nice_ticks(top: float, whole: bool = False) -> list[float]:
    """Round numbers from 0 up to the first at or above `top`."""
    if top < SMALLEST_TOP:
        return [0.0, 1.0]
    step = nice_step(top, 5, whole)
    return [step * n for n in range(math.ceil(top / step - 1e-9) + 1)]


def decade_ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    """Powers of ten around [low, high]; decades are left out evenly so that there are `at_most`."""
    first = math.floor(math.log10(max(low, LOG_FLOOR)) + 1e-9)
    last = max(math.ceil(math.log10(max(high, LOG_FLOOR)) - 1e-9), first + 1)
    stride = math.ceil((last - first) / (at_most - 1))
    return [10.0**exponent for exponent in range(first, last + stride, stride)]


def plot(chart: Chart, steps: Sequence[int], bands: Sequence[Band]) -> Plot:
    """Place `chart`, whose series have one finite value for each of `steps` (from 1, ascending, at least one)."""
    drawn = _stacked(chart.series) if chart.kind == "stack" else [series.values for series in chart.series]
    ticks = _ticks(chart, drawn)
    height = _height(chart.scale, ticks)
    x = [_x(position, len(steps), chart.right) for position in range(len(steps))]
    y = [[height(value) for value in values] for values in drawn]
    colors = [series.color for series in chart.series]
    edges = [(x[band.first], x[band.last], band.label) for band in bands]
    return Plot(
        chart=chart,
        # The empty stroke at the end makes a dot out of a single step.
        lines=tuple((_line(x, row) + "h0", color) for row, color in zip(y, colors, strict=True)),
        areas=_areas(x, y, colors) if chart.kind == "stack" else (),
        bands=tuple((left, _band_right(edges, i) - left, label) for i, (left, _, label) in enumerate(edges)),
        x_ticks=_step_ticks(x, steps),
        y_ticks=tuple((height(tick), chart.show(tick)) for tick in ticks),
        hovers=_hovers(chart, steps, x, y),
    )


def _ticks(chart: Chart, drawn: Sequence[Sequence[float]]) -> list[float]:
    values = [value for row in drawn for value in row]
    if chart.scale == "log":
        positive = [value for value in values if value > 0] or [1.0]
        return decade_ticks(min(positive), max(positive))
    return nice_ticks(max(values) if chart.top is None else chart.top, chart.whole)


def _height(scale: str, ticks: Sequence[float]) -> Callable[[float], float]:
    """From a value to its y; what lies outside the ticks is drawn at the edge."""
    place = (lambda value: math.log10(max(value, LOG_FLOOR))) if scale == "log" else (lambda value: value)
    low, high = place(ticks[0]), place(ticks[-1])

    def y(value: float) -> float:
        share = (place(value) - low) / (high - low)
        return round(BOTTOM - min(max(share, 0.0), 1.0) * (BOTTOM - TOP), 2)

    return y


def _x(position: int, count: int, right: float) -> float:
    share = 0.5 if count == 1 else position / (count - 1)
    return round(LEFT + share * (right - LEFT), 2)


def _step_ticks(x: Sequence[float], steps: Sequence[int]) -> tuple[tuple[float, str], ...]:
    """Round steps, or the first alone if there is none."""
    stride = nice_step(steps[-1], 10, whole=True)
    ticks = tuple((at, str(step)) for at, step in zip(x, steps, strict=True) if step % stride == 0)
    return ticks or ((x[0], str(steps[0])),)


def _band_right(edges: Sequence[tuple[float, float, str]], index: int) -> float:
    """A band reaches to where the next one begins, so that there is no gap between the steps."""
    return edges[index + 1][0] if index + 1 < len(edges) else edges[index][1]


def _stacked(series: Sequence[Series]) -> list[list[float]]:
    """Each layer's upper edge: the sum of the layers up to it."""
    edges: list[list[float]] = []
    for layer in series:
        below = edges[-1] if edges else [0.0] * len(layer.values)
        edges.append([low + value for low, value in zip(below, layer.values, strict=True)])
    return edges


def _line(x: Sequence[float], y: Sequence[float]) -> str:
    return "M" + "L".join(f"{a:g},{b:g}" for a, b in zip(x, y, strict=True))


def _areas(x: Sequence[float], y: Sequence[Sequence[float]], colors: Sequence[int]) -> tuple[tuple[str, int], ...]:
    floors = [[float(BOTTOM)] * len(x), *y]
    return tuple(
        (_line(x, upper) + "L" + _line(x[::-1], lower[::-1])[1:] + "Z", color)
        for upper, lower, color in zip(y, floors, colors, strict=False)
    )


def _hovers(chart: Chart, steps: Sequence[int], x: Sequence[float], y: Sequence[Sequence[float]]) -> tuple[Hover, ...]:
    """A box over every step, or over every k-th if there are many; the boxes meet."""
    stride = math.ceil(len(steps) / MAX_HOVERS)
    width = (chart.right - LEFT) * stride / max(1, len(steps) - 1)
    return tuple(
        Hover(
            left=round(x[at] - width / 2, 2),
            width=round(width, 2),
            x=x[at],
            title=f"step {steps[at]}",
            rows=tuple((series.color, series.name, chart.show(series.values[at])) for series in chart.series),
            dots=tuple((row[at], series.color) for row, series in zip(y, chart.series, strict=True)),
        )
        for at in range(0, len(steps), stride)
    )

"""Charts as inline SVG: lines with bands, means with intervals, small bars. Colours come from the style of the page.

A chart is WIDTH units wide, about the width of a phone, so that its text has the size of the text around it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from jobs.morning.markup import Markup, element, joined, legend

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 10, 24  # space for the labels of the axes
LABELS = 104  # space for the labels of rows in `interval_chart`


@dataclass(frozen=True)
class Line:
    """A line of a chart. `band`: (x, low, high) of intervals around it."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    dots: bool = False


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; equal ends if there is none."""

    name: str
    style: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scale:
    """Maps values from [first, last] to [start, end] on the screen."""

    first: float
    last: float
    start: float
    end: float
    log: bool = False
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        """The place of a value."""
        first, last, at = (math.log(v) for v in (self.first, self.last, value)) if self.log else (
            self.first, self.last, value,
        )  # fmt: skip
        return self.start + (self.end - self.start) * ((at - first) / (last - first) if last > first else 0.5)


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, at most `most` steps apart.

    >>> nice_ticks(0.0, 0.43)
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    """
    if not high > low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * size for size in (1, 2, 2.5, 5, 10) if (high - low) / (power * size) <= most + 1e-9)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def line_chart(
    lines: Sequence[Line],
    label: str,
    *,
    x_ticks: Sequence[tuple[float, str]],
    from_zero: bool = True,
    log_x: bool = False,
    share: bool = False,
) -> Markup:
    """Lines over a common x axis, with a legend. `label`: what the chart shows. `share`: y is a share, as percent."""
    lines = [line for line in lines if line.points]
    ys = [y for line in lines for _, y in line.points] + [
        end for line in lines for _, *ends in line.band for end in ends
    ]
    xs = [x for line in lines for x, _ in line.points]
    if not xs:
        return element("p", "No data yet.", class_="note")
    ticks = nice_ticks(min(0.0, *ys) if from_zero else min(ys), max(ys))
    y = Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    x = Scale(min(xs), max(xs), LEFT + 4, WIDTH - RIGHT - 4, log_x)
    grid = [_grid_line(y(tick), _number(tick, share)) for tick in ticks]
    below = [_text(x(at), HEIGHT - 6, name, "middle") for at, name in x_ticks if min(xs) <= at <= max(xs)]
    drawn = [shape for line in lines for shape in _line(line, x, y, share)]
    names = [(line.name, line.style) for line in lines] if len(lines) > 1 else []
    return element("figure", legend(names) if names else None, _svg(HEIGHT, label, *grid, *below, *drawn))


def _line(line: Line, x: Scale, y: Scale, share: bool) -> list[Markup]:
    shapes = []
    if line.band:
        upper = [f"{x(at):.1f},{y(high):.1f}" for at, _, high in line.band]
        lower = [f"{x(at):.1f},{y(low):.1f}" for at, low, _ in reversed(line.band)]
        shapes.append(element("polygon", points=" ".join(upper + lower), class_=f"band {line.style}"))
    places = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in line.points)
    shapes.append(element("polyline", points=places, class_=f"line {line.style}"))
    if line.dots or len(line.points) == 1:
        shapes += [
            element("circle", element("title", f"{line.name}: {_number(value, share, 4)}"), cx=f"{x(at):.1f}",
                    cy=f"{y(value):.1f}", r=3, class_=f"dot {line.style}")
            for at, value in line.points
        ]  # fmt: skip
    return shapes


def interval_chart(groups: Sequence[tuple[str, str, Sequence[Interval]]], label: str) -> Markup:
    """Means with intervals in groups (name, small print, intervals), one below the other, with a legend."""
    intervals = [interval for _, _, group in groups for interval in group]
    if not intervals:
        return element("p", "No data yet.", class_="note")
    ticks = nice_ticks(0.0, max(interval.high for interval in intervals), 4)
    x = Scale(ticks[0], ticks[-1], LABELS, WIDTH - RIGHT)
    shapes, top = list[Markup](), float(TOP)
    for name, small, group in groups:
        height = max(11 * len(group) + 12, 34)
        shapes.append(_text(LABELS - 10, top + height / 2 - 1, name, "end", "strong"))
        shapes.append(_text(LABELS - 10, top + height / 2 + 11, small, "end"))
        first = top + (height - 11 * len(group)) / 2 + 5.5
        for row, interval in enumerate(group):
            shapes += _interval(interval, x, first + 11 * row)
        top += height
        shapes.append(element("line", x1=0, x2=WIDTH, y1=f"{top:.1f}", y2=f"{top:.1f}", class_="rule"))
    grid = [
        element("line", x1=f"{x(tick):.1f}", x2=f"{x(tick):.1f}", y1=TOP, y2=f"{top:.1f}", class_="grid")
        for tick in ticks
    ]
    below = [_text(x(tick), top + 14, _number(tick), "middle") for tick in ticks]
    names = dict.fromkeys((interval.name, interval.style) for interval in intervals)
    return element("figure", legend(names), _svg(top + 20, label, *grid, *shapes, *below))


def _interval(interval: Interval, x: Scale, y: float) -> list[Markup]:
    tip = f"{interval.name}: {interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"
    place = {"y1": f"{y:.1f}", "y2": f"{y:.1f}", "x1": f"{x(interval.low):.1f}", "x2": f"{x(interval.high):.1f}"}
    dot = element(
        "circle",
        element("title", tip),
        cx=f"{x(interval.value):.1f}",
        cy=f"{y:.1f}",
        r=3.5,
        class_=f"dot {interval.style}",
    )
    return [element("line", class_=f"line {interval.style}", **place), dot]


def small_bars(values: Sequence[tuple[str, float]], label: str) -> Markup:
    """A row of small bars (name, value), the last one emphasised."""
    width, height, most = 7, 24, max((value for _, value in values), default=0.0) or 1.0
    bars = [
        element(
            "rect", element("title", f"{name}: {value:,.0f}"), x=width * place, width=width - 2,
            y=f"{height - max(1.0, height * value / most):.1f}", height=f"{max(1.0, height * value / most):.1f}",
            class_="now" if place == len(values) - 1 else "past",
        )
        for place, (name, value) in enumerate(values)
    ]  # fmt: skip
    size = {"width": width * max(len(values), 1), "height": height}
    return element("svg", *bars, role="img", aria_label=label, class_="small", **size)


def _grid_line(y: float, name: str) -> Markup:
    line = element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid")
    return joined([line, _text(LEFT - 6, y + 3.5, name, "end")])


def _text(x: float, y: float, text: str, anchor: str, style: str | None = None) -> Markup:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=style)


def _svg(height: float, label: str, *shapes: Markup) -> Markup:
    return element("svg", *shapes, viewBox=f"0 0 {WIDTH} {height:.0f}", role="img", aria_label=label, class_="chart")


def _number(value: float, share: bool = False, digits: int = 3) -> str:
    return f"{value:.0%}" if share else f"{value:.{digits}g}"

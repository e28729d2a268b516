"""Line charts as inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 10, 24

MOST_POINTS = 400
"""Of a line; of more, the lowest and the highest of each stretch are drawn."""

SMOOTHED_FROM = 60
"""Points from which on a moving average is drawn over a line."""

LOG_FROM = 50.0
"""Ratio of the largest to the smallest value from which on a scale is logarithmic."""


@dataclass(frozen=True)
class Series:
    """A line of a chart: values over steps, some of which may not be finite."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step, a vertical line in every chart."""

    step: int
    kind: str


@dataclass(frozen=True)
class Scale:
    """From values to places, linear or logarithmic."""

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """The place of `value`, within the ends."""
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Three to seven round numbers within."""
        if not self.is_log:
            return linear_ticks(self.low, self.high)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, round((last - first) / 5))
        factors = (1, 2, 5) if last - first <= 2 else (1,)
        ticks = [f * 10.0**e for e in range(first, last + 1, every) for f in factors]
        return [tick for tick in ticks if self.low <= tick <= self.high * (1 + 1e-9)]


def linear_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in [low, high]."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    unit = next(f * power for f in (1, 2, 5, 10) if f * power >= 0.7 * rough)
    first = math.ceil(low / unit - 1e-9)
    count = math.floor(high / unit + 1e-9) - first + 1
    return [(first + index) * unit for index in range(count)]


def chart(
    title: str,
    series: Sequence[Series],
    *,
    marks: Sequence[Mark] = (),
    note: str = "",
    log_from: float = LOG_FROM,
) -> str:
    """A figure: a legend, and a line for each series; empty if no value is finite.

    Values that are all positive and differ by a factor of `log_from` have a logarithmic scale. On a
    linear one a few values far beyond all others do not squeeze the rest: it ends before them, and
    they are drawn at its end.
    """
    values = [v for line in series for v in line.values if math.isfinite(v)]
    if not values:
        return ""
    steps = [step for line in series for step in line.steps]
    x = Scale(min(steps), max(max(steps), min(steps) + 1), LEFT, WIDTH - RIGHT)
    y = _value_scale(values, log_from)
    parts = [_grid(x, y)]
    for mark in marks:
        if x.low <= mark.step <= x.high:
            parts.append(
                f'<line class="mark {mark.kind}" x1="{x(mark.step):.1f}" x2="{x(mark.step):.1f}" '
                f'y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            )
    for index, line in enumerate(series):
        parts.append(_line(line, index, x, y))
    legend = "".join(
        f'<span class="key s{index}">{_label(line.name, title)} <b></b></span>'
        for index, line in enumerate(series)
    )
    scale = " · log scale" if y.is_log else ""
    facts = f'data-x="{x.low} {x.high}" data-y="{y.low!r} {y.high!r}" data-log="{int(y.is_log)}"'
    return (
        f'<figure class="chart"><figcaption><strong>{escape(title)}</strong>'
        f"<small>{escape(note)}{scale}</small><span>{legend}</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" {facts}>'
        f'{"".join(parts)}<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></svg></figure>'
    )


def _label(name: str, title: str) -> str:
    return "" if name == title else f"<i></i>{escape(name)}"


def _value_scale(values: list[float], log_from: float) -> Scale:
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if low > 0 and high / low >= log_from:
        return Scale(low / 1.15, high * 1.15, HEIGHT - BOTTOM, TOP, is_log=True)
    # By what the middle 98 % spread, unless they are all the same.
    below, above = (ordered[round(share * (len(ordered) - 1))] for share in (0.01, 0.99))
    if spread := above - below:
        low, high = max(low, below - 2 * spread), min(high, above + 2 * spread)
    edge = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    floor = 0.0 if ordered[0] >= 0 and low - edge < 0 else low - edge
    return Scale(floor, high + edge, HEIGHT - BOTTOM, TOP)


def _grid(x: Scale, y: Scale) -> str:
    parts = []
    for tick in y.ticks():
        place = f"{y(tick):.1f}"
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place}" y2="{place}"/>'
        )
        parts.append(f'<text x="{LEFT - 7}" y="{place}" dy="0.32em" class="y">{short(tick)}</text>')
    for tick in x.ticks():
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - 7}" class="x">{short(tick)}</text>')
    return "".join(parts)


def _line(line: Series, index: int, x: Scale, y: Scale) -> str:
    points = list(zip(line.steps, line.values))
    few = thinned(points, MOST_POINTS)
    if sum(math.isfinite(value) for _, value in points) == 1:
        ((step, value),) = [(s, v) for s, v in points if math.isfinite(v)]
        return f'<circle class="s{index}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="3"/>'
    if len(points) < SMOOTHED_FROM:
        return f'<path class="line s{index}" d="{_path(few, x, y)}"/>'
    smooth = thinned(averaged(points, len(points) // 30), MOST_POINTS)
    return (
        f'<path class="raw s{index}" d="{_path(few, x, y)}"/>'
        f'<path class="smooth s{index}" d="{_path(smooth, x, y)}"/>'
    )


Points = list[tuple[int, float]]


def _path(points: Points, x: Scale, y: Scale) -> str:
    """Pieces between the values that are not finite."""
    parts, joined = [], False
    for step, value in points:
        if math.isfinite(value):
            parts.append(f"{'L' if joined else 'M'}{x(step):.1f} {y(value):.1f}")
        joined = math.isfinite(value)
    return "".join(parts)


def thinned(points: Points, most: int) -> Points:
    """At most about `most` of the points: the lowest and the highest of equal stretches."""
    if len(points) <= most:
        return points
    width = math.ceil(2 * len(points) / most)
    kept: Points = []
    for begin in range(0, len(points), width):
        part = points[begin : begin + width]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def averaged(points: Points, reach: int) -> Points:
    """The mean of each point and its `reach` neighbours on either side; of what is finite."""
    totals, counts = [0.0], [0]
    for _, value in points:
        finite = math.isfinite(value)
        totals.append(totals[-1] + (value if finite else 0.0))
        counts.append(counts[-1] + finite)
    result: Points = []
    for index, (step, _) in enumerate(points):
        begin, end = max(0, index - reach), min(len(points), index + reach + 1)
        if count := counts[end] - counts[begin]:
            result.append((step, (totals[end] - totals[begin]) / count))
    return result


def short(value: float) -> str:
    """A number as it fits an axis: 1200000 is 1.2M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"

"""Charts: scales, and what becomes of many, of wild and of missing values."""

import math
import re

import numpy as np
import pytest

from dgan.report.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Mark,
    Scale,
    Series,
    averaged,
    chart,
    short,
    thinned,
)


def places(html: str, css: str = "line") -> list[list[tuple[float, float]]]:
    """The points of each piece of the path of that class."""
    (path,) = re.findall(rf'<path class="{css} s0" d="([^"]+)"', html)
    pieces = [re.findall(r"([\d.]+) ([\d.]+)", piece) for piece in path.split("M")[1:]]
    return [[(float(x), float(y)) for x, y in piece] for piece in pieces]


def test_values_are_where_the_axes_say() -> None:
    html = chart("loss", [Series("loss", [0, 50, 100], [1.0, 3.0, 2.0])])
    ((first, middle, last),) = places(html)
    assert (first[0], middle[0], last[0]) == (LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT)
    (low, high) = map(float, re.search(r'data-y="(\S+) (\S+)"', html).groups())  # type: ignore[union-attr]
    share = (HEIGHT - BOTTOM - first[1]) / (HEIGHT - BOTTOM - TOP)
    assert low + share * (high - low) == pytest.approx(1.0, abs=0.01)
    assert ">20<" in html
    assert ">100<" in html


def test_ratios_have_a_logarithmic_scale() -> None:
    values = [1000.0, 100.0, 10.0]
    html = chart("fid", [Series("fid", [0, 1, 2], values)])
    assert "log scale" in html
    ((a, b, c),) = places(html)
    assert b[1] - a[1] == pytest.approx(c[1] - b[1], abs=0.2)
    assert "log scale" not in chart("fid", [Series("fid", [0, 1, 2], [-1.0, 100.0, 10.0])])
    assert Scale(8.0, 1200.0, 0, 1, is_log=True).ticks() == [10, 100, 1000]


def test_a_spike_does_not_squeeze_the_rest() -> None:
    values = [math.sin(step) for step in range(400)]
    values[200] = -1e6
    (points,) = places(chart("x", [Series("x", range(400), values)]), "raw")
    heights = [y for _, y in points]
    assert max(heights) == HEIGHT - BOTTOM
    others = sorted(heights)[:-1]
    assert others[-1] - others[0] > 40


def test_what_is_not_finite_is_a_gap() -> None:
    values = [1.0, 2.0, math.nan, 3.0, math.inf, 2.0, 1.0]
    pieces = places(chart("x", [Series("x", range(7), values)]))
    assert [len(piece) for piece in pieces] == [2, 1, 2]
    assert chart("x", [Series("x", [1], [math.nan])]) == ""
    assert "<circle" in chart("x", [Series("x", [1], [2.0])])


def test_many_points_keep_their_extremes() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    values[777], values[12_345] = 50, -60
    few = thinned([(step, float(v)) for step, v in enumerate(values)], 400)
    assert len(few) <= 400
    assert (777, 50.0) in few
    assert (12_345, -60.0) in few
    assert [step for step, _ in few] == sorted(step for step, _ in few)


def test_the_moving_average() -> None:
    values = np.random.default_rng(0).normal(size=50)
    found = averaged([(step, float(v)) for step, v in enumerate(values)], 3)
    expected = [values[max(0, i - 3) : i + 4].mean() for i in range(50)]
    np.testing.assert_allclose([v for _, v in found], expected, rtol=1e-12)
    assert averaged([(0, 1.0), (1, math.nan), (2, 3.0)], 1) == [(0, 1.0), (1, 2.0), (2, 3.0)]


def test_marks_stand_at_their_step() -> None:
    marks = [Mark(50, "alarm"), Mark(1000, "resume")]
    html = chart("x", [Series("x", [0, 100], [0.0, 1.0])], marks=marks)
    assert re.findall(r'class="mark (\w+)" x1="([\d.]+)"', html) == [("alarm", "280.0")]


def test_numbers_are_short() -> None:
    values = (0, 0.125, 900, 1234, 2_500_000, 3e9)
    assert [short(v) for v in values] == ["0", "0.125", "900", "1.23k", "2.5M", "3G"]

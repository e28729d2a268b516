"""The cosine schedule at points that can be worked out by hand."""

import pytest

from dgan.schedule import Cosine, constant


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (0, 3.0),
        (1000, 2.0 + 0.5**0.5),  # cos 45°
        (2000, 2.0),
        (8000 // 3, 1.5),  # cos 120°
        (3999, 1.0),
        (4000, 1.0),
        (10**9, 1.0),
    ],
)
def test_half_a_cosine(images: int, expected: float) -> None:
    assert Cosine(start=3.0, end=1.0, kimg=4.0).at(images) == pytest.approx(expected, abs=1e-3)


def test_the_ends_are_exact() -> None:
    rising = Cosine(start=0.9, end=0.99, kimg=0.1)
    assert rising.at(0) == 0.9
    assert rising.at(100) == rising.at(101) == 0.99
    assert Cosine(start=5.0, end=0.1).at(0) == 0.1
    assert [constant(0.3).at(images) for images in (0, 1, 10**9)] == [0.3] * 3

"""Pictures: what is where, and files that others read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dgan.laboratory.picture import (
    SIDE,
    animate,
    draw_path,
    draw_samples,
    field_of,
    save_animation,
    save_picture,
    side_by_side,
)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def test_the_field_has_x_to_the_right_and_y_upwards() -> None:
    rightwards = field_of(lambda points: points[:, 0], 2.0)
    upwards = field_of(lambda points: points[:, 1], 2.0)
    assert (np.diff(rightwards, axis=1) > 0).all()
    assert (np.diff(upwards, axis=0) < 0).all()
    assert rightwards.max() == pytest.approx(2.0, abs=0.05)
    assert rightwards.min() == pytest.approx(-2.0, abs=0.05)


def test_samples_are_dark_where_they_are() -> None:
    samples = torch.tensor([[1.0, 1.0], [9.0, 9.0]])  # one of them outside
    picture = pixels(draw_samples(samples, extent=2.0))
    rows, columns = np.nonzero(picture.sum(-1) < 200)
    assert rows.tolist() == [SIDE // 4]
    assert columns.tolist() == [3 * SIDE // 4]


def test_the_field_is_blue_where_it_says_real() -> None:
    field = field_of(lambda points: points[:, 0], 1.0)
    picture = pixels(draw_samples(torch.empty(0, 2), extent=1.0, field=field))
    left, right = picture[SIDE // 2, 5], picture[SIDE // 2, -5]
    assert left[0] > left[2] + 50
    assert right[2] > right[0] + 50
    # Whatever the logits' scale is.
    scaled = draw_samples(torch.empty(0, 2), extent=1.0, field=1000 * field + 7)
    assert (pixels(scaled) == picture).all()


def test_a_field_without_a_slope_is_neutral() -> None:
    field = field_of(lambda points: torch.zeros(len(points)), 1.0)
    picture = pixels(draw_samples(torch.empty(0, 2), extent=1.0, field=field))
    assert np.ptp(picture.reshape(-1, 3), axis=0).tolist() == [0, 0, 0]
    assert picture[0, 0].min() > 240


def test_a_path_that_leaves_the_picture_or_is_not_finite_is_still_drawn() -> None:
    path = torch.tensor([[0.5, 0.5], [1e30, -1e30], [float("nan"), float("inf")]])
    picture = draw_path(path, extent=1.0, caption="−½ ± i")
    assert picture.size == (SIDE, SIDE)
    start = pixels(picture)[SIDE // 4, 3 * SIDE // 4]
    assert start[0] > start[2] + 50


def test_pictures_side_by_side() -> None:
    colours = ["red", "green", "blue"]
    sheet = pixels(side_by_side([Image.new("RGB", (4, 2), c) for c in colours], columns=2))
    assert sheet.shape == (4, 8, 3)
    assert sheet[0, 0].tolist() == [255, 0, 0]
    assert sheet[2, 0].tolist() == [0, 0, 255]
    assert sheet[3, 7].tolist() == [255, 255, 255]


def test_an_animation_of_what_a_run_left_behind(tmp_path: Path) -> None:
    paths = []
    for index, colour in enumerate(("red", "green", "blue")):
        paths.append(tmp_path / f"step-{index}.png")
        save_picture(Image.new("RGB", (20, 20), colour), paths[-1])
    out = tmp_path / "deep" / "film.gif"
    animate(paths, out, seconds=0.3)
    with Image.open(out) as film:
        assert film.format == "GIF"
        assert film.n_frames == 3
        assert film.info["loop"] == 0
        found = []
        for index in range(3):
            film.seek(index)
            found.append((film.convert("RGB").getpixel((10, 10)), film.info["duration"]))
    assert [duration for _, duration in found] == [100, 100, 1600]
    assert found[0][0][0] > 200
    assert found[2][0][2] > 200
    assert sorted(path.name for path in out.parent.iterdir()) == ["film.gif"]


def test_an_animation_needs_a_frame(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        save_animation([], tmp_path / "film.gif")
    assert not list(tmp_path.iterdir())

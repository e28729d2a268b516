"""`dgan sample` beyond grids, and `dgan project`, on a real run."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import dgan, write_recipe
from PIL import Image

from dgan.data import ShardDataset, pack_source
from dgan.inside.samples import FRAMES, Samples
from dgan.inside.sheets import draw_sheet, tiled
from dgan.recipes import find
from dgan.toy import toy_recipe
from dgan.train import train
from dgan.trained import load_run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("few")
    pack_source("digits", folder, limit=60)
    return str(folder / "train-*.tar")


@pytest.fixture(scope="module")
def runs(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`styles`: a conditional StyleGAN2; `plain`: an MLP without labels."""
    folder = tmp_path_factory.mktemp("runs")
    train(find(str(write_recipe(folder, "styles", shards, "stylegan2", train__steps=2))))
    unlabelled = {"data__classes": 0, "train__steps": 2, "train__precision": "float64"}
    train(find(str(write_recipe(folder, "plain", shards, "mlp", **unlabelled))))
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_loop_is_a_gif_with_a_tile_a_class(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "x.gif"
    outcome = dgan(capsys, "sample", runs / "styles", "--interpolate", "--count", 2, "--out", out)
    assert outcome.code == 0, outcome
    trained = load_run(runs / "styles")
    samples = Samples(trained.network, trained.z_dim, count=2, seed=0)
    expected = [np.asarray(tiled(f)).astype(int) for f in samples.loop(list(range(10)))]
    with Image.open(out) as film:
        assert film.n_frames == len(expected) == 2 * FRAMES
        assert film.info["loop"] == 0
        assert expected[0].shape == (2 * 64 + 3, 5 * 64 + 4 * 3, 3)
        for index, frame in enumerate(expected):
            film.seek(index)
            found = np.asarray(film.convert("RGB")).astype(int)
            assert np.abs(found - frame).mean() < 3, index  # GIF has 128 colours here
            assert film.info["duration"] == 60
    # Each tile begins with the first latent as its class, and comes to the second.
    frames = samples.loop([3, 8])
    for tile, label in enumerate((3, 8)):
        ends = samples.images(torch.full((2,), label), truncation=1.0)
        assert torch.equal(torch.stack([frames[0][tile], frames[FRAMES][tile]]), ends)
    # Neighbouring frames are alike, also where the loop closes, and far ones are not.
    apart = [np.abs(a - b).mean() for a, b in zip(expected, expected[1:] + expected[:1])]
    assert max(apart) < 0.5 * np.abs(expected[0] - expected[FRAMES]).mean()


def test_a_row_for_each_truncation(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    for name, label in (("styles", ("--label", 3)), ("plain", ())):
        out = tmp_path / f"{name}.png"
        options = ("--truncation", 0, 0.5, 1, "--count", 4, *label, "--out", out)
        assert dgan(capsys, "sample", runs / name, *options).code == 0
        sheet = pixels(out)
        left = sheet.shape[1] - 4 * 67
        cells = [
            [sheet[3 + 67 * row :, left + 67 * column :][:64, :64] for column in range(4)]
            for row in range(3)
        ]
        assert all((cell == cells[0][0]).all() for cell in cells[0])
        middle = cells[0][0]
        away = [np.mean([np.abs(cell - middle).mean() for cell in row]) for row in cells]
        assert 0 == away[0] < away[1] < away[2], (name, away)


def test_one_truncation_is_a_grid(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    def grid(*options: Any) -> np.ndarray:
        outcome = dgan(capsys, "sample", runs / "plain", *options, "--out", tmp_path / "x.png")
        assert outcome.code == 0, outcome
        return pixels(tmp_path / "x.png")

    assert (grid("--count", 4) == grid("--count", 4, "--truncation", 9)).mean() > 0.99
    assert (grid("--count", 4) != grid("--count", 4, "--truncation", 0.5)).any()


def test_a_grid_has_a_row_a_class(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    options = ("--count", 23, "--out", tmp_path / "x.png")
    assert dgan(capsys, "sample", runs / "styles", *options).code == 0
    trained = load_run(runs / "styles")
    samples = Samples(trained.network, trained.z_dim, count=23, seed=0)
    images = samples.images(torch.arange(23) % 10)
    expected = draw_sheet([(str(label), images[label::10]) for label in range(10)])
    assert (pixels(tmp_path / "x.png") == np.asarray(expected)).all()


def test_samples_beside_their_nearest_training_images(
    runs: Path, tmp_path: Path, shards: str, capsys: Capture
) -> None:
    out = tmp_path / "x.png"
    options = ("--neighbours", 3, "--count", 2, "--features", "pixels", "--out", out)
    assert dgan(capsys, "sample", runs / "plain", *options).code == 0
    sheet = pixels(out)
    left = sheet.shape[1] - 4 * 67 - 14
    trained = load_run(runs / "plain")
    samples = Samples(trained.network, trained.z_dim, count=2, seed=0).images(None)
    with ShardDataset(shards) as dataset:
        real = np.stack([dataset[i]["image"][0].numpy() for i in range(60)]).astype(float)
    for row, sample in enumerate(samples[:, 0].numpy().astype(float)):
        order = ((real - sample) ** 2).sum((1, 2)).argsort()
        for column, image in enumerate([sample, *real[order[:3]]]):
            place = left + 67 * column + (14 if column else 0)
            cell = sheet[3 + 67 * row :, place:][:64:8, :64:8, 0]
            assert (cell == image).all(), (row, column)


def test_the_classifier_of_the_run_finds_neighbours_and_guides_projection(
    runs: Path, tmp_path: Path, shards: str, capsys: Capture
) -> None:
    run, out = runs / "styles", tmp_path / "x.png"
    assert dgan(capsys, "sample", run, "--neighbours", 2, "--count", 2, "--out", out).code == 0
    assert (run / "classifier.safetensors").exists()
    with ShardDataset(shards) as dataset:
        Image.fromarray(dataset[5]["image"][0].numpy()).save(tmp_path / "image.png")
    options = ("--starts", 2, "--steps", 30, "--out", tmp_path / "p.png")
    outcome = dgan(capsys, "project", run, tmp_path / "image.png", *options)
    assert outcome.code == 0, outcome
    (found,) = re.findall(
        r"distance (\S+) \(at first (\S+); mean square of pixels and", outcome.out
    )
    assert float(found[0]) < float(found[1])
    assert pixels(tmp_path / "p.png").shape[0] == 2 * 67 + 3
    # Pixels alone are another distance, also of weights in float64.
    alone = (*options, "--features", "pixels")
    outcome = dgan(capsys, "project", runs / "plain", tmp_path / "image.png", *alone)
    assert "mean square of pixels)" in outcome.out, outcome


def test_what_makes_no_sense_is_refused(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (9, 8)).save("wide.png")
    run, plain = runs / "styles", runs / "plain"
    cases: dict[tuple[Any, ...], str] = {
        ("sample", run, "--interpolate", "--neighbours", 2): r"--interpolate and --neighbours",
        ("sample", run, "--interpolate", "--truncation", 0, 1): r"--truncation 0 1 are pictures",
        ("sample", run, "--interpolate", "--count", 1): r"--count is 1; it must be at least 2",
        ("sample", run, "--interpolate", "--out", "x.png"): r"one GIF: name it so",
        ("sample", run, "--truncation", 0, 1, "--out", "x"): r"one PNG: name it so",
        ("sample", run, "--neighbours", 61): r"--neighbours is 61, but there are 60 training",
        ("sample", run, "--neighbours", -1): r"--neighbours is -1",
        ("sample", run, "--features", "pixels"): r"--features says what --neighbours K compares",
        ("sample", plain, "--label", 1): r"--label is 1; it has no classes",
        ("project", run, "wide.png"): r"wide.png is 9×8.* 8×8",
        ("project", run, "no.png"): r"no image at no.png",
        ("project", run, "wide.png", "--starts", 0): r"--starts is 0",
        ("project", run, "wide.png", "--label", 10): r"knows 0 … 9|9×8",
    }
    for arguments, pattern in cases.items():
        message = dgan(capsys, *arguments).error()
        assert re.search(pattern, message), (arguments, message)
    assert [path.name for path in tmp_path.iterdir()] == ["wide.png"]


def test_points_have_no_images(tmp_path: Path, capsys: Capture) -> None:
    recipe = toy_recipe("ring", "relativistic", steps=2)
    train(replace(recipe, run=replace(recipe.run, dir=str(tmp_path / "ring"))))
    message = dgan(capsys, "sample", tmp_path / "ring").error()
    assert "is a run on points, not on images" in message

"""What a run leaves behind, and how it goes on; short runs in this process."""

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from commands import (
    assert_same_checkpoint,
    checkpoint_of,
    dgan,
    facts,
    metrics,
    steps_kept,
    stored,
    write_recipe,
)
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny

from dgan.recipe_file import from_toml
from dgan.train import train

PLAYERS = ("generator", "discriminator")


@pytest.fixture(scope="module")
def finished(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 7 steps that nothing disturbed; batch norm, so that buffers are among its state."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(dcgan(digits, run, train__steps=7))
    return run


def dcgan(digits: str, run: Path, **changes: object):
    changes = {"checkpoint__every": 2, "checkpoint__keep": 2, "samples__every": 3} | changes
    return tiny(digits, str(run), "dcgan", train__deterministic=True, **changes)


def test_a_run_is_a_directory_of_plain_files(finished: Path, digits: str) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "recipe.toml", "metrics.jsonl", "tensorboard", "samples", "checkpoints", "log.txt",
        "environment.jsonl",
    }  # fmt: skip
    assert {path.name for path in (finished / "samples").iterdir()} == {
        "reals.png", *(f"step-{step:09d}.png" for step in (0, 3, 6, 7)),
    }  # fmt: skip
    assert from_toml(finished / "recipe.toml") == dcgan(digits, finished, train__steps=7)
    assert tomllib.loads((finished / "recipe.toml").read_text())["format"] == 1
    assert "step 7/7" in (finished / "log.txt").read_text()


def test_metrics_have_a_line_a_step(finished: Path) -> None:
    lines = metrics(finished)
    assert [line["step"] for line in lines] == list(range(1, 8))
    assert [line["kimg"] for line in lines] == pytest.approx([0.016 * s for s in range(1, 8)])
    names = {"discriminator/loss", "discriminator/penalty", "generator/loss", "data/skipped"}
    assert all(names <= line.keys() for line in lines)
    board = EventAccumulator(str(finished / "tensorboard"), {"images": 0}).Reload()
    curve = board.Scalars("generator/loss")
    assert [point.step for point in curve] == list(range(1, 8))
    assert [p.value for p in curve] == pytest.approx([x["generator/loss"] for x in lines], rel=1e-6)
    assert {image.step for image in board.Images("samples")} == {0, 3, 6, 7}


def test_grids_show_a_row_a_class_and_change(finished: Path) -> None:
    grids = {
        path.stem: np.asarray(Image.open(path)) for path in (finished / "samples").glob("*.png")
    }
    assert grids["step-000000000"].shape[0] == 5 * grids["step-000000000"].shape[1]  # 10 rows of 2
    assert (grids["step-000000000"] != grids["step-000000007"]).any()
    assert grids["reals"].std() > 10


def test_checkpoints_keep_the_last(finished: Path) -> None:
    assert steps_kept(finished) == [6, 7]
    assert facts(checkpoint_of(finished, 7))["step"] == 7
    assert facts(checkpoint_of(finished, 7))["stream"]["position"] == 7 * 16


@pytest.mark.parametrize("first", [3, 4])
def test_a_run_in_two_parts_is_the_run_in_one(
    first: int, digits: str, finished: Path, tmp_path: Path
) -> None:
    for steps in (first, 7):
        train(dcgan(digits, tmp_path / "run", train__steps=steps))
    assert_same_checkpoint(checkpoint_of(tmp_path / "run", 7), checkpoint_of(finished, 7))
    assert metrics(tmp_path / "run") == metrics(finished)
    grid = Path("samples", "step-000000007.png")  # of the averaged weights
    assert (tmp_path / "run" / grid).read_bytes() == (finished / grid).read_bytes()
    moved = stored(checkpoint_of(finished, 6))
    for part in ("average.", *(f"{p}.{s}." for p in PLAYERS for s in ("network", "optimizer"))):
        assert any(name.startswith(part) for name in moved), part
    assert any((moved[k] != v).any() for k, v in stored(checkpoint_of(finished, 7)).items())


def test_what_came_after_the_checkpoint_is_not_recorded_twice(
    digits: str, finished: Path, tmp_path: Path
) -> None:
    """As after `kill -9`: metrics up to step 5 and half a line, a checkpoint of step 4."""
    run = tmp_path / "run"
    train(dcgan(digits, run, train__steps=5))
    for path in checkpoint_of(run, 5).iterdir():
        path.unlink()
    checkpoint_of(run, 5).rmdir()
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 6, "kimg": 0.0')
    train(dcgan(digits, run, train__steps=7))
    assert metrics(run) == metrics(finished)
    assert_same_checkpoint(checkpoint_of(run, 7), checkpoint_of(finished, 7))


def test_a_finished_run_says_so(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, "run", digits, train__steps=2)
    assert dgan(capsys, "train", recipe).code == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again = dgan(capsys, "train", recipe)
    assert again.code == 0
    assert "done at step 2 of 2" in again.out
    assert "--train.steps 4\n" in again.out
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    # The saved recipe is a recipe, and goes on where the run is.
    saved = dgan(capsys, "train", tmp_path / "run" / "recipe.toml", "--train.steps", "3")
    assert (saved.code, "going on from" in saved.out) == (0, True), saved
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3]
    # Fewer steps than are done is not a way back.
    fewer = dgan(capsys, "train", tmp_path / "run", "--train.steps", "1")
    assert fewer.code == 0
    assert f"dgan train {tmp_path / 'run'} --train.steps 6\n" in fewer.out
    assert steps_kept(tmp_path / "run")[-1] == 3


def test_another_recipe_does_not_resume(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, "run", digits, train__steps=1)
    assert dgan(capsys, "train", recipe).code == 0
    saved = (tmp_path / "run" / "recipe.toml").read_bytes()
    changes = ["--train.batch_size", "8", "--generator.learning_rate.start", "0.5"]
    message = dgan(capsys, "train", recipe, *changes, "--train.steps", "5").error()
    assert "generator.learning_rate.start, train.batch_size differ" in message
    assert "--run.dir" in message
    for flag in (["--run.fresh"], ["--run.fresh", "True"]):
        message = dgan(capsys, "train", recipe, *flag).error()
        assert str(tmp_path / "run") in message
        assert "--run.dir" in message
    assert (tmp_path / "run" / "recipe.toml").read_bytes() == saved
    assert steps_kept(tmp_path / "run") == [1]
    fresh = dgan(capsys, "train", recipe, "--run.dir", tmp_path / "new", "--run.fresh")
    assert fresh.code == 0, fresh
    # A run that was made with --run.fresh goes on like any other.
    assert dgan(capsys, "train", tmp_path / "new", "--train.steps", "2").code == 0


def test_an_evaluated_run_keeps_its_classifier_and_scores(digits: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    plan = {"evaluation__every": 0, "evaluation__samples": 64}
    train(tiny(digits, str(run), "mlp", train__steps=1, **plan))
    train(tiny(digits, str(run), "mlp", train__steps=2, **plan))
    assert (run / "classifier.safetensors").is_file()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [line for line in lines if "fid" in line]
    assert [line["step"] for line in scores] == [0, 1, 2]
    assert all({"coverage", "agreement", "features", "samples"} <= line.keys() for line in scores)
    assert len({line["fid"] for line in scores}) == 3


def test_a_checkpoint_of_another_recipe_is_refused(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tensors have the same shapes, and its digests are right."""
    ours = write_recipe(tmp_path, "ours", digits, train__steps=1)
    other = {"train__steps": 2, "task__loss": "hinge", "train__seed": 5}
    theirs = write_recipe(tmp_path, "theirs", digits, **other)
    assert [dgan(capsys, "train", path).code for path in (ours, theirs)] == [0, 0]
    run = tmp_path / "ours"
    saved = (run / "recipe.toml").read_bytes()

    copied = shutil.copytree(checkpoint_of(tmp_path / "theirs", 2), checkpoint_of(run, 2))
    for command in (("train", run, "--train.steps", "3"), ("sample", run)):
        message = dgan(capsys, *command).error()
        assert f"{copied} is of a run of another recipe; task.loss, train.seed differ" in message
    shutil.rmtree(copied)
    assert dgan(capsys, "train", run, "--train.steps", "2").code == 0

    # Without the recipe's file, the checkpoints themselves say whose they are.
    (run / "recipe.toml").unlink()
    message = dgan(capsys, "train", theirs, "--run.dir", run).error()
    assert f"{checkpoint_of(run, 2)} is of a run of another recipe; task.loss" in message
    assert not (run / "recipe.toml").exists()
    assert "--run.fresh" in dgan(capsys, "train", ours, "--run.fresh").error()
    assert dgan(capsys, "train", ours, "--train.steps", "3").code == 0
    assert steps_kept(run) == [1, 2, 3]
    assert (run / "recipe.toml").read_bytes() == saved.replace(b"steps = 1", b"steps = 3")

"""`dgan toy`: short trainings from the command line, and the table at the end."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from commands import dgan, metrics, steps_kept
from PIL import Image

from dgan.config import Recipe
from dgan.toy import toy_recipe
from dgan.train import train

Capture = pytest.CaptureFixture[str]


def test_losses_are_compared(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["ring", "--loss", "relativistic", "minimax", "--seeds", "2", "--steps", "20"]
    outcome = dgan(capsys, "toy", *arguments, "--out", str(tmp_path))
    assert outcome.code in (0, None), outcome.err
    runs = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert runs == [f"toy-ring-{m}-{s}" for m in ("minimax", "relativistic") for s in (0, 1)]
    for name in runs:
        assert steps_kept(tmp_path / name) == [20]
        lines = metrics(tmp_path / name)
        scores = [line for line in lines if "high_quality" in line]
        assert [line["step"] for line in scores] == list(range(0, 21, 2))
        assert all(0 <= line["modes"] <= 8 for line in scores)
        has_penalty = any("discriminator/penalty" in line for line in lines)
        assert has_penalty == ("relativistic" in name)
    with Image.open(tmp_path / "ring-minimax.gif") as animation:
        assert animation.format == "GIF"
        assert getattr(animation, "n_frames", 1) > 5
    printed = outcome.out
    assert "6.3 ± 0.5" in printed
    assert "2" in next(line for line in printed.splitlines() if line.startswith("│ minimax"))

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoints/*/facts.json")}
    dgan(capsys, "toy", *arguments, "--out", str(tmp_path))
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_table_is_kept_as_text_and_as_numbers(tmp_path: Path, capsys: Capture) -> None:
    """Another penalty is another method; so are clipped weights."""
    arguments = ["ring", "--loss", "wasserstein", "--penalty", "own", "clip", "--steps", "10"]
    outcome = dgan(capsys, "toy", *arguments, "--out", str(tmp_path))
    assert outcome.code in (0, None), outcome.err
    rows = json.loads((tmp_path / "ring.json").read_text())
    assert [row["method"] for row in rows] == ["wasserstein", "wasserstein+clip"]
    for row in rows:
        (run,) = tmp_path.glob(f"toy-ring-{row['method']}-0")
        last = [line for line in metrics(run) if "high_quality" in line][-1]
        assert row["reverse_kl"] == last["reverse_kl"]
        assert row["steps"] == 10
    text = (tmp_path / "ring.txt").read_text()
    assert "wasserstein+clip" in text
    assert "6.3 ± 0.5" in text


def test_methods_differ_in_what_they_penalise() -> None:
    for loss, penalty, gamma, clip in (
        ("relativistic", "own", 0.01, 0.0),
        ("relativistic", "none", 0.0, 0.0),
        ("hinge", "own", 0.0, 0.0),
        ("hinge", "wgan_gp", 10.0, 0.0),
        ("wasserstein", "clip", 0.0, 0.1),
    ):
        recipe = toy_recipe("grid", loss, penalty=penalty)
        assert (recipe.penalty.gamma.start, recipe.regularizers.clip) == (gamma, clip)


def test_the_networks_learn_where_the_points_are(tmp_path: Path) -> None:
    recipe = within(toy_recipe("ring", "relativistic", steps=200), tmp_path)
    train(recipe)
    scores = [line for line in metrics(tmp_path) if "high_quality" in line]
    assert scores[-1]["distance"] < 0.9 * scores[0]["distance"]
    assert scores[-1]["modes"] > scores[0]["modes"]


def within(recipe: Recipe, directory: Path) -> Recipe:
    return replace(recipe, run=replace(recipe.run, dir=str(directory)))


def test_dirac_agrees_with_theory(tmp_path: Path, capsys: Capture) -> None:
    printed = dgan(capsys, "toy", "dirac", "--out", str(tmp_path)).out
    assert "minimax" in printed
    assert "WRONG" not in printed
    assert (tmp_path / "dirac.png").exists()


def test_what_cannot_be_is_refused(tmp_path: Path, capsys: Capture) -> None:
    outcome = dgan(capsys, "toy", "ring", "--seeds", "0", "--out", str(tmp_path))
    assert outcome.code == 2
    assert "--seeds is 0; it must be at least 1" in outcome.err

"""Runs on clips: in parts as in one, their scores, films, and the commands."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import assert_same_checkpoint, checkpoint_of, dgan, metrics, write_recipe
from films import FILM, films, frames_of, strip, write
from PIL import Image, ImageSequence
from ranks import run_ranks
from tiny import tiny

from dgan.build_evaluation import build_evaluator
from dgan.config import Augment, Evaluation, Judges, Recipe
from dgan.data.clips import Places
from dgan.draws import Draws, generator
from dgan.export import load_generator
from dgan.metrics import ClassifierFeatures
from dgan.metrics.frechet import FeatureStatistics, frechet_distance
from dgan.opening import PLACES, open_run, open_stream
from dgan.parallel.world import launch
from dgan.train import train
from dgan.trained import load_run
from dgan.validation import validate
from dgan.visible import to_uint8


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return films(tmp_path_factory.mktemp("films") / "x.tar", 11)


def recipe(shards: str, run: Path, **changes: Any) -> Recipe:
    return tiny(
        shards,
        str(run),
        **FILM,
        train__deterministic=True,
        samples__count=6,
        evaluation=Evaluation(every=4, samples=20),
        **changes,
    )


@pytest.fixture(scope="module")
def run(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 steps that nothing disturbed."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    train(recipe(shards, directory, train__steps=7))
    return directory


def test_a_run_in_two_parts_is_the_run_in_one(shards: str, run: Path, tmp_path: Path) -> None:
    for steps in (3, 7):
        train(recipe(shards, tmp_path / "run", train__steps=steps))
    assert_same_checkpoint(checkpoint_of(tmp_path / "run", 7), checkpoint_of(run, 7))
    assert metrics(tmp_path / "run")[-1] == metrics(run)[-1]
    for name in ("step-000000007.png", "step-000000007.gif", "reals.gif"):
        ours, theirs = (folder / "samples" / name for folder in (tmp_path / "run", run))
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_score_is_that_of_places_of_all_clips(shards: str, run: Path) -> None:
    scores = [line for line in metrics(run) if "fid" in line]
    assert [line["step"] for line in scores] == [0, 4, 7]
    features = ClassifierFeatures.load(run / "classifier.safetensors")
    trained = load_run(run)
    dataset = Places(shards, each=PLACES, channels=1, resolution=8, frames=4, stride=2)
    place = {"purpose": "evaluation", "rows": range(16), "device": torch.device("cpu")}
    made = []
    for index in range(2):
        chosen = generator(0, "evaluation labels", index).integers(len(dataset), size=16)
        labels = torch.from_numpy(dataset.labels[chosen])
        with torch.no_grad():
            made.append(trained.network(Draws(seed=0, step=index, **place).normal(6), labels))
    real, fake = FeatureStatistics(), FeatureStatistics()
    real.update(features(torch.cat([batch["image"] for batch in dataset.batches(50)])))
    fake.update(features(to_uint8(torch.cat(made)[:20])))
    assert scores[-1]["fid"] == pytest.approx(frechet_distance(real, fake), rel=1e-4)
    assert scores[-1]["real_samples"] == 11 * PLACES
    assert scores[-1]["crop"] == "4 frames with a stride of 2"
    assert scores[-1]["features"] == features.name
    assert (features.spec.frames, features.spec.held_out) == (4, 2 * PLACES)
    assert 0 <= scores[-1]["agreement"] <= 1


def scores_of(recipe: Recipe, directory: Path) -> dict[str, Any]:
    trained = load_run(directory)
    with (
        launch(precision="float32") as world,
        open_stream(recipe, world) as stream,
        open_run(recipe, world) as run,
    ):
        evaluator = build_evaluator(recipe, stream, world, run)
        assert evaluator is not None
        return evaluator(trained.network, trained.z_dim)


def test_scores_do_not_depend_on_the_number_of_ranks(shards: str, run: Path) -> None:
    expected = {key: value for key, value in metrics(run)[-1].items() if key not in SEEN}
    for found in run_ranks(2, scores_of, recipe(shards, run, train__steps=7), run):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            close = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            assert found[key] == close, key


SEEN = ("step", "kimg")


def test_films_show_the_frames(shards: str, run: Path) -> None:
    """Two clips of each class: a row of the sheet each; in the film, a row a class."""
    sheet = np.asarray(Image.open(run / "samples" / "reals.png"))
    side = sheet.shape[0] / 6
    assert sheet.shape[1] == 4 * side
    scale = round(side / 9)
    middle = frames_of(1)[3::2][:, :, :, 0]
    found = sheet[round(side) :: scale, ::scale, 0]
    for place in range(4):
        assert (found[:8, 9 * place : 9 * place + 8] == middle[place]).all()
    film = Image.open(run / "samples" / "reals.gif")
    frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]
    assert len(frames) == 4
    assert film.info["loop"] == 0
    scale = frames[0].shape[1] // 18
    assert frames[0].shape[0] == 27 * scale
    for frame, wanted in zip(frames, middle):  # 128 colours for 4 frames of noise
        seen = frame[: 8 * scale : scale, 9 * scale : 17 * scale : scale, 0].astype(int)
        assert abs(seen - wanted).mean() < 4


def test_commands(
    shards: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = dgan(capsys, "evaluate", run, "--out", tmp_path / "scores.json")
    assert outcome.code == 0, outcome
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["fid"] == pytest.approx(metrics(run)[-1]["fid"], rel=1e-6)
    for name in ("clips.gif", "clips.png"):
        out = tmp_path / name
        assert dgan(capsys, "sample", run, "--count", 4, "--label", 2, "--out", out).code == 0
        assert Image.open(out).format == name[-3:].upper()
    assert Image.open(tmp_path / "clips.gif").n_frames == 4  # type: ignore[attr-defined]
    assert "clips are a GIF, or" in dgan(capsys, "sample", run, "--out", tmp_path / "x").error()
    assert "makes video: --interp" in dgan(capsys, "sample", run, "--interpolate").error()
    assert "a run on video" in dgan(capsys, "project", run, tmp_path / "clips.png").error()
    assert dgan(capsys, "report", run, "--out", tmp_path / "report.html").code == 0
    assert dgan(capsys, "export", run, tmp_path / "exported").code == 0
    ours, theirs = load_run(run).network, load_generator(tmp_path / "exported")
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name])


REFUSED = {
    "--data.frames 0": r"--data\.frames is 0; --data\.kind video takes at least 1",
    "--data.frame_stride 0": r"--data\.frame_stride is 0",
    "--data.frames 12": r"x\.tar: sample '000' has 12 frames, but 12 with a stride of 2 take 23",
    "--data.crop random": r"--data\.crop random means nothing to --data\.kind video",
    "--data.kind images": r"--data\.frames 4 is for --data\.kind video, not images",
    "--data.kind images --data.frames 0": r"--data\.frame_stride 2 is for --data\.kind video",
    "--task.name paired": r"--task\.name paired is for --data\.kind pairs, not video",
    "--generator.network dcgan": r"--generator\.network dcgan takes no 'frames'",
    "--discriminator.options.seen 3": r"sees 3 of 4 frames evenly spread",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_does_not_fit_is_refused(
    options: str, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {**FILM, "discriminator__options": {"widths": (8, 6), "seen": 2}}
    path = write_recipe(tmp_path, "run", shards, **plan)
    message = dgan(capsys, "train", path, *options.split()).error()
    assert re.search(REFUSED[options], message), message


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"augment": Augment(kind="diff")}, "augment.kind"),
        ({"judges": Judges(scales=2)}, "judges.scales"),
        ({"regularizers__bcr": 1.0}, "regularizers.bcr"),
    ],
)
def test_what_is_of_images_is_refused(change: dict[str, Any], key: str) -> None:
    validate(tiny("x.tar", "", **FILM))
    with pytest.raises(ValueError, match=rf"--{key} \S+ means nothing to --data\.kind video"):
        validate(tiny("x.tar", "", **FILM, **change))


def test_a_clip_that_is_too_short_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {f"{i}.png": strip(frames_of(i)) for i in range(20)}
    bad = write(tmp_path / "x.tar", good | {"short.png": strip(frames_of(0, frames=5))})
    plan = {**FILM, "data__classes": 0}
    path = write_recipe(tmp_path, "run", bad, **plan)
    message = dgan(capsys, "train", path).error()
    assert re.search(r"x\.tar: sample 'short' has 5 frames, but 4 with a stride of 2", message)

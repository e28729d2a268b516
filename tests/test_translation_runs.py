"""Runs of pix2pix and CycleGAN: in parts as in one, their scores, sheets, and the commands."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import assert_same_checkpoint, checkpoint_of, dgan, metrics, stored, write_recipe
from pairs import PAIRED, UNPAIRED, pairs
from PIL import Image
from ranks import run_ranks
from tiny import tiny

from dgan.build_evaluation import translation_evaluator
from dgan.config import Evaluation, Penalty, Recipe
from dgan.data import ShardDataset
from dgan.draws import Draws
from dgan.export import load_generator
from dgan.metrics import ClassifierFeatures
from dgan.metrics.classifier import ClassifierSpec, build_classifier
from dgan.metrics.frechet import FeatureStatistics, frechet_distance
from dgan.parallel.world import launch
from dgan.train import train
from dgan.trained import load_run
from dgan.validation import validate
from dgan.visible import to_uint8

CASES: dict[str, dict[str, Any]] = {"paired": PAIRED, "unpaired": UNPAIRED}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs to train on, others to test with, and untrained features of them."""
    folder = tmp_path_factory.mktemp("pairs")
    pairs(folder / "train.tar", 11)
    pairs(folder / "test.tar", 7)
    spec = ClassifierSpec(
        num_classes=3, channels=1, height=16, width=16, dimension=4, accuracy=0.5, held_out=1,
        trained_on=1, seed=0,
    )  # fmt: skip
    features = ClassifierFeatures(build_classifier(3, 1, 16, 16, 4, 0), spec)
    features.save(folder / "features.safetensors")
    return folder


def recipe(task: str, shards: Path, run: Path, **changes: Any) -> Recipe:
    best = {"paired": "l1", "unpaired": "cycle"}[task]
    plan = Evaluation(
        every=4,
        shards=str(shards / "test.tar"),
        features=str(shards / "features.safetensors"),
    )
    return tiny(
        str(shards / "train.tar"),
        str(run),
        **CASES[task],
        train__deterministic=True,
        evaluation=plan,
        checkpoint__best=best,
        **changes,
    )


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each task 7 steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs")
    for task in CASES:
        train(recipe(task, shards, folder / task, train__steps=7))
    return folder


@pytest.mark.parametrize("first", [3, 4])
@pytest.mark.parametrize("task", CASES)
def test_a_run_in_two_parts_is_the_run_in_one(
    task: str, first: int, shards: Path, runs: Path, tmp_path: Path
) -> None:
    for steps in (first, 7):
        train(recipe(task, shards, tmp_path / "run", train__steps=steps))
    last = checkpoint_of(runs / task, 7)
    assert_same_checkpoint(checkpoint_of(tmp_path / "run", 7), last)
    line = metrics(tmp_path / "run")[-1]
    assert line == metrics(runs / task)[-1]
    sheet = Path("samples", "step-000000007.png")
    assert (tmp_path / "run" / sheet).read_bytes() == (runs / task / sheet).read_bytes()
    if task == "unpaired":
        state = stored(last)
        for name in "ab":
            assert state[f"task.history_{name}.images"].flatten(1).any(1).all()
            assert state[f"task.history_{name}.held"] == 6


def prepared(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 127.5 - 1


def test_pairs_are_scored_by_distance_and_fid(shards: Path, runs: Path) -> None:
    trained = load_run(runs / "paired")
    dataset = ShardDataset(shards / "test.tar")
    source, target = (torch.stack([dataset[i][name] for i in range(7)]) for name in "ab")
    place = {"purpose": "evaluation", "step": 0, "rows": range(7), "device": torch.device("cpu")}
    latents = Draws(seed=0, **place).normal(3)
    with torch.no_grad():
        made = trained.network(prepared(source), latents)
    scores = [line for line in metrics(runs / "paired") if "l1" in line and "fid" in line]
    assert [line["step"] for line in scores] == [0, 4, 7]
    expected = (made - prepared(target)).abs().mean().item()
    assert scores[-1]["l1"] == pytest.approx(expected, rel=1e-5)
    assert scores[-1]["samples"] == 7
    features = ClassifierFeatures.load(shards / "features.safetensors")
    found = [FeatureStatistics(), FeatureStatistics()]
    for statistics, images in zip(found, (target, to_uint8(made))):
        statistics.update(features(images))
    assert scores[-1]["fid"] == pytest.approx(frechet_distance(*found), rel=1e-4)
    assert scores[-1]["features"] == features.name


def test_cycles_are_scored_in_both_directions(shards: Path, runs: Path) -> None:
    network = load_run(runs / "unpaired").network
    dataset = ShardDataset(shards / "test.tar")
    a, b = (prepared(torch.stack([dataset[i][name] for i in range(7)])) for name in "ab")
    with torch.no_grad():
        to_b, to_a = network(a, b)
        again_b, again_a = network(to_a, to_b)
    scores = metrics(runs / "unpaired")[-1]
    assert scores["cycle_a"] == pytest.approx((again_a - a).abs().mean().item(), rel=1e-5)
    assert scores["cycle_b"] == pytest.approx((again_b - b).abs().mean().item(), rel=1e-5)
    assert scores["cycle"] == pytest.approx((scores["cycle_a"] + scores["cycle_b"]) / 2)
    assert scores["fid"] == pytest.approx((scores["fid_a"] + scores["fid_b"]) / 2)


def scores_of(runs: list[Path], shards: Path) -> list[dict[str, Any]]:
    """Of 10 samples in batches of 8: on 3 ranks, one has nothing to do in the second."""
    with launch(precision="float32") as world:
        found = []
        for trained in map(load_run, runs):
            plan = replace(trained.recipe.evaluation, samples=10)
            recipe = replace(trained.recipe, evaluation=plan)
            score = translation_evaluator(recipe, str(shards / "train.tar"), plan.features, world)
            found.append(score(trained.network, trained.z_dim))
        return found


def test_scores_do_not_depend_on_the_number_of_ranks(shards: Path, runs: Path) -> None:
    folders = [runs / task for task in CASES]
    alone = scores_of(folders, shards)
    assert [scores["samples"] for scores in alone] == [10, 10]
    for found in run_ranks(3, scores_of, folders, shards):
        for scores, wanted in zip(found, alone):
            assert scores.keys() == wanted.keys()
            for key, value in wanted.items():
                close = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
                assert scores[key] == close, key


def test_sheets_show_what_belongs_together(shards: Path, runs: Path) -> None:
    """Source, what is made of it, target: a row each; CycleGAN's six images likewise."""
    dataset = ShardDataset(shards / "test.tar")
    for task, columns in (("paired", 3), ("unpaired", 6)):
        sheet = np.asarray(Image.open(runs / task / "samples" / "step-000000007.png"))
        cells = sheet.shape[0] / 4, sheet.shape[1] / columns
        assert cells[0] == cells[1]
        scale, place = round(cells[0] // 17), {"paired": 2, "unpaired": 3}[task]
        left = round(place * cells[1])
        seen = sheet[: 16 * scale : scale, left : left + 16 * scale : scale, 0]
        assert (seen == dataset[0]["b"][0].numpy()).all(), task


def test_commands(
    shards: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task, score in (("paired", "l1"), ("unpaired", "cycle")):
        outcome = dgan(capsys, "evaluate", runs / task, "--out", tmp_path / "scores.json")
        assert outcome.code == 0, outcome
        found = json.loads((tmp_path / "scores.json").read_text())
        assert found[score] == pytest.approx(metrics(runs / task)[-1][score], rel=1e-6)
        assert "translates images" in dgan(capsys, "sample", runs / task).error()
        assert "--features adds" in dgan(capsys, "evaluate", runs / task, "--all").error()
        assert dgan(capsys, "export", runs / task, tmp_path / task).code == 0
        ours, theirs = load_run(runs / task).network, load_generator(tmp_path / task)
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name])


PLAIN = "--translation.l1 100 --translation.discriminator 1"
REFUSED = {
    "--task.name pared": r"'pared' is no task; did you mean 'paired'",
    "--task.name synthesis": r"--task\.name synthesis is for --data\.kind images or stacked or",
    "--task.name tiny:Mine": r"discriminator 0\.5 means nothing to --task\.name tiny:Mine",
    f"--task.name tiny:Mine {PLAIN}": r"'tiny:Mine' cannot be imported: .*on PYTHONPATH",
    f"--task.name builtins:id {PLAIN}": r"builtins:id lacks .*loss.*: inherit from dgan\.tasks",
    "--translation.cycle 3": r"cycle 3\.0 means nothing to --task\.name paired: it is for unp",
    "--translation.l1 -1": r"l1 is -1\.0; it must be at least 0",
    "--task.latents 2": r"--task\.latents means nothing to --task\.name paired",
    "--augment.kind diff": r"--augment\.kind means nothing to --task\.name paired",
    "--judges.scales 2": r"--judges\.scales means nothing to --task\.name paired",
    "--regularizers.lecam 1": r"--regularizers\.lecam means nothing",
    "--data.resize 12": r"--data\.resize 12 is for --data\.crop random, to at least",
    "--data.classes 2": r"--data\.classes 2 means nothing to --data\.kind pairs",
    "--evaluation.metrics kid": r"--evaluation\.metrics kid means nothing to --data\.kind pairs",
    "--checkpoint.best fid": r"fid, which is not among the scores of this run: l1",
    "--generator.options.source_channels 2": r"unet cannot make samples \(1, 16, 16\)",
    "--discriminator.options.source_channels 0": r"patch cannot judge samples \(1, 16, 16\)",
    "--data.shards missing.tar": r"missing\.tar",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_does_not_fit_is_refused(
    options: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = PAIRED | {
        "generator__options": {**PAIRED["generator__options"], "source_channels": 1},
        "discriminator__options": {**PAIRED["discriminator__options"], "source_channels": 1},
        "evaluation__every": 0,
        "checkpoint__best": "l1",
    }
    path = write_recipe(tmp_path, "run", str(shards / "train.tar"), "r3gan", **plan)
    message = dgan(capsys, "train", path, *options.split()).error()
    assert re.search(REFUSED[options], message), message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"penalty": Penalty()}, r"unpaired takes no gradient penalty: set --penalty\.gamma"),
        (
            {"translation__l1": 5.0},
            r"l1 5\.0 means nothing to --task\.name unpaired: it is for pai",
        ),
        ({"data__source": "b"}, r"--data\.source b is for --data\.kind pairs, not unpaired"),
        ({"data__kind": "pairs"}, r"--task\.name unpaired is for --data\.kind unpaired, not pairs"),
        (
            {"data__shards": ("a", "b"), "data__weights": (1.0, 2.0)},
            r"--data\.weights 1\.0 2\.0 means nothing",
        ),
        ({"task__options": {"x": 1}}, r"--task\.options are for a task of one's own"),
    ],
)
def test_what_cyclegan_does_not_know_is_refused(change: dict[str, Any], message: str) -> None:
    validate(tiny("x.tar", "", **UNPAIRED))
    with pytest.raises(ValueError, match=message):
        validate(tiny("x.tar", "", **UNPAIRED | change))

"""Runs on text: in parts as in one, their scores, what is read of them, the commands, bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import assert_same_checkpoint, checkpoint_of, dgan, metrics
from ranks import run_ranks
from texts import ALPHABET, LENGTH, TEXT, shard, texts
from tiny import tiny

from dgan.build_evaluation import text_evaluator
from dgan.config import Checkpoint, Evaluation, Recipe
from dgan.data.text import TextDataset, text_of
from dgan.draws import Draws
from dgan.metrics.ngrams import NgramCounts, jensen_shannon
from dgan.parallel.world import launch
from dgan.train import train
from dgan.trained import load_run
from dgan.validation import validate

COUNT, SAMPLES = 23, 21


def recipe(shards: Path, run: Path, **changes: Any) -> Recipe:
    plan: dict[str, Any] = {
        **TEXT,
        "evaluation": Evaluation(every=4, samples=SAMPLES),
        "checkpoint": Checkpoint(every=2, best="js_2"),
        "train__deterministic": True,
        **changes,
    }
    return tiny(str(shards), str(run), **plan)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts(tmp_path_factory.mktemp("texts") / "train.tar", COUNT)


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(recipe(shards, folder, train__steps=7))
    return folder


def test_a_run_in_two_parts_is_the_run_in_one(shards: Path, run: Path, tmp_path: Path) -> None:
    for steps in (3, 7):
        train(recipe(shards, tmp_path / "run", train__steps=steps))
    assert_same_checkpoint(checkpoint_of(tmp_path / "run", 7), checkpoint_of(run, 7))
    assert metrics(tmp_path / "run")[-1] == metrics(run)[-1]
    for name in ("reals", "step-000000007"):
        for suffix in (".png", ".txt"):
            file = Path("samples", name + suffix)
            assert (tmp_path / "run" / file).read_bytes() == (run / file).read_bytes()


def test_scores_are_of_the_most_probable_characters(shards: Path, run: Path) -> None:
    trained, real, made = load_run(run), NgramCounts(len(ALPHABET)), NgramCounts(len(ALPHABET))
    dataset = TextDataset(shards, alphabet=ALPHABET, resolution=LENGTH, crop="centre")
    real.add(torch.stack([dataset[i]["image"] for i in range(COUNT)]).argmax(1))
    for index in range(3):  # batches of 8
        place = {"purpose": "evaluation", "step": index, "rows": range(8)}
        z = Draws(seed=0, device=torch.device("cpu"), **place).normal(5)
        made.add(trained.network(z, None)[: SAMPLES - 8 * index].argmax(1))
    scores = [line for line in metrics(run) if "js_1" in line]
    assert [line["step"] for line in scores] == [0, 4, 7]
    for n in (1, 2, 3, 4):
        wanted = jensen_shannon(real.counts[n], made.counts[n])
        assert scores[-1][f"js_{n}"] == pytest.approx(wanted, rel=1e-12)
        assert wanted > 0


def scores_of(plan: Recipe, run: Path) -> dict[str, Any]:
    trained = load_run(run)
    with launch() as world:
        return text_evaluator(plan, plan.data.shards, world)(trained.network, trained.z_dim)


def test_scores_do_not_depend_on_the_number_of_ranks(shards: Path, run: Path) -> None:
    plan = recipe(shards, run)
    alone = scores_of(plan, run)
    assert (alone["samples"], alone["real_samples"]) == (SAMPLES, COUNT)
    assert run_ranks(3, scores_of, plan, run) == [alone] * 3


def test_what_is_drawn_is_written(run: Path) -> None:
    lines = (run / "samples" / "step-000000007.txt").read_text().splitlines()
    trained = load_run(run)
    place = {"purpose": "grid", "step": 0, "rows": range(4), "device": torch.device("cpu")}
    z = Draws(seed=0, **place).normal(5)
    assert lines == text_of(trained.network(z, None), ALPHABET)
    assert {len(line) for line in lines} == {LENGTH}


def test_commands(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made.txt"
    assert dgan(capsys, "sample", run, "--count", 5, "--out", out).code == 0
    assert [len(line) for line in out.read_text().splitlines()] == [LENGTH] * 5
    scored = tmp_path / "scores.json"
    assert dgan(capsys, "evaluate", run, "--out", scored).code == 0
    last = metrics(run)[-1]
    assert json.loads(scored.read_text())["js_3"] == pytest.approx(last["js_3"], rel=1e-12)
    assert "makes text: --interpolate" in dgan(capsys, "sample", run, "--interpolate").error()
    assert "makes text: --all" in dgan(capsys, "evaluate", run, "--all").error()
    assert "without --features" in dgan(capsys, "evaluate", run, "--features", "x.pt").error()
    assert "a run on text" in dgan(capsys, "project", run, tmp_path / "x.png").error()


REFUSED: dict[str, dict[str, Any]] = {
    r"alphabet 'aab' has 3 characters; it must be 2 to 64, each once": {"data__alphabet": "aab"},
    r"channels is 3, but --data.alphabet has 7 characters": {"data__channels": 3},
    r"--data.flip True means nothing to --data.kind text": {"data__flip": True},
    r"--data.crop random resizes images": {"data__crop": "random"},
    r"--data.alphabet ' abcde.' is for --data.kind text, not images": {
        "data__kind": "images",
        "data__channels": 1,
        "data__crop": "none",
    },
}


@pytest.mark.parametrize("problem", REFUSED)
def test_what_does_not_fit_is_refused(problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        validate(recipe(Path("x.tar"), Path("run"), **REFUSED[problem]))


def test_a_bad_text_ends_the_run(shards: Path, tmp_path: Path) -> None:
    lines = {f"{i}.txt": b"abc abc abc" for i in range(9)} | {"9.txt": b"abc"}
    bad = shard(tmp_path / "bad.tar", lines)
    with pytest.raises(
        ValueError, match=r"bad\.tar: sample '9' has 3 characters, but 10 are wanted"
    ):
        train(recipe(bad, tmp_path / "run", train__steps=9, evaluation=Evaluation(every=-1)))

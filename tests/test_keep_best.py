"""The checkpoint with the best score is kept beside the newest, and can be asked for."""

import json
import re
from pathlib import Path

import pytest
from commands import dgan, metrics, steps_kept, write_recipe

from dgan.data import pack_source
from dgan.scores import METRICS
from dgan.stored import best


def test_the_best_of_a_run_is_kept_and_can_be_asked_for(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {"evaluation__every": 1, "evaluation__samples": 100, "checkpoint__every": 1}
    recipe = write_recipe(tmp_path, "run", digits, train__steps=4, checkpoint__keep=1, **plan)
    assert dgan(capsys, "train", recipe).code == 0
    run = tmp_path / "run"
    # Before the first step there is nothing to keep.
    fids = {line["step"]: line["fid"] for line in metrics(run) if line["step"] and "fid" in line}
    assert list(fids) == [1, 2, 3, 4]
    best = min(fids, key=lambda step: fids[step])
    assert steps_kept(run) == sorted({best, 4})
    asked = dgan(capsys, "export", run, tmp_path / "out", "--step", "best")
    assert asked.out == f"the generator of step {best} is in {tmp_path / 'out'}\n"
    newest = dgan(capsys, "export", run, tmp_path / "newest")
    assert newest.out == f"the generator of step 4 is in {tmp_path / 'newest'}\n"


def test_a_best_that_is_not_there(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, "run", digits, train__steps=1)
    assert dgan(capsys, "train", recipe).code == 0
    message = dgan(capsys, "sample", tmp_path / "run", "--step", "best").error()
    assert "no checkpoint of a step that was evaluated: --evaluation.every" in message
    wrong = dgan(capsys, "sample", tmp_path / "run", "--step", "last")
    assert wrong.code == 2
    assert "best" in wrong.err


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Digits to train on, to choose by and to report with."""
    folder = tmp_path_factory.mktemp("splits")
    pack_source("digits", folder, samples_per_shard=600)
    train, validation, test = sorted(folder.glob("*.tar"))
    return str(train), str(validation), str(test)


def test_chosen_on_one_split_and_reported_on_another(
    splits: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, validation, test = splits
    plan = {"evaluation__every": 1, "evaluation__samples": 100, "checkpoint__every": 1}
    plan |= {"evaluation__metrics": ("manifold",), "checkpoint__best": "diversity"}
    plan |= {"evaluation__shards": validation, "checkpoint__keep": 1}
    recipe = write_recipe(tmp_path, "run", train, train__steps=4, **plan)
    assert dgan(capsys, "train", recipe).code == 0
    run = tmp_path / "run"
    lines = {line["step"]: line for line in metrics(run) if line["step"] and "fid" in line}
    assert {line["shards"] for line in lines.values()} == {validation}
    assert {line["real_samples"] for line in lines.values()} == {600}
    highest = max(lines, key=lambda step: lines[step]["diversity"])
    assert steps_kept(run) == sorted({highest, 4})

    splits = ("--shards", test, "--validation", validation)
    outcome = dgan(capsys, "evaluate", run, "--step", "best", *splits, "--all")
    assert outcome.code == 0, outcome
    path = run / f"evaluation-{highest:09d}.json"
    assert f"written to            {path}\n" in outcome.out
    written = json.loads(path.read_text())
    assert (written["step"], written["shards"], written["real_samples"]) == (highest, test, 597)
    assert {score for scores in METRICS.values() for score in scores} < {*written}
    # The classifier was trained on the training split, before there was anything to report.
    assert written["features_digest"] == lines[highest]["features_digest"]
    for key in (score for scores in METRICS.values() for score in scores):
        value = written[key]
        shown = f"{value:.4g}" if isinstance(value, float) else f"{value}"
        assert any(line.split()[:2] == [key, shown] for line in outcome.out.splitlines()), key
    for key in ("features", "features_digest", "resize", "samples", "shards"):
        assert f"{key:21} {written[key]}\n" in outcome.out
    assert [p.name for p in run.glob("*.tmp")] == []

    again = dgan(capsys, "evaluate", run, "--step", highest, "--out", tmp_path / "own.json")
    assert again.code == 0, again
    repeated = json.loads((tmp_path / "own.json").read_text())
    for key in METRICS["manifold"]:
        assert repeated[key] == pytest.approx(lines[highest][key], rel=1e-5)
    assert repeated["shards"] == validation


def test_a_features_classifier_never_sees_the_other_split(
    splits: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, _, test = splits
    recipe = write_recipe(tmp_path, "run", train, train__steps=1)  # not evaluated
    assert dgan(capsys, "train", recipe).code == 0
    run = tmp_path / "run"
    assert dgan(capsys, "evaluate", run, "--shards", test, "--samples", 50).code == 0
    first = json.loads((run / "evaluation-000000001.json").read_text())
    (run / "classifier.safetensors").unlink()
    assert dgan(capsys, "evaluate", run, "--samples", 50).code == 0
    second = json.loads((run / "evaluation-000000001.json").read_text())
    assert first["features_digest"] == second["features_digest"]


def test_an_unconditional_run_knows_classes_too(
    splits: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {"evaluation__every": 0, "evaluation__samples": 50, "data__classes": 0}
    recipe = write_recipe(tmp_path, "run", splits[0], train__steps=1, **plan)
    assert dgan(capsys, "train", recipe).code == 0
    line = [line for line in metrics(tmp_path / "run") if "fid" in line][-1]
    assert {"coverage", "modes", "reverse_kl"} < {*line}
    assert "agreement" not in line


WRONG = {
    ("checkpoint.best", "fdi"): "--checkpoint.best is 'fdi'; choose from fid, l1, cycle",
    ("checkpoint.best", "kid_subset_std"): "--checkpoint.best is 'kid_subset_std'; choose from",
    ("checkpoint.best", "recall"): r"is recall, which is not among the scores of this run: .*"
    "--evaluation.metrics manifold gives it",
    ("evaluation.metrics", "fid recal"): "--evaluation.metrics has 'recal'; choose from fid",
    ("evaluation.real_samples", "601"): "is 601, but there are 600 real images",
    ("evaluation.real_samples", "-1"): "--evaluation.real_samples is -1; it must be at least 0",
    ("evaluation.shards", "https://me:secret@host/x.tar"): "--evaluation.shards holds a user",
    ("evaluation.shards", "no/such-*.tar"): "no/such",
}


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_what_is_refused_before_the_first_step(
    key: str,
    value: str,
    splits: tuple[str, str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe(tmp_path, "run", splits[0], train__steps=1, evaluation__every=0)
    outcome = dgan(capsys, "train", recipe, f"--{key}", *value.split())
    assert re.search(WRONG[key, value], outcome.error())
    records = tmp_path / "run" / "metrics.jsonl"
    assert not records.exists() or records.read_text() == ""


def test_what_is_scored_otherwise_is_not_compared(tmp_path: Path) -> None:
    alike = {"features_digest": "a", "samples": 100, "real_samples": 600, "shards": "x.tar"}
    scores = [
        {"fid": 1.0, "recall": 0.1, **alike, "shards": "y.tar"},
        {"fid": 2.0, "recall": 0.9, **alike, "samples": 50},
        {"fid": 4.0, "recall": 0.3, **alike},
        {"fid": 3.0, "recall": 0.3, **alike},
        {"fid": 5.0, "recall": 0.2, **alike},
    ]
    paths = [tmp_path / f"step-{step:09d}" for step in range(len(scores))]
    for path, found in zip(paths, scores):
        path.mkdir()
        (path / "facts.json").write_text(json.dumps({"scores": found}))
    assert best(paths, 2) == [paths[3], paths[2]]
    assert best(paths, 3, "recall") == [paths[3], paths[2], paths[4]]  # of equal ones the newer
    assert best(paths, 3, "kid") == []

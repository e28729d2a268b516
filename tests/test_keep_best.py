"""The checkpoint with the lowest FID is kept beside the newest, and can be asked for."""

from pathlib import Path

import pytest
from commands import dgan, metrics, steps_kept, write_recipe


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

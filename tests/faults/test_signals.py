"""Signals that ask a run to end: it saves, says how to go on, and goes on where it was."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from commands import (
    assert_same_checkpoint,
    checkpoint_of,
    dgan,
    end,
    metrics,
    start,
    steps_kept,
    wait_until,
    write_recipe,
)
from launched import alive, children, launched, rank_of

from dgan.watchdog import START_AGAIN

LONG = 100_000


def has_steps(run: Path, count: int) -> bool:
    path = run / "metrics.jsonl"
    return path.exists() and path.read_text().count("\n") >= count


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(
    number: signal.Signals, digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {"checkpoint__every": LONG, "checkpoint__keep": 1, "train__deterministic": True}
    recipe = write_recipe(tmp_path, "run", digits, train__steps=LONG, **plan)
    run = tmp_path / "run"
    process = start("train", recipe)
    wait_until(lambda: has_steps(run, 3), process)
    process.send_signal(number)
    outcome = end(process)
    # A person is done when they say so; a scheduler must start what it stopped again.
    assert outcome.code == (0 if number is signal.SIGINT else START_AGAIN), outcome
    assert "Traceback" not in outcome.err
    (step,) = steps_kept(run)
    assert step >= 3
    assert f"stopped by {number.name}, saved at step {step} of {LONG}" in outcome.out
    assert re.search(rf"go on +\S*dgan train {re.escape(str(run))}\n", outcome.out), outcome
    assert [line["step"] for line in metrics(run)] == list(range(1, step + 1))

    total = step + 3
    again = dgan(capsys, "train", run, "--train.steps", total)
    assert f"going on from {checkpoint_of(run, step)}" in again.out
    whole = write_recipe(tmp_path, "whole", digits, train__steps=total, **plan)
    assert dgan(capsys, "train", whole).code == 0
    assert_same_checkpoint(checkpoint_of(run, total), checkpoint_of(tmp_path / "whole", total))
    assert metrics(run) == metrics(tmp_path / "whole")


def test_torchrun_hands_the_signal_on(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, "run", digits, train__steps=LONG, checkpoint__every=LONG)
    run = tmp_path / "run"
    process = start("train", recipe, ranks=2)
    wait_until(lambda: has_steps(run, 3), process)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.terminate()
    outcome = end(process)
    (step,) = steps_kept(run)
    assert f"stopped by SIGTERM, saved at step {step} of {LONG}" in outcome.out
    assert f"torchrun --nproc-per-node 2 -m dgan train {run}\n" in outcome.out
    assert outcome.out.count("stopped by") == 1  # of rank 0 alone
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert [line["step"] for line in metrics(run)] == list(range(1, step + 1))
    # What two ranks saved goes on in one process.
    again = dgan(capsys, "train", run, "--train.steps", step + 1)
    assert f"going on from {checkpoint_of(run, step)}" in again.out
    assert steps_kept(run) == [step, step + 1]


def test_one_rank_that_is_signalled_stops_all_at_the_same_step(digits: str, tmp_path: Path) -> None:
    """Not the first, which speaks: it must hear of the signal from the other."""
    recipe = write_recipe(tmp_path, "run", digits, train__steps=LONG, checkpoint__every=LONG)
    run = tmp_path / "run"
    process = start("train", recipe, ranks=2)
    wait_until(lambda: has_steps(run, 3), process)
    os.kill(rank_of(process.pid, 1), signal.SIGUSR1)
    outcome = end(process)
    assert outcome.code == 1  # torchrun's, of ranks that are not done
    (step,) = steps_kept(run)
    assert f"stopped by SIGUSR1, saved at step {step} of {LONG}" in outcome.out
    assert f"exitcode  : {START_AGAIN}" in outcome.err


def test_a_rank_that_is_killed_comes_back(digits: str, tmp_path: Path) -> None:
    """torchrun starts all again; they go on from the last checkpoint, to the same weights."""
    plan = {"train__steps": 200, "checkpoint__every": 10, "train__deterministic": True}
    recipe = write_recipe(tmp_path, "run", digits, **plan)
    run = tmp_path / "run"
    process = launched("torchrun.sh", "train", recipe)
    wait_until(lambda: checkpoint_of(run, 20).exists(), process)
    killed = rank_of(process.pid, 1)
    os.kill(killed, signal.SIGKILL)
    outcome = end(process)
    assert outcome.code == 0, outcome
    resumed = re.findall(r"going on from \S+step-(\d+)", outcome.out)
    assert len(resumed) == 1, outcome
    assert 20 <= int(resumed[0]) < 200

    whole = write_recipe(tmp_path, "whole", digits, **plan)
    assert end(launched("torchrun.sh", "train", whole)).code == 0
    assert_same_checkpoint(checkpoint_of(run, 200), checkpoint_of(tmp_path / "whole", 200))
    assert metrics(run) == metrics(tmp_path / "whole")


def test_no_rank_outlives_its_launcher(digits: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "run", digits, train__steps=LONG, checkpoint__every=LONG)
    process = launched("torchrun.sh", "train", recipe)
    wait_until(lambda: has_steps(tmp_path / "run", 3), process)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    end(process)
    limit = time.monotonic() + 30
    while any(map(alive, workers)):
        assert time.monotonic() < limit, "ranks go on without their launcher"
        time.sleep(0.1)


def test_a_signal_while_a_run_starts_loses_nothing(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, "run", digits, train__steps=2, train__seed=3)
    run = tmp_path / "run"
    assert dgan(capsys, "train", recipe).code == 0
    before = (run / "metrics.jsonl").read_text()
    saved = (run / "recipe.toml").stat().st_mtime_ns
    process = start("train", run, "--train.steps", LONG)
    # The recipe is written before the networks are built.
    wait_until(lambda: (run / "recipe.toml").stat().st_mtime_ns != saved, process)
    process.send_signal(signal.SIGINT)
    outcome = end(process)
    assert outcome.code in (0, 130), outcome
    assert "Traceback" not in outcome.err
    assert steps_kept(run)[0] <= 2 <= steps_kept(run)[-1]
    assert (run / "metrics.jsonl").read_text().startswith(before)
    step = steps_kept(run)[-1]
    again = dgan(capsys, "train", run, "--train.steps", step + 1)
    assert f"going on from {checkpoint_of(run, step)}" in again.out
    assert [line["step"] for line in metrics(run)] == list(range(1, step + 2))

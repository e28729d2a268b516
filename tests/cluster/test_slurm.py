"""launch/slurm/train.sbatch on a real Slurm: a job that is taken off its nodes loses no step."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from commands import assert_same_checkpoint, checkpoint_of, end, metrics, steps_kept, write_recipe
from launched import LAUNCH, launched
from slurm import Slurm, cluster, missing

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=missing() or "not skipped"),
]

STEPS = 200
PLAN = {
    "train__steps": STEPS,
    "checkpoint__every": 100_000,
    "checkpoint__keep": 10,
    "train__deterministic": True,
}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with cluster() as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same two ranks that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(folder, "run", digits, **PLAN)
    assert end(launched("torchrun.sh", "train", recipe)).code == 0
    return folder / "run"


def submit(slurm: Slurm, recipe: Path, *options: str) -> str:
    script = LAUNCH / "slurm" / "train.sbatch"
    return slurm("sbatch", "--parsable", "--nodes=2", "--time=20", *options, script, recipe)


def has_steps(run: Path, count: int) -> bool:
    path = run / "metrics.jsonl"
    return path.exists() and path.read_text().count("\n") >= count


def test_deepspeed_saves_before_its_time_limit(slurm: Slurm, digits: str, tmp_path: Path) -> None:
    """`#SBATCH --signal=B:USR1@300` itself: in six minutes, it comes within the first."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    run, plan = tmp_path / "run", PLAN | {"parallel__strategy": "deepspeed"}
    recipe = write_recipe(tmp_path, "run", digits, **plan | {"train__steps": 1_000_000})
    job = submit(slurm, recipe, "--time=6")
    slurm.wait_for(lambda: run.exists() and slurm.state(job) == "PENDING")
    (step,) = steps_kept(run)
    # What is left of a run of this length, without another warning.
    write_recipe(tmp_path, "run", digits, **plan | {"train__steps": step + 20})
    slurm("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    slurm.start_again(job)
    log = completed(slurm, job)
    assert f"stopped by SIGUSR1, saved at step {step} of 1000000" in log
    assert "stopped by the time limit: queued again" in log
    assert re.findall(r"going on from \S+step-0*(\d+)", log) == [str(step)]
    assert steps_kept(run) == [step, step + 20]
    assert "FutureWarning" not in log
    assert 'strategy = "deepspeed"' in (run / "recipe.toml").read_text()


def test_a_rank_that_is_stuck_is_queued_again(
    slurm: Slurm, digits: str, undisturbed: Path, tmp_path: Path
) -> None:
    """Its launcher has no restart left, and reports a failure like any other."""
    run = tmp_path / "run"
    plan = PLAN | {"run__stall_minutes": 0.1, "checkpoint__every": 10, "checkpoint__keep": 100}
    job = submit(slurm, write_recipe(tmp_path, "run", digits, **plan))
    slurm.wait_for(lambda: has_steps(run, 20))
    os.kill(rank_of_run(run, 1), signal.SIGSTOP)
    slurm.start_again(job)
    log = completed(slurm, job)
    assert re.search(r"rank 0, step \d+, phase '[a-z ]+': nothing has moved", log)
    assert "stopped by a rank that is stuck or lost: queued again" in log
    assert_same_checkpoint(checkpoint_of(run, STEPS), checkpoint_of(undisturbed, STEPS))
    assert metrics(run) == metrics(undisturbed)


def completed(slurm: Slurm, job: str) -> str:
    """The log of a job that runs, once it has ended as it should."""
    slurm.wait_for(lambda: slurm.state(job) not in ("RUNNING", "COMPLETING"))
    log = slurm.log(job)
    assert slurm.state(job) == "COMPLETED", log
    return log


def rank_of_run(run: Path, rank: int) -> int:
    """The process that is `rank` of the job that trains `run`."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (path / "cmdline").read_text()
            variables = (path / "environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in variables and f"{run}.toml" in command:
                return int(path.name)
    raise AssertionError(f"no rank {rank} trains {run}")


def test_another_job_takes_its_nodes(
    slurm: Slurm, digits: str, undisturbed: Path, tmp_path: Path
) -> None:
    """A real preemption: Slurm sends SIGTERM, and gives the partition's grace to save."""
    run = tmp_path / "run"
    job = submit(slurm, write_recipe(tmp_path, "run", digits, **PLAN), "--partition=low")
    slurm.wait_for(lambda: has_steps(run, 20))
    urgent = slurm(
        "sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 2"
    )
    slurm.wait_for(lambda: slurm.state(urgent) == "COMPLETED")
    slurm.start_again(job)
    (step,) = [kept for kept in steps_kept(run) if kept < STEPS]
    log = completed(slurm, job)
    assert f"stopped by SIGTERM, saved at step {step} of {STEPS}" in log
    assert "stopped by preemption: queued again" in log
    assert re.findall(r"going on from \S+step-0*(\d+)", log) == [str(step)]
    assert_same_checkpoint(checkpoint_of(run, STEPS), checkpoint_of(undisturbed, STEPS))
    assert metrics(run) == metrics(undisturbed)


def test_what_cannot_run_is_not_queued_again(slurm: Slurm, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path / "nothing.toml")
    slurm.wait_for(lambda: slurm.state(job) == "FAILED")
    assert "dgan: error:" in slurm.log(job)
    assert "queued again" not in slurm.log(job)

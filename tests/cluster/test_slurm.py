"""launch/slurm/train.sbatch on a real Slurm: a job that is taken off its nodes loses no step."""

import re
from collections.abc import Iterator
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
    return slurm("sbatch", "--parsable", "--nodes=2", "--time=10", *options, script, recipe)


def has_steps(run: Path, count: int) -> bool:
    path = run / "metrics.jsonl"
    return path.exists() and path.read_text().count("\n") >= count


def test_it_saves_is_queued_again_and_finishes(
    slurm: Slurm, digits: str, undisturbed: Path, tmp_path: Path
) -> None:
    """USR1 to the batch script is what `--signal=B:USR1@300` sends before the time limit."""
    run = tmp_path / "run"
    job = submit(slurm, write_recipe(tmp_path, "run", digits, **PLAN))
    slurm.wait_for(lambda: has_steps(run, 20))
    slurm("scancel", "--batch", "--signal=USR1", job)
    slurm.start_again(job)
    (step,) = [kept for kept in steps_kept(run) if kept < STEPS]
    assert step >= 20
    slurm.wait_for(lambda: slurm.state(job) not in ("RUNNING", "COMPLETING"))
    log = slurm.log(job)
    assert slurm.state(job) == "COMPLETED", log
    assert f"stopped by SIGUSR1, saved at step {step} of {STEPS}" in log
    assert "stopped by the time limit: queued again" in log
    assert re.findall(r"going on from \S+step-0*(\d+)", log) == [str(step)]
    assert_same_checkpoint(checkpoint_of(run, STEPS), checkpoint_of(undisturbed, STEPS))
    assert metrics(run) == metrics(undisturbed)


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
    slurm.wait_for(lambda: slurm.state(job) not in ("RUNNING", "COMPLETING"))
    log = slurm.log(job)
    assert slurm.state(job) == "COMPLETED", log
    assert f"stopped by SIGTERM, saved at step {step} of {STEPS}" in log
    assert "stopped by preemption: queued again" in log
    assert re.findall(r"going on from \S+step-0*(\d+)", log) == [str(step)]
    assert_same_checkpoint(checkpoint_of(run, STEPS), checkpoint_of(undisturbed, STEPS))


def test_what_cannot_run_is_not_queued_again(slurm: Slurm, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path / "nothing.toml")
    slurm.wait_for(lambda: slurm.state(job) == "FAILED")
    assert "dgan: error:" in slurm.log(job)
    assert "queued again" not in slurm.log(job)

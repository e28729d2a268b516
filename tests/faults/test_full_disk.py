"""A full disk: one message, the last checkpoint loads, the run goes on once there is room."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import (
    assert_same_checkpoint,
    checkpoint_of,
    dgan,
    end,
    metrics,
    start,
    steps_kept,
    stored,
    write_recipe,
)
from ranks import run_ranks
from torch.distributed.tensor import DTensor, Shard

from dgan.checkpoint import Checkpoints
from dgan.parallel.world import launch

OPTIONS = {"widths": (512, 512)}  # a checkpoint of some 9 MB
PLAN = {
    "generator__options": {**OPTIONS, "z_dim": 6},
    "discriminator__options": OPTIONS,
    "checkpoint__every": 2,
    "checkpoint__keep": 2,
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system of its own cannot be mounted: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Write until `leave` bytes are free."""
    ballast = folder / "ballast"
    # Unbuffered: what a buffer could not write it would try again, and fail, when it is closed.
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass
    with ballast.open("r+b") as file:
        file.truncate(ballast.stat().st_size - leave)
    return ballast


@pytest.mark.parametrize("leave", [3_000_000, 3_000])
def test_a_full_disk_costs_no_checkpoint(
    leave: int,
    small_disk: Path,
    digits: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With 3 MB the checkpoint does not fit; with 3 kB the log does not either."""
    recipe = write_recipe(small_disk, "run", digits, train__steps=2, **PLAN)
    run = small_disk / "run"
    assert dgan(capsys, "train", recipe).code == 0
    ballast = fill(small_disk, leave)
    outcome = end(start("train", run, "--train.steps", 6))
    message = outcome.error()
    assert str(run) in message, message
    assert "room" in message or "No space left" in message, message
    assert checkpoint_of(run, 2).is_dir()
    assert steps_kept(run)[-1] == 2
    assert stored(checkpoint_of(run, 2))
    if leave > 1_000_000:
        assert "checkpoint of step 4 could not be written" in message
        assert "No space left on device" in message  # not what PyTorch's writer makes of it
        assert "step-000000002 is intact" in message

    ballast.unlink()
    again = dgan(capsys, "train", run, "--train.steps", 6)
    assert again.code == 0, again
    assert f"going on from {checkpoint_of(run, 2)}" in again.out
    whole = write_recipe(tmp_path, "whole", digits, train__steps=6, **PLAN)
    assert dgan(capsys, "train", whole).code == 0
    assert_same_checkpoint(checkpoint_of(run, 6), checkpoint_of(tmp_path / "whole", 6))
    assert metrics(run) == metrics(tmp_path / "whole")


def save_where_one_rank_has_no_room(directory: Path) -> tuple[str, bool]:
    with launch(precision="float32") as world:
        checkpoints = Checkpoints(directory, keep=2, world=world)
        for step in (1, 2):
            mine = torch.full((1 << 16,), float(step))
            whole = DTensor.from_local(mine, world.mesh, [Shard(0)])
            if step == 2 and world.is_first:
                folder = checkpoints._temporary(step)
                folder.mkdir()
                # What only the second rank writes to: a device that is always full.
                (folder / "__1_0.distcp").symlink_to("/dev/full")
            world.barrier()
            checkpoints.save(step, {"a": whole}, {})
            problem = ""
            try:
                checkpoints.wait()
            except OSError as error:
                problem = str(error)
        checkpoints.save(3, {"a": whole}, {})
        checkpoints.wait()
        return problem, checkpoints.failed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_one_rank_without_room(tmp_path: Path) -> None:
    """All ranks learn of it, what was complete stays, and nothing half written is left."""
    first, second = run_ranks(2, save_where_one_rank_has_no_room, tmp_path)
    assert first == second
    problem, failed = first
    assert re.search(r"step 2 could not be .*: \[Errno 28\] No space left on device \(", problem)
    assert "step-000000001 is intact" in problem
    assert not failed
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"step-000000001", "step-000000003"}
    for name, value in (("step-000000001", 1.0), ("step-000000003", 2.0)):
        assert torch.equal(stored(tmp_path / name)["a"], torch.full((1 << 17,), value))

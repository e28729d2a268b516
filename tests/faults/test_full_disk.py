"""A full disk: one message, the last checkpoint loads, the run goes on once there is room."""

import subprocess
from collections.abc import Iterator
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
    stored,
    write_recipe,
)

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
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
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
        assert "step-000000002 is intact" in message

    ballast.unlink()
    again = dgan(capsys, "train", run, "--train.steps", 6)
    assert again.code == 0, again
    assert f"going on from {checkpoint_of(run, 2)}" in again.out
    whole = write_recipe(tmp_path, "whole", digits, train__steps=6, **PLAN)
    assert dgan(capsys, "train", whole).code == 0
    assert_same_checkpoint(checkpoint_of(run, 6), checkpoint_of(tmp_path / "whole", 6))
    assert metrics(run) == metrics(tmp_path / "whole")

"""How long an exchange may take: in every process group, until the first step is done and after."""

import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from dgan.checkpoint import Checkpoints
from dgan.parallel.layout import Layout
from dgan.parallel.world import SLACK_S, launch


def timeouts() -> dict[str, timedelta]:
    """Of each process group, by name."""
    groups = dist.distributed_c10d._world.pg_names
    return {
        name: group._get_backend(torch.device("cpu")).options._timeout
        for group, name in groups.items()
    }


def both(directory: str) -> tuple[dict[str, timedelta], dict[str, timedelta], int]:
    with (
        launch(start_minutes=100.0, stall_minutes=20.0) as world,
        Checkpoints(Path(directory), keep=1, world=world),
    ):
        before = len(timeouts())
        layout = Layout(strategy="fsdp", copies=2)
        layout.mesh(world)
        world.built()
        start = timeouts()
        world.settle()
        return start, timeouts(), before


def test_every_group_waits_longer_at_the_start(tmp_path: Path) -> None:
    for start, later, before in run_ranks(4, both, str(tmp_path)):
        # All ranks, flags, checkpoints, and this rank's two subgroups of the mesh.
        assert (before, len(start)) == (3, 5)
        assert set(start.values()) == {timedelta(minutes=100, seconds=SLACK_S)}
        assert set(later.values()) == {timedelta(minutes=20, seconds=SLACK_S)}


def waits_for_one_that_is_late(log: str) -> None:
    with pytest.MonkeyPatch.context() as patch, Path(log).open("a") as file:
        patch.setattr(sys, "__stderr__", file)
        try:
            with launch(timeout_s=1.0) as world:
                world.at("sample grid", 12)
                if world.rank == 1:
                    time.sleep(4.0)
                world.barrier()
        except ConnectionError as error:
            print(error, file=file)


def test_an_exchange_that_takes_too_long_shows_where(tmp_path: Path) -> None:
    log = tmp_path / "stderr"
    run_ranks(2, waits_for_one_that_is_late, str(log))
    said = log.read_text()
    assert "rank 0, step 12, phase 'sample grid': another rank is gone or cannot be reached" in said
    # The line that waited, and every thread's stack.
    assert "in waits_for_one_that_is_late\n    world.barrier()" in said
    assert "(most recent call first):" in said

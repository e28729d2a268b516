"""Checkpoints: everything a run is, written beside the training, whole or not at all.

A checkpoint is a folder `step-000001000/` of torch.distributed.checkpoint files (each rank writes
its shards) and `facts.json`. It is written under another name and renamed when complete, so that
whatever has the right name can be read.
"""

import json
import os
import shutil
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from dgan.parallel.pieces import LoadPlanner, Piece, SavePlanner
from dgan.parallel.replicas import State
from dgan.parallel.world import World

FACTS = "facts.json"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: holds the checkpoints; made when needed.
        keep: how many of the newest are kept.
        world: every rank calls every method, in the same order.
    """

    def __init__(self, directory: Path, *, keep: int, world: World) -> None:
        self.directory = directory
        self.keep = keep
        self.world = world
        # Written from a thread of its own: its exchanges must not mix with the loop's.
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        self._pending: tuple[int, Future[Any], dict[str, Any]] | None = None
        self._problem: str | None = None
        if world.is_first:
            directory.mkdir(parents=True, exist_ok=True)
            for left_over in directory.glob(".tmp-*"):
                shutil.rmtree(left_over)
        world.barrier()

    def save(self, step: int, tensors: State, facts: dict[str, Any]) -> None:
        """Copy `tensors` (sharded or not) and write them in the background.

        Waits for the previous save first.

        Raises:
            OSError: the previous one could not be written.
        """
        self.wait()
        # Staging may alias tensors that are on the CPU already, and training goes on.
        staged = {name: _staged(tensor) for name, tensor in tensors.items()}
        future = dcp.async_save(
            staged,
            checkpoint_id=self._temporary(step),
            planner=SavePlanner(),
            process_group=self._group,
        )
        assert isinstance(future, Future)
        self._pending = (step, future, facts)

    def poll(self) -> None:
        """Publish the checkpoint under way if it is complete; does not wait, or talk to others."""
        if self._pending is not None and self._pending[1].done():
            self._publish()

    @property
    def failed(self) -> bool:
        """Whether this rank knows of a checkpoint that could not be written; `wait` says why."""
        return self._problem is not None

    def wait(self) -> None:
        """Wait until the checkpoint under way, if any, is published.

        Raises:
            OSError: on every rank; it could not be written. The ones before it are as they were.
        """
        if self._pending is not None:
            self._publish()
        problem, self._problem = self._problem, None
        if problems := [found for found in self.world.gather(problem) if found]:
            raise OSError(problems[0])

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        return latest(self.directory)

    def _publish(self) -> None:
        assert self._pending is not None
        step, future, facts = self._pending
        self._pending = None
        temporary, final = self._temporary(step), self.directory / f"step-{step:09d}"
        try:
            future.result()
            if self.world.is_first:
                (temporary / FACTS).write_text(json.dumps({"step": step, **facts}, indent=1) + "\n")
                _sync(temporary)
                if final.exists():
                    shutil.rmtree(final)
                temporary.rename(final)
                _sync(self.directory)
                for old in complete(self.directory)[: -self.keep]:
                    # Deleting takes steps: what is cut off in between must not look whole.
                    shutil.rmtree(old.rename(self.directory / f".tmp-{old.name}"))
        except (CheckpointException, OSError, RuntimeError) as error:
            self._problem = self._failure(step, error)

    def _failure(self, step: int, error: BaseException) -> str:
        free = shutil.disk_usage(self.directory).free
        if self.world.is_first:
            shutil.rmtree(self._temporary(step), ignore_errors=True)
        last = self.latest()
        causes = error.failures.values() if isinstance(error, CheckpointException) else [error]
        cause = "; ".join(sorted({str(getattr(c, "exc_value", c) or c) for c in causes}))
        return (
            f"the checkpoint of step {step} could not be written to {self.directory}: {cause} "
            f"({free / 2**20:.0f} MiB of disk were left). "
            + (f"{last.name} is intact" if last else "There is no earlier checkpoint")
            + ": make room and run the same command again to go on from there"
        )

    def _temporary(self, step: int) -> Path:
        return self.directory / f".tmp-step-{step:09d}"


def complete(directory: Path) -> list[Path]:
    """All complete checkpoints under `directory`, oldest first."""
    return sorted(path for path in directory.glob("step-*") if (path / FACTS).is_file())


def latest(directory: Path) -> Path | None:
    """The newest complete checkpoint under `directory`, if there is one."""
    found = complete(directory)
    return found[-1] if found else None


def load(path: Path, tensors: State, *, distributed: bool) -> dict[str, Any]:
    """Read a checkpoint into `tensors`, whatever world size or sharding wrote it.

    Args:
        path: of a complete checkpoint.
        tensors: what to read, filled in place; others in the checkpoint are left.
        distributed: every rank calls this together, or one process reads alone.

    Returns:
        The facts stored beside it.

    Raises:
        ValueError: a tensor is missing or of another shape: the networks are not those that
            wrote the checkpoint.
    """
    facts = json.loads((path / FACTS).read_text())
    _compare(path, tensors)
    with warnings.catch_warnings():
        # One process that reads alone is what was asked for.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(tensors, checkpoint_id=path, planner=LoadPlanner(), no_dist=not distributed)
    return facts


def _staged(tensor: Tensor | Piece) -> Tensor | Piece:
    if isinstance(tensor, Piece):
        return tensor.staged()
    return tensor.clone() if tensor.device.type == "cpu" else tensor


def _compare(path: Path, tensors: State) -> None:
    stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    for name, tensor in tensors.items():
        if name not in stored:
            raise ValueError(f"{path} holds no {name!r}: it was written by other networks")
        size = getattr(stored[name], "size", None)
        if size is not None and size != torch.Size(tensor.shape):
            raise ValueError(
                f"{path}: {name} is {tuple(size)}, the recipe's network has "
                f"{tuple(tensor.shape)}: was it made with other options?"
            )


def _sync(folder: Path) -> None:
    """Force a folder's entries, and the files in it, to the disk."""
    for path in [*(p for p in folder.iterdir() if p.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

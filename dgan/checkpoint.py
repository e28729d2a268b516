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
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

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
        self._pending: tuple[int, Future[Any], dict[str, Any]] | None = None
        if world.is_first:
            directory.mkdir(parents=True, exist_ok=True)
            for left_over in directory.glob(".tmp-*"):
                shutil.rmtree(left_over)
        world.barrier()

    def save(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Copy `tensors` (sharded or not) and write them in the background.

        Waits for the previous save first.

        Raises:
            OSError: the previous one could not be written.
        """
        self.wait()
        # Staging may alias tensors that are on the CPU already, and training goes on.
        staged = {k: v.clone() if v.device.type == "cpu" else v for k, v in tensors.items()}
        future = dcp.async_save(
            staged, checkpoint_id=self._temporary(step), process_group=self.world.control
        )
        assert isinstance(future, Future)
        self._pending = (step, future, facts)

    def poll(self) -> None:
        """Publish the checkpoint under way if it is complete; does not wait.

        Raises:
            OSError: it could not be written. The ones before it are as they were.
        """
        if self._pending is not None and self._pending[1].done():
            self._publish()

    def wait(self) -> None:
        """Wait until the checkpoint under way, if any, is published.

        Raises:
            OSError: it could not be written. The ones before it are as they were.
        """
        if self._pending is not None:
            self._publish()
        self.world.barrier()

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
        except (CheckpointException, OSError, RuntimeError) as error:
            raise OSError(self._failure(step, error)) from error
        if self.world.is_first:
            for old in complete(self.directory)[: -self.keep]:
                # Deleting takes several steps: what is cut off in between must not look whole.
                shutil.rmtree(old.rename(self.directory / f".tmp-{old.name}"))

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


def load(path: Path, tensors: dict[str, Tensor], *, distributed: bool) -> dict[str, Any]:
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
        dcp.load(tensors, checkpoint_id=path, no_dist=not distributed)
    return facts


def _compare(path: Path, tensors: dict[str, Tensor]) -> None:
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

"""Checkpoints: everything a run is, written beside the training, whole or not at all.

A checkpoint is a folder `step-000001000/` of torch.distributed.checkpoint files (each rank writes
its shards), `facts.json`, and `digests.json` with the size and SHA-256 of all of them. It is
written under another name and renamed when complete, and compared with its digests when it is read.
"""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from dgan.parallel.pieces import SavePlanner
from dgan.parallel.replicas import State
from dgan.parallel.staging import Staging
from dgan.parallel.storage import Digest, Writer, digest_of, write_digests
from dgan.parallel.world import World
from dgan.stored import (
    FACTS,
    FORMAT,
    DamagedCheckpoint,
    best,
    candidates,
    causes,
    complete,
    latest,
    load,
    load_newest,
    until,
)

__all__ = ["Checkpoints", "DamagedCheckpoint", "best", "complete", "latest", "load", "load_newest"]

FINISH_S = 60.0
"""How long a run that fails waits for the checkpoint that is being written."""


class Checkpoints:
    """The checkpoints of one run.

    As a context: a run that fails still finishes the checkpoint that is being written.

    Args:
        directory: holds the checkpoints; made when needed.
        keep: how many of the newest are kept.
        keep_best: how many of those with the best score are kept besides.
        best_by: which score that is, of `dgan.scores.SCORES`.
        world: every rank calls every method, in the same order.
        confirm: called on the first rank before a checkpoint is published; raises `OSError` if
            the directory is no longer this run's.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        keep_best: int = 0,
        best_by: str = "fid",
        world: World,
        confirm: Callable[[], None] = lambda: None,
    ) -> None:
        self.directory = directory
        self.keep = keep
        self.keep_best = keep_best
        self.best_by = best_by
        self.world = world
        self.confirm = confirm
        # Written from a thread of its own: its exchanges must not mix with the loop's.
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        self._staging = Staging()
        # A process of an earlier attempt that still writes must not write into our folders.
        self._attempt = world.gather(uuid4().hex[:8])[0]
        self._pending: tuple[int, Future[Any]] | None = None
        self._problem: str | None = None
        if world.is_first:
            directory.mkdir(parents=True, exist_ok=True)
            for left_over in directory.glob(".tmp-*"):
                shutil.rmtree(left_over)
        world.barrier()

    def save(
        self, step: int, tensors: State, facts: dict[str, Any], *, calm: int | None = None
    ) -> None:
        """Copy `tensors` (sharded or not), and write and publish them in the background.

        Waits for the previous save first. `facts` go into JSON; `facts["scores"]`, where there are
        any, are what the best are chosen by. The newest of step `calm` or before is kept too.

        Raises:
            OSError: the previous one could not be written.
        """
        self.wait()
        facts = {"step": step, "format": FORMAT, **facts}
        writer = Writer(
            self._temporary(step),
            self._staging,
            lambda digests: self._publish(step, facts, digests, step if calm is None else calm),
        )
        future = dcp.async_save(
            dict(tensors), storage_writer=writer, planner=SavePlanner(), process_group=self._group
        )
        assert isinstance(future, Future)
        self._pending = (step, future)

    def poll(self) -> None:
        """Notice that the checkpoint under way is done; does not wait, or talk to others."""
        if self._pending is not None and self._pending[1].done():
            self._finish()

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
            self._finish()
        problem, self._problem = self._problem, None
        if problems := [found for found in self.world.gather(problem) if found]:
            raise OSError(problems[0])

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        return latest(self.directory)

    def until(self, step: int) -> list[Path]:
        """The checkpoints of `step` and before, old to new, on every rank alike.

        Waits for the one under way.

        Raises:
            OSError: that one could not be written.
        """
        self.wait()
        # As in `restore`, one rank looks.
        return self.world.gather(until(self.directory, step) if self.world.is_first else None)[0]

    def restore(self, tensors: State, say: Callable[[str], None]) -> tuple[Path, dict] | None:
        """Read the newest good checkpoint into `tensors`; see `load_newest`.

        Damaged ones that are newer are kept under another name: the run makes those steps again.

        Returns:
            Its path and facts; None if there is no checkpoint.
        """
        # One rank looks: on a shared file system others may see an older state.
        found = self.world.gather(candidates(self.directory) if self.world.is_first else None)[0]
        if not found:
            return None
        path, facts = load_newest(found, tensors, distributed=True, warn=say)
        if self.world.is_first:
            for damaged in found[found.index(path) + 1 :]:
                damaged.rename(_free_name(damaged.with_name(f"damaged-{damaged.name}")))
        self.world.barrier()
        return path, facts

    def _publish(
        self, step: int, facts: dict[str, Any], digests: dict[str, Digest], calm: int
    ) -> None:
        """On the first rank, in the thread that writes, when all ranks have written."""
        temporary, final = self._temporary(step), self.directory / f"step-{step:09d}"
        (temporary / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
        write_digests(temporary, {**digests, FACTS: digest_of(temporary / FACTS)})
        _sync(temporary)
        self.confirm()
        aside = [self._aside(final)] if final.is_dir() else []
        temporary.rename(final)
        _sync(self.directory)
        found = complete(self.directory)
        kept = {*found[-self.keep :], *best(found, self.keep_best, self.best_by)}
        spare = {*found} - kept - {*until(self.directory, calm)[-1:]}
        for old in [*aside, *map(self._aside, spare)]:
            shutil.rmtree(old)

    def _aside(self, path: Path) -> Path:
        """Deleting takes steps: what is cut off in between must not look whole."""
        return path.rename(self.directory / f".tmp-{self._attempt}-old-{path.name}")

    def _finish(self) -> None:
        assert self._pending is not None
        step, future = self._pending
        self._pending = None
        try:
            future.result()
        except (CheckpointException, OSError, RuntimeError) as error:
            self._problem = self._failure(step, error)

    def _failure(self, step: int, error: BaseException) -> str:
        free = shutil.disk_usage(self.directory).free
        if self.world.is_first:
            shutil.rmtree(self._temporary(step), ignore_errors=True)
        last = self.latest()
        return (
            f"the checkpoint of step {step} could not be written to {self.directory}: "
            f"{causes(error)} ({free / 2**20:.0f} MiB of disk were left). "
            + (f"{last.name} is intact" if last else "There is no earlier checkpoint")
            + ": make room and run the same command again to go on from there"
        )

    def _temporary(self, step: int) -> Path:
        return self.directory / f".tmp-{self._attempt}-step-{step:09d}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        if self._pending is None:
            return
        step, future = self._pending
        # Ranks may fail one by one: what needs all of them to agree is not possible here.
        with suppress(TimeoutError):
            if failure := future.exception(FINISH_S):
                problem = self._failure(step, failure)
                # On a full disk the log fails too, before or after.
                if isinstance(error, OSError):
                    raise OSError(problem) from error


def _free_name(path: Path) -> Path:
    names = (path, *(path.with_name(f"{path.name}-{n}") for n in range(2, 1000)))
    return next(name for name in names if not name.exists())


def _sync(folder: Path) -> None:
    """Force a folder's entries, and the files in it, to the disk."""
    for path in [*(p for p in folder.iterdir() if p.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

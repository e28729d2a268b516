"""The processes of a run: who they are, where they compute, how they talk."""

import ctypes
import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dgan.watchdog import Watchdog

PRECISIONS = ("auto", "float32", "bfloat16", "float64")

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""

SLACK_S = 60
"""By which a process group's timeout exceeds the watchdog's, whose message says more."""

START_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, kw_only=True)
class World:
    """One process's view of all processes of the run.

    Attributes:
        rank: of this process, 0 … size − 1.
        size: number of processes.
        device: where this process computes.
        mesh: one dimension, `data`, over all ranks.
        control: a gloo group for flags and checkpoints, apart from the gradients' traffic.
        dtype: of parameters and images.
        compute_dtype: of autocast regions; equal to `dtype` where there is none.
        start_timeout: that an exchange may take until `settle`.
        watchdog: is told where this process stands; see `at`.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    control: dist.ProcessGroup
    dtype: torch.dtype
    compute_dtype: torch.dtype
    start_timeout: timedelta = START_TIMEOUT
    watchdog: Watchdog = field(default_factory=Watchdog)

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what one writer can write."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision around a forward pass, if the run has it."""
        if self.compute_dtype == self.dtype:
            return nullcontext()
        return torch.autocast(self.device.type, self.compute_dtype)

    def seed(self, seed: int) -> None:
        """Decides what networks draw by themselves from now on.

        `torch.manual_seed` also looks for accelerators that are not there, at every step.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over ranks, in place."""
        if self.size > 1:  # of one rank, gloo takes a millisecond to find the same
            dist.all_reduce(values)
        return values

    def rows(self, values: Tensor) -> Tensor:
        """The rows of all ranks, equally many, in the order of ranks; without derivatives."""
        if self.size == 1:
            return values
        found = values.new_empty(self.size * len(values), *values.shape[1:])
        dist.all_gather_into_tensor(found, values.contiguous())
        return found

    def largest(self, *values: int) -> list[int]:
        """Each value's maximum over ranks; every rank gets the same answer."""
        if self.size == 1:
            return [int(value) for value in values]
        votes = torch.tensor(values)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return votes.tolist()

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank; every rank gets the same answer."""
        return bool(self.largest(int(flag))[0])

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, on every rank."""
        if self.size == 1:
            # gloo's thread may still hold a tensor of it when the process ends, as it does right
            # after it learnt of a problem; to drop it then aborts the process.
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier(group=self.control)

    def at(self, phase: str, step: int | None = None) -> None:
        """This process enters `phase` (of `step`, when a new one begins), or moves within it."""
        self.watchdog.at(phase, step)

    def built(self) -> None:
        """All process groups are there: an exchange in any may take as long as the first step.

        PyTorch gives groups of a mesh, of FSDP2 and of DeepSpeed half an hour, whatever the first
        one was given.
        """
        _limit_exchanges(self.start_timeout)

    def settle(self) -> None:
        """Every kind of exchange has happened once: from now on a stall is noticed sooner."""
        self.watchdog.settle()
        if self.watchdog.stall_seconds:
            _limit_exchanges(timedelta(seconds=self.watchdog.stall_seconds + SLACK_S))


@contextmanager
def launch(
    *,
    precision: str = "auto",
    deterministic: bool = False,
    timeout_s: float = START_TIMEOUT.total_seconds(),
    start_minutes: float = 0.0,
    stall_minutes: float = 0.0,
    whereabouts: Path | None = None,
) -> Iterator[World]:
    """Join the processes that torchrun, deepspeed or srun started, or be the only one.

    Args:
        precision: `auto` is bfloat16 autocast where the device has it, float32 elsewhere.
        deterministic: only kernels that repeat bit for bit.
        timeout_s: seconds that a collective may take, if no watchdog ends it before.
        start_minutes: that anything may take before `World.settle`; see `Watchdog`.
        stall_minutes: that it may take from then on.
        whereabouts: a folder in which ranks tell one another where they stand.

    Raises:
        ConnectionError: another rank was lost, or did not come; says where this one stood.
    """
    with Watchdog(
        rank=int(os.environ.get("RANK", 0)),
        size=int(os.environ.get("WORLD_SIZE", 1)),
        start_minutes=start_minutes,
        stall_minutes=stall_minutes,
        folder=whereabouts,
    ) as watchdog:
        if start_minutes:
            timeout_s = max(timeout_s, 60 * start_minutes + SLACK_S)
        try:
            with _joined(precision, deterministic, timedelta(seconds=timeout_s), watchdog) as world:
                yield world
        except RuntimeError as error:
            if not _is_of_the_network(error):
                raise
            _show_stacks(error)
            raise ConnectionError(
                f"{watchdog.where}: another rank is gone or cannot be reached ({error}). The run, "
                "started again, goes on from its last checkpoint"
            ) from error


def _limit_exchanges(timeout: timedelta) -> None:
    """Of every process group there is."""
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def _show_stacks(error: BaseException) -> None:
    """Where the exchange failed, which this thread has left, and where the other threads are."""
    stderr = sys.__stderr__
    if stderr is not None:
        lines = "".join(traceback.format_tb(error.__traceback__))
        print(
            f"The exchange that failed (most recent call last):\n{lines}", file=stderr, flush=True
        )
        faulthandler.dump_traceback(stderr)


def _is_of_the_network(error: RuntimeError) -> bool:
    # gloo raises what is not told from other errors by its type.
    return isinstance(error, dist.DistError) or "gloo" in str(error)


@contextmanager
def _joined(
    precision: str, deterministic: bool, timeout: timedelta, watchdog: Watchdog
) -> Iterator[World]:
    cuda = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if "RANK" in os.environ:
        _end_with_launcher()
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        dtype, compute_dtype = dtypes(precision, device)
        control = dist.new_group(backend="gloo", timeout=timeout)
        assert isinstance(control, dist.ProcessGroup)
        yield World(
            rank=dist.get_rank(),
            size=dist.get_world_size(),
            device=device,
            mesh=init_device_mesh(device.type, (dist.get_world_size(),), mesh_dim_names=("data",)),
            control=control,
            dtype=dtype,
            compute_dtype=compute_dtype,
            start_timeout=timeout,
            watchdog=watchdog,
        )
    finally:
        if deterministic:
            torch.use_deterministic_algorithms(False)
        dist.destroy_process_group()


def _end_with_launcher() -> None:
    """Linux kills this process when its torchrun dies: it would go on training, unsupervised."""
    if "TORCHELASTIC_RUN_ID" in os.environ and hasattr(signal, "SIGKILL"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def dtypes(precision: str, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """Of parameters, and of autocast regions, on `device`; `ValueError` if there is no such."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; choose from {', '.join(PRECISIONS)}")
    if precision == "float64":
        return torch.float64, torch.float64
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" or (precision == "auto" and has_bfloat16):
        return torch.float32, torch.bfloat16
    return torch.float32, torch.float32

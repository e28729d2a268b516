"""The processes of a run: who they are, where they compute, how they talk."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

PRECISIONS = ("auto", "float32", "bfloat16", "float64")


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
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    control: dist.ProcessGroup
    dtype: torch.dtype
    compute_dtype: torch.dtype

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what one writer can write."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision around a forward pass, if the run has it."""
        if self.compute_dtype == self.dtype:
            return nullcontext()
        return torch.autocast(self.device.type, self.compute_dtype)

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over ranks, in place."""
        dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank; every rank gets the same answer."""
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return bool(votes.item())

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, on every rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier(group=self.control)


@contextmanager
def launch(
    *, precision: str = "auto", deterministic: bool = False, timeout_s: int = 1800
) -> Iterator[World]:
    """Join the processes that torchrun, deepspeed or srun started, or be the only one.

    Args:
        precision: `auto` is bfloat16 autocast where the device has it, float32 elsewhere.
        deterministic: only kernels that repeat bit for bit.
        timeout_s: seconds that a collective may take.
    """
    cuda = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic
    timeout = timedelta(seconds=timeout_s)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if "RANK" in os.environ:
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
        )
    finally:
        if deterministic:
            torch.use_deterministic_algorithms(False)
        dist.destroy_process_group()


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

"""The mean over the ranks of a process group, differentiable to any order in both modes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(value: Tensor, ranks: str | None) -> Tensor:
    """Return the mean of ``value`` over the process group called ``ranks``; None: value itself."""
    return value if ranks is None else _SumOverRanks.apply(value, ranks) / ranks_in(ranks)


def sum_over_ranks(value: Tensor, ranks: str | None) -> Tensor:
    """Return the sum over the ranks of ``value``, without derivatives; None: value itself."""
    if ranks is None:
        return value
    total = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=_group(ranks))
    return total


def ranks_in(ranks: str | None) -> int:
    """Return the number of ranks in the process group of that name; None: 1."""
    return 1 if ranks is None else _group(ranks).size()


def _group(name: str) -> "dist.ProcessGroup":
    # Groups go by name, as in PyTorch's functional collectives: an operator's schema has no groups.
    return dist.distributed_c10d._resolve_process_group(name)  # pyright: ignore[reportArgumentType]


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks is its own derivative, of every order and in both modes."""

    @staticmethod
    def forward(value: Tensor, ranks: str) -> Tensor:
        return sum_over_ranks(value, ranks)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.ranks = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _SumOverRanks.apply(grads[0], ctx.ranks), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _SumOverRanks.apply(tangents[0], ctx.ranks)

"""The sums and rows of a metric over ranks; outside torch.distributed, a world of one."""

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed(group: dist.ProcessGroup | None = None) -> bool:
    """Whether there is more than one rank in `group` (None: the default group) to sum over."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def all_sum(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of `values` over the ranks of `group`, as a new tensor on the same device."""
    if not is_distributed(group):
        return values.clone()
    total = values.to(_wire(group), copy=True)
    dist.all_reduce(total, group=group)
    return total.to(values.device)


def all_rows(values: list[int], group: dist.ProcessGroup | None = None) -> list[list[int]]:
    """Every rank's `values`, one row a rank; each rank passes as many."""
    if not is_distributed(group):
        return [values]
    mine = torch.tensor(values, dtype=torch.int64, device=_wire(group))
    rows = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, mine, group=group)
    return [row.tolist() for row in rows]


def my_share(count: int, group: dist.ProcessGroup | None = None) -> range:
    """Which of `count` pieces of work are this rank's: contiguous, each rank's differ."""
    if not is_distributed(group):
        return range(count)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    return range(count * rank // size, count * (rank + 1) // size)


def gather_rows(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The rows `[n, D]` of every rank, one rank's after another's, on every rank.

    Ranks may hold different numbers of rows; one that holds none may pass `[0, 0]`.
    """
    if not is_distributed(group):
        return values
    counts, widths = zip(*all_rows([len(values), values.shape[1]], group))
    # all_gather wants the same shape of all ranks.
    mine = torch.zeros(max(counts), max(widths), dtype=values.dtype, device=_wire(group))
    mine[: len(values), : values.shape[1]] = values
    parts = [torch.empty_like(mine) for _ in counts]
    dist.all_gather(parts, mine, group=group)
    return torch.cat([part[:n] for part, n in zip(parts, counts)]).to(values.device)


def _wire(group: dist.ProcessGroup | None) -> torch.device:
    # NCCL carries CUDA tensors only; gloo carries both, and a rank that saw no sample has none on
    # any device, so the backend decides and not the tensor.
    if "nccl" in str(dist.get_backend(group)):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")

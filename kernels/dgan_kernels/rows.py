"""Tensors of any memory order as rows, one for each sample: what per-sample reductions work on."""

from collections.abc import Sequence

from torch import Tensor


def memory_order(x: Tensor) -> list[int]:
    """Return x's dimensions, the samples' first, then the others from outermost in memory."""
    if x.is_contiguous():
        return list(range(x.ndim))
    return [0, *sorted(range(1, x.ndim), key=x.stride, reverse=True)]


def to_rows(x: Tensor, order: Sequence[int]) -> Tensor:
    """Return x [N, ...], its dimensions in ``order``, as [N, L]: a view where memory allows it.

    Contiguous and channels_last tensors are views; a sum over a row minds no order.
    """
    return (x if list(order) == list(range(x.ndim)) else x.permute(*order)).flatten(1)


def from_rows(rows: Tensor, shape: Sequence[int], order: Sequence[int]) -> Tensor:
    """Undo `to_rows`: return ``rows`` [N, L] as a tensor of ``shape``."""
    permuted = rows.view([shape[d] for d in order])
    return permuted.permute([list(order).index(d) for d in range(len(shape))])

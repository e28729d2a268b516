"""Activation checkpointing of a network's blocks."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(module: nn.Module, *, blocks: Iterable[nn.Module] | None = None) -> nn.Module:
    """Let each block keep its inputs only and compute the rest again in the backward pass.

    Apply it before `shard`. A penalty through a recomputed block takes the forward method.

    Args:
        module: any module.
        blocks: what is recomputed as one piece; by default what the module names in `.blocks`.

    Returns:
        `module` itself.

    Raises:
        ValueError: there are no blocks.
    """
    units = list(getattr(module, "blocks", ()) if blocks is None else blocks)
    if not units:
        raise ValueError(f"{type(module).__name__} names no `.blocks` to recompute: pass blocks=")
    for block in units:
        block.forward = _recomputing(block.forward)
    return module


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    # A penalty's tangent pass recomputes this with the tangents beside the values.
    run.recomputes = forward  # pyright: ignore[reportFunctionMemberAccess]
    return run

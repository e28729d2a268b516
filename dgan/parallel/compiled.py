"""`torch.compile` of a network's blocks."""

import torch
from torch import nn

VARIANTS = 256
"""Compiled forms that one class of blocks may have; PyTorch's 8 would leave later ones uncompiled.
Each shape is one, with and without gradients, with weights that are trained or constant."""


def compile_blocks(module: nn.Module) -> nn.Module:
    """Let each block run as compiled code, whose shapes are those of the first call.

    Apply it before `shard`. Compiled code has a first derivative only: `dgan.gradient_penalty` runs
    the blocks as they are written where it needs more.

    Args:
        module: any module that names its blocks in `.blocks`.

    Returns:
        `module` itself.

    Raises:
        ValueError: there are no blocks.
    """
    units = list(getattr(module, "blocks", ()))
    if not units:
        raise ValueError(
            f"{type(module).__name__} names no `.blocks` to compile: set --parallel.compile false"
        )
    # `recompile_limit=` of `compile` came with PyTorch 2.13.
    torch._dynamo.config.recompile_limit = VARIANTS
    for block in units:
        block.compile(dynamic=False)
    return module

"""Sharding by FSDP2."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
)


def shard(
    module: nn.Module,
    mesh: DeviceMesh,
    *,
    blocks: Iterable[nn.Module] | None = None,
    reshard_after_forward: bool | int = True,
    keep_for_double_backward: bool = False,
    compute_dtype: torch.dtype | None = None,
    offload: bool = False,
) -> nn.Module:
    """Shard `module` in place over `mesh`: each block, then what is left, is gathered as one unit.

    Args:
        module: any module; every rank must hold the same weights.
        mesh: one dimension shards; two replicate over the first and shard over the second.
        blocks: the units. By default what the module names in `.blocks`; a module that names
            none is one unit.
        reshard_after_forward: free a block's gathered weights between forward and backward; a
            number keeps them spread over so many ranks instead of over all.
        keep_for_double_backward: keep all weights gathered from the first forward on, which
            differentiating twice needs, until `reshard` is called. That call must come before
            the optimizer's step: gathered weights do not follow an update.
        compute_dtype: weights are gathered, and inputs cast, to this; gradients are reduced in the
            weights' own dtype.
        offload: weights, gradients and the optimizer stay on the CPU; blocks are brought to the
            device one at a time.

    Returns:
        `module` itself.
    """
    options: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": False if keep_for_double_backward else reshard_after_forward,
    }
    if compute_dtype is not None:
        own = next(module.parameters()).dtype
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=own)
    if offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    units = getattr(module, "blocks", ()) if blocks is None else blocks
    for block in units:
        fully_shard(block, **options)
    root = fully_shard(module, **options)
    if keep_for_double_backward:
        root.set_reshard_after_backward(False)
    return module


def reshard(module: nn.Module) -> None:
    """Free the gathered weights of every sharded part of `module`."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()

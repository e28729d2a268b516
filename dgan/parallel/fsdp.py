"""Sharding by FSDP2."""

from collections.abc import Iterable

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard(
    module: nn.Module,
    mesh: DeviceMesh,
    *,
    blocks: Iterable[nn.Module] | None = None,
    reshard_after_forward: bool = True,
    keep_for_double_backward: bool = False,
) -> nn.Module:
    """Shard `module` in place over `mesh`: each block, then what is left, is gathered as one unit.

    Args:
        module: any module; every rank must hold the same weights.
        mesh: one dimension shards; two replicate over the first and shard over the second.
        blocks: the units. By default what the module names in `.blocks`; a module that names
            none is one unit.
        reshard_after_forward: free a block's gathered weights between forward and backward.
        keep_for_double_backward: keep all weights gathered from the first forward on, which
            differentiating twice needs, until `reshard` is called. That call must come before
            the optimizer's step: gathered weights do not follow an update.

    Returns:
        `module` itself.
    """
    reshard_after_forward = reshard_after_forward and not keep_for_double_backward
    units = getattr(module, "blocks", ()) if blocks is None else blocks
    for block in units:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward)
    root = fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward)
    if keep_for_double_backward:
        root.set_reshard_after_backward(False)
    return module


def reshard(module: nn.Module) -> None:
    """Free the gathered weights of every sharded part of `module`."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()

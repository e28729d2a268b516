"""From a network to its replica: the one place that knows every strategy."""

from torch import nn

from dgan.networks.layers import NormAct
from dgan.parallel.compiled import compile_blocks
from dgan.parallel.layout import Layout
from dgan.parallel.recompute import recompute
from dgan.parallel.replicas import DDPReplica, FSDPReplica, Replica
from dgan.parallel.world import World


def distribute(
    module: nn.Module, world: World, layout: Layout, *, double_backward: bool = False
) -> Replica:
    """Place `module`, which holds the same weights on every rank, as `layout` says.

    `double_backward` says that it is differentiated twice in its own phase. On one rank `ddp` and
    `fsdp` without offloading are `single`.

    Raises:
        ValueError: the layout does not fit the world. ImportError: DeepSpeed is not installed.
    """
    layout.check(world)
    if not _is_placed(module, world):  # fake tensors, of a planned network, stay where they are
        module = module.to(world.device, world.dtype)
    if world.size > 1:  # alone, gloo takes a millisecond to find that there is nothing to exchange
        for part in module.modules():
            if isinstance(part, NormAct):
                part.process_group = world.mesh.get_group()
    if layout.activation_checkpointing:
        recompute(module)
    if layout.compile:
        compile_blocks(module)
    # One rank has nothing to spread, and FSDP2's hooks cost it up to half of a step.
    alone = world.size == 1 and not layout.offload
    if layout.strategy == "fsdp" and not alone:
        return FSDPReplica(module, world, layout, double_backward=double_backward)
    if layout.strategy == "ddp" and not alone:
        return DDPReplica(module, world)
    if layout.strategy == "deepspeed":
        from dgan.parallel.deepspeed import DeepSpeedReplica

        return DeepSpeedReplica(module, world, layout.deepspeed)
    return Replica(module, world)


def _is_placed(module: nn.Module, world: World) -> bool:
    """Whether `module` is on the run's device, in its dtype."""
    tensors = [*module.parameters(), *module.buffers()]
    return all(
        tensor.device == world.device
        and (tensor.dtype == world.dtype or not tensor.is_floating_point())
        for tensor in tensors
    )

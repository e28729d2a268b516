"""A network as one strategy holds it: how it is wrapped, synchronised, frozen and measured.

The training loop sees these methods only, and does not change with the strategy.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dgan.networks.layers import BatchNorm
from dgan.parallel.fsdp import reshard, shard
from dgan.parallel.recompute import recompute
from dgan.parallel.world import World

STRATEGIES = ("single", "ddp", "fsdp")


class Replica:
    """The whole network in one process (strategy `single`).

    Attributes:
        module: the network; its parameters are what the optimizer updates.
        parameters: all of them, as the strategy stores them.
        trainable: those that its own phase trains.
    """

    def __init__(self, module: nn.Module, world: World) -> None:
        self.module = module
        self.world = world
        self.parameters = list(module.parameters())
        self.trainable = [p for p in self.parameters if p.requires_grad]

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """The network in its own phase: a backward through this call fills `.grad`."""
        return self.module(*inputs)

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """Around a micro-batch's forward and backward; gradients are exchanged in the last."""
        yield

    @contextmanager
    def frozen(self) -> Iterator[nn.Module]:
        """The network as the other player sees it: differentiable, its parameters constant."""
        self._train(False)
        try:
            yield self.module
        finally:
            self._train(True)

    def finish_backward(self) -> None:
        """Called once between the last backward and the optimizer's step."""

    def squared_gradient_norm(self) -> Tensor:
        """This rank's part of ‖∇‖² of the global gradient: the parts of all ranks add up to it."""
        gradients = [p.grad for p in self.trainable if p.grad is not None]
        norms = torch._foreach_norm([local(g) for g in gradients])
        share = 1 if isinstance(gradients[0], DTensor) else self.world.size
        return torch.stack(norms).double().square().sum() / share

    def _train(self, on: bool) -> None:
        for parameter in self.trainable:
            parameter.requires_grad_(on)


class DDPReplica(Replica):
    """A copy in every process; gradients are averaged (strategy `ddp`)."""

    def __init__(self, module: nn.Module, world: World) -> None:
        super().__init__(module, world)
        # Statistics are shared inside BatchNorm: buffers agree without a broadcast.
        with warnings.catch_warnings():
            # torch 2.13 renames the argument, torch 2.11 does not know the new name.
            warnings.simplefilter("ignore", FutureWarning)
            self.wrapped = DistributedDataParallel(module, broadcast_buffers=False)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """The network in its own phase: a backward through this call fills `.grad`."""
        return self.wrapped(*inputs)

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """Around a micro-batch's forward and backward; gradients are exchanged in the last."""
        self.wrapped.require_backward_grad_sync = last
        yield


class FSDPReplica(Replica):
    """A shard of every parameter in every process (strategy `fsdp`).

    `double_backward`: the network is differentiated twice in its own phase.
    """

    def __init__(self, module: nn.Module, world: World, *, double_backward: bool) -> None:
        super().__init__(shard(module, world.mesh, keep_for_double_backward=double_backward), world)

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """Around a micro-batch's forward and backward; gradients are exchanged in the last."""
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(last)
        yield

    @contextmanager
    def frozen(self) -> Iterator[nn.Module]:
        """The network as the other player sees it: differentiable, its parameters constant."""
        # Gathered copies take `requires_grad` over when they are gathered, so free them first.
        reshard(self.module)
        with super().frozen() as module:
            yield module
            reshard(self.module)

    def finish_backward(self) -> None:
        """Free the gathered weights: they would not see the optimizer's update."""
        reshard(self.module)


def distribute(
    module: nn.Module,
    world: World,
    strategy: str,
    *,
    double_backward: bool = False,
    activation_checkpointing: bool = False,
) -> Replica:
    """Place `module`, which holds the same weights on every rank, as `strategy` says.

    `double_backward` says that it is differentiated twice in its own phase, and
    `activation_checkpointing` that its blocks are computed again in the backward pass.

    Raises:
        ValueError: no such strategy, or `single` with more than one process.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"--parallel.strategy {strategy!r}: choose from {', '.join(STRATEGIES)}")
    module = module.to(world.device, world.dtype)
    for part in module.modules():
        if isinstance(part, BatchNorm):
            part.process_group = world.mesh.get_group()
    if activation_checkpointing:
        recompute(module)
    if strategy == "fsdp":
        return FSDPReplica(module, world, double_backward=double_backward)
    if strategy == "ddp":
        return DDPReplica(module, world)
    if world.size > 1:
        raise ValueError(
            f"--parallel.strategy single runs in one process, but {world.size} were started: "
            "choose ddp or fsdp"
        )
    return Replica(module, world)


class Average:
    """Exponential moving average of a network's weights, held as the network itself is held.

    Updated shard by shard: no weight is ever gathered for it.
    """

    def __init__(self, module: nn.Module, world: World, strategy: str) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).to(world.device, world.dtype)
        if strategy == "fsdp":
            shard(self.module, world.mesh)
        self.module.eval()
        self.parameters = list(self.module.parameters())

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        """The averaged network, without gradients; every rank calls it equally often."""
        with torch.no_grad():
            yield self.module
        # What was gathered for this would not see the next update.
        reshard(self.module)

    @torch.no_grad()
    def update(self, source: Replica, decay: float) -> None:
        """average ← decay · average + (1 − decay) · source; buffers are copied."""
        theirs = [local(p) for p in source.parameters]
        torch._foreach_lerp_([local(p) for p in self.parameters], theirs, 1.0 - decay)
        for mine, other in zip(self.module.buffers(), source.module.buffers()):
            mine.copy_(other)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

"""A network as one strategy holds it: how it is wrapped, synchronised, frozen, stepped, saved.

The training loop sees these methods only, and does not change with the strategy.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dgan.parallel.fsdp import reshard, shard
from dgan.parallel.layout import Layout
from dgan.parallel.pieces import Piece
from dgan.parallel.world import World

State = dict[str, Tensor | Piece]
"""Tensors by name, or this rank's pieces of them: what a checkpoint holds."""


class Replica:
    """The whole network in one process (strategy `single`).

    Attributes:
        module: the network.
        parameters: all of them, as the strategy stores them.
        trainable: those that its own phase trains.
        optimizer: what moves them, once `drive` was called.
    """

    optimizer: torch.optim.Optimizer

    def __init__(self, module: nn.Module, world: World) -> None:
        self.module = module
        self.world = world
        self.parameters = list(module.parameters())
        self.trainable = [p for p in self.parameters if p.requires_grad]

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """The network in its own phase: a backward through this call gives it gradients."""
        return self.module(*inputs)

    def drive(self, optimizer: torch.optim.Optimizer) -> None:
        """Let `optimizer`, an Adam over `trainable`, move the network."""
        self.optimizer = optimizer
        # Filled now, so that a checkpoint has one form at every step.
        for parameter in self.trainable:
            optimizer.state[parameter] = fresh_moments(parameter)

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

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, a scalar."""
        loss.backward()

    def finish_backward(self) -> None:
        """Called once between the last backward and `step`."""

    def squared_gradient_norm(self) -> Tensor:
        """This rank's part of ‖∇‖² of the global gradient: the parts of all ranks add up to it."""
        gradients = [p.grad for p in self.trainable if p.grad is not None]
        squares = torch.stack(torch._foreach_norm([local(g) for g in gradients])).double().square()
        return squares.sum().to(self.world.device) / copies_of(gradients[0], self.world)

    def step(self, *, lr: float, betas: tuple[float, float]) -> None:
        """Move the weights along the accumulated gradients, and forget these."""
        self.optimizer.param_groups[0].update(lr=lr, betas=betas)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Tensor]:
        """What this rank holds of each trained parameter, in full precision; writable."""
        named = self.module.named_parameters()
        return {name: p.detach() for name, p in named if p.requires_grad}

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """What this rank holds of the optimizer's state for each trained parameter; writable."""
        named = self.module.named_parameters()
        return {name: self.optimizer.state[p] for name, p in named if p.requires_grad}

    def written(self) -> None:
        """Called after something was written into `weights`."""

    @contextmanager
    def whole(self, parameter: nn.Parameter) -> Iterator[Tensor]:
        """All of a parameter of the module, of which this rank may hold a part; all ranks enter."""
        yield parameter.full_tensor() if isinstance(parameter, DTensor) else parameter

    def saved(self, name: str, part: Tensor) -> Tensor | Piece:
        """`part` of the parameter `name`, or of its moments, as a checkpoint takes it."""
        return part

    def constant(self, parameter: nn.Parameter) -> Tensor | Piece:
        """A parameter that is never trained, as a checkpoint takes it."""
        return parameter.detach()

    def state(self) -> State:
        """Weights, buffers and moments by name; a checkpoint is read into them.

        Names, shapes and meaning are the same under every strategy.
        """
        buffers = dict(self.module.named_buffers())
        network = self.network_state(self.weights(), buffers)
        moments = {
            f"optimizer.{name}.{key}": value if value.ndim == 0 else self.saved(name, value)
            for name, values in self.moments().items()
            for key, value in values.items()
        }
        return {**{f"network.{name}": value for name, value in network.items()}, **moments}

    def network_state(self, weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> State:
        """The module's state dict with these trained weights and buffers in it."""
        names = {id(p): name for name, p in self.module.named_parameters()}
        held: State = {}
        for name, value in self.module.state_dict(keep_vars=True).items():
            # A tied weight has several names here and one in `weights`.
            own_name = names.get(id(value))
            if own_name is None:
                held[name] = buffers[name]
            elif own_name in weights:
                held[name] = self.saved(own_name, weights[own_name])
            else:
                held[name] = self.constant(value)
        return held

    def _train(self, on: bool) -> None:
        for parameter in self.trainable:
            parameter.requires_grad_(on)


class DDPReplica(Replica):
    """A copy in every process; gradients are averaged (strategy `ddp`)."""

    def __init__(self, module: nn.Module, world: World) -> None:
        super().__init__(module, world)
        # Statistics are shared inside `NormAct`: buffers agree without a broadcast.
        with warnings.catch_warnings():
            # torch 2.13 renames the argument, torch 2.11 does not know the new name.
            warnings.simplefilter("ignore", FutureWarning)
            self.wrapped = DistributedDataParallel(module, broadcast_buffers=False)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """The network in its own phase: a backward through this call gives it gradients."""
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

    def __init__(
        self, module: nn.Module, world: World, layout: Layout, *, double_backward: bool
    ) -> None:
        shard(
            module,
            layout.mesh(world),
            reshard_after_forward=layout.reshard_after_forward,
            keep_for_double_backward=double_backward,
            compute_dtype=None if world.compute_dtype == world.dtype else world.compute_dtype,
            offload=layout.offload,
        )
        super().__init__(module, world)

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

    def weights(self) -> dict[str, Tensor]:
        """What this rank holds of each trained parameter, in full precision; writable."""
        # Gathered, or resharded to a part of the ranks, the module shows other parameters.
        reshard(self.module)
        return super().weights()

    def written(self) -> None:
        """Free the gathered weights: they are not what was written."""
        reshard(self.module)


def fresh_moments(like: Tensor) -> dict[str, Tensor]:
    """The state of a fused Adam before its first step."""
    return {
        "step": torch.tensor(0.0, device=like.device),
        "exp_avg": torch.zeros_like(like),
        "exp_avg_sq": torch.zeros_like(like),
    }


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def copies_of(tensor: Tensor, world: World) -> int:
    """How many ranks hold the same part of `tensor`."""
    if not isinstance(tensor, DTensor):
        return world.size
    sizes = zip(tensor.placements, tensor.device_mesh.shape)
    return int(torch.tensor([n for p, n in sizes if p.is_replicate()]).prod())

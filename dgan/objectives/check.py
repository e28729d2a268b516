"""Whether a penalty's gradient is right, for any discriminator under any sharding."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dgan.objectives.forward_mode import is_checkpointed, modules_of, same_randomness
from dgan.objectives.penalties import (
    Kind,
    Method,
    gradient_penalty,
    input_gradient,
    penalty_of,
    squared_norms,
)
from dgan.objectives.smooth import smooth_activations

MOVES = (1e-2, 1e-3, 1e-4)
"""How far the parameters are moved, relative to their size: curvature spoils large moves, rounding
small ones. A right gradient fits at one of them, a wrong one at none."""
DIRECTIONS = 3
"""The error along random directions estimates that of the whole gradient."""


def check_penalty(
    discriminator: Callable[..., Tensor],
    x: Tensor,
    *conditions: Any,
    kind: Kind = "zero_centered",
    method: Method = "auto",
    one_sided: bool = False,
    tolerance: float = 0.03,
    seed: int = 0,
) -> float:
    """Compare the penalty's gradient with a finite difference of the penalty's value.

    The value needs first-order passes alone, so nothing that could be wrong with the second
    derivative enters it. The parameters are moved to and fro along random directions; the rate at
    which the value changes must be ⟨gradient, direction⟩. Silent errors that are known (a layer
    norm's forward mode, stale gathered weights) are of 20 % and more.

    Every rank of a sharded or replicated discriminator calls this together. Parameters, their
    `.grad`, buffers and random numbers are left as they were. Limits: with a ReLU the value jumps
    where units switch, so PyTorch's ReLU and leaky ReLU are computed as softplus meanwhile; other
    kinks, and bfloat16, raise the error that is found.

    Args:
        discriminator, x, conditions, kind, method, one_sided: as for `gradient_penalty`.
        tolerance: relative error of the gradient that is accepted.
        seed: of the directions.

    Returns:
        An estimate of the gradient's relative error.

    Raises:
        ArithmeticError: the error is above `tolerance`; names the part of the network where it is
            largest.
        ValueError: the penalty or its gradient is zero, so that nothing can be compared.
    """
    parameters = _parameters(modules_of(discriminator))
    options = {"kind": kind, "method": method, "one_sided": one_sided}
    _free_gathered(discriminator)
    turn_back = same_randomness(discriminator, x.device)
    with _rounded_kinks(discriminator, x):

        def value() -> float:
            gradient = input_gradient(discriminator, x.detach(), conditions)
            penalty = penalty_of(squared_norms(gradient).double(), kind, one_sided)
            turn_back()
            _free_gathered(discriminator)
            return _mean_over_ranks(penalty, discriminator)

        gradients = _gradients(discriminator, parameters, (x, *conditions), options)
        turn_back()
        probe = _Probe(value, parameters, gradients, seed)
        error = probe.error(range(len(parameters)))
        if error <= tolerance:
            return error
        worst = _worst(discriminator, parameters, probe)
    raise ArithmeticError(
        f"the gradient of the {kind} penalty by method={method!r} is off by {error:.0%} (against "
        f"a finite difference of its value), most in {worst}: an operation there has a wrong "
        "second derivative; try another method, or write it in elementary operations"
    )


def _rounded_kinks(discriminator: Callable[..., Tensor], x: Tensor) -> AbstractContextManager[Any]:
    recomputes = any(is_checkpointed(module) for module in modules_of(discriminator))
    return nullcontext() if x.is_cuda and recomputes else smooth_activations()


def _parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    found = {id(p): p for module in modules for p in module.parameters(recurse=False)}
    return [parameter for parameter in found.values() if parameter.requires_grad]


def _gradients(
    discriminator: Callable[..., Tensor],
    parameters: list[nn.Parameter],
    inputs: tuple[Any, ...],
    options: dict[str, Any],
) -> list[Tensor]:
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    output = gradient_penalty(discriminator, *inputs, **options)
    # The logits take part so that every parameter has a gradient, which DDP waits for.
    # `Tensor.backward` would turn the mode off that rounds kinks.
    torch.autograd.backward(output.loss + 0.0 * output.logits.sum())
    _free_gathered(discriminator)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter, old in zip(parameters, before):
        parameter.grad = old
    return gradients


class _Probe:
    """Rates of change of the penalty's value along random directions of some parameters."""

    def __init__(
        self,
        value: Callable[[], float],
        parameters: list[nn.Parameter],
        gradients: list[Tensor],
        seed: int,
    ) -> None:
        self.value, self.parameters, self.gradients, self.seed = value, parameters, gradients, seed
        sizes = [(_dot(p.detach(), p.detach()) / p.numel()) ** 0.5 for p in parameters]
        # Parameters that are zero, as some start, move too.
        self.sizes = [max(size, 0.1 * max(sizes)) for size in sizes]
        # Root mean square of ⟨gradient, direction⟩ over directions.
        self.expected = (
            sum(_dot(gradient, gradient) * size**2 for gradient, size in zip(gradients, self.sizes))
            ** 0.5
        )
        if not self.expected > 0:
            raise ValueError("the penalty's gradient is zero here: nothing can be checked")

    def error(self, chosen: Iterable[int]) -> float:
        """Relative error of the gradient in the `chosen` parameters, at the best size of move."""
        chosen = list(chosen)
        errors = []
        for move in MOVES:
            misses = [self._miss(chosen, move, number) for number in range(DIRECTIONS)]
            errors.append((sum(miss**2 for miss in misses) / DIRECTIONS) ** 0.5)
        return min(errors) / self.expected

    def _miss(self, chosen: list[int], move: float, number: int) -> float:
        """Measured less predicted rate of change along one direction."""
        directions = {i: self._direction(i, number) for i in chosen}
        predicted = sum(_dot(self.gradients[i], d) for i, d in directions.items())
        before = [self.parameters[i].detach().clone() for i in chosen]
        self._move(directions, move)
        ahead = self.value()
        self._move(directions, -2 * move)
        behind = self.value()
        with torch.no_grad():
            for i, old in zip(chosen, before):
                self.parameters[i].copy_(old)
        return (ahead - behind) / (2 * move) - predicted

    def _direction(self, index: int, number: int) -> Tensor:
        gradient = self.gradients[index]
        part = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        seed = self.seed + 10**6 * number + 1000 * index + _shard_of(gradient)
        noise = torch.randn(part.shape, generator=torch.Generator().manual_seed(seed))
        return _like(gradient, self.sizes[index] * noise.to(part))

    @torch.no_grad()
    def _move(self, directions: dict[int, Tensor], size: float) -> None:
        for index, direction in directions.items():
            self.parameters[index].add_(direction, alpha=size)


def _shard_of(tensor: Tensor) -> int:
    """Different for different shards of a tensor, equal for its copies."""
    if not isinstance(tensor, DTensor):
        return 0
    where = tensor.device_mesh.get_coordinate() or []
    return sum(
        coordinate * 100 ** (1 + dim)
        for dim, (coordinate, placement) in enumerate(zip(where, tensor.placements))
        if placement.is_shard()
    )


def _like(tensor: Tensor, part: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return part
    return DTensor.from_local(
        part,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def _dot(a: Tensor, b: Tensor) -> float:
    product = (a.double() * b.double()).sum()
    return float(product.full_tensor() if isinstance(product, DTensor) else product)


def _worst(
    discriminator: Callable[..., Tensor], parameters: list[nn.Parameter], probe: _Probe
) -> str:
    """The module, of those that hold parameters themselves, whose gradient is most wrong."""
    numbers = {id(parameter): index for index, parameter in enumerate(parameters)}
    errors: dict[str, float] = {}
    root = next(iter(modules_of(discriminator)))
    for name, module in root.named_modules():
        mine = [numbers[id(p)] for p in module.parameters(recurse=False) if id(p) in numbers]
        if mine:
            errors[f"{name or 'the root'} ({type(module).__name__})"] = probe.error(mine)
    return max(errors, key=lambda name: errors[name])


def _free_gathered(discriminator: Callable[..., Tensor]) -> None:
    for module in modules_of(discriminator):
        if isinstance(module, FSDPModule):
            module.reshard()


def _mean_over_ranks(penalty: Tensor, discriminator: Callable[..., Tensor]) -> float:
    spread = (FSDPModule, DistributedDataParallel)
    if any(isinstance(module, spread) for module in modules_of(discriminator)):
        dist.all_reduce(penalty)
        penalty /= dist.get_world_size()
    return float(penalty)

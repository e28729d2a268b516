"""Whether a penalty's gradient is right, for any discriminator under any sharding."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from dgan.objectives.forward_mode import is_checkpointed, modules_of, same_randomness
from dgan.objectives.held import Held, held, under_zero
from dgan.objectives.penalties import (
    Kind,
    Method,
    gradient_penalty,
    input_gradient,
    penalty_of,
)
from dgan.objectives.smooth import smooth_activations
from dgan.objectives.upstream import gathered_dtype, is_engine, unwrapped
from dgan_kernels import squared_norm

MOVES = (1e-2, 1e-3, 1e-4)
"""How far the parameters are moved, relative to their size: curvature spoils large moves, rounding
small ones. A right gradient fits at one of them, a wrong one at none."""

NARROW_MOVES = (1e-1, 3e-2, 1e-2)
"""The same for weights of 16 bits."""
DIRECTIONS = 3
"""The error along random directions estimates that of the whole gradient."""


def check_penalty(
    discriminator: Callable[..., Tensor],
    x: Tensor,
    *conditions: Any,
    kind: Kind = "zero_centered",
    method: Method = "auto",
    one_sided: bool = False,
    tolerance: float | None = None,
    seed: int = 0,
    backend: str | None = None,
) -> float:
    """Compare the penalty's gradient with a finite difference of the penalty's value.

    The value needs first-order passes alone, so nothing that could be wrong with the second
    derivative enters it. The parameters are moved to and fro along random directions; the rate at
    which the value changes must be ⟨gradient, direction⟩. Silent errors that are known (a layer
    norm's forward mode, stale gathered weights) are of 20 % and more.

    Every rank of a sharded or replicated discriminator calls this together. Parameters, their
    `.grad`, buffers and random numbers are left as they were. Limits: with a ReLU the value jumps
    where units switch, so PyTorch's ReLU and leaky ReLU are computed as softplus meanwhile; other
    kinks raise the error that is found, and so does the rounding of 16 bits, to about 0.03.

    Args:
        discriminator, x, conditions, kind, method, one_sided, backend: as for `gradient_penalty`.
        tolerance: relative error of the gradient that is accepted; by default 0.03, and 0.1 where
            the weights are of 16 bits.
        seed: of the directions.

    Returns:
        An estimate of the gradient's relative error.

    Raises:
        ArithmeticError: the error is above `tolerance`; names the part of the network where it is
            largest.
        ValueError: the penalty or its gradient is zero, so that nothing can be compared.
    """
    parts = _trainable(discriminator)
    options = {"kind": kind, "method": method, "one_sided": one_sided, "backend": backend}
    _free_gathered(discriminator)
    turn_back = same_randomness(discriminator, x.device)
    with _rounded_kinks(discriminator, x):

        def value() -> float:
            gradient = input_gradient(discriminator, x.detach(), conditions)
            penalty = penalty_of(squared_norm(gradient, backend=backend).double(), kind, one_sided)
            turn_back()
            _free_gathered(discriminator)
            return _mean_over_ranks(penalty, discriminator)

        gradients = _gradients(discriminator, parts, (x, *conditions), options)
        turn_back()
        narrow = _narrow(discriminator, parts)
        if tolerance is None:
            tolerance = 0.1 if narrow else 0.03
        probe = _Probe(value, parts, gradients, seed, narrow)
        error = probe.error(range(len(parts)))
        if error <= tolerance:
            return error
        worst = _worst(discriminator, parts, probe)
    raise ArithmeticError(
        f"the gradient of the {kind} penalty by method={method!r} is off by {error:.0%} (against "
        f"a finite difference of its value), most in {worst}: an operation there has a wrong "
        "second derivative; try another method, or write it in elementary operations"
    )


def _rounded_kinks(discriminator: Callable[..., Tensor], x: Tensor) -> AbstractContextManager[Any]:
    recomputes = any(is_checkpointed(module) for module in modules_of(discriminator))
    return nullcontext() if x.is_cuda and recomputes else smooth_activations()


def _trainable(discriminator: Callable[..., Tensor]) -> list[Held]:
    found = {id(p): p for m in modules_of(discriminator) for p in m.parameters(recurse=False)}
    return [held(parameter) for parameter in found.values() if parameter.requires_grad]


def _gradients(
    discriminator: Callable[..., Tensor],
    parts: list[Held],
    inputs: tuple[Any, ...],
    options: dict[str, Any],
) -> list[Tensor]:
    """This rank's part of the penalty's gradient in each parameter."""
    with ExitStack() as stack:
        for module in modules_of(discriminator):
            if is_engine(module):
                stack.enter_context(unwrapped(module))
        output = gradient_penalty(discriminator, *inputs, **options)
    # The logits take part so that every parameter has a gradient, which DDP waits for.
    loss = output.loss + 0.0 * output.logits.sum()
    by_hooks = any(under_zero(part.parameter) for part in parts)
    gradients = _caught(loss, parts) if by_hooks else _accumulated(loss, parts)
    _free_gathered(discriminator)
    return gradients


def _accumulated(loss: Tensor, parts: list[Held]) -> list[Tensor]:
    before = [part.parameter.grad for part in parts]
    for part in parts:
        part.parameter.grad = None
    # `Tensor.backward` would turn the mode off that rounds kinks.
    torch.autograd.backward(loss)
    gradients = [part.zeros() if (g := part.gradient()) is None else g for part in parts]
    for part, old in zip(parts, before):
        part.parameter.grad = old
    return gradients


def _caught(loss: Tensor, parts: list[Held]) -> list[Tensor]:
    """Averaged over ranks and cut as they come: ZeRO sees none, and memory never holds all."""
    caught: dict[int, Tensor] = {}

    def catch(index: int) -> Callable[[Tensor], Tensor]:
        def hook(gradient: Tensor) -> Tensor:
            mean = gradient.detach().clone()
            dist.all_reduce(mean)
            caught[index] = parts[index].cut(mean / dist.get_world_size()).clone()
            return gradient.new_zeros(()).expand(gradient.shape)

        return hook

    handles = [part.parameter.register_hook(catch(i)) for i, part in enumerate(parts)]
    try:
        torch.autograd.grad(loss, [part.parameter for part in parts], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return [caught[i] if i in caught else part.zeros() for i, part in enumerate(parts)]


class _Probe:
    """Rates of change of the penalty's value along random directions of some parameters."""

    def __init__(
        self,
        value: Callable[[], float],
        parts: list[Held],
        gradients: list[Tensor],
        seed: int,
        narrow: torch.dtype | None,
    ) -> None:
        self.value, self.parts, self.gradients, self.seed = value, parts, gradients, seed
        self.narrow = narrow
        sizes = [(part.dot(part.tensor, part.tensor) / part.numel) ** 0.5 for part in parts]
        # Parameters that are zero, as some start, move too.
        self.sizes = [max(size, 0.1 * max(sizes)) for size in sizes]
        # Root mean square of ⟨gradient, direction⟩ over directions.
        squares = (part.dot(g, g) * s**2 for part, g, s in zip(parts, gradients, self.sizes))
        self.expected = sum(squares) ** 0.5
        if not self.expected > 0:
            raise ValueError("the penalty's gradient is zero here: nothing can be checked")

    def error(self, chosen: Iterable[int]) -> float:
        """Relative error of the gradient in the `chosen` parameters, at the best size of move."""
        chosen = list(chosen)
        errors = []
        for move in NARROW_MOVES if self.narrow else MOVES:
            misses = [self._miss(chosen, move, number) for number in range(DIRECTIONS)]
            errors.append((sum(miss**2 for miss in misses) / DIRECTIONS) ** 0.5)
        return min(errors) / self.expected

    def _miss(self, chosen: list[int], move: float, number: int) -> float:
        """Measured less predicted rate of change along one direction."""
        directions = {i: self._direction(i, number) for i in chosen}
        before = {i: self.parts[i].tensor.clone() for i in chosen}
        measured = predicted = 0.0
        for end in (move, -move):
            moved = {i: self._moved(old, end * directions[i]) for i, old in before.items()}
            for i, new in moved.items():
                self.parts[i].tensor.copy_(new)
                # What rounding left of the step is the step.
                step = new.double() - before[i].double()
                predicted += math.copysign(1, end) * self.parts[i].dot(self.gradients[i], step)
            measured += math.copysign(1, end) * self.value()
        for i, old in before.items():
            self.parts[i].tensor.copy_(old)
        return (measured - predicted) / (2 * move)

    def _direction(self, index: int, number: int) -> Tensor:
        part = self.gradients[index]
        seed = self.seed + 10**6 * number + 1000 * index + self.parts[index].shard
        noise = torch.randn(part.shape, generator=torch.Generator().manual_seed(seed))
        return self.sizes[index] * noise.to(
            part.device, torch.promote_types(part.dtype, torch.float32)
        )

    def _moved(self, old: Tensor, step: Tensor) -> Tensor:
        """`old + step`, of its dtype, as the network will see it."""
        new = (old + step).to(old.dtype)
        return new if self.narrow is None else new.to(self.narrow).to(old.dtype)


def _worst(discriminator: Callable[..., Tensor], parts: list[Held], probe: _Probe) -> str:
    """The module, of those that hold parameters themselves, whose gradient is most wrong."""
    numbers = {id(part.parameter): index for index, part in enumerate(parts)}
    errors: dict[str, float] = {}
    root = next(iter(modules_of(discriminator)))
    for name, module in root.named_modules():
        mine = [numbers[id(p)] for p in module.parameters(recurse=False) if id(p) in numbers]
        if mine:
            errors[f"{name or 'the root'} ({type(module).__name__})"] = probe.error(mine)
    return max(errors, key=lambda name: errors[name])


def _narrow(discriminator: Callable[..., Tensor], parts: list[Held]) -> torch.dtype | None:
    """The dtype of 16 bits in which the network sees its weights, if it does."""
    sharded = (m for m in modules_of(discriminator) if isinstance(m, FSDPModule))
    seen = [part.tensor.dtype for part in parts] + [gathered_dtype(m) for m in sharded]
    return next((dtype for dtype in seen if dtype in (torch.bfloat16, torch.float16)), None)


def _free_gathered(discriminator: Callable[..., Tensor]) -> None:
    for module in modules_of(discriminator):
        if isinstance(module, FSDPModule):
            module.reshard()


def _mean_over_ranks(penalty: Tensor, discriminator: Callable[..., Tensor]) -> float:
    spread = (FSDPModule, DistributedDataParallel)
    modules = list(modules_of(discriminator))
    parameters = (p for module in modules for p in module.parameters(recurse=False))
    if any(isinstance(m, spread) for m in modules) or any(under_zero(p) for p in parameters):
        dist.all_reduce(penalty)
        penalty /= dist.get_world_size()
    return float(penalty)

"""Small discriminators, their parts and hooks, for the tests of the forward method: helpers."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from exactness import numbers, relative
from torch import Tensor, nn

from dgan.objectives.penalties import gradient_penalty

Function = Callable[..., Tensor]


def critic(middle: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(1)
    middle = nn.Linear(8, 8) if middle is None else middle
    return nn.Sequential(
        nn.Linear(5, 8), nn.Tanh(), middle, nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)
    ).double()


X = numbers(6, 5, seed=9)


def gradient(
    function: Function, network: nn.Module, method: Any, *conditions: Any, **options: Any
) -> Tensor:
    torch.manual_seed(3)
    loss = gradient_penalty(function, X.clone(), *conditions, method=method, **options).loss
    parameters = list(network.parameters())
    found = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
    return torch.cat([g.flatten() for g in found])


def assert_exact(network: nn.Module, *conditions: Any, **options: Any) -> None:
    """The two methods agree, on two copies since buffers move."""
    other = copy.deepcopy(network)
    wanted = gradient(network, network, "double", *conditions, **options)
    found = gradient(other, other, "forward", *conditions, **options)
    assert relative(found, wanted) < 1e-10
    for one, two in zip(network.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class CubeWithTangent(Cube):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent


class Cubed(nn.Module):
    def __init__(self, function: type[Cube]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)


class Block(nn.Module):
    """Takes its inputs by position and by name; normalisation, dropout and attention inside."""

    def __init__(self, nested: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.map = nn.LayerNorm(8), nn.Linear(8, 8)
        self.nested = nn.Identity() if nested is None else nested
        self.drop = nn.Dropout(0.2)

    def forward(self, h: Tensor, scale: float = 1.0, *, shift: Tensor | None = None) -> Tensor:
        h = self.nested(scale * self.norm(h))
        h = F.scaled_dot_product_attention(h[:, None], h[:, None].roll(1, 0), h[:, None])[:, 0]
        h = h + self.drop(self.map(h).softmax(-1))
        return h if shift is None else h + shift


def shard_like(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that claims to come from where FSDP2's do, so it is to see ordinary tensors."""
    hook.__module__ = "torch.distributed.fsdp.test"
    return hook

"""The forward method: what it refuses, what it leaves behind, and how it finds modules."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from critics import (
    Block,
    Cube,
    Cubed,
    CubeWithTangent,
    Function,
    X,
    assert_exact,
    critic,
    gradient,
    shard_like,
)
from exactness import numbers, relative
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils.parametrizations import spectral_norm

from dgan.objectives.forward_mode import modules_of, value_and_tangent
from dgan.objectives.penalties import choose, gradient_penalty
from dgan.parallel.recompute import recompute

# ── autograd Functions of the user ───────────────────────────────────────────────────────────────


def test_a_function_without_jvp_is_named_with_the_way_out() -> None:
    network = critic(nn.Sequential(nn.Linear(8, 8), Cubed(Cube)))
    with pytest.raises(ValueError, match=r"Cubed has .*Give its autograd.Function a `jvp`.*double"):
        gradient(network, network, "forward")
    assert gradient(network, network, "double").norm() > 0


def test_a_function_with_jvp_is_exact() -> None:
    assert_exact(critic(nn.Sequential(nn.Linear(8, 8), Cubed(CubeWithTangent))))


def test_a_backward_hook_is_refused_by_name() -> None:
    """PyTorch runs it through an autograd.Function without jvp."""
    network = critic()
    network[2].register_full_backward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="Linear has an operation without forward mode"):
        gradient(network, network, "forward")


def test_an_output_that_does_not_depend_on_x() -> None:
    w = numbers(3, seed=2).requires_grad_()
    with pytest.raises(ValueError, match="does not depend on"):
        gradient_penalty(lambda x: w.sum().expand(len(x)), X, method="forward")
    with pytest.raises(ValueError, match="no tangent reached"):
        value_and_tangent(lambda x: w.sum().expand(len(x)), X, X)


# ── what is left behind ──────────────────────────────────────────────────────────────────────────


def state_of(network: nn.Module) -> list[Any]:
    return [
        (
            dict(module._forward_pre_hooks),
            dict(module._forward_hooks),
            dict(module._forward_pre_hooks_with_kwargs),
            dict(module._forward_hooks_with_kwargs),
            module.__dict__.get("forward"),
            module.training,
        )
        for module in network.modules()
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool) -> None:
    middle = nn.Sequential(Block(), Cubed(Cube if fails else CubeWithTangent), Block())
    network = critic(middle)
    middle[0].register_forward_hook(shard_like(lambda *_: None))
    middle[0].register_forward_pre_hook(lambda *_: None)
    recompute(network, blocks=[middle[0]])
    middle[2] = checkpoint_wrapper(middle[2])
    before, x = state_of(network), X.clone()
    weights = [p.detach().clone() for p in network.parameters()]
    if fails:
        with pytest.raises(ValueError, match="Cubed"):
            gradient_penalty(network, x, method="forward")
    else:
        gradient_penalty(network, x, method="forward").loss.backward()
    assert state_of(network) == before
    assert forward_ad._current_level == -1
    assert not x.requires_grad
    assert x.grad is None
    assert torch.equal(x, X)
    for old, new in zip(weights, network.parameters()):
        assert torch.equal(old, new)
    # No mode stays on: attention without dropout is PyTorch's own again.
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize("method", ["forward", "double"])
def test_random_numbers_and_buffers_move_as_in_one_call(method: Any) -> None:
    network = critic(nn.Sequential(spectral_norm(nn.Linear(8, 8)), nn.BatchNorm1d(8), Block()))
    one = copy.deepcopy(network)
    torch.manual_seed(3)
    logits, wanted = one(X), torch.rand(3)
    torch.manual_seed(3)
    output = gradient_penalty(network, X.clone(), method=method)
    assert torch.equal(torch.rand(3), wanted)
    torch.testing.assert_close(output.logits, logits, rtol=1e-12, atol=1e-12)
    for found, expected in zip(network.buffers(), one.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# ── functions around modules ─────────────────────────────────────────────────────────────────────


class Task:
    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def logits(self, x: Tensor) -> Tensor:
        return self.network(x)

    def __call__(self, x: Tensor) -> Tensor:
        return self.network(x)


class Engine:
    """Holds a module as wrappers that are no modules do."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x)


global_network: nn.Module = nn.Identity()


def of_global(x: Tensor) -> Tensor:
    return global_network(x)


def call(network: nn.Module, x: Tensor) -> Tensor:
    return network(x)


def call_named(x: Tensor, *, network: nn.Module) -> Tensor:
    return network(x)


def with_empty_cell(network: nn.Module) -> Function:
    def function(x: Tensor) -> Tensor:
        return network(x) if network is not None else never

    if network is None:
        never = X
    return function


def closing_over_a_list(network: nn.Module) -> Function:
    networks = [network]
    return lambda x: networks[0](x)


def decorated(network: nn.Module) -> Function:
    inner = functools.partial(call, network)

    def outer(x: Tensor) -> Tensor:
        return inner(x)

    return outer


def through_global(network: nn.Module) -> Function:
    global global_network
    global_network = network
    return of_global


AROUND: dict[str, Callable[[nn.Module], Function]] = {
    "closure": lambda network: lambda x: network(x),
    "closure with an empty cell": with_empty_cell,
    "closure over a list": closing_over_a_list,
    "closure over an object": lambda network: (lambda task: lambda x: task.network(x))(
        Task(network)
    ),
    "bound method of the module": lambda network: network.forward,
    "bound method of an object": lambda network: Task(network).logits,
    "callable object": Task,
    "engine": Engine,
    "partial of a function": lambda network: functools.partial(call, network),
    "partial, named": lambda network: functools.partial(call_named, network=network),
    "partial of the module": lambda network: functools.partial(network),
    "nested functions": decorated,
    "global name": through_global,
}


@pytest.mark.parametrize("name", AROUND)
def test_modules_are_found(name: str) -> None:
    """Else the running statistics would move twice and recomputation would lose the tangent."""
    network = critic(nn.Sequential(nn.BatchNorm1d(8), Block()))
    other = copy.deepcopy(network)
    recompute(network, blocks=[network[2][1]])
    function = AROUND[name](network)
    found = list(modules_of(function))
    assert len(found) == len({id(module) for module in found})
    assert {id(module) for module in network.modules()} <= {id(module) for module in found}
    assert choose(function) == "forward"
    wanted = gradient(other, other, "forward")
    assert relative(gradient(function, network, "forward"), wanted) < 1e-10
    assert network[2][0].num_batches_tracked == 1

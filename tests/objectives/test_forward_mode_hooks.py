"""The forward method and hooks: sharding's see plain tensors, users' see dual numbers."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from critics import Block, X, critic, gradient, shard_like
from exactness import relative
from torch import Tensor, nn
from torch.autograd import forward_ad

from dgan.objectives.forward_mode import value_and_tangent
from dgan.parallel.recompute import recompute


class Structured(nn.Module):
    """A dictionary of tuples out; a label, a flag and None in."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.table = nn.Linear(8, 8), nn.Embedding(3, 8)

    def forward(
        self, h: Tensor, label: Tensor, *, flag: str, nothing: None = None
    ) -> dict[str, Any]:
        assert flag == "yes"
        assert nothing is None
        return {"pair": (self.map(h).tanh(), label), "flag": flag, "shift": self.table(label)}


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.labels = nn.Linear(5, 8), Structured(), nn.Embedding(3, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        out = self.middle(self.stem(x).tanh(), label, flag="yes", nothing=None)
        h, same = out["pair"]
        # `labels` gets no input with a tangent.
        return self.head((h * (1 + self.labels(same))).tanh() + out["shift"] * h).squeeze(1)


LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def tensors(structure: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(structure)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("kwargs", [True, False])
def test_the_hooks_of_sharding_see_plain_tensors(kwargs: bool) -> None:
    torch.manual_seed(1)
    network = Conditional().double()
    plain = copy.deepcopy(network)
    seen: list[Tensor] = []
    outputs: list[Any] = []
    tangents_seen: list[Tensor | None] = []

    def before(module: nn.Module, args: Any, *kwargs: Any) -> Any:
        seen.extend(tensors((args, kwargs)))
        tangents_seen.extend(forward_ad.unpack_dual(t).tangent for t in tensors((args, kwargs)))
        return (args, *kwargs) if kwargs else args

    def after(module: nn.Module, *everything: Any) -> None:
        seen.extend(tensors(everything))
        outputs.append(everything[-1])
        tangents_seen.extend(forward_ad.unpack_dual(t).tangent for t in tensors(everything))

    for module in network.modules():
        module.register_forward_pre_hook(shard_like(before), with_kwargs=kwargs)
        module.register_forward_hook(shard_like(after), with_kwargs=kwargs)
    assert (
        relative(
            gradient(network, network, "forward", LABELS), gradient(plain, plain, "double", LABELS)
        )
        < 1e-10
    )
    assert len(outputs) == 2 * 7  # two passes, seven modules
    assert seen
    assert all(tangent is None for tangent in tangents_seen)
    # In the tangent pass a hook can reach the tangents, as ordinary tensors that require gradients.
    _, tangents = outputs[-1]
    assert [index for index, _ in tangents] == [0]
    assert tangents[0][1].requires_grad


def test_the_hooks_of_sharding_may_change_what_passes() -> None:
    """As FSDP2 does, which sends inputs and outputs through an autograd Function of its own."""
    network = critic(Block())
    plain = copy.deepcopy(network)

    def copied(structure: Any) -> Any:
        leaves, spec = torch.utils._pytree.tree_flatten(structure)
        leaves = [Same.apply(x) if isinstance(x, Tensor) else x for x in leaves]
        return torch.utils._pytree.tree_unflatten(leaves, spec)

    calls: list[str] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        calls.append("before")
        return copied((args, kwargs))

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        calls.append("after")
        return copied(output)

    for module in (network, network[2], network[2].map):
        module.register_forward_pre_hook(shard_like(before), with_kwargs=True)
        module.register_forward_hook(shard_like(after))
    recompute(network, blocks=[network[2]])  # hooks within and around what is recomputed
    found = gradient(network, network, "forward")
    assert relative(found, gradient(plain, plain, "forward")) < 1e-10
    assert calls.count("before") == calls.count("after")
    assert len(calls) >= 2 * 2 * 3


class Same(torch.autograd.Function):
    """The identity, without forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


# ── hooks of users ───────────────────────────────────────────────────────────────────────────────


def scale_input(network: nn.Sequential) -> None:
    network[2].register_forward_pre_hook(lambda module, args: (2 * args[0],))


def named_input(network: nn.Sequential) -> None:
    def rename(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return (), {"extra": None, "input": args[0].square()}

    network[2].register_forward_pre_hook(rename, with_kwargs=True)
    network[2].forward = lambda input, extra: F.linear(input, network[2].weight, network[2].bias)


def square_output(network: nn.Sequential) -> None:
    network[2].register_forward_hook(lambda module, args, output: output.square())


def add_input_to_output(network: nn.Sequential) -> None:
    network[2].register_forward_hook(
        lambda module, args, kwargs, output: output * args[0], with_kwargs=True
    )


@pytest.mark.parametrize("change", [scale_input, named_input, square_output, add_input_to_output])
@pytest.mark.parametrize("recomputed", [False, True])
def test_what_a_users_hook_computes_counts(
    change: Callable[[nn.Sequential], None], recomputed: bool
) -> None:
    network, plain = critic(), critic()
    change(network)
    change(plain)
    if recomputed:
        recompute(network, blocks=[network[2]])
    wanted = gradient(plain, plain, "double")
    assert relative(gradient(network, network, "forward"), wanted) < 1e-10


def test_a_users_hook_keeps_features() -> None:
    network = critic(Block())
    features: list[Tensor] = []
    network[2].register_forward_hook(lambda module, args, output: features.append(output.detach()))
    recompute(network, blocks=[network[2]])
    network.eval()
    gradient(network, network, "forward")
    one, two = features
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_a_hook_that_removes_itself_stays_removed() -> None:
    network = critic()
    calls: list[None] = []

    def once(*_: Any) -> None:
        calls.append(None)
        handle.remove()

    handle = network[2].register_forward_hook(shard_like(once))
    x = X.clone()
    value_and_tangent(network, x, x)
    assert len(calls) == 1
    assert not network[2]._forward_hooks


class Greedy(nn.Module):
    """Takes away what it is given by name."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(8, 8)

    def forward(self, h: Tensor, **options: Any) -> Tensor:
        scale = options.pop("scale")
        assert not options
        return self.map(h) * scale


class Gives(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Greedy()

    def forward(self, h: Tensor) -> Tensor:
        options = {"scale": h.cos()}
        h = self.inner(h, **options)
        return self.inner(h, **options)


def test_a_module_that_empties_its_keywords() -> None:
    network = critic(Gives())
    plain = copy.deepcopy(network)
    network[2].inner.register_forward_pre_hook(
        shard_like(lambda module, args, kwargs: None), with_kwargs=True
    )
    recompute(network[2], blocks=[network[2].inner])
    wanted = gradient(plain, plain, "double")
    assert relative(gradient(network, network, "forward"), wanted) < 1e-10

"""The forward method against double backward: whatever wraps, hooks or recomputes the modules."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import spectral_norm

from dgan.objectives.forward_mode import modules_of, value_and_tangent
from dgan.objectives.penalties import choose, gradient_penalty, interpolate, neighbourhood
from dgan.parallel.recompute import recompute

Function = Callable[..., Tensor]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


def relative(found: Tensor, wanted: Tensor) -> float:
    assert wanted.norm() > 0
    return ((found - wanted).norm() / wanted.norm()).item()


def assert_exact(network: nn.Module, *conditions: Any, **options: Any) -> None:
    """The two methods agree, on two copies since buffers move."""
    other = copy.deepcopy(network)
    wanted = gradient(network, network, "double", *conditions, **options)
    found = gradient(other, other, "forward", *conditions, **options)
    assert relative(found, wanted) < 1e-10
    for one, two in zip(network.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


# ── autograd Functions of the user ───────────────────────────────────────────────────────────────


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


# ── activation checkpointing ─────────────────────────────────────────────────────────────────────


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


def by_wrapper(network: nn.Sequential, index: int) -> None:
    network[index] = checkpoint_wrapper(network[index])


def by_dgan(network: nn.Sequential, index: int) -> None:
    recompute(network, blocks=[network[index]])


def inside(network: nn.Sequential, index: int) -> None:
    """A recomputed module within a recomputed module."""
    recompute(network[index], blocks=[network[index].nested])
    recompute(network, blocks=[network[index]])


def wrapped_inside(network: nn.Sequential, index: int) -> None:
    network[index].nested = checkpoint_wrapper(network[index].nested)
    network[index] = checkpoint_wrapper(network[index])


@pytest.mark.parametrize("apply", [by_wrapper, by_dgan, inside, wrapped_inside])
def test_recomputed_blocks_are_exact(apply: Callable[[nn.Sequential, int], None]) -> None:
    network = critic(Block(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8))))
    plain = copy.deepcopy(network)
    apply(network, 2)
    assert choose(network) == "forward"
    assert choose(plain) == "double"
    wanted = gradient(plain, plain, "forward")
    assert relative(gradient(network, network, "forward"), wanted) < 1e-10
    # Both ways again: the first call has left nothing.
    assert relative(gradient(network, network, "auto"), wanted) < 1e-10


class Outer(nn.Module):
    """Calls a block in each of the ways Python offers."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, h: Tensor) -> Tensor:
        h = self.block(h, 0.5, shift=h.square())
        h = self.block(h, shift=None).tanh()
        return self.block.forward(h, scale=2.0)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("recomputed", [False, True])
def test_a_block_called_three_ways(recomputed: bool, hooked: bool) -> None:
    """Named tensors with a tangent, twice by call, once past the hooks."""
    network = critic(Outer())
    plain = copy.deepcopy(network)
    if recomputed:
        recompute(network[2], blocks=[network[2].block])
    if hooked:
        network[2].block.register_forward_hook(lambda *_: None)
    wanted = gradient(plain, plain, "forward")
    assert relative(gradient(network, network, "forward"), wanted) < 1e-10
    with sdpa_kernel(SDPBackend.MATH):
        assert relative(wanted, gradient(plain, plain, "double")) < 1e-10


# ── hooks ────────────────────────────────────────────────────────────────────────────────────────


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


def shard_like(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that claims to come from where FSDP2's do, so it is to see ordinary tensors."""
    hook.__module__ = "torch.distributed.fsdp.test"
    return hook


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


# ── kinds, precisions, points ────────────────────────────────────────────────────────────────────


class Dead(nn.Module):
    """‖x‖²-like in the first half of the batch, flat in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.network = critic()

    def forward(self, x: Tensor) -> Tensor:
        alive = (torch.arange(len(x)) < len(x) // 2).double()
        return alive * self.network(alive[:, None] * x)


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("scale", [0.3, 30.0])
def test_one_centered(scale: float, one_sided: bool) -> None:
    """Gradients below 1, above 1 and 0."""
    network = Dead()
    with torch.no_grad():
        network.network[4].weight.mul_(scale)
    options = {"kind": "one_centered", "one_sided": one_sided}
    one = gradient_penalty(network, X.clone(), method="double", **options)
    two = gradient_penalty(network, X.clone(), method="forward", **options)
    torch.testing.assert_close(two.loss, one.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(two.norms, one.norms, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(two.logits, one.logits, rtol=1e-12, atol=1e-12)
    assert (one.norms == 0).any()
    assert one.exact
    assert two.exact
    wanted = gradient(network, network, "double", **options)
    found = gradient(network, network, "forward", **options)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert (wanted.norm() == 0) == (one_sided and scale < 1)


def test_autocast_costs_no_more_than_in_double_backward() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv1d(2, 16, 3, padding=1),
        nn.GELU(),
        nn.Flatten(1, -1),
        nn.LayerNorm(80),
        nn.Linear(80, 64),
        nn.SiLU(),
        nn.Linear(64, 1),
        nn.Flatten(0),
    )
    x = numbers(32, 2, 5, seed=4)

    def found(method: Any, network: nn.Module, x: Tensor) -> Tensor:
        loss = gradient_penalty(network, x, method=method).loss
        network.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    wanted = found("double", copy.deepcopy(network).double(), x)
    with torch.autocast("cpu", torch.bfloat16):
        # The double route leaves the last bias without gradient, as the penalty does.
        double, forward = (
            found(m, copy.deepcopy(network), x.float()) for m in ("double", "forward")
        )
    error, reference = (relative(g.double()[: len(double)], wanted) for g in (forward, double))
    assert 1e-4 < reference < 5e-2, "is autocast on?"
    assert error < 1.5 * reference


def test_the_difference_is_close_for_a_smooth_network_and_says_so() -> None:
    network = critic()
    output = gradient_penalty(network, X.clone(), method="difference")
    exact = gradient_penalty(network, X.clone(), method="double")
    assert output.exact is False
    torch.testing.assert_close(output.loss, exact.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output.logits, exact.logits, rtol=1e-12, atol=1e-12)
    wanted = gradient(network, network, "double")
    coarse, fine = (
        relative(gradient(network, network, "difference", step=h), wanted) for h in (1e-2, 1e-3)
    )
    assert fine < 1e-4
    # Central: the error falls with the square of the step.
    assert 50 < coarse / fine < 200


def test_interpolates_lie_between_their_ends() -> None:
    real, fake = numbers(64, 3, 4).requires_grad_(), numbers(64, 3, 4, seed=1).requires_grad_()
    draw = functools.partial(torch.Generator().manual_seed, 5)
    points = interpolate(real, fake, draw())
    assert torch.equal(points, interpolate(real, fake, draw()))
    assert not torch.equal(points, interpolate(real, fake, torch.Generator().manual_seed(6)))
    assert not points.requires_grad
    assert (points <= torch.maximum(real, fake)).all()
    assert (points >= torch.minimum(real, fake)).all()
    share = (points - fake) / (real - fake)
    # One share for each sample, spread over (0, 1).
    torch.testing.assert_close(share, share[:, :1, :1].expand_as(share), rtol=1e-6, atol=1e-6)
    assert share.min() < 0.1
    assert share.max() > 0.9


def test_the_neighbourhood_is_half_a_spread_wide() -> None:
    real = 3 * numbers(64, 3, 4).requires_grad_() + 1
    draw = functools.partial(torch.Generator().manual_seed, 5)
    points = neighbourhood(real, draw())
    assert torch.equal(points, neighbourhood(real, draw()))
    assert not torch.equal(points, neighbourhood(real, torch.Generator().manual_seed(6)))
    assert not points.requires_grad
    offset = (points - real) / real.std()
    assert offset.min() >= 0
    assert 0.45 < offset.max() <= 0.5
    torch.testing.assert_close(offset.mean().item(), 0.25, rtol=0, atol=0.02)

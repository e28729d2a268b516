"""A sharded discriminator's exact penalty: the weights after 8 steps equal one process's.

The reference is double backward on the whole batch in one process, in float64. Eight optimizer
steps, because gathered weights that do not follow an update are the classic failure.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from dgan import check_penalty, gradient_penalty
from dgan.networks import build
from dgan.parallel import recompute, reshard, shard
from dgan.parallel.world import World, launch

STEPS, ACCUMULATION, ROWS = 8, 2, 8


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.mlp = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).mT for t in self.qkv(self.norm1(x)).chunk(3, -1))
        q, k, v = (t.permute(0, 3, 1, 2) for t in (q, k, v))  # [N, heads, tokens, size / heads]
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Attention and layer normalisation: PyTorch's own forward mode is wrong or fails on both."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, size, 2, stride=2)
        self.blocks = nn.ModuleList(Block(size) for _ in range(2))
        self.head = nn.Linear(size, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1)).sum(1)


def network(family: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    if family == "transformer":
        module: nn.Module = Transformer()
    else:
        shape = {"widths": (12, 8), "blocks": (1, 1), "groups": (2, 2)}
        module = build("discriminator", "r3gan", seed=0, resolution=8, channels=1, **shape)
    with torch.no_grad():  # residual branches start at zero: wake them
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(ROWS, 1, 8, 8, generator=torch.Generator().manual_seed(step)).to(dtype)


def loss(discriminator: Any, x: Tensor, **options: Any) -> Tensor:
    output = gradient_penalty(discriminator, x, **options)
    return output.loss + F.softplus(output.logits).mean()


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), 1e-3, betas=(0.0, 0.9))


def expected(family: str, kind: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    module = network(family, dtype)
    optimizer = adam(module)
    for step in range(STEPS):
        with sdpa_kernel(SDPBackend.MATH):  # flash attention has no second derivative
            loss(module, batch(step, dtype), kind=kind, method="double").backward()
        optimizer.step()
        optimizer.zero_grad()
    return [whole(parameter) for parameter in module.parameters()]


def sharded(module: nn.Module, world: World, options: dict[str, Any]) -> nn.Module:
    """`fully_shard` as a user's own code would call it."""
    options = dict(options)
    mesh = world.mesh
    if options.pop("hybrid", False):
        mesh = init_device_mesh("cpu", (2, world.size // 2), mesh_dim_names=("copies", "shards"))
    for block in module.blocks:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(module, mesh=mesh, **options)
    return module


SHARDINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "reshard_after_forward off": {"reshard_after_forward": False},
    "offloaded to the CPU": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
}
ON_FOUR: dict[str, dict[str, Any]] = {
    "default": {},
    "hybrid": {"hybrid": True},
    "resharded to a part": {"reshard_after_forward": 2},
}


def recomputed(module: nn.Module, how: str) -> nn.Module:
    if how == "dgan":
        return recompute(module)
    if how == "PyTorch":
        holder = module.stages if hasattr(module, "stages") else module.blocks
        for index, block in enumerate(holder):
            holder[index] = checkpoint_wrapper(block)
    return module


@contextmanager
def accumulating(module: nn.Module, last: bool) -> Iterator[None]:
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = last
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    yield


def train(module: nn.Module, world: World, dtype: torch.dtype, **options: Any) -> list[Tensor]:
    optimizer = adam(module)
    rows = ROWS // world.size // ACCUMULATION
    for step in range(STEPS):
        mine = batch(step, dtype).chunk(world.size)[world.rank]
        for index, x in enumerate(mine.split(rows)):
            with accumulating(module, last=index == ACCUMULATION - 1):
                (loss(module, x, **options) / ACCUMULATION).backward()
        if options.get("method") == "double":
            reshard(module)
        optimizer.step()
        optimizer.zero_grad()
    return [whole(parameter) for parameter in module.parameters()]


def train_everywhere(
    shardings: dict[str, dict[str, Any]], ways: tuple[str, ...]
) -> dict[str, list[Tensor]]:
    """The weights of every combination, by its name."""
    found: dict[str, list[Tensor]] = {}
    f64 = torch.float64
    with launch(precision="float64") as world:
        for family in ("convolutional", "transformer"):
            for kind in ("zero_centered", "one_centered"):
                for how in ways:
                    for name, options in shardings.items():
                        module = sharded(recomputed(network(family), how), world, options)
                        key = f"{family}, {kind}, {name}, recompute {how or 'nothing'}"
                        found[key] = train(module, world, f64, kind=kind)
                replica = DistributedDataParallel(network(family))
                found[f"{family}, {kind}, DDP"] = train(
                    replica, world, f64, kind=kind, method="forward"
                )
        for kind in ("zero_centered", "one_centered"):
            for family in ("convolutional", "transformer"):
                module = sharded(recomputed(network(family), "dgan"), world, {})
                found[f"{family}, {kind}, kept unsharded"] = train(
                    module, world, f64, kind=kind, keep_unsharded=True
                )
            kept = shard(network("convolutional"), world.mesh, keep_for_double_backward=True)
            found[f"convolutional, {kind}, double"] = train(
                kept, world, f64, kind=kind, method="double"
            )
    return found


@pytest.mark.parametrize(
    ("size", "shardings", "ways"),
    [(2, SHARDINGS, ("", "dgan", "PyTorch")), (4, ON_FOUR, ("", "dgan"))],
)
def test_weights_equal_double_backward_in_one_process(
    size: int, shardings: dict[str, dict[str, Any]], ways: tuple[str, ...]
) -> None:
    references = {
        (family, kind): expected(family, kind)
        for family in ("convolutional", "transformer")
        for kind in ("zero_centered", "one_centered")
    }
    start = {
        family: list(network(family).parameters()) for family in ("convolutional", "transformer")
    }
    for results in run_ranks(size, train_everywhere, shardings, ways, timeout_s=540):
        assert len(results) == 2 * 2 * (len(ways) * len(shardings) + 2) + 2
        for name, weights in results.items():
            family, kind, *_ = name.split(", ")
            for weight, wanted, before in zip(weights, references[family, kind], start[family]):
                scale = wanted.abs().max()
                assert (weight - wanted).abs().max() <= 1e-10 * scale, name
                # The last bias of a Wasserstein-like term alone would stand still; nothing here.
                assert (wanted - before).abs().max() > 1e-6 * scale, name


def gradients(module: nn.Module, x: Tensor, **options: Any) -> Tensor:
    loss(module, x, **options).backward()
    return torch.cat([whole(p.grad).double().flatten() for p in module.parameters()])


def gradients_in_low_precision() -> dict[str, Tensor]:
    narrow = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    found = {}
    with launch() as world:
        for family in ("convolutional", "transformer"):
            x = batch(0, torch.float32).chunk(world.size)[world.rank]
            module = sharded(network(family, torch.float32), world, {})
            found[f"{family} float32"] = gradients(module, x)
            module = sharded(network(family, torch.float32), world, {"mp_policy": narrow})
            found[f"{family} bfloat16"] = gradients(module, x)
    return found


def distance(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


def test_low_precision_is_as_good_as_double_backward_there() -> None:
    (found, _) = run_ranks(2, gradients_in_low_precision)
    for family in ("convolutional", "transformer"):
        with sdpa_kernel(SDPBackend.MATH):
            exact = gradients(network(family), batch(0), method="double")
            narrow = network(family, torch.bfloat16)
            double = gradients(narrow, batch(0, torch.bfloat16), method="double")
        assert distance(found[f"{family} float32"], exact) <= 2e-6
        assert distance(found[f"{family} bfloat16"], exact) <= 1.5 * distance(double, exact)


class ConstantSlope(torch.autograd.Function):
    """tanh, whose backward forgets that its slope depends on the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * (1 - x.tanh() ** 2).detach()


class Wrong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(ConstantSlope.apply(2 * self.hidden(x.flatten(1)))).sum(1)


def check_everywhere() -> tuple[dict[str, float], list[str]]:
    errors: dict[str, float] = {}
    messages = []
    with launch(precision="float64") as world:
        x = batch(0).chunk(world.size)[world.rank]
        for family in ("convolutional", "transformer"):
            for name, options in SHARDINGS.items():
                module = sharded(network(family), world, options)
                before = [whole(p) for p in module.parameters()]
                errors[f"{family}, {name}"] = check_penalty(module, x)
                assert all(torch.equal(a, whole(p)) for a, p in zip(before, module.parameters()))
                assert all(p.grad is None for p in module.parameters())
            replica = DistributedDataParallel(network(family))
            errors[f"{family}, DDP"] = check_penalty(replica, x, method="forward")
        torch.manual_seed(0)
        wrong = Wrong().double()
        for module in (
            shard(wrong, world.mesh, blocks=[wrong.hidden], keep_for_double_backward=True),
            DistributedDataParallel(Wrong().double()),
        ):
            try:
                check_penalty(module, x, method="double")
            except ArithmeticError as error:
                messages.append(str(error))
    return errors, messages


def test_the_check_passes_what_is_right_and_finds_what_is_wrong() -> None:
    for errors, messages in run_ranks(2, check_everywhere):
        assert max(errors.values()) < 1e-4, errors
        assert len(messages) == 2
        for message in messages:
            assert "is off by" in message
            assert "hidden (" in message


def check_in_bfloat16() -> tuple[dict[str, float], str]:
    narrow = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    errors = {}
    with launch(precision="float32") as world:
        x = batch(0, torch.float32).chunk(world.size)[world.rank]
        for family in ("convolutional", "transformer"):
            module = sharded(network(family, torch.float32), world, {"mp_policy": narrow})
            errors[family] = check_penalty(module, x)
        errors["weights of 16 bits"] = check_penalty(
            network("convolutional", torch.bfloat16), x.bfloat16(), method="double"
        )
        torch.manual_seed(0)
        wrong = Wrong()
        shard(
            wrong, world.mesh, blocks=[wrong.hidden],
            keep_for_double_backward=True, compute_dtype=torch.bfloat16,
        )  # fmt: skip
        with pytest.raises(ArithmeticError, match="is off by") as error:
            check_penalty(wrong, x, method="double")
    return errors, str(error.value)


def test_the_check_tells_rounding_from_mistakes() -> None:
    """In bfloat16 a small step of the weights would be rounded away."""
    for errors, message in run_ranks(2, check_in_bfloat16):
        assert 1e-3 < max(errors.values()) < 0.06, errors
        assert "hidden (" in message

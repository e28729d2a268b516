"""Compiled blocks: penalties through them stay exact, and training goes as it goes without."""

import copy
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from ranks import run_ranks
from tiny import tiny
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.tensor import DTensor

import dgan
from dgan.build import build_players, pace
from dgan.networks import build
from dgan.opening import open_stream
from dgan.parallel.compiled import compile_blocks
from dgan.parallel.recompute import recompute
from dgan.parallel.world import launch
from dgan.step import adversarial_step
from dgan.validation import validate


def discriminator() -> nn.Module:
    options: dict[str, Any] = {"widths": (6, 4), "blocks": (1, 1), "groups": (3, 2)}
    options |= {"resolution": 8, "channels": 1, "classes": 0}
    network = build("discriminator", "r3gan", seed=0, **options).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():  # residual branches begin at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def gradient(network: Any, parameters: list[Tensor], method: Any) -> Tensor:
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    output = dgan.gradient_penalty(network, images, method=method)
    loss = output.loss + output.logits.mean()
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("method", ["double", "forward", "auto"])
def test_a_penalty_is_exact_through_compiled_code(
    method: str, recomputed: bool, whole: bool
) -> None:
    if recomputed and method == "double":
        pytest.skip("recomputed blocks have no second derivative")
    torch.compiler.reset()
    plain = discriminator()
    wanted = gradient(plain, list(plain.parameters()), "double")
    # Differentiates its graphs ahead of time, as the default does, without a compiler.
    counted = CompileCounterWithBackend("aot_eager")
    network = copy.deepcopy(plain)
    if recomputed:
        recompute(network)
    if whole:
        called = torch.compile(network, backend=counted)
    else:
        called = network
        for block in network.blocks:  # pyright: ignore[reportGeneralTypeIssues]
            block.compile(backend=counted)
    found = gradient(called, list(network.parameters()), method)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(called(torch.ones(2, 1, 8, 8).double()).shape, (2,))
    assert counted.frame_count > 0, "nothing was compiled"


def test_an_ordinary_pass_runs_compiled() -> None:
    """The first pass of `forward` differentiates once: it is not kept from compiled code."""
    torch.compiler.reset()
    network, counted = discriminator(), CompileCounterWithBackend("aot_eager")
    for block in network.blocks:  # pyright: ignore[reportGeneralTypeIssues]
        block.compile(backend=counted)
    gradient(network, list(network.parameters()), "forward")
    assert counted.frame_count >= 2


def trained(shards: str, strategy: str, compiled: bool) -> dict[str, Tensor]:
    """Every trained weight after two steps, of which one takes a penalty."""
    options = {"parallel__strategy": strategy, "parallel__compile": compiled}
    recipe = tiny(shards, "", "mlp", **options, data__classes=0)
    recipe = replace(recipe, penalty=replace(recipe.penalty, every=2))
    validate(recipe)
    with launch(precision="float64") as world, open_stream(recipe, world) as stream:
        players = build_players(recipe, world)
        for step in (1, 2):
            adversarial_step(players, stream, step, pace(recipe), world)
        parts = {k: v for k, v in players.state().items() if isinstance(v, Tensor)}
        return {
            name: (part.full_tensor() if isinstance(part, DTensor) else part).detach().clone()
            for name, part in parts.items()
        }


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_training_goes_as_without(digits: str) -> None:
    wanted = trained(digits, "single", False)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    runs = [trained(digits, "single", True)]
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0, "nothing was compiled"
    runs += run_ranks(2, trained, digits, "fsdp", True)
    for found in runs:
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            error = (found[name] - tensor).abs().max().item()
            assert error <= 1e-9 * max(1.0, tensor.abs().max().item()), name


def test_it_is_not_for_deepspeed_nor_for_networks_without_blocks() -> None:
    with pytest.raises(ValueError, match=r"parallel.compile True means nothing under .* deepspeed"):
        validate(tiny("x", "", parallel__strategy="deepspeed", parallel__compile=True))
    with pytest.raises(ValueError, match=r"Linear names no `.blocks` to compile: .*compile false"):
        compile_blocks(nn.Linear(1, 1))

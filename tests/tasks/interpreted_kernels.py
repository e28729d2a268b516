"""Which kernels a step of training takes, with `train.kernels` and without.

Not collected by name: `test_kernels.py` runs it with TRITON_INTERPRET=1, for then kernels serve
CPU tensors, as they do a GPU's.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import OPTIONS, tiny
from triton.runtime.interpreter import InterpretedFunction

from dgan.build import build_network, build_task
from dgan.draws import Draws
from dgan.networks.layers import without_kernels
from dgan.networks.virtual_batch_norm import VirtualBatchNorm
from dgan.objectives.check import check_penalty
from dgan.objectives.penalties import gradient_penalty
from dgan.parallel.world import World, launch

ROWS = 2
BATCH = {"image": torch.randn(ROWS, 1, 8, 8).tanh(), "label": torch.tensor([3, 4])}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with launch() as joined:
        yield joined


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of the kernels that run."""
    files: list[str] = []
    run = InterpretedFunction.run

    def noted(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        files.append(kernel.fn.__module__.removeprefix("dgan_kernels.triton_"))
        return run(kernel, *args, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "run", noted)
    return files


def step(world: World, family: str, **changes: Any) -> None:
    """Both players' losses with a penalty and ADA, and their gradients."""
    penalty = {"penalty__points": "between", "penalty__kind": "one_centered"}
    recipe = tiny("", "", family, augment__kind="ada", **penalty, **changes)
    networks = [build_network(recipe, "generator"), build_network(recipe, "discriminator")]
    task = build_task(recipe, world, *networks)
    task.augmentation.p.fill_(1.0)
    draws = Draws(
        seed=0, purpose="", step=1, rows=range(ROWS), device=world.device, dtype=world.dtype
    )
    task.discriminator_loss(networks[1], networks[0], BATCH, draws, 0)["loss"].backward()
    task.generator_loss(networks[0], networks[1], BATCH, draws, 0)["loss"].backward()


@pytest.mark.parametrize("method", ["double", "forward", "difference"])
@pytest.mark.parametrize("family", OPTIONS)
def test_none_runs_without(family: str, method: str, world: World, launched: list[str]) -> None:
    weight = 2.0 if family in ("stylegan2", "r3gan") else 0.0  # the others couple samples
    changes = {"penalty__method": method, "regularizers__path_length": weight}
    step(world, family, **changes, train__kernels=False)
    assert launched == []


def test_some_run_with(world: World, launched: list[str]) -> None:
    step(world, "transformer", penalty__method="forward")
    assert {*launched} >= {"bias_act", "gradient_penalty", "upfirdn2d", "norm_resident"}


def attention(x: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(x, x, x).square().sum((1, 2))


def test_the_tangent_pass_takes_none(launched: list[str]) -> None:
    """Where attention is long enough for a kernel of its own, and in the check of a penalty."""
    layer = torch.nn.Linear(4, 4)
    judge = lambda x: attention(layer(x))  # noqa: E731
    x = torch.randn(1, 512, 4)
    gradient_penalty(judge, x, method="forward", backend="reference").loss.backward()
    check_penalty(judge, x[:, :3], method="forward", backend="reference")
    assert launched == []


def test_virtual_batch_norm(launched: list[str]) -> None:
    norm = VirtualBatchNorm(3)
    norm.reference = 2
    x = torch.randn(4, 3, 2, 2)
    norm(x)
    assert launched == ["bias_act"]
    launched.clear()
    without_kernels(norm)(x)
    assert launched == []

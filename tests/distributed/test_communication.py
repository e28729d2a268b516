"""How often a penalty's passes exchange weights and gradients under FSDP2."""

from collections import Counter
from typing import Any

import pytest
import torch
from ranks import run_ranks
from test_sharded_penalties import batch, loss, network, recomputed, sharded
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from dgan import gradient_penalty
from dgan.objectives.penalties import input_gradient
from dgan.objectives.upstream import FLAGS, parameter_groups
from dgan.parallel import reshard
from dgan.parallel.world import launch

UNITS = 3
"""Two blocks and what is left."""


class Collectives(TorchDispatchMode):
    """Counts gathers, reductions over shards, and all other exchanges."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func.__name__
            self.counts[
                "gather" if "gather" in name else "reduce" if "reduce" in name else name
            ] += 1
        return func(*args, **(kwargs or {}))


def counted() -> dict[str, dict[str, int]]:
    """Exchanges of a second step, when FSDP2 has set itself up."""
    found = {}
    with launch(precision="float64") as world:
        x = batch(0).chunk(world.size)[world.rank]
        for how in ("", "dgan"):
            for keep in (False, True):
                module = sharded(recomputed(network("transformer"), how), world, {})
                loss(module, x).backward()
                with Collectives() as mode:
                    input_gradient(module, x.clone(), ())
                found[f"first pass {how} {keep}"] = dict(mode.counts)
                with Collectives() as mode:
                    loss(module, x, keep_unsharded=keep).backward()
                found[f"step {how} {keep}"] = dict(mode.counts)
    return found


def test_the_first_pass_reduces_nothing_and_keeping_halves_the_gathers() -> None:
    for found in run_ranks(2, counted):
        for how in ("", "dgan"):
            for keep in (False, True):
                first = found[f"first pass {how} {keep}"]
                assert first.keys() == {"gather"}, first
                step = found[f"step {how} {keep}"]
                assert step.keys() == {"gather", "reduce"}, step
                assert step["reduce"] == UNITS
            usual = found[f"step {how} False"]["gather"]
            # The root stays gathered between its forward and its backward.
            assert usual == 2 * (2 * UNITS - 1)
            assert found[f"step {how} True"]["gather"] == usual // 2


def flags_are_as_before() -> list[str]:
    problems = []
    with launch(precision="float64") as world:
        x = batch(0).chunk(world.size)[world.rank]
        for options in ({}, {"reshard_after_forward": False}):
            module = sharded(network("transformer"), world, options)
            loss(module, x).backward()
            module.set_requires_gradient_sync(False)
            module.set_reshard_after_backward(False)
            reshard(module)
            before = flags(module)
            loss(module, x, method="forward", keep_unsharded=True).backward()
            if flags(module) != before:
                problems.append(f"{options}: {before} → {flags(module)}")
            if not any(False in values for values in before):
                problems.append("no flag was changed")
    return problems


def flags(module: nn.Module) -> list[list[Any]]:
    parts = [module, *module.blocks]
    groups = [group for part in parts for group in parameter_groups(part)]
    return [[getattr(group, flag) for flag in FLAGS] for group in groups]


def test_the_users_own_settings_are_left_as_they_were() -> None:
    assert run_ranks(2, flags_are_as_before) == [[], []]


def refusals() -> list[str]:
    messages = []
    with launch(precision="float64") as world:
        x = batch(0).chunk(world.size)[world.rank]
        static = DistributedDataParallel(network("convolutional"), static_graph=True)
        whole = sharded(network("convolutional"), world, {})
        empty = x[:0] if world.is_first else x
        for discriminator, images, method in (
            (static, x, "auto"),
            (static, x, "double"),
            (whole, x, "double"),
            (whole, empty, "forward"),
        ):
            # A rank that refuses must do so before it has joined an exchange.
            if method == "forward" and not world.is_first:
                continue
            with pytest.raises(ValueError, match=r".") as error:
                gradient_penalty(discriminator, images, method=method)
            messages.append(str(error.value))
    return messages


def test_what_would_be_wrong_is_refused() -> None:
    first, second = run_ranks(2, refusals)
    assert first[:3] == second
    assert all("static_graph=True" in message for message in first[:2])
    assert "needs what FSDP2 frees" in first[2]
    assert "every rank needs at least one" in first[3]


def test_flags_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a release of PyTorch had renamed one."""
    import dgan.objectives.upstream as upstream

    with launch(precision="float64") as world:
        module = sharded(network("transformer"), world, {})
        assert parameter_groups(module)
        monkeypatch.setattr(upstream, "FLAGS", (*FLAGS, "renamed"))
        with pytest.raises(RuntimeError, match="not known to dgan"):
            parameter_groups(module)
    assert torch.is_grad_enabled()

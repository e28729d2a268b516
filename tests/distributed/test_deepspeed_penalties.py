"""Exact penalties in a user's own loop under ZeRO 1, 2 and 3, and what dgan reads of DeepSpeed.

DeepSpeed keeps float32: gradients are compared with double backward in float64.
"""

import os
from typing import Any

import pytest
import torch
from ranks import run_ranks
from test_sharded_penalties import (
    Wrong,
    batch,
    distance,
    gradients,
    loss,
    network,
    recomputed,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dgan import check_penalty, gradient_penalty
from dgan.parallel.deepspeed_configuration import deepspeed_configuration
from dgan.parallel.world import World, launch

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")

STAGES = (1, 2, 3)
FEW = {"stage3_param_persistence_threshold": 0}
"""So that small parameters are partitioned too."""


def engine(module: nn.Module, stage: int, bfloat16: bool = False, **zero: Any) -> Any:
    """As a user's own code would make it."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    from dgan.parallel.fragments import without_compiling

    without_compiling()
    configuration = deepspeed_configuration(
        stage=stage, batch_size=8, accumulation=1, world_size=2, bfloat16=bfloat16, offload=False
    )
    configuration["zero_optimization"] |= {**(FEW if stage == 3 else {}), **zero}
    optimizer = torch.optim.SGD(module.parameters(), 1.0)
    return deepspeed.initialize(model=module, optimizer=optimizer, config=configuration)[0]


def all_gradients(stages: tuple[int, ...]) -> dict[str, Tensor]:
    found = {}
    with launch(precision="float32") as world:
        for family in ("convolutional", "transformer"):
            for stage in stages:
                for how in ("", "dgan"):
                    for kind in ("zero_centered", "one_centered"):
                        key = f"{family}, {kind}, forward, {stage} {how}"
                        module = recomputed(network(family, torch.float32), how)
                        found[key] = gradient(module, stage, world, kind=kind, method="forward")
                if stage < 3:
                    with sdpa_kernel(SDPBackend.MATH):
                        found[f"{family}, zero_centered, double, {stage}"] = gradient(
                            network(family, torch.float32), stage, world, method="double"
                        )
                narrow = network(family, torch.float32)
                found[f"{family}, bfloat16, forward, {stage}"] = gradient(
                    narrow, stage, world, bfloat16=True, method="forward"
                )
    return found


def gradient(
    module: nn.Module, stage: int, world: World, bfloat16: bool = False, **options: Any
) -> Tensor:
    from deepspeed.utils import safe_get_full_grad

    made = engine(module, stage, bfloat16)
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    x = batch(0, dtype).chunk(world.size)[world.rank]
    made.backward(loss(made, x, **options))
    parts = [safe_get_full_grad(p) for p in module.parameters()]
    return torch.cat([part.detach().double().flatten() for part in parts])


@pytest.mark.parametrize("stages", [(1, 2), (3,)])
def test_a_gradient_is_exact(stages: tuple[int, ...]) -> None:
    exact, narrow = {}, {}
    for family in ("convolutional", "transformer"):
        with sdpa_kernel(SDPBackend.MATH):
            for kind in ("zero_centered", "one_centered"):
                exact[family, kind] = gradients(
                    network(family), batch(0), kind=kind, method="double"
                )
            half = network(family, torch.bfloat16)
            double = gradients(half, batch(0, torch.bfloat16), method="double")
            narrow[family] = distance(double, exact[family, "zero_centered"])
    for found in run_ranks(2, all_gradients, stages, timeout_s=400):
        for name, value in found.items():
            family, kind, *_ = name.split(", ")
            if kind == "bfloat16":
                error = distance(value, exact[family, "zero_centered"])
                assert error <= 1.5 * narrow[family], name
            else:
                assert distance(value, exact[family, kind]) <= 2e-6, name


def checks() -> tuple[list[float], list[str]]:
    errors, messages = [], []
    with launch(precision="float32") as world:
        x = batch(0, torch.float32).chunk(world.size)[world.rank]
        for stage in STAGES:
            module = network("transformer", torch.float32)
            made = engine(module, stage)
            for discriminator in (made, module):
                errors.append(check_penalty(discriminator, x, method="forward"))
            # It leaves no gradient behind: the next step is that of the batch alone.
            made.backward(loss(made, x, method="forward"))
            made.step()
            torch.manual_seed(0)
            wrong = engine(Wrong(), stage)
            if stage < 3:
                try:
                    check_penalty(wrong, x, method="double")
                except ArithmeticError as error:
                    messages.append(str(error))
            else:
                try:
                    gradient_penalty(wrong, x, method="double")
                except ValueError as error:
                    messages.append(str(error))
        # Last, for it exchanges torch.nn.functional.linear in the whole process.
        patched = engine(network("transformer", torch.float32), 3, memory_efficient_linear=True)
        try:
            gradient_penalty(patched, x)
        except ValueError as error:
            messages.append(str(error))
    return errors, messages


def test_the_check_works_and_double_is_refused_where_it_fails() -> None:
    for errors, messages in run_ranks(2, checks):
        assert max(errors) < 1e-3, errors
        assert len(messages) == 4
        assert all("is off by" in message and "hidden (" in message for message in messages[:2])
        assert "ZeRO-3" in messages[2]
        assert "method='forward' is exact here" in messages[2]
        assert "memory_efficient_linear to false" in messages[3]


def inside() -> list[str]:
    """What `dgan.parallel.fragments` reads of DeepSpeed, compared with its public accessors."""
    from deepspeed.comm import comm
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    from dgan.parallel.fragments import fragments, gradients

    problems = []
    with launch(precision="float32") as world:
        for stage in STAGES:
            module = network("convolutional", torch.float32)
            made = engine(module, stage)
            x = batch(0, torch.float32).chunk(world.size)[world.rank]
            made.backward(loss(made, x, method="forward"))
            square = torch.stack([g.double().square().sum() for g in gradients(made.optimizer)])
            total = world.total(square.sum())
            held = fragments(module, made.optimizer)
            for name, parameter in module.named_parameters():
                full = safe_get_full_fp32_param(parameter).flatten()
                part = held[name].view(held[name].flat)
                begin = held[name].start
                if not torch.equal(part, full[begin : begin + len(part)]):
                    problems.append(f"stage {stage}: {name}")
                counts = world.total(torch.tensor(held[name].size))
                if counts != full.numel():
                    problems.append(f"stage {stage}: {name} is held {counts} of {full.numel()}")
            exact = sum(
                safe_get_full_grad(p).double().square().sum().item() for p in module.parameters()
            )
            if abs(total.item() - exact) > 1e-5 * exact:
                problems.append(f"stage {stage}: ‖∇‖² {total.item()} ≠ {exact}")
        if comm.cdb.shm_comm_op is not None:
            problems.append("DeepSpeed compiled its own reduction")
    return problems


def test_deepspeed_holds_its_tensors_as_we_read_them() -> None:
    assert run_ranks(2, inside) == [[], []]

"""DeepSpeed's ZeRO 1, 2 and 3 with an engine for each network, on two real ranks.

DeepSpeed keeps float32, so the weights after 8 steps are compared with those of one process in
float32, and single gradients with double backward in float64.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import assert_same_checkpoint, checkpoint_of, metrics, stored
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
from tiny import tiny
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dgan import check_penalty, gradient_penalty
from dgan.build import build_players, open_stream, pace
from dgan.checkpoint import Checkpoints, load
from dgan.config import Recipe
from dgan.parallel.deepspeed_configuration import deepspeed_configuration
from dgan.parallel.world import World, launch
from dgan.step import adversarial_step
from dgan.train import train

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")

STAGES = (1, 2, 3)
STEPS = 8
CASES: dict[str, dict[str, Any]] = {
    "relativistic": {},
    "forward": {"penalty__method": "forward"},
    "accumulated": {"train__accumulation": 2, "train__discriminator_updates": 2},
    "accumulated forward": {"train__accumulation": 2, "penalty__method": "forward"},
    "recomputed": {"parallel__activation_checkpointing": True},
    "batch norm": {"family": "dcgan"},
    "offloaded": {"parallel__offload": True},
}
FEW = {"stage3_param_persistence_threshold": 0}
"""So that small parameters are partitioned too."""


def recipes(shards: str, **parallel: Any) -> list[Recipe]:
    """Every case, under a strategy."""
    made = [tiny(shards, "", **case) for case in CASES.values()]
    offloads = parallel["strategy"] == "deepspeed"
    return [
        replace(
            r, parallel=replace(r.parallel, offload=r.parallel.offload and offloads, **parallel)
        )
        for r in made
    ]


def train_and_save(recipes: list[Recipe], folder: Path) -> list[dict[str, float]]:
    """Some steps of each recipe, saved; the last step's metrics."""
    found = []
    with launch(precision="float32") as world:
        for name, recipe in zip(CASES, recipes):
            with open_stream(recipe, world) as stream:
                players = build_players(recipe, world)
                for step in range(1, STEPS + 1):
                    numbers = adversarial_step(players, stream, step, pace(recipe), world)
                found.append(numbers)
            checkpoints = Checkpoints(folder / name / "checkpoints", keep=1, world=world)
            checkpoints.save(STEPS, players.state(), {})
            checkpoints.wait()
    return found


@pytest.fixture(scope="module")
def reference(
    digits: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, float]]]:
    folder = tmp_path_factory.mktemp("single")
    return folder, train_and_save(recipes(digits, strategy="single"), folder)


@pytest.mark.parametrize("stage", STAGES)
def test_weights_and_metrics_equal_one_process(
    stage: int, digits: str, reference: Any, tmp_path: Path
) -> None:
    folder, numbers = reference
    plans = recipes(digits, strategy="deepspeed", zero_stage=stage)
    if stage == 3:
        small = tmp_path / "small.json"
        small.write_text('{"zero_optimization": {"stage3_param_persistence_threshold": 0}}')
        # Half of the cases with small parameters kept whole, as DeepSpeed does by default.
        plans[::2] = [
            replace(p, parallel=replace(p.parallel, deepspeed_config=str(small)))
            for p in plans[::2]
        ]
    (found, _) = run_ranks(2, train_and_save, plans, tmp_path)
    for case, values, wanted in zip(CASES, found, numbers):
        assert values == pytest.approx(wanted, rel=2e-3, abs=1e-4), case
        ours = stored(checkpoint_of(tmp_path / case, STEPS))
        theirs = stored(checkpoint_of(folder / case, STEPS))
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            error = (ours[name].double() - tensor.double()).norm()
            # Adam divides by gradients that may be near zero: rounding grows over steps.
            assert error <= 1e-4 * tensor.double().norm() + 1e-6, (case, name)


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


def read_everywhere(recipe: Recipe, path: Path, out: Path) -> None:
    """Fill players from a checkpoint and write them out again."""
    with launch(precision="float32") as world:
        players = build_players(recipe, world)
        load(path, players.state(), distributed=True)
        players.loaded()
        checkpoints = Checkpoints(out / "checkpoints", keep=1, world=world)
        checkpoints.save(1, players.state(), {})
        checkpoints.wait()
        with players.average.network() as generator:
            z = torch.ones(2, players.task.z_dim)
            image = generator(z, torch.zeros(2, dtype=torch.int64))
        torch.save(image, out / f"image-{world.rank}.pt")


def test_every_strategy_reads_what_every_other_wrote(
    digits: str, reference: Any, tmp_path: Path
) -> None:
    folder, _ = reference
    source = checkpoint_of(folder / "relativistic", STEPS)
    plan = tiny(digits, "")
    images = {}
    for strategy, stage in (("deepspeed", 3), ("fsdp", 3), ("deepspeed", 1), ("ddp", 3)):
        out = tmp_path / f"{strategy}{stage}"
        parallel = replace(plan.parallel, strategy=strategy, zero_stage=stage)
        run_ranks(2, read_everywhere, replace(plan, parallel=parallel), source, out)
        source = checkpoint_of(out, 1)
        images[strategy, stage] = [torch.load(out / f"image-{rank}.pt") for rank in (0, 1)]
    ours = stored(source)
    theirs = stored(checkpoint_of(folder / "relativistic", STEPS))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    (first, _), *others = images.values()
    for pair in others:
        for image in pair:
            assert torch.allclose(image, first, atol=1e-5)


def test_a_run_goes_on_bit_for_bit(digits: str, tmp_path: Path) -> None:
    """Four steps at once; three and one more. DeepSpeed's groups outlive a run: new processes."""
    for name, steps in (("whole", 4), ("parts", 3), ("parts", 4)):
        plan = tiny(digits, str(tmp_path / name), "dcgan", checkpoint__every=1, train__steps=steps)
        plan = replace(plan, train=replace(plan.train, deterministic=True))
        parallel = replace(plan.parallel, strategy="deepspeed")
        run_ranks(2, train, replace(plan, parallel=parallel))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert_same_checkpoint(checkpoint_of(parts, 4), checkpoint_of(whole, 4))
    assert metrics(parts) == metrics(whole)


def test_float64_is_refused(digits: str) -> None:
    recipe = tiny(digits, "", parallel__strategy="deepspeed")
    with (
        launch(precision="float64") as world,
        pytest.raises(ValueError, match=r"keeps float32 weights.*--train.precision float32"),
    ):
        build_players(recipe, world)


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

"""DeepSpeed's ZeRO 1, 2 and 3 with an engine for each network, on two real ranks.

DeepSpeed keeps float32, so the weights after 8 steps are compared with one process's in float32.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from captions import EMBEDDED
from clips import AUDIO, JUDGES
from commands import assert_same_checkpoint, checkpoint_of, metrics, stored
from every_kind import Shards, every_kind, recipe_of
from films import FILM
from pairs import PAIRED, UNPAIRED
from ranks import run_ranks
from texts import TEXT
from tiny import tiny

from dgan.build import build_players, pace
from dgan.checkpoint import Checkpoints, load
from dgan.config import Recipe
from dgan.opening import open_stream
from dgan.parallel.world import launch
from dgan.step import adversarial_step
from dgan.train import train

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")

STAGES = (1, 2, 3)
STEPS = 8
FEWER = {"unpaired": 3, "audio judges": 3, "projected": 5}
"""Then rounding decides about the sign of a difference in |x|, or on which side of a leaky ReLU's
kink a unit is: float32 and float64 part too."""
# Some gradients are hardly more than rounding, as a bias's before batch normalisation, and Adam
# would scale it up. In float64 the same networks agree to 1e-9 (`test_parity.py`).
STEADY = {"generator__epsilon": 1e-3, "discriminator__epsilon": 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "relativistic": {},
    "forward": {"penalty__method": "forward"},
    "accumulated": {"train__accumulation": 2, "train__discriminator_updates": 2},
    "accumulated forward": {"train__accumulation": 2, "penalty__method": "forward"},
    "recomputed": {"parallel__activation_checkpointing": True},
    "batch norm": {"family": "dcgan"},
    "stylegan2": {
        "family": "stylegan2",
        "task__loss": "non_saturating",
        "generator__options": {"z_dim": 6, "w_dim": 5, "mapping_layers": 2, "widths": (8, 6)},
        "discriminator__options": {"widths": (8, 6), "group_size": 2},
        **STEADY,
    },
    "transformer": {"family": "transformer", "task__loss": "non_saturating"},
    "patch": {
        "task__loss": "least_squares",
        "data__classes": 0,
        "discriminator__network": "patch",
        "discriminator__options": {"width": 4, "receptive_field": 16, "norm": "none"},
    },
    "sngan": {"family": "sngan", "task__loss": "hinge", **STEADY},
    "biggan": {"family": "biggan", "task__loss": "hinge", **STEADY},
    "offloaded": {"parallel__offload": True},
    "feature matching": {
        "family": "mlp",
        "task__loss": "hinge",
        "task__generator": "feature_matching",
    },
    "paired": PAIRED,
    "unpaired": UNPAIRED,
    "projected": {
        "family": "mlp",
        # Of a hinge that every sample is within, a bias has no gradient but rounding.
        "task__loss": "least_squares",
        "discriminator__network": "projected",
        "discriminator__options": {"width": 6, "norm": "layer"},  # and an extractor
        **STEADY,
    },
    "captions": {**EMBEDDED, "data__encoder": "captions:encode", "train__batch_size": 16},
    "video": FILM,
    "audio": AUDIO,
    "audio judges": {**AUDIO, **JUDGES, **STEADY},
    "text": {**TEXT, **STEADY},
}


def recipes(shards: Shards, **parallel: Any) -> list[Recipe]:
    """Every case, under a strategy."""
    offloads = parallel["strategy"] == "deepspeed"
    return [
        replace(
            r, parallel=replace(r.parallel, offload=r.parallel.offload and offloads, **parallel)
        )
        for r in (recipe_of(case, shards) for case in CASES.values())
    ]


def train_and_save(recipes: list[Recipe], folder: Path) -> list[dict[str, float]]:
    """Some steps of each recipe, saved; the last step's metrics."""
    found = []
    with launch(precision="float32") as world:
        for name, recipe in zip(CASES, recipes):
            with open_stream(recipe, world) as stream:
                players = build_players(recipe, world)
                for step in range(1, FEWER.get(name, STEPS) + 1):
                    numbers = adversarial_step(players, stream, step, pace(recipe), world)
                found.append(numbers)
            checkpoints = Checkpoints(folder / name / "checkpoints", keep=1, world=world)
            checkpoints.save(STEPS, players.state(), {})
            checkpoints.wait()
    return found


@pytest.fixture(scope="module")
def shards(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return every_kind(digits, tmp_path_factory.mktemp("every-kind"))


@pytest.fixture(scope="module")
def reference(
    shards: Shards, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, float]]]:
    folder = tmp_path_factory.mktemp("single")
    return folder, train_and_save(recipes(shards, strategy="single"), folder)


@pytest.mark.parametrize("stage", STAGES)
def test_weights_and_metrics_equal_one_process(
    stage: int, shards: Shards, reference: Any, tmp_path: Path
) -> None:
    folder, numbers = reference
    plans = recipes(shards, strategy="deepspeed", zero_stage=stage)
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


@pytest.mark.parametrize(("strategy", "stage"), [("fsdp", 3), ("deepspeed", 1), ("deepspeed", 3)])
def test_a_run_in_bfloat16_passes_its_own_check(
    strategy: str, stage: int, digits: str, tmp_path: Path
) -> None:
    """As a run on a GPU is by default."""
    plan = tiny(digits, str(tmp_path), train__precision="bfloat16", train__steps=1)
    plan = replace(plan, penalty=replace(plan.penalty, check=True))
    parallel = replace(plan.parallel, strategy=strategy, zero_stage=stage)
    run_ranks(2, train, replace(plan, parallel=parallel))
    assert "the penalty's gradient is right" in (tmp_path / "log.txt").read_text()


def in_bfloat16(recipe: Recipe, folder: Path) -> None:
    with launch(precision="bfloat16") as world, open_stream(recipe, world) as stream:
        players = build_players(recipe, world)
        for step in range(1, STEPS + 1):
            adversarial_step(players, stream, step, pace(recipe), world)
        checkpoints = Checkpoints(folder / "checkpoints", keep=1, world=world)
        checkpoints.save(STEPS, players.state(), {})
        checkpoints.wait()


def test_bfloat16_is_as_good_as_in_one_process(digits: str, reference: Any, tmp_path: Path) -> None:
    """Every stage computes in bfloat16 and steps float32 weights."""
    exact = stored(checkpoint_of(reference[0] / "relativistic", STEPS))
    names = [name for name in exact if ".network." in name]
    in_bfloat16(tiny(digits, "", parallel__strategy="single"), tmp_path / "single")
    errors = {}
    for name in ("single", "deepspeed1", "deepspeed2", "deepspeed3"):
        if name != "single":
            plan = tiny(digits, "", parallel__strategy="deepspeed", parallel__offload=False)
            parallel = replace(plan.parallel, zero_stage=int(name[-1]))
            run_ranks(2, in_bfloat16, replace(plan, parallel=parallel), tmp_path / name)
        found = stored(checkpoint_of(tmp_path / name, STEPS))
        for weight in (found[n] for n in names if found[n].numel() > 10):
            assert weight.dtype == torch.float32
            assert not torch.equal(weight.bfloat16().float(), weight)
        square = sum((found[n].double() - exact[n].double()).square().sum() for n in names)
        scale = sum(exact[n].double().square().sum() for n in names)
        errors[name] = (square / scale).sqrt().item()
    assert 1e-4 < errors["single"] < 0.1
    # Under autocast norms keep float32, under DeepSpeed they are narrow too.
    assert max(errors.values()) <= 2 * errors["single"], errors


def test_float64_is_refused(digits: str) -> None:
    recipe = tiny(digits, "", parallel__strategy="deepspeed")
    with (
        launch(precision="float64") as world,
        pytest.raises(ValueError, match=r"keeps float32 weights.*--train.precision float32"),
    ):
        build_players(recipe, world)

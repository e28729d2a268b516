"""The same recipe gives the same weights whatever the strategy and the number of ranks."""

from typing import Any

import pytest
import torch
from captions import EMBEDDED
from clips import AUDIO, JUDGES
from every_kind import Shards, every_kind, recipe_of
from films import FILM
from pairs import PAIRED, UNPAIRED
from ranks import run_ranks
from texts import TEXT
from tiny import tiny
from torch import Tensor
from torch.distributed.tensor import DTensor

from dgan.build import build_players, fill_reference_batches, pace
from dgan.config import Augment, Balance, Judges, Recipe, Regularizers
from dgan.opening import open_stream
from dgan.parallel.world import World, launch
from dgan.schedule import constant
from dgan.step import adversarial_step

STEPS = 8
CASES: dict[str, dict[str, Any]] = {
    "relativistic": {},
    "accumulated": {"train__accumulation": 2, "train__discriminator_updates": 2},
    "batch_norm": {
        "family": "dcgan",
        "task__loss": "non_saturating",
        "data__resolution": 16,
        "generator__options": {"z_dim": 6, "widths": (8, 6)},
        "discriminator__options": {"widths": (8, 6)},
    },
    "double": {"penalty__method": "double"},
    "recomputed": {"parallel__activation_checkpointing": True},
    "unconditional_hinge": {"family": "mlp", "task__loss": "hinge", "data__classes": 0},
    "stylegan2": {
        "family": "stylegan2",
        "generator__options": {"z_dim": 6, "w_dim": 5, "mapping_layers": 2, "widths": (8, 6)},
        "discriminator__options": {"widths": (8, 6), "group_size": 2},
    },
    "sngan": {"family": "sngan", "task__loss": "hinge", "penalty__method": "double"},
    "biggan": {
        "family": "biggan",
        "task__loss": "hinge",
        "data__resolution": 16,
        "generator__options": {"z_dim": 6, "widths": (8, 6, 4), "attention": 8},
        "discriminator__options": {"widths": (8, 6, 4), "attention": 8},
        "penalty__method": "forward",
    },
    "patch": {
        "task__loss": "least_squares",
        "data__classes": 0,
        "data__resolution": 16,
        "generator__options": {
            "z_dim": 6,
            "widths": (8, 6, 4),
            "blocks": (1, 1, 1),
            "groups": (4, 3, 2),
        },
        "discriminator__network": "patch-multiscale",
        "discriminator__options": {"width": 4, "receptive_field": 16, "scales": 2},
        "penalty__method": "double",
    },
    "projected": {
        "family": "mlp",
        "task__loss": "hinge",
        "discriminator__network": "projected",
        "discriminator__options": {"width": 6, "norm": "layer"},  # and an extractor
    },
    # Recomputed, for then the penalty takes the forward method under every strategy.
    "transformer": {
        "family": "transformer",
        "task__loss": "non_saturating",
        "parallel__activation_checkpointing": True,
    },
    "regularised": {
        "task__loss": "relativistic_average",
        "penalty__points": "around",
        "regularizers": Regularizers(lecam=0.3, bcr=1.0, zcr=2.0, zcr_generator=0.5),
        "augment": Augment(kind="ada", kimg=0.2, noise=constant(0.1)),
        "average__ramp": 0.05,
    },
    "path_length": {
        "family": "stylegan2",
        "task__loss": "non_saturating",
        "task__smoothing": 0.1,
        "generator__options": {"z_dim": 6, "w_dim": 5, "mapping_layers": 2, "widths": (8, 6)},
        "discriminator__options": {"widths": (8, 6), "group_size": 1},
        "penalty__points": "real",
        "penalty__every": 7,  # the last step takes one too
        "regularizers": Regularizers(path_length=2.0, top_k=0.6, top_k_kimg=0.002),
    },
    "drawn_heads": {
        "family": "mlp",
        "task__loss": "least_squares",
        "generator__options": {"z_dim": 6, "widths": (16, 12), "head": "gaussian"},
        "regularizers": Regularizers(path_length=1.0),
    },
    "feature_matching": {
        "family": "sngan",
        "task__loss": "hinge",
        "task__generator": "feature_matching",
        "task__latents": 3,
        "augment__kind": "diff",
        "penalty__method": "double",
    },
    "latents": {
        "balance": Balance(by="wasserstein", low=0.5, high=1.0, most=2),
        "task__latents": 2,
        "train__accumulation": 2,
        "augment": Augment(kind="ada", kimg=0.2, noise=constant(0.1)),
        "regularizers": Regularizers(zcr=2.0, zcr_generator=0.5),
    },
    "on_weights": {
        "family": "dcgan",
        "task__loss": "non_saturating",
        "data__resolution": 16,
        "generator__options": {"z_dim": 6, "widths": (7, 6)},
        "discriminator__options": {"widths": (7, 6), "norm": "layer"},
        "generator__orthogonal": 0.1,
        "discriminator__orthogonal": 0.2,
        "generator__historical": 0.3,
        "discriminator__historical": 0.4,
        "discriminator__spectral": True,
    },
    "virtual_batch_norm": {
        "family": "dcgan",
        "task__loss": "hinge",
        "data__resolution": 16,
        "generator__options": {"z_dim": 6, "widths": (7, 6), "norm": "virtual"},
        "discriminator__options": {"widths": (7, 6), "norm": "virtual"},
        "train__accumulation": 2,
        "penalty__method": "double",
    },
    "judges": {
        "family": "dcgan",
        "task__loss": "hinge",
        "data__resolution": 16,
        "generator__options": {"z_dim": 6, "widths": (7, 6)},
        "discriminator__options": {"widths": (7, 6), "norm": "layer"},
        "discriminator__spectral": True,
        "judges": Judges(scales=2, shadow_kimg=0.05),
    },
    "wgan_gp": {
        "family": "mlp",
        "task__loss": "wasserstein",
        "penalty__points": "between",
        "penalty__kind": "one_centered",
        "penalty__one_sided": True,
        "regularizers__clip": 0.3,
        "augment__kind": "diff",
        "average__width": 0.1,
        "train__accumulation": 2,
    },
    "lazy": {"penalty__every": 7, "penalty__keep_unsharded": True},
    "video": {**FILM, "train__accumulation": 2},
    "paired": {**PAIRED, "train__accumulation": 2},
    "unpaired": {**UNPAIRED, "train__accumulation": 2, "train__discriminator_updates": 2},
    "captions": {
        **EMBEDDED,
        "data__encoder": "captions:encode",
        "train__accumulation": 2,
        "train__batch_size": 16,
    },
    "audio": AUDIO,
    "text": TEXT,
    "audio_judges": {**AUDIO, **JUDGES, "parallel__activation_checkpointing": True},
}
FSDP: dict[str, dict[str, Any]] = {
    "offloaded": {"offload": True},
    "kept_after_forward": {"reshard_after_forward": False},
    "copies": {"copies": 2},
    "resharded_within": {"reshard_within": 2},
}
"""Options of FSDP2, on 4 ranks, with accumulation and two updates of the discriminator."""


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def trained(recipe: Recipe, world: World) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Every tensor of the run after some steps, gathered, and the last step's metrics."""
    with open_stream(recipe, world) as stream:
        players = build_players(recipe, world)
        fill_reference_batches(players, recipe, stream, world)
        metrics = {}
        for step in range(1, STEPS + 1):
            metrics = adversarial_step(players, stream, step, pace(recipe), world)
        return {name: whole(tensor) for name, tensor in players.state().items()}, metrics


def recipes(shards: Shards, strategy: str) -> list[Recipe]:
    return [recipe_of(case, shards, parallel__strategy=strategy) for case in CASES.values()]


def train_all(
    recipes: list[Recipe], precision: str = "float64"
) -> list[tuple[dict[str, Tensor], dict[str, float]]]:
    with launch(precision=precision) as world:
        return [trained(recipe, world) for recipe in recipes]


@pytest.fixture(scope="module")
def shards(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return every_kind(digits, tmp_path_factory.mktemp("every-kind"))


@pytest.fixture(scope="module")
def reference(shards: Shards) -> list[tuple[dict[str, Tensor], dict[str, float]]]:
    return train_all(recipes(shards, "single"))


@pytest.mark.parametrize(
    ("strategy", "size"),
    [("ddp", 2), ("ddp", 4), ("fsdp", 2), ("fsdp", 4)],
)
def test_weights_and_metrics_equal_one_process(
    strategy: str, size: int, shards: Shards, reference: list[Any]
) -> None:
    for results in run_ranks(size, train_all, recipes(shards, strategy)):
        for case, (state, metrics), (expected, numbers) in zip(CASES, results, reference):
            assert state.keys() == expected.keys()
            for name, tensor in expected.items():
                error = (state[name] - tensor).abs().max().item()
                assert error <= 1e-9 * max(1.0, tensor.abs().max().item()), (case, name)
            assert metrics == pytest.approx(numbers, rel=1e-9, abs=1e-12), case


def test_options_of_fsdp_do_not_change_the_weights(shards: Shards, reference: list[Any]) -> None:
    case = CASES["accumulated"]
    plans = [
        tiny(shards[8], "", **case, **{f"parallel__{key}": value for key, value in options.items()})
        for options in FSDP.values()
    ]
    expected, numbers = reference[list(CASES).index("accumulated")]
    for results in run_ranks(4, train_all, plans):
        for name, (state, metrics) in zip(FSDP, results):
            assert state.keys() == expected.keys()
            for key, tensor in expected.items():
                error = (state[key] - tensor).abs().max().item()
                assert error <= 1e-9 * max(1.0, tensor.abs().max().item()), (name, key)
            assert metrics == pytest.approx(numbers, rel=1e-9, abs=1e-12), name


def distance(state: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Of the trained weights, relative to them."""
    names = [name for name in exact if ".network." in name]
    square = sum((state[n].double() - exact[n].double()).square().sum() for n in names)
    return (square / sum(exact[n].double().square().sum() for n in names)).sqrt().item()


def test_bfloat16_is_as_good_as_in_one_process(shards: Shards, reference: list[Any]) -> None:
    """FSDP2 gathers in bfloat16, reduces in float32."""
    exact, _ = reference[list(CASES).index("recomputed")]
    plans = {s: tiny(shards[8], "", parallel__strategy=s) for s in ("single", "ddp", "fsdp")}
    ((alone, _),) = train_all([plans.pop("single")], "bfloat16")
    assert 1e-4 < distance(alone, exact) < 0.1
    for results in run_ranks(2, train_all, list(plans.values()), "bfloat16"):
        for name, (state, _) in zip(plans, results):
            held = {tensor.dtype for key, tensor in state.items() if not key.startswith("task.")}
            assert held == {torch.float32}
            # Under FSDP2 the norms' weights are narrow too.
            assert distance(state, exact) <= 2 * distance(alone, exact), name


def test_the_steps_move_every_weight(
    shards: Shards, reference: list[tuple[dict[str, Tensor], dict[str, float]]]
) -> None:
    """A comparison of weights that never moved would prove nothing."""
    for recipe, (state, metrics) in zip(recipes(shards, "single"), reference):
        with launch(precision="float64") as world:
            start = build_players(recipe, world).state()
        for name, tensor in state.items():
            # Where real and fake count alike, the last bias has no gradient; the singular vector
            # of a single row is 1 or -1.
            still = name.endswith(("head.bias", "head.out.bias"))
            still |= any(part in name for part in (".reference", "_mixing.", ".extractor."))
            still |= name.endswith(".u") and tensor.numel() == 1
            if "network" in name and not still:
                assert not torch.equal(tensor, start[name]), name
        assert metrics["discriminator/gradient_norm"] > 0
        if recipe.penalty.gamma.start:
            assert metrics["discriminator/penalty"] > 0

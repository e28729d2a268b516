"""The task that a recipe describes."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from torch import nn

from dgan.build_networks import latent_size
from dgan.config import Data, Recipe
from dgan.objectives.losses import OverRanks, alone
from dgan.parallel.world import World
from dgan.schedule import Band
from dgan.tasks.added import Regularizers
from dgan.tasks.augmentation import Augmentation
from dgan.tasks.balance import Balance
from dgan.tasks.features import features_layer
from dgan.tasks.history import History
from dgan.tasks.paired import Paired
from dgan.tasks.penalty import Penalty
from dgan.tasks.synthesis import Synthesis
from dgan.tasks.task import Setting, Task, import_task
from dgan.tasks.unpaired import Unpaired
from dgan_kernels.rank_mean import mean_over_ranks


def build_task(
    recipe: Recipe, world: World, generator: nn.Module, discriminator: nn.Module
) -> Task:
    """What the recipe's networks play for; they are still whole, and on the CPU."""
    mean: OverRanks = alone
    if world.size > 1:
        ranks = world.mesh.get_group().group_name
        mean = lambda x: mean_over_ranks(x, ranks)  # noqa: E731
    setting = Setting(
        generator=generator,
        discriminator=discriminator,
        device=world.device,
        dtype=world.dtype,
        gather=world.rows,
        mean=mean,
    )
    if recipe.task.name not in TASKS:
        return import_task(recipe.task.name, setting, recipe.task.options)
    return TASKS[recipe.task.name](recipe, setting)


def _synthesis(recipe: Recipe, setting: Setting) -> Synthesis:
    if recipe.regularizers.path_length and getattr(setting.generator, "couples_samples", True):
        raise ValueError(
            f"--regularizers.path_length is of one sample, and --generator.network "
            f"{recipe.generator.network} couples those of a batch (`couples_samples`)"
        )
    if recipe.task.generator == "feature_matching":
        try:
            features_layer(setting.discriminator)
        except ValueError as error:
            raise ValueError(f"--task.generator feature_matching: {error}") from None
    weights = {k: v for k, v in shallow(recipe.regularizers).items() if k != "clip"}
    augmentation = Augmentation(
        **shallow(recipe.augment), device=setting.device, backend=_backend(recipe)
    )
    return Synthesis(
        loss=recipe.task.loss,
        smoothing=recipe.task.smoothing,
        matches_features=recipe.task.generator == "feature_matching",
        latents=recipe.task.latents,
        penalty=_penalty(recipe, setting),
        z_dim=latent_size(setting.generator, recipe.generator.network),
        condition=_condition(recipe.data),
        mismatch=recipe.task.mismatch,
        separate=_couples(setting.discriminator),
        augmentation=augmentation,
        penalise_augmented=recipe.penalty.augmented,
        regularizers=Regularizers(**weights),
        balance=_balance(recipe),
        over_ranks=setting.mean,
        gather=setting.gather,
        w_dim=getattr(setting.generator, "w_dim", 0),
        device=setting.device,
        sample="sample" if recipe.data.kind == "points" else "image",
    )


def _condition(data: Data) -> str:
    """The entry of a batch that both players are given."""
    if data.embedding:
        return "condition"
    return "label" if data.classes else ""


def _paired(recipe: Recipe, setting: Setting) -> Paired:
    plan = recipe.translation
    return Paired(
        loss=recipe.task.loss,
        smoothing=recipe.task.smoothing,
        source=recipe.data.source,
        z_dim=latent_size(setting.generator, recipe.generator.network),
        l1=plan.l1,
        adversarial=plan.adversarial,
        halving=plan.discriminator,
        penalty=_penalty(recipe, setting),
        separate=_couples(setting.discriminator),
        balance=_balance(recipe),
        over_ranks=setting.mean,
    )


def _unpaired(recipe: Recipe, setting: Setting) -> Unpaired:
    plan, data = recipe.translation, recipe.data

    def history(name: str) -> History:
        return History(
            name,
            size=plan.history,
            shape=(data.channels, data.resolution, data.resolution),
            gather=setting.gather,
            device=setting.device,
            dtype=setting.dtype,
        )

    return Unpaired(
        loss=recipe.task.loss,
        smoothing=recipe.task.smoothing,
        cycle=plan.cycle,
        identity=plan.identity,
        adversarial=plan.adversarial,
        halving=plan.discriminator,
        histories=(history("a"), history("b")),
        balance=_balance(recipe),
        over_ranks=setting.mean,
    )


TASKS: dict[str, Callable[[Recipe, Setting], Task]] = {
    "synthesis": _synthesis,
    "paired": _paired,
    "unpaired": _unpaired,
}
"""By name; any other is an import path."""


def _penalty(recipe: Recipe, setting: Setting) -> Penalty:
    options = {k: v for k, v in shallow(recipe.penalty).items() if k not in ("check", "augmented")}
    return Penalty(**options, over_ranks=setting.mean, backend=_backend(recipe))


def _backend(recipe: Recipe) -> str | None:
    # The networks' layers have theirs from `build_network`. Handed down rather than set around the
    # step: neither compiled code nor what recomputes in autograd's threads would see that.
    return None if recipe.train.kernels else "reference"


def _balance(recipe: Recipe) -> Balance:
    plan = recipe.balance
    return Balance(plan.by, Band(low=plan.low, high=plan.high, most=plan.most))


def _couples(discriminator: nn.Module) -> bool:
    """A network that does not say otherwise may couple the samples of a batch."""
    return getattr(discriminator, "couples_samples", True)


def shallow(section: Any) -> dict[str, Any]:
    """A part of a recipe as keyword arguments; schedules stay schedules."""
    return {field.name: getattr(section, field.name) for field in fields(section)}

"""What a recipe describes, built: both players and the task between them."""

from typing import Any

import torch

from dgan.build_networks import (
    build_discriminator,
    build_network,
    latent_size,
)
from dgan.build_tasks import build_task, shallow
from dgan.config import Player as PlayerConfig
from dgan.config import Recipe
from dgan.data import ShardStream
from dgan.networks import Role
from dgan.networks.virtual_batch_norm import WithReference, fill_references
from dgan.opening import Stream
from dgan.parallel.average import Average
from dgan.parallel.deepspeed_configuration import deepspeed_configuration
from dgan.parallel.distribute import distribute
from dgan.parallel.layout import Layout
from dgan.parallel.replicas import Replica
from dgan.parallel.world import World, dtypes
from dgan.rehearsal import rehearse
from dgan.schedule import Averaging
from dgan.step import Pace, Player, Players, prepare


def build_players(recipe: Recipe, world: World) -> Players:
    """Both networks, spread over ranks as the recipe says, with optimizers, average and task."""
    generator = build_network(recipe, "generator")
    discriminator = build_discriminator(recipe)
    latent_size(generator, recipe.generator.network)
    task = build_task(recipe, world, generator, discriminator)
    plan = layout(recipe, world)
    player = _player(recipe.generator, "generator", distribute(generator, world, plan))
    critic = distribute(discriminator, world, plan, double_backward=task.differentiates_twice)
    players = Players(
        generator=player,
        discriminator=_player(
            recipe.discriminator, "discriminator", critic, clip=recipe.regularizers.clip
        ),
        average=Average(player.replica),
        averaging=Averaging(**shallow(recipe.average)),
        task=task,
    )
    rehearse(players, recipe, world)
    return players


def _player(config: PlayerConfig, role: Role, replica: Replica, clip: float = 0.0) -> Player:
    return Player(
        role,
        replica,
        learning_rate=config.learning_rate,
        beta1=config.beta1,
        beta2=config.beta2,
        epsilon=config.epsilon,
        clip=clip,
        orthogonal=config.orthogonal,
        historical=config.historical,
    )


def layout(recipe: Recipe, world: World) -> Layout:
    """How the recipe spreads either network over the ranks of `world`."""
    plan = recipe.parallel
    narrow = world.compute_dtype == torch.bfloat16
    return Layout(
        strategy=plan.strategy,
        activation_checkpointing=plan.activation_checkpointing,
        compile=plan.compile,
        reshard_after_forward=plan.reshard_within or plan.reshard_after_forward,
        copies=plan.copies,
        offload=plan.offload,
        deepspeed=(
            deepspeed_plan(recipe, world_size=world.size, bfloat16=narrow)
            if plan.strategy == "deepspeed"
            else {}
        ),
    )


def deepspeed_plan(
    recipe: Recipe, *, world_size: int, bfloat16: bool | None = None
) -> dict[str, Any]:
    """DeepSpeed's configuration of either network; `bfloat16` by default as this machine would."""
    if bfloat16 is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bfloat16 = dtypes(recipe.train.precision, device)[1] == torch.bfloat16
    return deepspeed_configuration(
        stage=recipe.parallel.zero_stage,
        batch_size=recipe.train.batch_size,
        accumulation=recipe.train.accumulation,
        world_size=world_size,
        bfloat16=bfloat16,
        offload=recipe.parallel.offload,
        overrides=recipe.parallel.deepspeed_config,
    )


def fill_reference_batches(players: Players, recipe: Recipe, stream: Stream, world: World) -> None:
    """Samples of the data, the same on every rank, for a discriminator that refers to some.

    When a run begins; from then on they are a part of its state.
    """
    module = players.discriminator.replica.module
    rows = [part.rows for part in module.modules() if isinstance(part, WithReference)]
    if not rows or not isinstance(stream, ShardStream):
        return
    size = min(max(rows), len(stream.dataset))
    shuffled = ShardStream(stream.dataset, batch_size=size, seed=recipe.train.seed, workers=0)
    batch = prepare(next(iter(shuffled)), world)
    fill_references(module, batch["image"], batch["label"] if recipe.data.classes else None)


def pace(recipe: Recipe) -> Pace:
    """What a step of the recipe consists of."""
    plan = recipe.train
    return Pace(
        batch_size=plan.batch_size,
        accumulation=plan.accumulation,
        discriminator_updates=plan.discriminator_updates,
        generator_updates=plan.generator_updates,
        seed=plan.seed,
    )

"""What a recipe describes, built: the stream, the players, their task."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dgan.checkpoint import complete
from dgan.config import Player as PlayerConfig
from dgan.config import Recipe
from dgan.data import ShardStream
from dgan.data.location import holds_secret
from dgan.evaluation import Evaluator, find_features
from dgan.networks import Role, build
from dgan.networks.layers import without_kernels
from dgan.parallel.average import Average
from dgan.parallel.deepspeed_configuration import deepspeed_configuration
from dgan.parallel.distribute import distribute
from dgan.parallel.layout import Layout
from dgan.parallel.replicas import Replica
from dgan.parallel.world import World, dtypes
from dgan.recipe_file import differences, from_toml, to_toml
from dgan.run import Run
from dgan.step import Pace, Player, Players
from dgan.tasks.synthesis import Synthesis


def open_stream(recipe: Recipe, world: World) -> ShardStream:
    """This rank's part of the recipe's data.

    Raises:
        ValueError: the batch cannot be divided, or the images or labels are not what the recipe
            says. FileNotFoundError: no such shards.
    """
    parts = world.size * recipe.train.accumulation
    if recipe.train.batch_size % parts:
        raise ValueError(
            f"--train.batch_size {recipe.train.batch_size} (over all ranks) cannot be divided into "
            f"{world.size} ranks × {recipe.train.accumulation} micro-batches: "
            f"take a multiple of {parts}"
        )
    data = recipe.data
    _refuse_secrets(data.shards)
    stream = ShardStream(
        data.shards,
        batch_size=recipe.train.batch_size,
        weights=data.weights,
        seed=recipe.train.seed,
        rank=world.rank,
        world_size=world.size,
        resolution=data.resolution,
        channels=data.channels,
        labels=None if data.classes else False,
        flip=data.flip,
        crop=data.crop,
        workers=data.workers,
        device=world.device,
        cache=data.cache or None,
        cache_gigabytes=data.cache_gigabytes,
    )
    if data.classes and not stream.has_labels:
        raise ValueError(
            f"--data.classes is {data.classes}, but {stream.dataset.table} has no labels: "
            f"{stream.dataset.describe(stream.dataset.table.first_without('cls') or 0)} is the "
            "first without. Pack a folder with a subfolder a class, or set --data.classes 0"
        )
    if stream.num_classes > data.classes > 0:
        raise ValueError(
            f"{stream.dataset.table} has labels up to {stream.num_classes - 1}, but --data.classes "
            f"is {data.classes}: set it to {stream.num_classes}"
        )
    return stream


def _refuse_secrets(shards: str | tuple[str, ...]) -> None:
    """The recipe is written into the run's directory, which people show to each other."""
    if any(map(holds_secret, [shards] if isinstance(shards, str) else shards)):
        raise ValueError(
            "--data.shards holds a user, password, key or signature, which the run's recipe.toml "
            "would show: name environment variables in their place, in single quotes, as in "
            "'https://$NAME:$PASSWORD@host/x.tar' or 'https://host/x.tar?$SIGNATURE', or read "
            "s3://bucket/x.tar with AWS_* variables"
        )


def build_network(recipe: Recipe, role: Role) -> nn.Module:
    """One player's network on the CPU, with the recipe's initial weights."""
    player: PlayerConfig = getattr(recipe, role)
    network = build(
        role,
        player.network,
        # The two networks of a family must not start from the same random numbers.
        seed=2 * recipe.train.seed + (role == "discriminator"),
        **network_arguments(recipe, role),
    )
    return network if recipe.train.kernels else without_kernels(network)


def network_arguments(recipe: Recipe, role: Role) -> dict[str, Any]:
    """What one player's network is constructed with."""
    player: PlayerConfig = getattr(recipe, role)
    data = recipe.data
    sizes = {"resolution": data.resolution, "channels": data.channels, "classes": data.classes}
    return {**sizes, **player.options}


def latent_size(generator: nn.Module, name: str) -> int:
    """The size of the latents that a generator takes; `ValueError` if it does not say."""
    z_dim = getattr(generator, "z_dim", None)
    if not isinstance(z_dim, int):
        raise ValueError(f"--generator.network {name} must have an int attribute `z_dim`")
    return z_dim


def build_players(recipe: Recipe, world: World) -> Players:
    """Both networks, spread over ranks as the recipe says, with optimizers, average and task."""
    generator = build_network(recipe, "generator")
    discriminator = build_network(recipe, "discriminator")
    task = Synthesis(
        loss=recipe.task.loss,
        gamma=recipe.penalty.gamma,
        z_dim=latent_size(generator, recipe.generator.network),
        conditional=recipe.data.classes > 0,
        # A network that does not say otherwise may couple the samples of a batch.
        separate=getattr(discriminator, "couples_samples", True),
        method=recipe.penalty.method,
        every=recipe.penalty.every,
        keep_unsharded=recipe.penalty.keep_unsharded,
    )
    twice = task.has_penalty and task.method == "double"
    plan = layout(recipe, world)
    player = _player(recipe.generator, "generator", distribute(generator, world, plan))
    critic = distribute(discriminator, world, plan, double_backward=twice)
    players = Players(
        generator=player,
        discriminator=_player(recipe.discriminator, "discriminator", critic),
        average=Average(player.replica),
        half_life_kimg=recipe.average.half_life_kimg,
        task=task,
    )
    _rehearse(players, recipe, world)
    return players


def _player(config: PlayerConfig, role: Role, replica: Replica) -> Player:
    return Player(
        role,
        replica,
        learning_rate=config.learning_rate,
        beta1=config.beta1,
        beta2=config.beta2,
        epsilon=config.epsilon,
    )


def layout(recipe: Recipe, world: World) -> Layout:
    """How the recipe spreads either network over the ranks of `world`."""
    plan = recipe.parallel
    narrow = world.compute_dtype == torch.bfloat16
    return Layout(
        strategy=plan.strategy,
        activation_checkpointing=plan.activation_checkpointing,
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


def _rehearse(players: Players, recipe: Recipe, world: World) -> None:
    """One sample through both networks, so that sizes which do not fit are named at the start."""
    data = recipe.data
    z = torch.zeros(1, players.task.z_dim, device=world.device, dtype=world.dtype)
    label = torch.zeros(1, dtype=torch.int64, device=world.device) if data.classes else None
    with players.average.network() as generator, world.autocast():
        image = generator(z, label)
    expected = (1, data.channels, data.resolution, data.resolution)
    if tuple(image.shape) != expected:
        raise ValueError(
            f"--generator.network {recipe.generator.network} makes images "
            f"{tuple(image.shape[1:])}, but --data.channels and --data.resolution ask for "
            f"{expected[1:]}"
        )
    # Not frozen: at its first forward FSDP2 reads off what is trained the dtype of gradients.
    replica = players.discriminator.replica
    with torch.no_grad(), world.autocast():
        replica.module.eval()
        try:
            logits = replica.module(image.to(world.dtype), label)
        except RuntimeError as error:
            raise ValueError(
                f"--discriminator.network {recipe.discriminator.network} cannot judge images "
                f"{expected[1:]}: {error}"
            ) from error
        replica.module.train()
    replica.written()
    if logits.shape[:1] != (1,):
        raise ValueError(
            f"--discriminator.network {recipe.discriminator.network} gives logits of shape "
            f"{tuple(logits.shape)} for one image; they must be [N] or [N, ...]"
        )


def open_run(recipe: Recipe, world: World) -> Run:
    """The run's directory, new or to be resumed, with the recipe written into it.

    Raises:
        ValueError: the directory holds another run, or any run though `--run.fresh` was given.
    """
    directory = recipe.directory
    conflict = _conflict(recipe, directory) if world.is_first else None
    if problem := world.gather(conflict)[0]:
        raise ValueError(str(problem))
    if world.is_first:
        directory.mkdir(parents=True, exist_ok=True)
        if not complete(directory / "checkpoints"):
            # What an attempt that came to nothing may have trained on other shards.
            (directory / "classifier.safetensors").unlink(missing_ok=True)
        aside = directory / "recipe.tmp"
        aside.write_text(
            to_toml(replace(recipe, run=replace(recipe.run, dir=str(directory), fresh=False)))
        )
        aside.replace(directory / "recipe.toml")
    return Run(
        directory,
        writes=world.is_first,
        total=recipe.train.steps,
        images_per_step=pace(recipe).images_per_step,
        wandb=recipe.run.wandb,
    )


def _conflict(recipe: Recipe, directory: Path) -> str | None:
    saved = directory / "recipe.toml"
    if not saved.exists():
        return None
    if recipe.run.fresh:
        return (
            f"{directory} already holds a run, and --run.fresh does not overwrite: "
            "name another --run.dir, or delete it yourself"
        )
    # Without a checkpoint there is nothing to go on with: a recipe that failed may be mended.
    if not complete(directory / "checkpoints"):
        return None
    if changed := differences(from_toml(saved), recipe):
        return (
            f"{directory} holds a run of another recipe; {', '.join(changed)} "
            f"{'differs' if len(changed) == 1 else 'differ'}: go on with the saved one "
            f"(`dgan train {directory}`) or name another --run.dir"
        )
    return None


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


def build_evaluator(
    recipe: Recipe, stream: ShardStream, world: World, run: Run
) -> Evaluator | None:
    """What scores the averaged generator; None if the recipe does without."""
    if recipe.evaluation.every < 0:
        return None
    features = find_features(
        recipe.evaluation.features,
        stream.dataset,
        seed=recipe.train.seed,
        cache=run.directory / "classifier.safetensors",
        world=world,
    )
    run.say(f"evaluation features: {features.name}")
    return Evaluator(
        stream.dataset,
        features,
        samples=recipe.evaluation.samples,
        batch_size=min(recipe.train.batch_size, 256),
        seed=recipe.train.seed,
        classes=recipe.data.classes,
        world=world,
    )

"""What a recipe describes, built: the players, their task, what scores and shows samples."""

from contextlib import ExitStack
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from dgan.build_networks import (
    build_discriminator,
    build_network,
    latent_size,
)
from dgan.config import Player as PlayerConfig
from dgan.config import Recipe
from dgan.data import ShardStream
from dgan.data.location import redact
from dgan.data.toy import ToyStream, find_toy
from dgan.evaluation import Evaluator, find_features
from dgan.laboratory.evaluator import PointEvaluator
from dgan.networks import Role
from dgan.networks.virtual_batch_norm import WithReference, fill_references
from dgan.objectives.losses import OverRanks, alone, check_logits
from dgan.opening import Stream, open_images
from dgan.parallel.average import Average
from dgan.parallel.deepspeed_configuration import deepspeed_configuration
from dgan.parallel.distribute import distribute
from dgan.parallel.layout import Layout
from dgan.parallel.replicas import Replica
from dgan.parallel.world import World, dtypes
from dgan.pictures import Images, Pictures, Points
from dgan.run import Run
from dgan.schedule import Averaging, Band
from dgan.scores import metric_of
from dgan.step import Pace, Player, Players, prepare
from dgan.tasks.added import Regularizers
from dgan.tasks.augmentation import Augmentation
from dgan.tasks.balance import Balance
from dgan.tasks.features import features_layer
from dgan.tasks.penalty import Penalty
from dgan.tasks.synthesis import Synthesis
from dgan_kernels.rank_mean import mean_over_ranks


def build_players(recipe: Recipe, world: World) -> Players:
    """Both networks, spread over ranks as the recipe says, with optimizers, average and task."""
    generator = build_network(recipe, "generator")
    discriminator = build_discriminator(recipe)
    task = build_task(recipe, world, generator, discriminator)
    twice = task.penalty.is_taken and task.penalty.method == "double"
    plan = layout(recipe, world)
    player = _player(recipe.generator, "generator", distribute(generator, world, plan))
    critic = distribute(discriminator, world, plan, double_backward=twice)
    players = Players(
        generator=player,
        discriminator=_player(
            recipe.discriminator, "discriminator", critic, clip=recipe.regularizers.clip
        ),
        average=Average(player.replica),
        averaging=Averaging(**shallow(recipe.average)),
        task=task,
    )
    _rehearse(players, recipe, world)
    return players


def build_task(
    recipe: Recipe, world: World, generator: nn.Module, discriminator: nn.Module
) -> Synthesis:
    """What the recipe's networks play for."""
    over_ranks: OverRanks = alone
    if world.size > 1:
        ranks = world.mesh.get_group().group_name
        over_ranks = lambda x: mean_over_ranks(x, ranks)  # noqa: E731
    if recipe.regularizers.path_length and getattr(generator, "couples_samples", True):
        raise ValueError(
            f"--regularizers.path_length is of one sample, and --generator.network "
            f"{recipe.generator.network} couples those of a batch (`couples_samples`)"
        )
    if recipe.task.generator == "feature_matching":
        try:
            features_layer(discriminator)
        except ValueError as error:
            raise ValueError(f"--task.generator feature_matching: {error}") from None
    # The networks' layers have theirs from `build_network`. Handed down rather than set around the
    # step: neither compiled code nor what recomputes in autograd's threads would see that.
    backend = None if recipe.train.kernels else "reference"
    penalty = {k: v for k, v in shallow(recipe.penalty).items() if k not in ("check", "augmented")}
    low, high = recipe.balance.low, recipe.balance.high
    weights = {k: v for k, v in shallow(recipe.regularizers).items() if k != "clip"}
    return Synthesis(
        loss=recipe.task.loss,
        smoothing=recipe.task.smoothing,
        matches_features=recipe.task.generator == "feature_matching",
        latents=recipe.task.latents,
        penalty=Penalty(**penalty, over_ranks=over_ranks, backend=backend),
        z_dim=latent_size(generator, recipe.generator.network),
        conditional=recipe.data.classes > 0,
        # A network that does not say otherwise may couple the samples of a batch.
        separate=getattr(discriminator, "couples_samples", True),
        augmentation=Augmentation(**shallow(recipe.augment), device=world.device, backend=backend),
        penalise_augmented=recipe.penalty.augmented,
        regularizers=Regularizers(**weights),
        balance=Balance(recipe.balance.by, Band(low=low, high=high, most=recipe.balance.most)),
        over_ranks=over_ranks,
        gather=world.rows,
        w_dim=getattr(generator, "w_dim", 0),
        device=world.device,
        sample="sample" if recipe.data.kind == "points" else "image",
    )


def shallow(section: Any) -> dict[str, Any]:
    """A part of a recipe as keyword arguments; schedules stay schedules."""
    return {field.name: getattr(section, field.name) for field in fields(section)}


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
    if data.kind == "points":
        expected = (1, find_toy(str(data.shards)).dimension)
    if tuple(image.shape) != expected:
        raise ValueError(
            f"--generator.network {recipe.generator.network} makes samples "
            f"{tuple(image.shape[1:])}, but the data's are {expected[1:]} (--data.channels, "
            "--data.resolution)"
        )
    # Not frozen: at its first forward FSDP2 reads off what is trained the dtype of gradients.
    replica = players.discriminator.replica
    with torch.no_grad(), world.autocast():
        replica.module.eval()
        try:
            logits = replica.module(image.to(world.dtype), label)
        except RuntimeError as error:
            raise ValueError(
                f"--discriminator.network {recipe.discriminator.network} cannot judge samples "
                f"{expected[1:]}: {error}"
            ) from error
        replica.module.train()
    replica.written()
    try:
        check_logits(recipe.task.loss, logits, samples=1)
    except ValueError as error:
        raise ValueError(
            f"--discriminator.network {recipe.discriminator.network}: {error}"
        ) from None


def fill_reference_batches(players: Players, recipe: Recipe, stream: Stream, world: World) -> None:
    """Samples of the data, the same on every rank, for a discriminator that refers to some.

    When a run begins; from then on they are a part of its state.
    """
    module = players.discriminator.replica.module
    rows = [part.rows for part in module.modules() if isinstance(part, WithReference)]
    if not rows or isinstance(stream, ToyStream):
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


def build_pictures(recipe: Recipe, stream: Stream, world: World) -> Pictures:
    """What shows samples."""
    count = recipe.samples.count
    if isinstance(stream, ToyStream):
        return Points(stream, count=count, world=world)
    return Images(stream, count=count, classes=recipe.data.classes, world=world)


def build_evaluator(
    recipe: Recipe, stream: Stream, world: World, run: Run
) -> Evaluator | PointEvaluator | None:
    """What scores the averaged generator; None if the recipe does without.

    Raises:
        ValueError: the scores cannot be computed as asked, or `checkpoint.best` is none of them.
    """
    plan, best = recipe.evaluation, recipe.checkpoint.best
    if plan.every < 0:
        return None
    if isinstance(stream, ToyStream):
        return PointEvaluator(stream.toy, seed=recipe.train.seed, world=world)
    with ExitStack() as opened:
        training = compared = stream.dataset
        if plan.features == "auto" and not training.has_labels:
            # An unconditional run's stream does not read labels; there may be some.
            training = opened.enter_context(open_images(recipe, recipe.data.shards))
        if plan.shards:
            compared = opened.enter_context(open_images(recipe, plan.shards))
        features = find_features(
            plan.features,
            training,
            seed=recipe.train.seed,
            cache=run.directory / "classifier.safetensors",
            world=world,
        )
        run.say(f"evaluation features: {features.name}")
        evaluator = Evaluator(
            compared,
            features,
            samples=plan.samples,
            batch_size=min(recipe.train.batch_size, 256),
            seed=recipe.train.seed,
            classes=recipe.data.classes,
            world=world,
            metrics=plan.metrics,
            real_samples=plan.real_samples,
            shards=redact(str(plan.shards or recipe.data.shards)),
        )
    if recipe.checkpoint.keep_best and best not in evaluator.scores:
        raise ValueError(
            f"--checkpoint.best is {best}, which is not among the scores of this run: "
            f"{', '.join(sorted(evaluator.scores))}; --evaluation.metrics {metric_of(best)} gives "
            "it, where features and generator allow"
        )
    return evaluator

"""One sample through both networks, so that sizes which do not fit are named at the start."""

from typing import Any

import torch
from torch import Tensor

from dgan.build_tasks import TASKS
from dgan.config import Recipe
from dgan.data.toy import find_toy
from dgan.objectives.losses import check_logits
from dgan.parallel.world import World
from dgan.step import Players


def rehearse(players: Players, recipe: Recipe, world: World) -> None:
    """Call both networks as `data.kind` says that they are called.

    What else the discriminator of a task of one's own is given is not known here: it is not called.

    Raises:
        ValueError: a network does not take, or give, what it should; names its option.
    """
    shape = sample_shape(recipe)
    sample = torch.zeros(1, *shape, device=world.device, dtype=world.dtype)
    z = sample.new_zeros(1, players.z_dim)
    label = torch.zeros(1, dtype=torch.int64, device=world.device) if recipe.data.classes else None
    if size := recipe.data.embedding:
        label = sample.new_zeros(1, size)
    # What the generator is given, and the discriminator beside a sample.
    inputs, beside = {
        "pairs": ((sample, z), (sample,)),
        "unpaired": ((sample, sample), (sample,)),
    }.get(recipe.data.kind, ((z, label), (label,)))
    count = 2 if recipe.data.kind == "unpaired" else 1
    with players.average.network() as generator, world.autocast():
        name = f"--generator.network {recipe.generator.network}"
        made = _called(generator, inputs, f"{name} cannot make samples {shape}")
    if [tuple(x.shape) for x in made] != [(1, *shape)] * count:
        found = ", ".join(str(tuple(x.shape[1:])) for x in made)
        raise ValueError(
            f"{name} makes samples {found}, but the data's are {shape} (--data.channels, "
            "--data.resolution)"
        )
    if recipe.task.name in TASKS:
        _rehearse_discriminator(players, recipe, world, (made[0].to(world.dtype), *beside))


def _rehearse_discriminator(
    players: Players, recipe: Recipe, world: World, inputs: tuple[Tensor | None, ...]
) -> None:
    name, shape = f"--discriminator.network {recipe.discriminator.network}", sample_shape(recipe)
    # Not frozen: at its first forward FSDP2 reads off what is trained the dtype of gradients.
    replica = players.discriminator.replica
    with torch.no_grad(), world.autocast():
        replica.module.eval()
        logits = _called(replica.module, inputs, f"{name} cannot judge samples {shape}")
        replica.module.train()
    replica.written()
    try:
        for part in logits:
            check_logits(recipe.task.loss, part, samples=1)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _called(network: Any, inputs: tuple[Tensor | None, ...], problem: str) -> tuple[Tensor, ...]:
    try:
        outputs = network(*inputs)
    except RuntimeError as error:
        raise ValueError(f"{problem}: {error}") from error
    return outputs if isinstance(outputs, tuple) else (outputs,)


def sample_shape(recipe: Recipe) -> tuple[int, ...]:
    """Of one sample of the recipe's data."""
    data = recipe.data
    if data.kind == "points":
        return (find_toy(str(data.shards)).dimension,)
    if data.kind in ("audio", "text"):
        return data.channels, data.resolution
    frames = (data.frames,) if data.kind == "video" else ()
    return data.channels, *frames, data.resolution, data.resolution

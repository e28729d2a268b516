"""Trainings that fail: recipes, and networks by import path."""

from pathlib import Path
from typing import Any

import torch
from commands import stored
from tiny import tiny
from torch import Tensor

from dgan.config import Recipe
from dgan.data import ShardStream
from dgan.divergence import Diverged
from dgan.networks.mlp import MLPDiscriminator, MLPGenerator
from dgan.train import train

BATCH = 16


def marks(images: Tensor) -> Tensor:
    """A whole number for each image in [−1, 1], float64: its pixels, weighted by their place."""
    pixels = ((images.double() + 1) * 127.5).round().flatten(1)
    return (pixels * torch.arange(1, pixels.shape[1] + 1)).sum(1)


class Poisoned(MLPDiscriminator):
    """Its logits of images with one of the marks in `poison` are NaN."""

    def __init__(self, *, poison: tuple[float, ...] = (), **options: Any) -> None:
        super().__init__(**options)
        self.poison = torch.tensor(poison, dtype=torch.float64)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        logits = super().forward(x, labels)
        return logits.masked_fill(torch.isin(marks(x.detach()), self.poison), float("nan"))


class Deaf(MLPGenerator):
    """It makes the same image of every latent."""

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().forward(0 * z, labels)


def tiny_run(shards: str, run: Path, **changes: Any) -> Recipe:
    settled = {"train__deterministic": True, "checkpoint__every": 1, "checkpoint__keep": 99}
    return tiny(shards, str(run), **{"family": "mlp", **settled, **changes})


def batches(shards: str | tuple[str, ...]) -> ShardStream:
    """What the recipes here train on, the whole batch at once."""
    return ShardStream(shards, batch_size=BATCH, resolution=8, channels=1, flip=True, workers=0)


def poisoned(shards: str, run: Path, *steps: int, row: int = 12, **changes: Any) -> Recipe:
    """A recipe whose batch of each of `steps` (from 1) has one sample that gives NaN."""
    with batches(shards) as stream:
        images = [next(stream)["image"] / 127.5 - 1 for _ in range(max(steps))]
    poison = tuple(marks(images[step - 1])[row].item() for step in steps)
    failing = {
        "discriminator__network": "failing:Poisoned",
        "discriminator__options": {"widths": (16, 12), "poison": poison},
        "penalty__method": "double",
        "divergence__policy": "rollback",
    }
    return tiny_run(shards, run, **{**failing, **changes})


def message_of(recipe: Recipe) -> str:
    try:
        train(recipe)
    except Diverged as error:
        return str(error)
    return ""


def assert_same_tensors(a: Path, b: Path) -> None:
    ours, theirs = stored(a), stored(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())

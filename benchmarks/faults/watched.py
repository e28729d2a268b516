"""The campaign's recipes: tiny, deterministic, and every rank notes which samples it was given.

`dgan train watched:recipe` writes into the folder $CAMPAIGN_NOTES a file for each attempt and rank:
when its process began and had imported what it needs, and then a line a batch: when it was given,
its position in the data, its keys. What dgan itself does is left as it is.
"""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgan.config import (
    Average,
    Checkpoint,
    Data,
    Divergence,
    Evaluation,
    Penalty,
    Player,
    Recipe,
    Samples,
    Train,
)
from dgan.data import ShardStream
from dgan.networks.mlp import MLPDiscriminator
from dgan.schedule import Cosine, constant

BATCH = 12
"""Divisible among one, two and three ranks."""
EVERY = 5
"""Steps between checkpoints."""


def recipe(widths: tuple[int, ...] = (16, 12)) -> Recipe:
    """On the 8×8 digits, some ten milliseconds a step."""
    note_batches(Path(os.environ["CAMPAIGN_NOTES"]))
    rate = Cosine(start=2e-3, end=1e-3, kimg=0.1)
    player = Player(network="mlp", options={"widths": widths}, learning_rate=rate)
    return Recipe(
        name="campaign",
        data=Data(shards="--data.shards", resolution=8, channels=1, classes=10, flip=True),
        generator=Player(network="mlp", options={"widths": widths, "z_dim": 6}, learning_rate=rate),
        discriminator=player,
        train=Train(steps=200, batch_size=BATCH, log_every=1, deterministic=True),
        penalty=Penalty(gamma=constant(1.0), check=False),
        average=Average(half_life_kimg=constant(0.05)),
        checkpoint=Checkpoint(every=EVERY, keep=10_000),
        samples=Samples(every=100_000, count=10),
        evaluation=Evaluation(every=-1),
    )


def wide() -> Recipe:
    """With checkpoints of some 9 MB."""
    return recipe((512, 512))


def poisoned() -> Recipe:
    """Not finite on white images, of which there is none among the digits."""
    plain = recipe()
    return replace(
        plain,
        discriminator=replace(plain.discriminator, network="watched:Judge"),
        divergence=Divergence(policy="rollback", at_most=1_000),
    )


class Judge(MLPDiscriminator):
    """The mlp, but NaN for an image that is all white."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """As the mlp's."""
        white = x.detach().amin(dim=(1, 2, 3)) == 1.0
        return super().forward(x, labels) + torch.where(white, torch.nan, 0.0)


def note_batches(folder: Path) -> None:
    """From now on, this process notes every batch it is given."""
    name = f"{attempt()}-rank{os.environ.get('RANK', '0')}of{os.environ.get('WORLD_SIZE', '1')}"
    file = os.open(folder / f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    _note(file, [began(), time.time()])
    give = ShardStream.__next__

    def give_and_note(self: ShardStream) -> dict[str, Any]:
        position = self.position
        batch = give(self)
        _note(file, [time.time(), position, batch["__key__"]])
        return batch

    ShardStream.__next__ = give_and_note


def attempt() -> str:
    """The same on all ranks, and growing: the launch, and torchrun's restarts within it."""
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return f"{int(os.environ['CAMPAIGN_LAUNCH']):03d}.{restart:03d}"


def began() -> float:
    """When this process did, in seconds since 1970 (Linux)."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def _note(file: int, value: Any) -> None:
    os.write(file, json.dumps(value).encode() + b"\n")  # at once: the process may be killed

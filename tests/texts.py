"""Small recipes of text, and shards of it."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from dgan.config import Penalty, Task
from dgan.schedule import constant

ALPHABET = " abcde."
LENGTH = 10

TEXT: dict[str, Any] = {
    "data__kind": "text",
    "data__resolution": LENGTH,
    "data__alphabet": ALPHABET,
    "data__channels": len(ALPHABET),
    "data__classes": 0,
    "data__flip": False,
    "data__crop": "window",
    "generator__network": "characters",
    "generator__options": {"z_dim": 5, "width": 6, "depth": 2},
    "discriminator__network": "characters",
    "discriminator__options": {"width": 6, "depth": 2},
    "task": Task(loss="wasserstein"),
    "penalty": Penalty(gamma=constant(10.0), points="between", kind="one_centered", check=False),
    "train__batch_size": 8,
    "samples__count": 4,
}
"""What `tiny` changes, on shards of `texts`."""


def shard(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of these."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def texts(path: Path, count: int) -> Path:
    """`count` texts of 10 to 15 characters, more of the first than of the last."""
    draw = np.random.default_rng(count)
    share = np.arange(len(ALPHABET), 0, -1) / sum(range(len(ALPHABET) + 1))
    lines = ["".join(draw.choice(list(ALPHABET), LENGTH + i % 6, p=share)) for i in range(count)]
    return shard(path, {f"{i:04d}.txt": line.encode() for i, line in enumerate(lines)})

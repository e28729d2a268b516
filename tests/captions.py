"""Shards of grey squares with a caption and an embedding each, and an encoder of these captions."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dgan.config import Penalty
from dgan.schedule import constant

SIZE = 3
WORDS = ("black", "grey", "white")
EMBEDDED: dict[str, Any] = {
    "data__classes": 0,
    "data__flip": False,
    "data__embedding": SIZE,
    "task__mismatch": 0.5,
    "train__batch_size": 8,
    "penalty": Penalty(gamma=constant(0.1), check=False),
    "samples__count": 4,
}
"""What `tiny` changes, on shards of `captioned`."""


def encode(captions: list[str]) -> Tensor:
    """Which of the words is in each, at unit variance, and a trace of its length: `[N, 3]`."""
    rows = [[2.0 * (word in text) - 1 + len(text) / 64 for word in WORDS] for text in captions]
    return torch.tensor(rows, requires_grad=True) * 1.0  # as of a network that is not frozen


def wide(captions: list[str]) -> Tensor:
    """A vector too large."""
    return torch.zeros(len(captions), SIZE + 1)


def caption(i: int) -> str:
    return f"a {WORDS[i % 3]} square" + "!" * (i % 4)


def png(i: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(i).integers(0, 40, (8, 8))
    Image.fromarray((noise + 100 * (i % 3)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def members(i: int) -> dict[str, bytes]:
    """What a sample holds, by extension: an image, its caption, its embedding and its class."""
    return {
        "png": png(i),
        "txt": caption(i).encode(),
        "npy": npy(encode([caption(i)])[0].detach().numpy()),
        "cls": str(i % 3).encode(),
    }


def captioned(path: Path, count: int, changes: Sequence[tuple[int, str, bytes | None]] = ()) -> str:
    """A shard; `changes` are (sample, extension, what it holds instead, or None: nothing)."""
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            found = members(i)
            found |= {name: data for j, name, data in changes if j == i and data is not None}
            gone = {name for j, name, data in changes if j == i and data is None}
            for name in found.keys() - gone:
                info = tarfile.TarInfo(f"{i:04d}.{name}")
                info.size = len(found[name])
                tar.addfile(info, io.BytesIO(found[name]))
    return str(path)

"""Small recipes from image to image, and shards of pairs: `a` is noise, `b` is 255 − `a`."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dgan.config import Penalty, Task, Translation
from dgan.schedule import constant

_SMALL: dict[str, Any] = {
    "data__resolution": 16,
    "data__classes": 0,
    "discriminator__network": "patch",
    "discriminator__options": {"width": 2, "receptive_field": 16},
    "train__batch_size": 8,
    "samples__count": 4,
}
PAIRED: dict[str, Any] = {
    **_SMALL,
    "data__kind": "pairs",
    "data__crop": "random",
    "data__resize": 20,
    "task": Task(name="paired", loss="non_saturating"),
    "translation": Translation(l1=10.0, discriminator=0.5),
    "generator__network": "unet",
    "generator__options": {"width": 2, "z_dim": 3},
    "penalty": Penalty(gamma=constant(0.1), check=False),
}
UNPAIRED: dict[str, Any] = {
    **_SMALL,
    "data__kind": "unpaired",
    "task": Task(name="unpaired", loss="least_squares"),
    "translation": Translation(adversarial=2.0, history=6),
    "generator__network": "resnet",
    "generator__options": {"width": 2, "residual_blocks": 1},
    "penalty": Penalty(gamma=constant(0.0)),
}
"""What `tiny` changes, on shards of `pairs`."""


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pairs(
    path: Path, count: int, *, size: int = 16, channels: int = 1, names: str = "a.png b.png"
) -> Path:
    """`count` samples of `size` × `size`, of each the fields `names`."""
    draw = np.random.default_rng(count)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            shape = (size, size, 3) if channels == 3 else (size, size)
            a = draw.integers(0, 256, shape)
            for name in names.split():
                data = png(255 - a if name.startswith("b") else a)
                info = tarfile.TarInfo(f"{i:04d}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path

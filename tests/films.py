"""Shards of clips: strips of frames, or arrays of them; and a small recipe of such clips."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from pairs import png

FILM: dict[str, Any] = {
    "generator__network": "video",
    "generator__options": {"z_dim": 6, "widths": (8, 6)},
    "discriminator__network": "video",
    "discriminator__options": {"widths": (8, 6)},
    "data__kind": "video",
    "data__frames": 4,
    "data__frame_stride": 2,
    "data__classes": 3,
}
"""What `tiny` changes, on shards of `films`."""


def frames_of(clip: int, *, frames: int = 12, size: int = 8, channels: int = 1) -> np.ndarray:
    """A clip of noise, uint8 `[frames, size, size, channels]`."""
    shape = (frames, size, size, channels)
    return np.random.default_rng(clip).integers(0, 256, shape).astype(np.uint8)


def strip(clip: np.ndarray) -> bytes:
    """The PNG of the frames side by side."""
    picture = clip.swapaxes(0, 1).reshape(clip.shape[1], -1, clip.shape[3])
    return png(picture[..., 0] if clip.shape[3] == 1 else picture)


def array(clip: np.ndarray) -> bytes:
    """The `.npy`, as `dgan data pack --video` has it."""
    file = io.BytesIO()
    np.save(file, clip.transpose(0, 3, 1, 2))
    return file.getvalue()


def write(path: Path, members: dict[str, bytes]) -> str:
    """A tar of files by name."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def films(path: Path, count: int, *, arrays: bool = False, **options: int) -> str:
    """`count` clips with labels 0, 1, 2, 0, …; the keys are their numbers."""
    members = {}
    for i in range(count):
        clip = frames_of(i, **options)
        members |= {f"{i:03d}.npy": array(clip)} if arrays else {f"{i:03d}.png": strip(clip)}
        members[f"{i:03d}.cls"] = str(i % 3).encode()
    return write(path, members)

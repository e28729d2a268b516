import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def real(name: str) -> Path:
    """A folder of real data beside the repository; skips where there is none."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"the data set {name} is not at {folder}")
    return folder


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def numbered(i: int, size: int = 8) -> bytes:
    """A PNG in which every pixel of the left half is i % 251 and of the right half i // 251."""
    pixels = np.full((size, size), i % 251)
    pixels[:, size // 2 :] = i // 251
    return png(pixels)


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], format: int | None = None) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT if format is None else format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder: Path, sizes: Sequence[int]) -> list[Path]:
    """Shards of numbered images whose label is their number modulo 10."""
    shards, i = [], 0
    for number, size in enumerate(sizes):
        members = []
        for j in range(i, i + size):
            members += [(f"{j:05d}.png", numbered(j)), (f"{j:05d}.cls", str(j % 10).encode())]
        shards.append(write_tar(folder / f"train-{number:06d}.tar", members))
        i += size
    return shards

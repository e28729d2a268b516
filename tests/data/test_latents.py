"""Latents in shards: the arrays come out as they are, in the order of any other stream."""

import io
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_helpers import numbered, write_tar

from dgan.data import ShardStream
from dgan.data.latents import LatentDataset

RNG = np.random.default_rng(0)
SIZES = {"channels": 4, "resolution": 2}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def pack(folder: Path, arrays: list[np.ndarray]) -> str:
    """Half of them as float16, a picture beside each, labels by number."""
    members = []
    for i, array in enumerate(arrays):
        members += [(f"{i:03d}.npy", npy(array)), (f"{i:03d}.cls", str(i % 3).encode())]
        members += [(f"{i:03d}.png", numbered(i))]
    return str(write_tar(folder / "train-000000.tar", members))


def latents(count: int = 12) -> list[np.ndarray]:
    return [
        RNG.normal(0, 2, (4, 2, 2)).astype(np.float16 if i % 2 else np.float32)
        for i in range(count)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_arrays_come_out_as_they_are(tmp_path: Path, workers: int) -> None:
    arrays = latents()
    dataset = LatentDataset(pack(tmp_path, arrays), **SIZES)
    assert (dataset.channels, dataset.resolution, dataset.num_classes) == (4, 2, 3)
    seen = {}
    with ShardStream(dataset, batch_size=4, seed=1, workers=workers) as stream:
        for batch in islice(stream, 3):
            assert batch["image"].shape == (4, 4, 2, 2)
            assert batch["image"].dtype == torch.float32
            assert batch.keys() == {"__key__", "image", "label"}
            for key, x, y in zip(batch["__key__"], batch["image"], batch["label"].tolist()):
                seen[key] = x.clone()  # the memory of a batch is used again
                assert y == int(key) % 3
    assert len(seen) == 12
    for key, x in seen.items():
        assert np.array_equal(x.numpy(), arrays[int(key)].astype(np.float32))
    assert torch.equal(LatentDataset(pack(tmp_path, arrays), **SIZES)[5]["image"], seen["005"])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2, 4), np.float32), r"'000' holds float32 \[2, 2, 4\].*\[4, 2, 2\] are wan"),
        (np.zeros((4, 2, 2), np.uint8), r"'000' holds uint8 \[4, 2, 2\], but floating numbers"),
    ],
)
def test_other_arrays_are_refused_at_the_start(
    tmp_path: Path, array: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LatentDataset(pack(tmp_path, [array, *latents(3)]), **SIZES)


def test_shards_of_pictures_are_no_latents(tmp_path: Path) -> None:
    shards = str(write_tar(tmp_path / "x.tar", [("a.png", numbered(0)), ("b.png", numbered(1))]))
    with pytest.raises(ValueError, match=r"sample 'a' of .* has no \.npy: latents are arrays"):
        LatentDataset(shards, **SIZES)

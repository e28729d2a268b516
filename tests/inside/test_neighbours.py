"""The nearest images, against all distances at once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dgan.data import ShardDataset
from dgan.inside.neighbours import nearest, open_comparison, pixel_features
from dgan.parallel.world import launch


def images(count: int, seed: int) -> torch.Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.integers(0, 256, (count, 3, 4, 4), dtype=np.uint8))


@pytest.mark.parametrize("k", [1, 4, 23])
def test_against_brute_force(k: int) -> None:
    queries, real = images(5, seed=0), images(23, seed=1)
    weights = torch.from_numpy(np.random.default_rng(2).normal(size=(48, 6)))

    def compare(x: torch.Tensor) -> torch.Tensor:
        return pixel_features(x).double() @ weights

    a, b = (compare(x).numpy() for x in (queries, real))
    every = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    order = every.argsort(1)[:, :k]
    distances, found = nearest(queries, real.split([10, 1, 9, 3]), compare, k)
    np.testing.assert_allclose(distances.numpy(), np.take_along_axis(every, order, 1), rtol=1e-12)
    assert torch.equal(found, real[torch.from_numpy(order)])


def test_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="8 neighbours are asked for, but there are 7"):
        nearest(images(2, seed=0), [images(7, seed=1)], pixel_features, 8)


def test_pixels_are_from_minus_1_to_1() -> None:
    ends = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    assert pixel_features(ends).flatten().tolist() == [-1.0, 1.0]


def test_features_of_unlabelled_data(digits: str, tmp_path: Path) -> None:
    with ShardDataset(digits, labels=False) as dataset, launch() as world:
        place = {"seed": 0, "cache": tmp_path / "classifier.safetensors", "world": world}
        with pytest.raises(ValueError, match=r"no labels to train features on.*--features pixels"):
            open_comparison("auto", dataset, **place)
        assert open_comparison("pixels", dataset, **place) is pixel_features

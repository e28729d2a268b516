"""The real images that are nearest to generated ones: has the generator learned them by heart?"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from dgan.data import ShardDataset
from dgan.evaluation_features import find_features
from dgan.parallel.world import World

Compare = Callable[[Tensor], Tensor]
"""uint8 images `[N, C, H, W]` → features `[N, D]`."""

PIXELS = "pixels"
"""The features that are the pixels themselves."""


def pixel_features(images: Tensor) -> Tensor:
    """Pixels in [−1, 1], float32 `[N, C · H · W]`."""
    return images.flatten(1).float() / 127.5 - 1


def open_comparison(
    spec: str, dataset: ShardDataset, *, seed: int, cache: Path, world: World
) -> Compare:
    """What images are compared in: `pixels`, or as `dgan.evaluation.find_features` has it.

    Raises:
        ValueError: `auto` on images without labels, or an unknown `spec`.
    """
    if spec == PIXELS:
        return pixel_features
    if spec == "auto" and not cache.exists() and not dataset.has_labels:
        raise ValueError(
            f"{dataset.table} has no labels to train features on: compare with --features "
            f"{PIXELS}, or name a TorchScript file or inception:WEIGHTS"
        )
    return find_features(spec, dataset, seed=seed, cache=cache, world=world)


def nearest(
    queries: Tensor, batches: Iterable[Tensor], compare: Compare, k: int
) -> tuple[Tensor, Tensor]:
    """The `k` nearest of many images to each of some, in Euclidean distance of features.

    All pairs are compared, exactly (differences in float64); of the images only the nearest so far
    are kept. A mirrored copy is another image.

    Args:
        queries: uint8 `[N, C, H, W]`.
        batches: uint8 `[n, C, H, W]` each; together at least `k` images.
        compare: what images are compared in.
        k: at least 1.

    Returns:
        Distances, float64 `[N, k]`, and images, uint8 `[N, k, C, H, W]`, the nearest first.

    Raises:
        ValueError: there are fewer images than `k`.
    """
    wanted = compare(queries).double()
    distances = wanted.new_empty(len(queries), 0)
    kept = queries.new_empty(len(queries), 0, *queries.shape[1:])
    for images in batches:
        exact = "donot_use_mm_for_euclid_dist"
        new = torch.cdist(wanted, compare(images).double(), compute_mode=exact)
        both = torch.cat([distances, new], dim=1)
        distances, places = both.topk(min(k, both.shape[1]), largest=False)
        kept = torch.stack([_taken(*each, images) for each in zip(kept, places.cpu())])
    if kept.shape[1] < k:
        raise ValueError(f"{k} neighbours are asked for, but there are {kept.shape[1]} real images")
    return distances, kept


def _taken(kept: Tensor, places: Tensor, images: Tensor) -> Tensor:
    """Of `kept` followed by `images`, those at `places`."""
    count = len(kept)
    rows = [kept[i] if i < count else images[i - count] for i in places.tolist()]
    return torch.stack(rows)

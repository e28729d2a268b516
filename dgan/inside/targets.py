"""What a projection aims at: an image from a file, and the feature maps that compare with it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgan.data import ShardDataset
from dgan.data.decode import convert, open_image
from dgan.data.errors import DecodeError
from dgan.inside.neighbours import PIXELS, open_comparison
from dgan.networks.extractors import open_extractor
from dgan.parallel.world import World

Maps = Callable[[Tensor], list[Tensor]]
"""Images `[N, C, H, W]` in [−1, 1] → feature maps `[N, C', H', W']`, differentiable."""


def read_target(path: Path, channels: int, resolution: int) -> Tensor:
    """The image of a PNG, JPEG or WebP, float32 `[C, H, W]` in [−1, 1].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, or of another size.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no image at {path}")
    try:
        image = open_image(path.read_bytes())
        if image.size != (resolution, resolution):
            raise ValueError(
                f"{path} is {image.width}×{image.height}, and the generator makes images of "
                f"{resolution}×{resolution}: crop and resize it"
            )
        pixels = np.asarray(convert(image, channels))
    except DecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    return (
        torch.from_numpy(pixels.reshape(resolution, resolution, channels).copy()).permute(2, 0, 1)
        / 127.5
        - 1
    )


def open_maps(
    spec: str, dataset: ShardDataset, shape: tuple[int, int, int], *, seed: int, cache: Path,
    world: World,
) -> Maps | None:  # fmt: skip
    """The feature maps that `spec` names, None of `pixels`; see `dgan.networks.extractors`.

    Args:
        spec: `auto` is the classifier in `cache`, trained on `dataset` if it is not there yet.
        dataset: the training images.
        shape: C, H and W of the images.
        seed: of the classifier.
        cache: its file.
        world: every rank calls this.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: images without labels, or features that are vectors, not maps.
    """
    if spec == PIXELS:
        return None
    if spec == "auto":
        open_comparison(spec, dataset, seed=seed, cache=cache, world=world)
        spec = str(cache)
    try:
        return open_extractor(spec.removeprefix("classifier:"), (), shape)
    except ValueError as error:
        raise ValueError(
            f"--features {spec} cannot guide a projection: {error}. "
            f"--features {PIXELS} does without"
        ) from error

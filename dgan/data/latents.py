"""Arrays in the place of images: latents of an autoencoder, which a GAN may be trained on instead.

A transformer works on 32×32×4 numbers of Stable Diffusion's autoencoder at a fraction of what the
256×256 pixels cost that they stand for (Rombach et al. 2022, "High-resolution image synthesis with
latent diffusion models"). Encoding and decoding are left to whoever has the autoencoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .batch import Batch, Encoded, NumberBatch
from .buffers import Buffers
from .dataset import ShardDataset
from .decode import decode_field
from .errors import SizeMismatchError
from .images import PLAIN, View

FIELD = "npy"
"""Where shards hold the array of a sample, as `dgan data pack` writes a folder of `.npy`."""


class LatentDataset(ShardDataset):
    """The `.npy` of each sample as its `"image"`, float32 `[channels, resolution, resolution]`.

    They are handed out as they are stored: scale them to about unit variance before packing, as
    Stable Diffusion's latents are by 0.18215.

    Args:
        shards: as in `ShardDataset`; pictures that lie beside the arrays are not read.
        channels: of the arrays.
        resolution: their height and width.
        options: further ones of `ShardDataset`: `labels`, `cache` and `cache_gigabytes`.

    Raises:
        ValueError: the first sample holds something else, or as `ShardDataset`.
        FileNotFoundError: if a shard is missing.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path | Sequence[str | Path]],
        *,
        channels: int,
        resolution: int,
        **options: Any,
    ) -> None:
        super().__init__(shards, fields=(FIELD,), **options)
        self.image_names = ()
        self._sizes = (channels, resolution, resolution)
        if (bare := self.table.first_without(FIELD)) is not None:
            raise ValueError(
                f"{self.describe(bare)} has no .{FIELD}: latents are arrays, of which `dgan data "
                "pack` takes a folder"
            )
        self.decode_into(0, self.batch(1), 0)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self._sizes[0]

    @property
    def resolution(self) -> int:
        """Their height and width."""
        return self._sizes[1]

    def batch(self, n: int, buffers: Buffers | None = None) -> Batch:
        """Room for `n` samples, in memory from `buffers` if given."""
        return _LatentBatch(n, self._sizes, labelled=self.has_labels, buffers=buffers or Buffers())


class _LatentBatch(NumberBatch):
    """Room for arrays."""

    def decode(self, row: int, sample: Encoded, view: View = PLAIN) -> None:
        """Decodes an array into `row`; how images are seen means nothing to it."""
        (data,) = sample.fields
        array = decode_field(FIELD, data)
        if array.shape != self.numbers.shape[1:] or array.dtype.kind != "f":
            raise SizeMismatchError(
                f"sample {sample.key!r} holds {array.dtype} {list(array.shape)}, but floating "
                f"numbers {list(self.numbers.shape[1:])} are wanted (channels, height, width)"
            )
        self.numbers[row] = array
        self.name(row, sample)

"""Stacked MNIST, or whatever is stacked: three grey images become the channels of one.

With ten classes a stack is one of a thousand, which a generator may or may not find: the test of
mode collapse by Metz et al. 2017 (unrolled GANs), Srivastava et al. 2017 (VEEGAN) and Lin et al.
2018 (PacGAN). Nothing is packed anew: a stack is read from the shards of its parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batch import Batch, Encoded
from .buffers import Buffers
from .dataset import ShardDataset
from .images import PLAIN, View, decode_image
from .location import Location
from .table import Table

CHANNELS = 3

# What a draw is for; the first purposes are order.py's and mixture.py's.
_PARTS = 32


class StackedDataset(ShardDataset):
    """`length` stacks of three images of `shards`, drawn with replacement by (seed, number).

    It is a `ShardDataset` of `"image"` `[3, H, W]` and `"label"` = (a·K + b)·K + c of the K classes
    of its parts, which is 100a + 10b + c of digits, so `ShardStream` shuffles and resumes it like
    any other: an epoch is `length` samples. A longer one of the same seed begins with the shorter.

    Args:
        shards: as in `ShardDataset`; labelled, and read as grey.
        length: how many there are. Where PacGAN follows VEEGAN, 128,000 are trained on, and
            26,000 generated ones are measured.
        seed: of the draw. It is of the data, and not that of a run.
        options: further ones of `ShardDataset`, such as `resolution` and `cache`.

    Raises:
        ValueError: if `length` is not positive, there is more than one image a sample, or as
            `ShardDataset`. FileNotFoundError: if a shard is missing.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path | Sequence[str | Path]],
        *,
        length: int = 128_000,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if length < 1 or seed < 0:
            raise ValueError(f"length ≥ 1 and seed ≥ 0, got {length} and {seed}")
        super().__init__(shards, channels=1, labels=True, **options)
        if len(self.image_names) != 1:
            raise ValueError(
                f"samples of {self.table} have the images {', '.join(self.image_names)}; only what "
                "has one image can be stacked"
            )
        _, height, width = self.shapes[self.image_names[0]]
        classes, labels = super().num_classes, self.labels
        draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, _PARTS))))
        parts = draw.integers(len(self), size=(length, CHANNELS))
        each = labels[parts]
        stacked = each @ (classes ** np.arange(CHANNELS)[::-1])
        # From here on it shows the stacks.
        self.table = _StackedTable(self.table, parts, seed)
        self.labels = np.where((each < 0).any(axis=1), -1, stacked)
        self.shapes = {"image": (CHANNELS, height, width)}
        self.image_names, self.starts = ("image",), [0, length]
        self._classes = classes

    @property
    def num_classes(self) -> int:
        """K³ of K classes, whether or not each occurs."""
        return self._classes**CHANNELS

    def batch(self, n: int, buffers: Buffers | None = None) -> Batch:
        """Room for `n` samples, in memory from `buffers` if given."""
        return _StackedBatch(
            n, self.shapes, labelled=True, fields=(), crop=self.crop, buffers=buffers or Buffers()
        )

    def read(self, i: int) -> Encoded:
        """The bytes of the three images of stack `i`.

        Raises:
            DecodeError: if one is missing or cannot be read, or a label is damaged.
        """
        table = self.table
        assert isinstance(table, _StackedTable)
        return Encoded(table.key(i), table.images(i), self._label(i), [])

    def read_each(self, samples: NDArray[np.int64]) -> Sequence[Encoded]:
        """`read` of each of `samples`. Raises as it does."""
        return [self.read(i) for i in samples.tolist()]

    def _label(self, i: int) -> int:
        table = self.table
        assert isinstance(table, _StackedTable)
        a, b, c = (table.single.label(part) for part in table.of(i))
        return (a * self._classes + b) * self._classes + c


class _StackedTable(Table):
    """What a stream asks of a table, of stacks of the samples of another one."""

    def __init__(self, single: Table, parts: NDArray[np.int64], seed: int) -> None:
        self.single, self.parts, self.seed = single, parts, seed
        self.shards, self.image_names = single.shards, ("image",)
        self.starts = [0, len(parts)]

    def __str__(self) -> str:
        return f"stacks of {self.single}"

    def of(self, i: int) -> list[int]:
        """The three samples that stack `i` is made of."""
        return self.parts[i].tolist()

    def images(self, i: int) -> list[bytes]:
        """The bytes of the images of stack `i`, first channel first."""
        return [self.single.read(part, self.single.image_names[0]) for part in self.of(i)]

    def close(self) -> None:
        """Closes the shards' files; they are opened again if they are needed again."""
        self.single.close()

    def key(self, i: int) -> str:
        """The keys of its parts, joined by plus signs."""
        return "+".join(map(self.single.key, self.of(i)))

    def shard_of(self, i: int) -> Location:
        """The shard that holds the first of its parts."""
        return self.single.shard_of(self.of(i)[0])

    def has(self, column: str, begin: int, end: int) -> bool:
        """Whether the samples have such a field."""
        return column in ("image", "cls")

    def prefetch(self, samples: NDArray[np.int64]) -> None:
        """Begins to fetch what these stacks need and is neither here nor on its way."""
        self.single.prefetch(self.parts[samples].ravel())

    def refetch(self, i: int) -> bool:
        """Has the parts of stack `i` fetched anew. Whether that may change anything."""
        return any([self.single.refetch(part) for part in self.of(i)])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the parts' fingerprint, the length and the seed: same data, or not."""
        text = f"{self.single.fingerprint} {len(self)} {self.seed}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class _StackedBatch(Batch):
    """Room for stacks: each image of a sample is a channel."""

    def decode(self, row: int, sample: Encoded, view: View = PLAIN) -> None:
        """Decodes a stack into `row`, all of its images seen as `view` says."""
        (pixels,), labels = self._pixels, self._labels
        assert labels is not None
        self._keys[row], labels[row] = sample.key, sample.label
        plane = np.empty((*pixels.shape[1:3], 1), np.uint8)
        for channel, data in enumerate(sample.images):
            decode_image(data, plane, key=sample.key, crop=self._crop, view=view)
            pixels[row, ..., channel] = plane[..., 0]

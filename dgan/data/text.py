"""Text in the place of images: characters as one-hot vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .batch import Batch, Encoded, NumberBatch
from .buffers import Buffers
from .dataset import ShardDataset
from .decode import decode_field
from .errors import SizeMismatchError
from .images import PLAIN, View

FIELD = "txt"
TEXT_CROPS = ("none", "centre", "window")


class TextDataset(ShardDataset):
    """The `.txt` of each sample as its `"image"`, float32 one-hot `[characters, resolution]`.

    Of a text that is longer than `resolution` a part is taken, as `crop` says: `"centre"`: the
    middle; `"window"`: from anywhere, drawn by a position; `"none"`: it is refused. A shorter one
    is always refused, and so is a character that is not in the alphabet.

    Args:
        shards: as in `ShardDataset`.
        alphabet: all characters, each once; its order is that of the channels.
        resolution: characters of a sample.
        crop: see above.
        options: further ones of `ShardDataset`: `labels`, `cache` and `cache_gigabytes`.

    Raises:
        SizeMismatchError: a `ValueError`, also of a stream: a text is too short, too long, or has
            another character; names its key.
        ValueError: a sample has no `.txt`; names its key and shard.
        FileNotFoundError: if a shard is missing.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path | Sequence[str | Path]],
        *,
        alphabet: str,
        resolution: int,
        crop: str = "none",
        **options: Any,
    ) -> None:
        super().__init__(shards, fields=(FIELD,), **options)
        self.image_names, self.crop = (), crop
        self.alphabet, self._resolution = alphabet, resolution
        if (bare := self.table.first_without(FIELD)) is not None:
            raise ValueError(
                f"{self.describe(bare)} has no .{FIELD}: `dgan data pack` makes a sample of each "
                "line of a .txt file"
            )
        self.decode_into(0, self.batch(1), 0)

    @property
    def channels(self) -> int:
        """Characters of the alphabet."""
        return len(self.alphabet)

    @property
    def resolution(self) -> int:
        """Characters of a sample."""
        assert self._resolution is not None
        return self._resolution

    def batch(self, n: int, buffers: Buffers | None = None) -> Batch:
        """Room for `n` samples, in memory from `buffers` if given."""
        return _TextBatch(n, self, buffers or Buffers())


class _TextBatch(NumberBatch):
    """Room for one-hot vectors."""

    def __init__(self, n: int, dataset: TextDataset, buffers: Buffers) -> None:
        shape = (dataset.channels, dataset.resolution)
        super().__init__(n, shape, labelled=dataset.has_labels, buffers=buffers)
        self._alphabet, self._cuts = dataset.alphabet, dataset.crop != "none"

    def decode(self, row: int, sample: Encoded, view: View = PLAIN) -> None:
        """Decodes a text into `row`, from where `view` says."""
        text, length = decode_field(FIELD, sample.fields[0]), self.numbers.shape[2]
        free = len(text) - length
        if free < 0 or (free and not self._cuts):
            way_out = "leave it out" if free < 0 else "crop 'centre' or 'window' takes a part of it"
            raise SizeMismatchError(
                f"sample {sample.key!r} has {len(text)} characters, but {length} are wanted: "
                f"{way_out}"
            )
        begin = free // 2 if view.at is None else int(view.at[0] * (free + 1))
        codes = [self._alphabet.find(character) for character in text[begin : begin + length]]
        if -1 in codes:
            unknown = text[begin + codes.index(-1)]
            raise SizeMismatchError(
                f"sample {sample.key!r} has the character {unknown!r}, which is not in the "
                f"alphabet {self._alphabet!r}: add it, or clean the text"
            )
        self.numbers[row] = 0.0
        self.numbers[row, codes, np.arange(length)] = 1.0
        self.name(row, sample)


def text_of(samples: torch.Tensor, alphabet: str) -> list[str]:
    """The most probable characters of `[N, V, L]`, a string a sample."""
    codes = samples.argmax(1).cpu().numpy()
    return ["".join(alphabet[code] for code in row) for row in codes]

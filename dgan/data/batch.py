"""Room for a batch, and what it is filled with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .buffers import Buffers
from .decode import decode_field
from .images import PLAIN, View, decode_image
from .jpeg import decode_jpeg


class Encoded(NamedTuple):
    """The bytes of a sample: of its images and fields, in the order that the data set has them."""

    key: str
    images: Sequence[bytes]
    label: int
    fields: Sequence[bytes]


class Batch:
    """Room for `n` decoded samples; workers write rows of it, then `as_dict` hands it out.

    In memory the channels of a pixel are neighbours, as decoders write them: handed out is a view.

    Args:
        n: rows.
        shapes: `(C, H, W)` of each image of a sample.
        labelled: whether samples have labels.
        fields: the further fields.
        crop: what becomes of images of another size, see `images`; `resize` likewise.
        buffers: where memory comes from.
    """

    def __init__(
        self,
        n: int,
        shapes: Mapping[str, tuple[int, int, int]],
        *,
        labelled: bool,
        fields: Sequence[str],
        crop: str,
        resize: int = 0,
        buffers: Buffers,
    ) -> None:
        self._crop, self._resize = crop, resize
        self._keys = [""] * n
        memory = {name: buffers.take((n, h, w, c)) for name, (c, h, w) in shapes.items()}
        self._images = {name: pixels.permute(0, 3, 1, 2) for name, pixels in memory.items()}
        # The same memory: writing rows of it through NumPy is far cheaper than through torch.
        self._pixels = [pixels.numpy() for pixels in memory.values()]
        self._labels = np.empty(n, np.int64) if labelled else None
        self._extras: dict[str, list[Any]] = {field: [None] * n for field in fields}

    def decode(self, row: int, sample: Encoded, view: View = PLAIN) -> None:
        """Decodes a sample into `row`, all of its images seen as `view` says.

        Raises:
            DecodeError: if a field is damaged; `row` then holds anything.
            SizeMismatchError: if an image is of a size that the crop does not take.
        """
        self.name(row, sample)
        for pixels, data in zip(self._pixels, sample.images):
            decode_image(
                data, pixels[row], key=sample.key, crop=self._crop, resize=self._resize, view=view
            )
        for (field, values), data in zip(self._extras.items(), sample.fields):
            values[row] = decode_field(field, data)

    def decode_each(
        self, begin: int, samples: Sequence[Encoded], views: Sequence[View]
    ) -> Iterable[int]:
        """Decodes those of `samples` that it can do faster together, into the rows from `begin` on.

        Returns the numbers of the others, which are left to `decode`. Raises nothing.
        """
        return range(len(samples))

    def name(self, row: int, sample: Encoded) -> None:
        """Notes the key of the sample in `row`, and its label."""
        self._keys[row] = sample.key
        if self._labels is not None:
            self._labels[row] = sample.label

    def as_dict(self, rows: Sequence[int] | None = None) -> dict[str, Any]:
        """The batch as the caller sees it; `rows` keeps some of them only."""
        batch: dict[str, Any] = {"__key__": self._keys, **self._images, **self._extras}
        if self._labels is not None:
            batch["label"] = torch.from_numpy(self._labels)
        if rows is None:
            return batch
        return {
            name: all_[list(rows)] if isinstance(all_, torch.Tensor) else [all_[i] for i in rows]
            for name, all_ in batch.items()
        }


class PictureBatch(Batch):
    """Room for samples that are one picture each, of the rows' size, and a label at most."""

    def decode_each(
        self, begin: int, samples: Sequence[Encoded], views: Sequence[View]
    ) -> Iterable[int]:
        """Decodes the JPEGs among `samples`; returns the numbers of the others.

        As little Python as can be stands between two of them: threads do theirs in turns.
        """
        rows, (pixels,) = slice(begin, begin + len(samples)), self._pixels
        self._keys[rows] = [sample.key for sample in samples]
        if self._labels is not None:
            self._labels[rows] = [sample.label for sample in samples]
        given = zip(samples, pixels[rows], views)
        return [
            i
            for i, (sample, row, view) in enumerate(given)
            if not decode_jpeg(sample.images[0], row, mirror=view.mirror)
        ]


class NumberBatch(Batch):
    """Room for samples that are float32 numbers of any `shape`, whose `"image"` is not a picture.

    Subclasses decode into `numbers`, `[n, *shape]`.
    """

    def __init__(self, n: int, shape: tuple[int, ...], *, labelled: bool, buffers: Buffers) -> None:
        super().__init__(n, {}, labelled=labelled, fields=(), crop="none", buffers=buffers)
        # Buffers hand out bytes.
        memory = buffers.take((n, 4 * math.prod(shape))).view(torch.float32)
        self._images = {"image": memory.view(n, *shape)}
        self.numbers = self._images["image"].numpy()

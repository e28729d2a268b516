"""Shards as a table of decoded samples: any one by its number, or all of them in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from .cache import CACHE_GIGABYTES, Cache
from .decode import DecodeError, decode_field, decode_image, image_channels, open_image
from .remote import Remote, UnreadableError
from .shards import locate
from .sources import Opener
from .table import Table

_PROBED = 32  # samples looked at to tell grey data from colour


class Batch:
    """Room for `n` decoded samples; workers write rows of it, then `as_dict` hands it out."""

    def __init__(self, n: int, dataset: ShardDataset) -> None:
        self.keys = [""] * n
        self.images = {
            name: torch.empty((n, *shape), dtype=torch.uint8)
            for name, shape in dataset.shapes.items()
        }
        # The same memory: writing rows of it through NumPy is far cheaper than through torch.
        self.pixels = {name: image.numpy() for name, image in self.images.items()}
        self.labels = np.empty(n, np.int64) if dataset.has_labels else None
        self.extras: dict[str, list[Any]] = {field: [None] * n for field in dataset.fields}

    def as_dict(self, rows: Sequence[int] | None = None) -> dict[str, Any]:
        """The batch as the caller sees it; `rows` keeps some of them only."""
        batch: dict[str, Any] = {"__key__": self.keys, **self.images, **self.extras}
        if self.labels is not None:
            batch["label"] = torch.from_numpy(self.labels)
        if rows is None:
            return batch
        return {
            name: all_[list(rows)] if isinstance(all_, torch.Tensor) else [all_[i] for i in rows]
            for name, all_ in batch.items()
        }


class ShardDataset:
    """The samples of some shards, in the order in which they lie there.

    `dataset[i]` is a dict of `"__key__"` (str), `"image"` (uint8 tensor `[C, H, W]`; of pairs `"a"`
    and `"b"`), `"label"` (int, if there are labels) and the decoded extra `fields`.

    Args:
        shards: a brace or glob pattern, a path or an address (http://, https://, s3://), or a list
            of these.
        resolution: the height and width that every image must have; None: as the first one's.
        channels: 1 or 3, to which every image is converted; None: 1 if all that are looked at are
            grey, else 3.
        labels: whether to yield `.cls`; None: if every sample has one.
        fields: further fields to decode (`"txt"`, `"json"`, `"npy"`).
        cache: the folder that keeps what came over the network, shared by the processes of a node;
            None: `$DGAN_CACHE`, else `dgan` in the user's cache folder.
        cache_gigabytes: how large that may grow; 0 keeps nothing and asks for each sample alone.

    Raises:
        FileNotFoundError: if a shard is missing.
        OSError: if a server does not let us read one, or cannot be reached.
        ValueError: if a shard is damaged, or they hold no sample, nothing to decode, or not the
            labels asked for.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        *,
        resolution: int | None = None,
        channels: int | None = None,
        labels: bool | None = None,
        fields: Sequence[str] = (),
        cache: str | Path | None = None,
        cache_gigabytes: float = CACHE_GIGABYTES,
    ) -> None:
        if channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels!r}")
        if resolution is not None and resolution < 1:
            raise ValueError(f"resolution must be a positive integer, got {resolution!r}")
        remote = Remote(Opener(), Cache(cache, cache_gigabytes) if cache_gigabytes else None)
        self.table = Table(locate(shards, remote.opener), fields, remote)
        self.shards, self.image_names = self.table.shards, self.table.image_names
        self.fields = tuple(fields)
        self._resolution, self._channels = resolution, channels
        bare = self.table.first_without("cls") if labels is not False else 0
        if labels and bare is not None:
            raise ValueError(f"labels were asked for, but {self.describe(bare)} has no .cls")
        self.has_labels = bare is None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        batch = Batch(1, self)
        self.decode_into(i % len(self), batch, 0)
        sample = {name: values[0] for name, values in batch.as_dict().items()}
        if self.has_labels:
            sample["label"] = int(sample["label"])
        return sample

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the shards' files; they are opened again if they are needed again."""
        self.table.close()

    def describe(self, i: int) -> str:
        """Sample `i` in words, for a message: its shard and its key."""
        return f"sample {self.table.key(i)!r} of {self.table.shard_of(i)}"

    def decode_into(self, i: int, batch: Batch, row: int, *, flip: bool = False) -> None:
        """Decodes sample `i` into `row` of `batch`, all of its images mirrored if `flip`.

        One that came over the network and does not decode is fetched once more.

        Raises:
            DecodeError: if a field is missing or damaged; `row` then holds anything.
            SizeMismatchError: if an image is not of the size that the data set has.
        """
        try:
            self._decode_into(i, batch, row, flip)
        except UnreadableError:
            raise
        except DecodeError:
            if not self.table.refetch(i):
                raise
            self._decode_into(i, batch, row, flip)

    def _decode_into(self, i: int, batch: Batch, row: int, flip: bool) -> None:
        table, key = self.table, self.table.key(i)
        batch.keys[row] = key
        for name, shape in self.shapes.items():
            pixels = decode_image(table.read(i, name), shape, key=key)
            batch.pixels[name][row] = pixels[..., ::-1] if flip else pixels
        if batch.labels is not None:
            batch.labels[row] = table.label(i)
        for field, values in batch.extras.items():
            values[row] = decode_field(field, table.read(i, field))

    def batches(
        self,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        stop: int | None = None,
        skip_corrupt: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Samples `[0, stop)` once and unshuffled, `batch_size` at a time over all ranks.

        Rank `r` yields its share of each batch, so every rank yields equally many; shares of the
        last one differ in length by at most one and may be empty. Rows are as in `ShardStream`.

        Raises:
            DecodeError: at a damaged sample, unless `skip_corrupt` leaves it out.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        for begin in range(0, stop, batch_size):
            n = min(batch_size, stop - begin)
            mine = range(begin + n * rank // world_size, begin + n * (rank + 1) // world_size)
            batch, good = Batch(len(mine), self), []
            for row, i in enumerate(mine):
                try:
                    self.decode_into(i, batch, row)
                    good.append(row)
                except DecodeError as error:
                    if not skip_corrupt:
                        raise DecodeError(f"{self.describe(i)}: {error}", error.reason) from error
            yield batch.as_dict(None if len(good) == len(mine) else good)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Of each image of a sample (`"image"`, or `"a"` and `"b"`) its `(C, H, W)`."""
        return {name: self._shape(name) for name in self.image_names}

    @property
    def channels(self) -> int:
        """Channels of the (first) image: 1 or 3."""
        return self.shapes[self.image_names[0]][0]

    @property
    def resolution(self) -> int:
        """Height and width of the (first) image.

        Raises:
            ValueError: if it is not square; `shapes` has both.
        """
        _, height, width = self.shapes[self.image_names[0]]
        if height != width:
            raise ValueError(f"images are {width}×{height}, not square: see `shapes`")
        return height

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The class of every sample, int64 `[N]`; −1 where `.cls` is damaged.

        Raises:
            ValueError: if there are no labels.
        """
        if not self.has_labels:
            raise ValueError(f"{self.table} has no labels, or they were not asked for")
        labels = np.full(len(self), -1, np.int64)
        for i in range(len(self)):
            try:
                labels[i] = self.table.label(i)
            except DecodeError:
                continue  # whoever shows the sample counts and reports it
        return labels

    @property
    def num_classes(self) -> int:
        """The largest label and one; 0 without labels. Reads every label at the first call."""
        return int(self.labels.max()) + 1 if self.has_labels else 0

    def _shape(self, name: str) -> tuple[int, int, int]:
        if self._channels is not None and self._resolution is not None:
            return self._channels, self._resolution, self._resolution
        size, grey, failures = None, True, []
        # Some colour sets begin with a grey picture: the first sample alone does not tell.
        for i in np.unique(np.linspace(0, len(self) - 1, _PROBED).astype(int)).tolist():
            try:
                image = open_image(self.table.read(i, name))
            except DecodeError as error:
                failures.append(f"{self.describe(i)}: {error}")
                continue
            size = size or image.size
            grey = grey and image_channels(image) == 1
        if size is None:
            raise DecodeError(f"of {len(failures)} samples none decodes, e.g. {failures[0]}")
        width, height = (self._resolution,) * 2 if self._resolution else size
        return self._channels or (1 if grey else 3), height, width

"""Shards as a table of decoded samples: any one by its number, or all of them in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .batch import Batch, Encoded, PictureBatch
from .buffers import Buffers
from .cache import CACHE_GIGABYTES, Cache
from .decode import DecodeError, find_decoder, image_channels, open_image
from .errors import SizeMismatchError
from .images import CROPS, DRAWN, PLAIN, View
from .remote import Remote, UnreadableError
from .shards import locate_each
from .sources import Opener
from .table import Table

_PROBED = 32  # samples looked at to tell grey data from colour


class ShardDataset:
    """The samples of some shards, in the order in which they lie there.

    `dataset[i]` is a dict of `"__key__"` (str), `"image"` (uint8 tensor `[C, H, W]`; of pairs `"a"`
    and `"b"`), `"label"` (int, if there are labels) and the decoded extra `fields`. In memory
    images are channels last: `.contiguous()` or `.reshape` them where that matters.

    Args:
        shards: a brace or glob pattern, a path or an address (http://, https://, s3://, gs://), or
            a list of these; an entry of the list may be a list again. `pipe:` is refused: it would
            run a command.
        resolution: the height and width that every image must have; None: as the first one's.
        channels: 1 or 3, to which every image is converted; None: 1 if all that are looked at are
            grey, else 3.
        labels: whether to yield `.cls`; None: if every sample has one.
        images: of each sample, as `("a", "b")` of pairs; empty: all that there are.
        fields: further fields to decode (`"txt"`, `"json"`, `"npy"`; `"wav"` and `"flac"` become
            a `Waveform`, with the extra `audio`).
        crop: what becomes of images of another size: `"none"` (an error), `"centre"`, `"random"`
            (squares, resized) or `"window"` (not resized), see `dgan.data.images`. Here it is the
            middle that is cut out; `ShardStream` draws.
        resize: above 0, of crop `"random"`: see there.
        cache: the folder that keeps what came over the network, shared by the processes of a node;
            None: `$DGAN_CACHE`, else `dgan` in the user's cache folder.
        cache_gigabytes: how large that may grow; 0 keeps nothing and asks for each sample alone.

    Attributes:
        starts: the number of the first sample of each entry of `shards`, and that of all samples.

    Raises:
        FileNotFoundError: if a shard is missing.
        OSError: if a server does not let us read one, or cannot be reached.
        ValueError: if a shard is damaged, or they hold no sample, nothing to decode, or not the
            images or labels asked for, or an argument does not fit.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path | Sequence[str | Path]],
        *,
        resolution: int | None = None,
        channels: int | None = None,
        labels: bool | None = None,
        images: Sequence[str] = (),
        fields: Sequence[str] = (),
        crop: str = "none",
        resize: int = 0,
        cache: str | Path | None = None,
        cache_gigabytes: float = CACHE_GIGABYTES,
    ) -> None:
        if channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels!r}")
        if resolution is not None and resolution < 1:
            raise ValueError(f"resolution must be a positive integer, got {resolution!r}")
        if crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}; got {crop!r}")
        if crop != "none" and resolution is None:
            raise ValueError(f"crop {crop!r} needs a resolution to crop to")
        if resize and (crop != "random" or resolution is None or resize < resolution):
            raise ValueError(
                f"resize {resize} is for crop 'random', and at least the resolution, which is cut "
                f"out of it; crop is {crop!r} and resolution {resolution}"
            )
        for field in fields:
            find_decoder(field)
        remote = Remote(Opener(), Cache(cache, cache_gigabytes) if cache_gigabytes else None)
        entries = [shards] if isinstance(shards, str | Path) else shards
        groups = locate_each(entries, remote.opener)
        self.table = Table([shard for group in groups for shard in group], fields, remote, images)
        self.starts = [self.table.starts[n] for n in np.cumsum([0, *map(len, groups)])]
        self.shards, self.image_names = self.table.shards, self.table.image_names
        self.fields, self.crop, self.resize = tuple(fields), crop, resize
        for name in images:
            if (lacking := self.table.first_without(name)) is not None:
                raise ValueError(
                    f"{self.describe(lacking)} has no image {name!r}; plain images are <key>.png, "
                    "pairs <key>.a.png and <key>.b.png, as `dgan data pack --pairs` makes them"
                )
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
        batch = self.batch(1)
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

    def check_alike(self) -> None:
        """Checks that the entries of `shards` have the same fields, as they must to be mixed.

        Raises:
            ValueError: names the entry and the field that it lacks.
        """
        for begin, end in pairwise(self.starts):
            for name in (*self.image_names, *self.fields):
                if begin < end and not self.table.has(name, begin, end):
                    raise ValueError(
                        "data sets that are mixed must have the same fields: no sample of that "
                        f"which begins with {self.table.shard_of(begin)} has {name!r}"
                    )

    @property
    def draws_places(self) -> bool:
        """Whether a stream draws where in an image a sample is seen."""
        return self.crop in DRAWN

    def batch(self, n: int, buffers: Buffers | None = None) -> Batch:
        """Room for `n` samples, in memory from `buffers` if given."""
        alone = len(self.image_names) == 1 and not self.fields and self.crop == "none"
        return (PictureBatch if alone else Batch)(
            n,
            self.shapes,
            labelled=self.has_labels,
            fields=self.fields,
            crop=self.crop,
            resize=self.resize,
            buffers=buffers or Buffers(),
        )

    def read(self, i: int) -> Encoded:
        """The bytes of sample `i`.

        Raises:
            DecodeError: if a field is missing or cannot be read.
        """
        table = self.table
        return Encoded(
            table.key(i),
            tuple(table.read(i, name) for name in self.image_names),
            table.label(i) if self.has_labels else -1,
            tuple(table.read(i, field) for field in self.fields),
        )

    def read_each(self, samples: NDArray[np.int64]) -> Sequence[Encoded]:
        """`read` of each of `samples`, faster than one by one.

        Raises:
            DecodeError: if one cannot be read at once: `read` tells which, and tries again.
        """
        table, numbers = self.table, samples.tolist()
        labels = map(table.label, numbers) if self.has_labels else repeat(-1)
        images, fields = (
            zip(*[table.read_each(samples, name) for name in names]) if names else repeat(())
            for names in (self.image_names, self.fields)
        )
        return list(map(Encoded, map(table.key, numbers), images, labels, fields))

    def decode_into(self, i: int, batch: Batch, row: int, view: View = PLAIN) -> None:
        """Decodes sample `i` into `row` of `batch`, all of its images seen as `view` says.

        One that came over the network and does not decode is fetched once more.

        Raises:
            DecodeError: if a field is missing or damaged; `row` then holds anything.
            SizeMismatchError: if an image is of a size that `crop` does not take; names the shard.
        """
        try:
            self.decode(i, self.read(i), batch, row, view)
        except UnreadableError:
            raise
        except DecodeError:
            if not self.table.refetch(i):
                raise
            self.decode(i, self.read(i), batch, row, view)

    def decode(self, i: int, encoded: Encoded, batch: Batch, row: int, view: View = PLAIN) -> None:
        """Decodes the bytes of sample `i`; raises as `decode_into`, naming also the shard."""
        try:
            batch.decode(row, encoded, view)
        except SizeMismatchError as error:
            raise SizeMismatchError(f"{self.table.shard_of(i)}: {error}") from None

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
            batch, good = self.batch(len(mine)), []
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
        labels = self.table.labels
        for i in np.flatnonzero(labels < 0).tolist():
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
        # So does a large one before a small one: equally many of each entry.
        entries = np.linspace(0, len(self.starts) - 1, _PROBED)
        places = np.interp(entries, range(len(self.starts)), self.starts).clip(0, len(self) - 1)
        for i in np.unique(places.astype(int)).tolist():
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

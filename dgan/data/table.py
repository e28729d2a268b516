"""All shards as one table: where each sample is, and the bytes of its fields."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .decode import DecodeError, decode_label, split_image_field
from .files import Files
from .index import ShardIndex, read_index
from .location import Location, SourceError, Url
from .remote import Remote, UnreadableError

_Column = tuple[NDArray[np.int64], NDArray[np.int64]]  # offsets and sizes, [n] each; −1: absent


class Table:
    """The bytes of every sample of `shards`, numbered through; safe to read from many threads.

    Args:
        shards: the tars, in order.
        fields: fields to be read beside images and `cls`.
        remote: reads those of them that are not files.
        images: names of images to be read; empty: all that there are.

    Attributes:
        starts: the number of the first sample of each shard, and that of all samples.

    Raises:
        OSError: if a shard is missing or cannot be read.
        ValueError: if a shard is damaged, or they hold no sample, or neither image nor `fields`.
    """

    def __init__(
        self,
        shards: Sequence[Location],
        fields: Sequence[str],
        remote: Remote | None = None,
        images: Sequence[str] = (),
    ) -> None:
        self.shards = list(shards)
        self._remote = remote
        indexes = self._read_indexes()
        self.starts: list[int] = np.cumsum([0, *map(len, indexes)]).tolist()
        if not len(self):
            raise ValueError(f"there is no sample in {self}")
        found = dict.fromkeys(field for index in indexes for field in index.fields)
        names = dict.fromkeys(name for field in found if (name := split_image_field(field)))
        if not names and not fields:
            raise ValueError(
                f"no image in {self}: the fields are {', '.join(found)}; images are .png, .jpg, "
                ".jpeg or .webp"
            )
        self.image_names = tuple(images or names)
        self._ends = np.array(self.starts[1:])
        self._sizes = [index.size for index in indexes]
        self._keys = [index.keys for index in indexes]
        self._labels = np.concatenate([_labels(index) for index in indexes])
        self._columns = _columns(indexes, self.image_names, fields)
        self._files = Files(self.shards)
        self._some_remote = any(isinstance(shard, Url) for shard in self.shards)

    def __len__(self) -> int:
        return self.starts[-1]

    def __str__(self) -> str:
        more = len(self.shards) - 1
        return f"{self.shards[0]}" + f" and {more} more" * bool(more)

    def close(self) -> None:
        """Closes the shards' files; they are opened again if they are needed again."""
        self._files.close()
        if self._remote is not None:
            self._remote.close()

    def key(self, i: int) -> str:
        """The key of sample `i`, as it is in its shard."""
        shard, row = self._locate(i)
        return self._keys[shard].item(row).decode("utf-8", "surrogateescape")

    def shard_of(self, i: int) -> Location:
        """The shard that holds sample `i`."""
        return self.shards[self._locate(i)[0]]

    def read(self, i: int, column: str) -> bytes:
        """The bytes of an image (by its name), of `"cls"` or of a further field of sample `i`.

        Raises:
            DecodeError: if the sample has no such field, or the shard ends inside it.
            UnreadableError: a DecodeError, if the shard cannot be read, whatever is tried again.
        """
        offsets, sizes = self._columns[column]
        offset, size = offsets.item(i), sizes.item(i)
        if offset < 0:
            raise DecodeError(f"sample {self.key(i)!r} has no {column!r}", "missing field")
        shard = self._locate(i)[0]
        location = self.shards[shard]
        if isinstance(location, Url):
            assert self._remote is not None, "addresses come with what reads them"
            data = self._remote.read(location, size, offset)
        else:
            try:
                data = self._files.read(shard, size, offset)
            except SourceError as error:
                raise UnreadableError(str(error), error.reason) from error
        if len(data) < size:
            raise DecodeError(f"{location} ends inside {self.key(i)!r}", "shard cut off")
        return data

    def read_each(self, samples: NDArray[np.int64], column: str) -> list[bytes]:
        """`read` of each of `samples`, faster than one by one where all are files.

        Raises:
            DecodeError: if one cannot be read at once: `read` tells which, and tries again.
        """
        if self._some_remote:
            return [self.read(i, column) for i in samples.tolist()]
        offsets, sizes = (numbers[samples].tolist() for numbers in self._columns[column])
        shards = np.searchsorted(self._ends, samples, side="right").tolist()
        try:
            found = self._files.read_each(shards, sizes, offsets)
        except OSError as error:  # also where there is no such field: the offset is negative
            raise UnreadableError(str(error)) from error
        if [*map(len, found)] != sizes:
            raise DecodeError("a shard ends inside a sample", "shard cut off")
        return found

    def label(self, i: int) -> int:
        """The class of sample `i`, from the index if that holds it, else from the shard.

        Raises:
            DecodeError: if it has none, or it is no number.
        """
        label = self._labels.item(i)
        return label if label >= 0 else decode_label(self.read(i, "cls"))

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of every sample as far as the indexes tell, int64 `[N]`; −1 where not."""
        return self._labels.copy()

    def first_without(self, column: str) -> int | None:
        """The first sample that has no such field; None if all have it."""
        absent = self._columns[column][0] < 0
        return int(absent.argmax()) if absent.any() else None

    def has(self, column: str, begin: int, end: int) -> bool:
        """Whether any sample of `[begin, end)` has such a field."""
        return bool((self._columns[column][0][begin:end] >= 0).any())

    def prefetch(self, samples: NDArray[np.int64]) -> None:
        """Begins to fetch what these samples need and is neither here nor on its way."""
        if self._remote is not None and self._some_remote:
            self._remote.prefetch(place for i in samples.tolist() for place in self._places(i))

    def refetch(self, i: int) -> bool:
        """Has sample `i` fetched anew when it is next read. Whether that may change anything."""
        places = self._places(i)
        for place in places:
            assert self._remote is not None, "addresses come with what reads them"
            self._remote.forget(*place)
        return bool(places)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the number of samples and of the shards' names and sizes: same data, or not.

        Folders are left out of it: a data set may be moved between two runs.
        """
        lines = [f"{shard.name} {size}" for shard, size in zip(self.shards, self._sizes)]
        return hashlib.sha256("\n".join([str(len(self)), *lines]).encode()).hexdigest()[:32]

    def _read_indexes(self) -> list[ShardIndex]:
        urls = [shard for shard in self.shards if isinstance(shard, Url)]
        assert self._remote is not None or not urls, "addresses come with what reads them"
        remote = dict(zip(urls, self._remote.indexes(urls))) if self._remote and urls else {}
        return [
            remote[shard] if isinstance(shard, Url) else read_index(shard) for shard in self.shards
        ]

    def _places(self, i: int) -> list[tuple[Url, int, int]]:
        """Of a sample that is not in a file: the shard, size and offset of each of its fields."""
        location = self.shard_of(i)
        if not isinstance(location, Url):
            return []
        places = [(sizes.item(i), offsets.item(i)) for offsets, sizes in self._columns.values()]
        return [(location, size, offset) for size, offset in places if offset >= 0]

    def _locate(self, i: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self.starts, i) - 1
        return shard, i - self.starts[shard]


def _labels(index: ShardIndex) -> NDArray[np.int64]:
    return np.full(len(index), -1, np.int64) if index.labels is None else index.labels


def _columns(
    indexes: Sequence[ShardIndex], image_names: Sequence[str], fields: Sequence[str]
) -> dict[str, _Column]:
    """Offsets and sizes of each image name, of `cls` and of each further field."""
    found: dict[str, _Column] = {}
    for name in (*image_names, "cls", *fields):
        parts = [_column(index, name, is_image=name in image_names) for index in indexes]
        offsets, sizes = np.concatenate(parts, axis=1)
        found[name] = offsets, sizes
    return found


def _column(index: ShardIndex, name: str, *, is_image: bool) -> NDArray[np.int64]:
    """Offset and size of a field of each sample, `[2, n]`; some images are .jpg, others .png."""
    role = split_image_field if is_image else str
    places = [place for place, field in enumerate(index.fields) if role(field) == name]
    if not places:
        return np.full((2, len(index)), -1, np.int64)
    if len(places) == 1:
        (place,) = places
        return np.stack([index.offsets[:, place], index.sizes[:, place]])
    present = index.offsets[:, places] >= 0
    several = present.sum(axis=1) > 1
    if several.any():
        fields = ", ".join(index.fields[place] for place in places)
        raise ValueError(
            f"{index.location}: sample {index.key(int(several.argmax()))!r} has several images for "
            f"{name!r}: {fields}; name them apart, as in a.png and b.png"
        )
    rows, chosen = np.arange(len(index)), np.array(places)[present.argmax(axis=1)]
    return np.stack([index.offsets[rows, chosen], index.sizes[rows, chosen]])

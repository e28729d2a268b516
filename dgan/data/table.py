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

    Attributes:
        starts: the number of the first sample of each shard, and that of all samples.

    Raises:
        OSError: if a shard is missing or cannot be read.
        ValueError: if a shard is damaged, or they hold no sample, or neither image nor `fields`.
    """

    def __init__(
        self, shards: Sequence[Location], fields: Sequence[str], remote: Remote | None = None
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
        self.image_names = tuple(names)
        self._sizes = [index.size for index in indexes]
        self._keys = [index.keys for index in indexes]
        self._labels = [index.labels for index in indexes]
        self._columns = [_columns(index, self.image_names, fields) for index in indexes]
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
        return bytes(self._keys[shard][row]).decode("utf-8", "surrogateescape")

    def shard_of(self, i: int) -> Location:
        """The shard that holds sample `i`."""
        return self.shards[self._locate(i)[0]]

    def read(self, i: int, column: str) -> bytes:
        """The bytes of an image (by its name), of `"cls"` or of a further field of sample `i`.

        Raises:
            DecodeError: if the sample has no such field, or the shard ends inside it.
            UnreadableError: a DecodeError, if the shard cannot be read, whatever is tried again.
        """
        shard, row = self._locate(i)
        offsets, sizes = self._columns[shard][column]
        offset, size = int(offsets[row]), int(sizes[row])
        if offset < 0:
            raise DecodeError(f"sample {self.key(i)!r} has no {column!r}", "missing field")
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
            raise DecodeError(f"{self.shards[shard]} ends inside {self.key(i)!r}", "shard cut off")
        return data

    def label(self, i: int) -> int:
        """The class of sample `i`, from the index if that holds it, else from the shard.

        Raises:
            DecodeError: if it has none, or it is no number.
        """
        shard, row = self._locate(i)
        labels = self._labels[shard]
        if labels is None or labels[row] < 0:
            return decode_label(self.read(i, "cls"))
        return int(labels[row])

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of every sample as far as the indexes tell, int64 `[N]`; −1 where not."""
        return np.concatenate(
            [
                np.full(len(keys), -1, np.int64) if labels is None else labels
                for keys, labels in zip(self._keys, self._labels)
            ]
        )

    def first_without(self, column: str) -> int | None:
        """The first sample that has no such field; None if all have it."""
        for start, columns in zip(self.starts, self._columns):
            absent = columns[column][0] < 0
            if absent.any():
                return start + int(absent.argmax())
        return None

    def has(self, column: str, begin: int, end: int) -> bool:
        """Whether any sample of the shards that hold `[begin, end)` has such a field."""
        first, last = self._locate(begin)[0], self._locate(end - 1)[0]
        return any((columns[column][0] >= 0).any() for columns in self._columns[first : last + 1])

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
        shard, row = self._locate(i)
        location = self.shards[shard]
        if not isinstance(location, Url):
            return []
        columns = self._columns[shard].values()
        places = [(int(sizes[row]), int(offsets[row])) for offsets, sizes in columns]
        return [(location, size, offset) for size, offset in places if offset >= 0]

    def _locate(self, i: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self.starts, i) - 1
        return shard, i - self.starts[shard]


def _columns(
    index: ShardIndex, image_names: Sequence[str], fields: Sequence[str]
) -> dict[str, _Column]:
    """Offsets and sizes of each image name, of `cls` and of each further field."""
    sources = {name: [] for name in image_names} | {name: [name] for name in ("cls", *fields)}
    for name in index.fields:
        if (image := split_image_field(name)) is not None:
            sources[image].append(name)
    return {name: _column(index, name, found) for name, found in sources.items()}


def _column(index: ShardIndex, name: str, fields: Sequence[str]) -> _Column:
    """Of each sample the one of `fields` that it has: some are .jpg, others .png."""
    places = [index.fields.index(field) for field in fields if field in index.fields]
    if not places:
        absent = np.full(len(index), -1, np.int64)
        return absent, absent
    if len(places) == 1:
        (place,) = places
        return index.offsets[:, place].copy(), index.sizes[:, place].copy()
    present = index.offsets[:, places] >= 0
    several = present.sum(axis=1) > 1
    if several.any():
        raise ValueError(
            f"{index.location}: sample {index.key(int(several.argmax()))!r} has several images for "
            f"{name!r}: {', '.join(fields)}; name them apart, as in a.png and b.png"
        )
    rows, chosen = np.arange(len(index)), np.array(places)[present.argmax(axis=1)]
    return index.offsets[rows, chosen], index.sizes[rows, chosen]

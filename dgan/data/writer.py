"""Writing the tars of one split: when the next shard begins, and what is known of each."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .aside import ASIDE
from .encode import Packed
from .index import scan, write_index
from .items import check_key

SAMPLES_PER_SHARD = 10_000
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Limits:
    """When a shard is full: at so many samples or so many bytes, whichever comes first.

    Attributes:
        samples: at most; None: 10,000 if `megabytes` says nothing either, else any number.
        megabytes: at most, of 10⁶ bytes, but at least one sample; None: any number.

    Raises:
        ValueError: if one of them is not positive.
    """

    samples: int | None = None
    megabytes: float | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples_per_shard must be at least 1, got {self.samples}")
        if self.megabytes is not None and not self.megabytes > 0:
            raise ValueError(f"shard_megabytes must be positive, got {self.megabytes}")

    def full(self, samples: int, after: int) -> bool:
        """Whether a shard of `samples` may not have one more, which would make it `after` long."""
        most = (
            SAMPLES_PER_SHARD if self.samples is None and self.megabytes is None else self.samples
        )
        if most is not None and samples >= most:
            return True
        whole = -(-(after + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE  # with its end
        return samples > 0 and self.megabytes is not None and whole > self.megabytes * 1e6


@dataclass
class Facts:
    """What is known of samples written so far, and whether what comes next fits to them.

    Attributes:
        samples: how many.
        classes: the largest label and one; 0 without labels.
        channels: 3 if a picture has colour, 1 if all are grey, 0 without pictures.
        sizes: [width, height] of each picture of the first sample.
        labelled: whether samples have labels; None before the first.
    """

    samples: int = 0
    classes: int = 0
    channels: int = 0
    sizes: dict[str, list[int]] = field(default_factory=dict)
    labelled: bool | None = None

    def add(self, packed: Packed, *, any_size: bool) -> None:
        """Counts one more sample.

        Raises:
            ValueError: if its pictures differ in size from those before (unless `any_size`), or it
                has a label where they have none.
        """
        labelled = packed.label is not None
        sizes = {name: list(size) for name, size in packed.sizes.items()}
        if self.labelled is None:
            self.sizes, self.labelled = sizes, labelled
        if not any_size and sizes != self.sizes:
            raise ValueError(
                f"sample {packed.key!r} is {_sizes(sizes)}, those before it are "
                f"{_sizes(self.sizes)}; `dgan data pack --resolution` makes them equal, "
                "`--encoding keep` packs them as they are"
            )
        if labelled != self.labelled:
            which = "a label, those before it have none" if labelled else "no label, others have"
            raise ValueError(f"sample {packed.key!r} has {which}")
        self.samples += 1
        self.channels = max(self.channels, packed.channels)
        if packed.label is not None:
            self.classes = max(self.classes, packed.label + 1)

    def merge(self, other: Facts) -> None:
        """Counts the samples of `other`, which come after, as well."""
        if self.labelled is None:
            self.sizes, self.labelled = other.sizes, other.labelled
        self.samples += other.samples
        self.channels = max(self.channels, other.channels)
        self.classes = max(self.classes, other.classes)


@dataclass(frozen=True)
class ShardRecord:
    """A complete shard.

    Attributes:
        name: its file's.
        split: the split that it belongs to.
        bytes: its length.
        sha256: of the whole file.
        taken: items of this split that it and those before it took, left out ones included.
        keys: a hash of the keys of those items, by which a source that has changed is noticed.
        facts: what is known of its samples.
    """

    name: str
    split: str
    bytes: int
    sha256: str
    taken: int
    keys: str
    facts: Facts


class SplitWriter:
    """Writes the samples of one split to `<split>-000000.tar`, … in `folder`, one shard at a time.

    Args:
        folder: where the shards are to lie.
        split: the first part of their names.
        limits: when a shard is full.
        earlier: the complete shards of the split, to go on after.
    """

    def __init__(
        self, folder: Path, split: str, limits: Limits, earlier: Sequence[ShardRecord]
    ) -> None:
        self._folder, self._split, self._limits = folder, split, limits
        self._number = len(earlier)
        self._taken, self._keys = (earlier[-1].taken, earlier[-1].keys) if earlier else (0, "")
        self._shard: _OpenShard | None = None

    def pass_over(self, key: str) -> None:
        """Counts an item of which no sample is written."""
        self._take(key)

    def add(self, packed: Packed, *, any_size: bool) -> ShardRecord | None:
        """Writes a sample; returns the shard that was full before it, if one was.

        Raises:
            ValueError: if the key is not fit to be a name or is in this shard already.
        """
        check_key(packed.key)
        record = None
        size = sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for _, data in packed.members)
        if self._shard is not None and self._limits.full(
            self._shard.facts.samples, self._shard.size + size
        ):
            record = self.close()
        if self._shard is None:
            name = f"{self._split}-{self._number:06d}.tar"
            self._shard = _OpenShard(self._folder / name)
        self._shard.add(packed, any_size)
        self._take(packed.key)
        return record

    def close(self) -> ShardRecord | None:
        """Completes the shard that is open, if one is, and returns it."""
        if (shard := self._shard) is None:
            return None
        self._shard = None
        size, sha256 = shard.complete()
        self._number += 1
        return ShardRecord(
            shard.path.name, self._split, size, sha256, self._taken, self._keys, shard.facts
        )

    def _take(self, key: str) -> None:
        self._taken, self._keys = self._taken + 1, chain_keys(self._keys, key)

    def abandon(self) -> None:
        """Removes the shard that is open."""
        if self._shard is not None:
            self._shard.abandon()
            self._shard = None


class _OpenShard:
    """A tar that is being written under another name."""

    def __init__(self, path: Path) -> None:
        self.path, self.facts = path, Facts()
        self._keys: set[str] = set()
        self._labels: list[int] = []
        self._partial = path.with_name(path.name + ASIDE)
        self._file = self._partial.open("wb")
        self._sha256, self.size = hashlib.sha256(), 0

    def add(self, packed: Packed, any_size: bool) -> None:
        if packed.key in self._keys:  # unique within a shard is enough, and costs little memory
            raise ValueError(f"key {packed.key!r} is there twice")
        self._keys.add(packed.key)
        self.facts.add(packed, any_size=any_size)
        for name, data in packed.members:
            # Time, owner and mode are fixed: the same input, the same bytes.
            member = tarfile.TarInfo(f"{packed.key}.{name}")
            member.size, member.mode = len(data), 0o644
            self._write(member.tobuf(tarfile.PAX_FORMAT))
            self._write(data)
            self._write(bytes(-len(data) % _BLOCK))
        if packed.label is not None:
            self._labels.append(packed.label)

    def complete(self) -> tuple[int, str]:
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._partial, self.path)
        labels = np.array(self._labels, np.int64) if self.facts.labelled else None
        sha256 = self._sha256.hexdigest()
        write_index(replace(scan(self.path), sha256=sha256), labels)
        return self.size, sha256

    def abandon(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        self._sha256.update(data)
        self.size += len(data)
        self._file.write(data)


def chain_keys(hashed: str, key: str) -> str:
    """The hash of some keys, which was `hashed` before `key` came after them."""
    return hashlib.sha256(f"{hashed} {key}".encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _sizes(sizes: dict[str, list[int]]) -> str:
    parts = (f"{width}×{height}" for width, height in sizes.values())
    return " and ".join(parts) or "without pictures"

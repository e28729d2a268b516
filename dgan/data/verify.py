"""Checking shards: every sample decodes, nothing is missing or there twice, files are as packed."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .audio import AUDIO_EXTENSIONS, read_audio
from .decode import (
    DECODERS,
    DecodeError,
    decode_field,
    decode_label,
    image_channels,
    open_image,
    split_image_field,
    to_pixels,
)
from .index import ShardError, ShardIndex, read_index, scan
from .journal import find_record
from .workers import count_workers, ordered_map

_ROWS = 64  # samples checked at once
_READ = 1 << 20


class Problem(NamedTuple):
    """Something that is wrong.

    Attributes:
        kind: a word or two, to count by.
        shard: where.
        key: of the sample, or empty if it is the whole shard.
        what: in words.
    """

    kind: str
    shard: str
    key: str
    what: str


@dataclass
class Findings:
    """What some samples hold, and what is wrong with them.

    Attributes:
        problems: in the order of the shards.
        labels: how often each class occurs.
        shapes: of each field, how often each size or form occurs, such as `"256×256 RGB"`.
        unchecked: fields that nothing here decodes.
    """

    problems: list[Problem] = field(default_factory=list)
    labels: Counter[int] = field(default_factory=Counter)
    shapes: dict[str, Counter[str]] = field(default_factory=dict)
    unchecked: set[str] = field(default_factory=set)
    checksums: dict[Path, str] = field(default_factory=dict)

    def merge(self, other: Findings) -> None:
        """Adds what `other` found."""
        self.problems += other.problems
        self.labels.update(other.labels)
        for name, shapes in other.shapes.items():
            self.shapes.setdefault(name, Counter()).update(shapes)
        self.unchecked |= other.unchecked
        self.checksums |= other.checksums


@dataclass
class Report(Findings):
    """All that was found.

    Attributes:
        shards: those that were looked at.
        samples: in each of them that could be read.
        sizes: of each shard, its length in bytes.
        sample_bytes: of each sample, its fields together, int64 `[N]`.
        class_names: by number, where the shards' journal knows them.
    """

    shards: list[Path] = field(default_factory=list)
    samples: dict[Path, int] = field(default_factory=dict)
    sizes: dict[Path, int] = field(default_factory=dict)
    sample_bytes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    class_names: tuple[str, ...] = ()


def verify_shards(
    shards: Sequence[Path],
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Reads every byte of `shards` and decodes every field; whatever is wrong is in the report.

    `progress` is called with the samples checked so far, and in all.

    Raises:
        ValueError: if `workers` is less than 1.
    """
    workers = count_workers(workers)
    report = Report(shards=list(shards))
    indexes: list[ShardIndex] = []
    for shard, found in zip(shards, ordered_map(_scan, shards, workers, chunk=1)):
        report.sizes[shard] = shard.stat().st_size
        if isinstance(found, ShardIndex):
            indexes.append(found)
            report.samples[shard] = len(found)
        else:
            report.problems.append(Problem("damaged shard", str(shard), "", str(found)))
    report.problems += [*_missing(indexes), *_duplicates(indexes)]
    totals = [np.where(index.sizes < 0, 0, index.sizes).sum(axis=1) for index in indexes]
    report.sample_bytes = np.concatenate(totals) if totals else report.sample_bytes
    done, total = 0, sum(map(len, indexes))
    units = [*_units(indexes), *((0, partial(_checksum, shard)) for shard in shards)]
    for count, findings in ordered_map(lambda u: (u[0], u[1]()), units, workers, chunk=1):
        report.merge(findings)
        done += count
        progress(done, total)
    journals = [found for shard in shards if (found := find_record(shard))]
    report.class_names = next((journal.classes for _, journal in journals), ())
    return report


def _scan(shard: Path) -> ShardIndex | Exception:
    """The index by the tar's own headers."""
    try:
        return scan(shard)
    except (ShardError, OSError) as error:
        return error


def _units(indexes: Sequence[ShardIndex]) -> Iterator[tuple[int, Callable[[], Findings]]]:
    for index in indexes:
        beside = read_index(index.path)
        for begin in range(0, len(index), _ROWS):
            end = min(begin + _ROWS, len(index))
            yield end - begin, partial(_check_rows, index, beside, begin, end)


def _check_rows(index: ShardIndex, beside: ShardIndex, begin: int, end: int) -> Findings:
    """Decodes every field of rows `[begin, end)`, and compares labels with the index beside."""
    findings = Findings()
    stored = beside.labels if len(beside) == len(index) else None
    file = os.open(index.path, os.O_RDONLY)
    try:
        for row in range(begin, end):
            for column, name in enumerate(index.fields):
                if (offset := int(index.offsets[row, column])) < 0:
                    continue
                data = os.pread(file, int(index.sizes[row, column]), offset)
                key = index.key(row)
                try:
                    _check_field(findings, name, data)
                    if name == "cls" and stored is not None and stored[row] != int(data):
                        raise DecodeError(f"the index says {stored[row]}, the tar {int(data)}")
                except (DecodeError, ValueError) as error:
                    kind = "does not decode" if name != "cls" else "bad label"
                    what = f".{name}: {error}"
                    findings.problems.append(Problem(kind, str(index.path), key, what))
    finally:
        os.close(file)
    return findings


def _check_field(findings: Findings, name: str, data: bytes) -> None:
    extension = name.rpartition(".")[2]
    shape = ""
    if name == "cls":
        findings.labels[decode_label(data)] += 1
        return
    if split_image_field(name) is not None:
        image = open_image(data)
        channels = image_channels(image)
        to_pixels(image, channels)
        shape = f"{image.width}×{image.height} {'grey' if channels == 1 else 'colour'}"
    elif extension in AUDIO_EXTENSIONS:
        audio = read_audio(extension, data)
        shape = str(audio)
    elif extension in DECODERS:
        value = decode_field(name, data)
        if isinstance(value, np.ndarray):
            shape = f"{value.dtype} {list(value.shape)}"
    else:
        findings.unchecked.add(name)
    findings.shapes.setdefault(name, Counter())[shape] += 1


def _checksum(shard: Path) -> Findings:
    """The shard's sha256, compared with that of the journal beside it."""
    digest, size = hashlib.sha256(), 0
    findings = Findings()
    try:
        with shard.open("rb") as file:
            while block := file.read(_READ):
                digest.update(block)
                size += len(block)
    except OSError as error:
        findings.problems.append(Problem("damaged shard", str(shard), "", str(error)))
        return findings
    findings.checksums[shard] = digest.hexdigest()
    if found := find_record(shard):
        record = found[0]
        if (record.bytes, record.sha256) != (size, digest.hexdigest()):
            what = (
                f"is not as it was packed: {size:,} bytes with sha256 {digest.hexdigest()}, "
                f"packed were {record.bytes:,} with {record.sha256}"
            )
            findings.problems.append(Problem("checksum", str(shard), "", what))
    return findings


def _missing(indexes: Sequence[ShardIndex]) -> Iterator[Problem]:
    """What other samples have and some lack; `.jpg` and `.png` count as the same."""
    roles = [[split_image_field(name) or name for name in index.fields] for index in indexes]
    for index, here in zip(indexes, roles):
        if not len(index):
            yield Problem("missing", str(index.path), "", "holds no sample")
            continue
        for role in dict.fromkeys(role for some in roles for role in some):
            columns = [column for column, name in enumerate(here) if name == role]
            absent = (index.offsets[:, columns] < 0).all(axis=1)
            if count := int(absent.sum()):
                key = index.key(int(absent.argmax()))
                what = f"{count:,} of {len(index):,} samples have no {role}, the first is {key!r}"
                yield Problem("missing", str(index.path), key, what)


def _duplicates(indexes: Sequence[ShardIndex]) -> Iterator[Problem]:
    """Keys that are there more than once, in one shard or in several."""
    first: dict[bytes, Path] = {}
    for index in indexes:
        for key in index.keys.tolist():
            other = first.setdefault(key, index.path)
            if other is not index.path:
                text = key.decode("utf-8", "surrogateescape")
                yield Problem("duplicate key", str(index.path), text, f"is in {other} as well")
        inside = Counter(index.keys.tolist())
        for key in (key for key, count in inside.items() if count > 1):
            text = key.decode("utf-8", "surrogateescape")
            yield Problem("duplicate key", str(index.path), text, f"is there {inside[key]} times")

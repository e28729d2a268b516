"""Checking shards: every sample decodes, nothing is missing or there twice, files are as packed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .audio import AUDIO_EXTENSIONS, has_soundfile, read_audio
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
from .index import (
    ShardError,
    ShardIndex,
    parse_index,
    scan_tar,
    sidecar_path,
    stated_checksum,
)
from .journal import find_record
from .location import Location, Url
from .remote_index import fetch_sidecar, match_sidecar
from .sources import Local, Opener
from .whole import Fetched, NoRoomError, open_whole, sha256
from .workers import count_workers, ordered_map

_ROWS = 64  # samples checked at once


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
        unchecked: fields that nothing here decodes; audio, where its package is missing.
        checksums: the sha256 of each shard.
    """

    problems: list[Problem] = field(default_factory=list)
    labels: Counter[int] = field(default_factory=Counter)
    shapes: dict[str, Counter[str]] = field(default_factory=dict)
    unchecked: set[str] = field(default_factory=set)
    checksums: dict[Location, str] = field(default_factory=dict)

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
        sizes: of each of them that could be read, its length in bytes.
        sample_bytes: of each sample, its fields together, int64 `[N]`.
        class_names: by number, where the shards' journal knows them.
    """

    shards: list[Location] = field(default_factory=list)
    samples: dict[Location, int] = field(default_factory=dict)
    sizes: dict[Location, int] = field(default_factory=dict)
    sample_bytes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    class_names: tuple[str, ...] = ()


def verify_shards(
    shards: Sequence[Location],
    *,
    opener: Opener | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Reads every byte of `shards` and decodes every field; whatever is wrong is in the report.

    Shards that are not files are fetched one after the other into the temporary folder, which needs
    room for some of them, and are as they are on the server, whatever the cache holds.

    Args:
        shards: the tars.
        opener: opens those that are not files.
        workers: threads; None: one a core.
        progress: called with the samples checked so far, and how many there are as far as can be
            told from the shards seen.

    Raises:
        NoRoomError: an OSError, if the temporary folder is full.
        ValueError: if `workers` is less than 1.
    """
    workers, opener = count_workers(workers), opener or Opener()
    report, done = Report(shards=list(shards)), 0
    seen: dict[Location, ShardIndex | None] = {}
    units = _units(report, seen, opener)
    for count, findings in ordered_map(lambda u: (u[0], u[1]()), units, workers, chunk=1):
        report.merge(findings)
        done += count
        progress(done, round(sum(report.samples.values()) * len(shards) / max(1, len(seen))))
    indexes = [index for index in seen.values() if index is not None]
    report.problems += [*_missing(indexes), *_duplicates(indexes)]
    totals = [np.where(index.sizes < 0, 0, index.sizes).sum(axis=1) for index in indexes]
    report.sample_bytes = np.concatenate(totals) if totals else report.sample_bytes
    files = [shard for shard in shards if isinstance(shard, Path)]
    journals = [found for shard in files if (found := find_record(shard))]
    report.class_names = next((journal.classes for _, journal in journals), ())
    return report


def _units(
    report: Report, seen: dict[Location, ShardIndex | None], opener: Opener
) -> Iterator[tuple[int, Callable[[], Findings]]]:
    """All there is to check, each with its number of samples; opens a shard when its turn comes."""
    for shard in report.shards:
        try:
            source = open_whole(shard, opener)
            report.sizes[shard] = source.identity.size
            beside = _sidecar(source, opener)
            yield 0, partial(_checksum, source, beside)
            index = seen[shard] = scan_tar(source.read, shard, source.identity.size)
            stored = _match(source, beside)
        except NoRoomError:
            raise
        except (ShardError, OSError) as error:
            seen[shard] = None
            yield 0, partial(Findings, [Problem("damaged shard", str(shard), "", str(error))])
            continue
        report.samples[shard] = len(index)
        if stored is not None and not _same_places(index, stored):
            what = "its index says other places than its headers: index it anew"
            yield 0, partial(Findings, [Problem("wrong index", str(shard), "", what)])
        for begin in range(0, len(index), _ROWS):
            end = min(begin + _ROWS, len(index))
            yield end - begin, partial(_check_rows, source, index, stored, begin, end)


def _sidecar(source: Local | Fetched, opener: Opener) -> bytes:
    """The content of the index beside a shard; nothing if there is none."""
    if isinstance(source.location, Url):
        return fetch_sidecar(opener.open(source.location.sidecar))
    with suppress(OSError):
        return sidecar_path(source.location).read_bytes()
    return b""


def _match(source: Local | Fetched, beside: bytes) -> ShardIndex | None:
    """The index beside a shard if it is one that would be used."""
    if isinstance(source.location, Url):
        return match_sidecar(source.read, source.location, source.identity, beside)
    return parse_index(source.location, source.identity, beside)


def _same_places(index: ShardIndex, other: ShardIndex) -> bool:
    pairs = (index.keys, other.keys), (index.offsets, other.offsets), (index.sizes, other.sizes)
    return index.fields == other.fields and all(np.array_equal(a, b) for a, b in pairs)


def _check_rows(
    source: Local | Fetched, index: ShardIndex, stored: ShardIndex | None, begin: int, end: int
) -> Findings:
    """Decodes every field of rows `[begin, end)`, and compares labels with the index beside."""
    findings, labels = Findings(), None
    if stored is not None and len(stored) == len(index):
        labels = stored.labels
    for row in range(begin, end):
        for column, name in enumerate(index.fields):
            if (offset := int(index.offsets[row, column])) < 0:
                continue
            data = source.read(offset, int(index.sizes[row, column]))
            key = index.key(row)
            try:
                _check_field(findings, name, data)
                if name == "cls" and labels is not None and labels[row] != int(data):
                    raise DecodeError(f"the index says {labels[row]}, the tar {int(data)}")
            except (DecodeError, ValueError) as error:
                kind = "does not decode" if name != "cls" else "bad label"
                what = f".{name}: {error}"
                findings.problems.append(Problem(kind, str(index.location), key, what))
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
        shape = str(read_audio(extension, data))
        if has_soundfile():
            decode_field(name, data)
        else:
            findings.unchecked.add(name)  # but for its header
    elif extension in DECODERS:
        value = decode_field(name, data)
        if isinstance(value, np.ndarray):
            shape = f"{value.dtype} {list(value.shape)}"
    else:
        findings.unchecked.add(name)
    findings.shapes.setdefault(name, Counter())[shape] += 1


def _checksum(source: Local | Fetched, beside: bytes) -> Findings:
    """The shard's sha256, compared with those in the journal and in the index beside it."""
    shard, findings = source.location, Findings()
    try:
        size, digest = sha256(source)
    except OSError as error:
        findings.problems.append(Problem("damaged shard", str(shard), "", str(error)))
        return findings
    findings.checksums[shard] = digest
    stated = {"indexed": stated_checksum(beside)}
    if isinstance(shard, Path) and (found := find_record(shard)):
        stated = {"packed": (found[0].bytes, found[0].sha256), **stated}
    for when, facts in stated.items():
        if facts is not None and facts != (size, digest):
            what = (
                f"is not as it was {when}: {size:,} bytes with sha256 {digest}, "
                f"{when} were {facts[0]:,} with {facts[1]}"
            )
            findings.problems.append(Problem("checksum", str(shard), "", what))
            break
    return findings


def _missing(indexes: Sequence[ShardIndex]) -> Iterator[Problem]:
    """What other samples have and some lack; `.jpg` and `.png` count as the same."""
    roles = [[split_image_field(name) or name for name in index.fields] for index in indexes]
    for index, here in zip(indexes, roles):
        if not len(index):
            yield Problem("missing", str(index.location), "", "holds no sample")
            continue
        for role in dict.fromkeys(role for some in roles for role in some):
            columns = [column for column, name in enumerate(here) if name == role]
            absent = (index.offsets[:, columns] < 0).all(axis=1)
            if count := int(absent.sum()):
                key = index.key(int(absent.argmax()))
                what = f"{count:,} of {len(index):,} samples have no {role}, the first is {key!r}"
                yield Problem("missing", str(index.location), key, what)


def _duplicates(indexes: Sequence[ShardIndex]) -> Iterator[Problem]:
    """Keys that are there more than once, in one shard or in several."""
    first: dict[bytes, Location] = {}
    for index in indexes:
        for key in index.keys.tolist():
            other = first.setdefault(key, index.location)
            if other is not index.location:
                text = key.decode("utf-8", "surrogateescape")
                yield Problem("duplicate key", str(index.location), text, f"is in {other} as well")
        inside = Counter(index.keys.tolist())
        for key in (key for key, count in inside.items() if count > 1):
            text = key.decode("utf-8", "surrogateescape")
            yield Problem(
                "duplicate key", str(index.location), text, f"is there {inside[key]} times"
            )

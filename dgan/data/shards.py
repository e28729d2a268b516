"""Shards on disk: which files a pattern names, and how new ones are written."""

from __future__ import annotations

import glob
import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from braceexpand import braceexpand
from numpy.typing import NDArray
from PIL import Image

from .decode import open_image
from .index import scan, sidecar_path, write_index

SAMPLES_PER_SHARD = 10_000
_HINT = "make shards with `dgan data pack SOURCE OUT`"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # two letters at least: C:\ is a path
_KEY = re.compile(r"[^./\\\0\n][^.\\\0\n]*")
# Keyword arguments of Pillow's save. WebP is lossless; JPEG keeps the colour at full resolution.
_ENCODINGS = {
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "webp": {"format": "WEBP", "lossless": True},
}
_EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp"}


class Sample(NamedTuple):
    """One sample on its way into a shard.

    Attributes:
        key: its name in the shard; no dots, since WebDataset takes the field to begin at the first.
        image: a picture, uint8 `[H, W]` or `[H, W, C]`, or the bytes of a PNG, JPEG or WebP file,
            which are written as they are.
        label: its class, or None.
    """

    key: str
    image: Image.Image | NDArray[np.uint8] | bytes
    label: int | None = None


@dataclass(frozen=True)
class PackSummary:
    """What `pack` wrote.

    Attributes:
        samples: how many.
        shards: the tars, in order.
        classes: the largest label and one; 0 without labels.
        resolution: height of the images.
        width: width of the images.
        channels: 3 if any of them has colour, else 1.
        skipped: what was left out, one line each with the reason.
    """

    samples: int
    shards: tuple[Path, ...]
    classes: int
    resolution: int
    width: int
    channels: int
    skipped: tuple[str, ...] = ()


def expand(patterns: str | Path | Sequence[str | Path]) -> list[Path]:
    """The shards that `patterns` name: brace ranges, globs, paths, or a list of these, in order.

    Raises:
        FileNotFoundError: if a shard is missing or a glob matches nothing.
        ValueError: if nothing is named, a shard is named twice, or a pattern is a URL or a pipe.
    """
    if isinstance(patterns, str | Path):
        patterns = [patterns]
    shards = [shard for pattern in patterns for shard in _expand_one(str(pattern))]
    if not shards:
        raise ValueError(f"no shards are named; {_HINT}")
    if len(set(shards)) < len(shards):
        twice = next(shard for shard in shards if shards.count(shard) > 1)
        raise ValueError(f"shard {twice} is named twice: its samples would be seen twice an epoch")
    return shards


def pack(
    samples: Iterable[Sample],
    out: str | Path,
    *,
    split: str = "train",
    samples_per_shard: int = SAMPLES_PER_SHARD,
    encoding: str = "png",
    overwrite: bool = False,
) -> PackSummary:
    """Writes `out/<split>-000000.tar`, … and indexes; the same samples give the same bytes.

    The shards are written aside and appear in `out` once all of them are complete, so that a pack
    that was cut off never looks like a small data set.

    Args:
        samples: what to write, read once.
        out: the folder, made if need be.
        split: the first part of the shards' names.
        samples_per_shard: of every shard but the last.
        encoding: `"png"`, `"jpg"` (quality 95) or `"webp"` (lossless), for images not yet encoded.
        overwrite: replace the shards of this split that `out` already has.

    Raises:
        FileExistsError: if `out` has shards of this split and `overwrite` is False.
        ValueError: if there are no samples, images differ in size, some have labels and others
            have none, or a key is not fit to be a name.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
    if encoding not in _ENCODINGS:
        raise ValueError(f"encoding must be one of {', '.join(_ENCODINGS)}; got {encoding!r}")
    out = Path(out)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", split):
        raise ValueError(f"split must be made of letters, digits, - and _; got {split!r}")
    old = existing_shards(out, split)
    if old and not overwrite:
        raise FileExistsError(
            f"{out} already has {len(old)} shards of {split!r}, the first is {old[0].name}; "
            "pack into another folder, or ask to overwrite"
        )
    aside = out / f".packing-{split}"
    shutil.rmtree(aside, ignore_errors=True)  # left by a pack that was killed
    aside.mkdir(parents=True)
    try:
        tally = _write_shards(samples, aside, split, samples_per_shard, encoding)
        shards = _publish(tally, out, old)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return PackSummary(
        tally.samples, shards, tally.classes, tally.size[1], tally.size[0], tally.channels
    )


def existing_shards(out: Path, split: str) -> list[Path]:
    """The shards of `split` in `out`, sorted; none if there is no such folder."""
    name = re.compile(rf"{re.escape(split)}-\d+\.tar")
    return sorted(path for path in out.glob("*.tar") if name.fullmatch(path.name))


def _expand_one(pattern: str) -> list[Path]:
    if Path(pattern).is_file():
        return [Path(pattern)]  # whatever its name looks like
    if Path(pattern).is_dir():
        raise ValueError(f"{pattern} is a folder; name its shards, as in '{pattern}/train-*.tar'")
    if _SCHEME.match(pattern):
        scheme = pattern.partition(":")[0]
        raise ValueError(f"{pattern!r}: only local shards so far, no {scheme}: addresses")
    try:
        parts = list(braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"the braces of {pattern!r} do not match ({error})") from error
    shards: list[Path] = []
    for part in parts:
        if Path(part).is_file():
            shards.append(Path(part))
        elif not (found := sorted(Path(p) for p in glob.glob(part, recursive=True))):
            which = "" if part == pattern else f" (of {pattern!r})"
            raise FileNotFoundError(f"there is no shard {part!r}{which}; {_HINT}")
        else:
            shards += found
    return shards


@dataclass
class _Tally:
    """What has been written so far, and whether what comes next fits to it."""

    samples: int = 0
    classes: int = 0
    channels: int = 1
    size: tuple[int, int] = (0, 0)
    labelled: bool = False
    keys: set[str] = field(default_factory=set)
    shards: list[tuple[Path, list[int]]] = field(default_factory=list)

    def add(self, sample: Sample, image: Image.Image) -> None:
        if not _KEY.fullmatch(sample.key) or ".." in sample.key or len(sample.key) > 200:
            raise ValueError(f"key {sample.key!r} is not fit to be a name in a shard")
        if sample.key in self.keys:
            raise ValueError(f"key {sample.key!r} is there twice")
        self.keys.add(sample.key)
        labelled = sample.label is not None
        if self.samples == 0:
            self.size, self.labelled = image.size, labelled
        if image.size != self.size:
            raise ValueError(
                f"sample {sample.key!r} is {image.width}×{image.height}, those before it are "
                f"{self.size[0]}×{self.size[1]}; `dgan data pack --resolution` makes them equal"
            )
        if labelled != self.labelled:
            which = "a label, those before it have none" if labelled else "no label, others have"
            raise ValueError(f"sample {sample.key!r} has {which}")
        self.samples += 1
        self.channels = max(self.channels, 1 if image.mode in ("1", "L") else 3)
        if sample.label is not None:
            self.classes = max(self.classes, sample.label + 1)


def _write_shards(
    samples: Iterable[Sample], folder: Path, split: str, samples_per_shard: int, encoding: str
) -> _Tally:
    tally, stream = _Tally(), iter(samples)
    # One sample is read ahead, so that no empty shard is begun.
    while (first := next(stream, None)) is not None:
        path = folder / f"{split}-{len(tally.shards):06d}.tar"
        labels: list[int] = []
        tally.shards.append((path, labels))
        tally.keys.clear()  # unique within a shard is enough, and costs no memory
        with path.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for sample in chain([first], islice(stream, samples_per_shard - 1)):
                    _write_sample(tar, sample, tally, encoding)
                    if sample.label is not None:
                        labels.append(sample.label)
            file.flush()
            os.fsync(file.fileno())
    if not tally.samples:
        raise ValueError("there is no sample to pack")
    return tally


def _write_sample(tar: tarfile.TarFile, sample: Sample, tally: _Tally, encoding: str) -> None:
    if isinstance(sample.image, bytes):
        image = open_image(sample.image)
        data, extension = sample.image, _EXTENSIONS[image.format or ""]
    else:
        raw = sample.image
        image = raw if isinstance(raw, Image.Image) else Image.fromarray(np.squeeze(raw))
        buffer = io.BytesIO()
        image.save(buffer, **_ENCODINGS[encoding])
        data, extension = buffer.getvalue(), encoding
    tally.add(sample, image)
    _add_member(tar, f"{sample.key}.{extension}", data)
    if sample.label is not None:
        _add_member(tar, f"{sample.key}.cls", str(sample.label).encode())


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and mode are fixed: the same input, the same bytes
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def _publish(tally: _Tally, out: Path, old: Sequence[Path]) -> tuple[Path, ...]:
    """Moves complete shards to where they are looked for, in place of `old` ones."""
    published = []
    for path, labels in tally.shards:
        target = out / path.name
        os.replace(path, target)
        write_index(scan(target), np.array(labels, np.int64) if tally.labelled else None)
        published.append(target)
    for path in set(old) - set(published):
        path.unlink()
        sidecar_path(path).unlink(missing_ok=True)
    folder = os.open(out, os.O_RDONLY)
    try:
        os.fsync(folder)  # the names, too, must survive a power cut
    finally:
        os.close(folder)
    return tuple(published)

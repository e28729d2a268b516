"""Shards on disk: which files a pattern names, and how samples of one's own are written."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from braceexpand import braceexpand
from numpy.typing import NDArray
from PIL import Image

from .encode import Encoder
from .fit import Fit
from .items import Item
from .location import Location, Url, fill_in, redact
from .packer import Job, PackSummary, pack_items
from .sources import Opener, refuse
from .splits import OneSplit
from .writer import SAMPLES_PER_SHARD, Limits

_HINT = "make shards with `dgan data pack SOURCE OUT`"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # two letters at least: C:\ is a path


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


def expand(patterns: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that `patterns` name: brace ranges, globs, paths, or a list of these, in order.

    Raises:
        FileNotFoundError: if a shard is missing or a glob matches nothing.
        ValueError: if nothing is named, a shard is named twice, or a pattern is a URL or a pipe.
    """
    for pattern in [patterns] if isinstance(patterns, str | Path) else patterns:
        if _SCHEME.match(str(pattern)) and not Path(pattern).is_file():
            scheme = str(pattern).partition(":")[0]
            shown = redact(str(pattern))
            raise ValueError(f"{shown!r}: only local shards so far, no {scheme}: addresses")
    return [shard for shard in locate(patterns, Opener()) if isinstance(shard, Path)]


def locate(patterns: str | Path | Sequence[str | Path], opener: Opener) -> list[Location]:
    """The shards that `patterns` name: as `expand`, and addresses.

    Braces are understood in addresses too; `*`, `?` and `[…]` in s3:// and gs:// only, whose keys
    can be listed. `$NAME` before the `@` of an address or in its query is the environment's.

    Raises:
        FileNotFoundError: if a file is missing or a glob matches nothing.
        OSError: if a bucket cannot be listed.
        ValueError: if nothing is named, a shard is named twice, or an address is of no scheme that
            is read.
    """
    return locate_each([patterns], opener)[0]


def locate_each(
    entries: Sequence[str | Path | Sequence[str | Path]], opener: Opener
) -> list[list[Location]]:
    """The shards of each of `entries`, any of which is what `locate` takes. Raises as it does."""
    groups = [
        [
            shard
            for pattern in ([entry] if isinstance(entry, str | Path) else entry)
            for shard in _expand_one(str(pattern), opener)
        ]
        for entry in entries
    ]
    shards = [shard for group in groups for shard in group]
    if not shards:
        raise ValueError(f"no shards are named; {_HINT}")
    if len(set(shards)) < len(shards):
        twice = next(shard for shard in shards if shards.count(shard) > 1)
        raise ValueError(f"shard {twice} is named twice: its samples would be seen twice an epoch")
    return groups


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

    The shards appear in `out` once all of them are complete. See `pack_source` for what can be
    packed from disk, and goes on after an interruption.

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
    job = Job(OneSplit(split), Limits(samples_per_shard), Encoder(Fit(), encoding))
    items = (
        Item(sample.key, f"sample {sample.key!r}", {"image": sample.image}, label=sample.label)
        for sample in samples
    )
    return pack_items(items, Path(out), job, overwrite=overwrite)


def _expand_one(pattern: str, opener: Opener) -> Sequence[Location]:
    if Path(pattern).is_file():
        return [Path(pattern)]  # whatever its name looks like
    if Path(pattern).is_dir():
        raise ValueError(f"{pattern} is a folder; name its shards, as in '{pattern}/train-*.tar'")
    address = _SCHEME.match(pattern)
    if address and not pattern.startswith("//", address.end()):
        raise refuse(pattern)
    try:
        parts = list(braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"the braces of {redact(pattern)!r} do not match ({error})") from error
    shards: list[Location] = []
    for part in parts:
        found: Sequence[Location] = opener.expand(Url(fill_in(part))) if address else _files(part)
        if not found:
            which = "" if part == pattern else f" (of {redact(pattern)!r})"
            raise FileNotFoundError(f"there is no shard {redact(part)!r}{which}; {_HINT}")
        shards += found
    return shards


def _files(pattern: str) -> list[Path]:
    if Path(pattern).is_file():
        return [Path(pattern)]
    return sorted(Path(path) for path in glob.glob(pattern, recursive=True))

"""Samples before they are read: their keys, and where the content of each field lies."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .decode import DecodeError
from .index import MAX_MEMBER_BYTES

_KEY = re.compile(r"[^./\\\0\n][^.\\\0\n]*")
_LONGEST_KEY = 200
_LONGEST_STEM = 150  # leaves room for what makes a shortened key unique


class Slice(NamedTuple):
    """A part of a file: a member of a tar."""

    path: Path
    offset: int
    size: int


Piece = Path | Slice | bytes | NDArray[np.uint8] | Image.Image
"""Content of a field: a file, part of one, its bytes, or a picture that is no file yet."""

_NOTHING: Mapping[str, Piece] = MappingProxyType({})


class Item(NamedTuple):
    """One sample that is to be packed; reading and encoding it is left to a worker.

    Attributes:
        key: its name in the shard; no dots, since WebDataset takes the field to begin at the first.
        name: where it comes from, for messages.
        images: pictures by name: `"image"`, or of pairs `"a"` and `"b"`.
        files: fields that are kept byte for byte, by extension.
        frames: pictures of a clip in order, which become one array, the field `npy`.
        label: its class, or the `.cls` member that says it, or None.
    """

    key: str
    name: str
    images: Mapping[str, Piece] = _NOTHING
    files: Mapping[str, Piece] = _NOTHING
    frames: tuple[Path, ...] = ()
    label: int | Slice | None = None


def read_piece(piece: Path | Slice | bytes) -> bytes:
    """The bytes of `piece`.

    Raises:
        DecodeError: if they are more than any reader accepts, or the file ends before they do.
        OSError: if the file cannot be read.
    """
    if isinstance(piece, bytes):
        return piece
    path, offset, size = (piece, 0, -1) if isinstance(piece, Path) else piece
    with path.open("rb", buffering=0) as file:
        if size < 0:
            size = file.seek(0, 2)
        if size > MAX_MEMBER_BYTES:
            raise DecodeError(f"it has {size:,} bytes; at most {MAX_MEMBER_BYTES:,} are read")
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise DecodeError(f"{path} ends inside it", "cut off")
    return data


def check_key(key: str) -> None:
    """Refuses a key that is not fit to be a name in a shard.

    Raises:
        ValueError: if it is absolute, leads upwards, or has characters that end a key.
    """
    if not _KEY.fullmatch(key) or len(key) > _LONGEST_KEY or "//" in key:
        raise ValueError(
            f"key {key!r} is not fit to be a name in a shard: it must be relative, without dots, "
            f"backslashes and line ends, and no longer than {_LONGEST_KEY} characters"
        )


def path_key(relative: PurePath) -> str:
    """A key for the file at `relative`, the same however many files there are beside it.

    It is the path without its ending. A path that cannot be a key as it is gets what can stay of
    it and a hash of the whole, so that two such paths never become one key.
    """
    stem = relative.with_suffix("").as_posix()
    # WebDataset passes over names in double underscores; the other characters end a key.
    clean = re.sub(r"[^A-Za-z0-9_/-]+", "_", stem)[-_LONGEST_STEM:].lstrip("_/")
    return clean if clean == stem else f"{clean}-{_digest(relative)}"


def path_keys(paths: Iterable[PurePath]) -> Iterator[str]:
    """Keys of `paths`, all different: of `x.jpg` and `x.png` the second gets a hash as well."""
    seen: set[str] = set()
    for path in paths:
        key = path_key(path)
        if key in seen:
            key = f"{key}-{_digest(path)}"
        seen.add(key)
        yield key


def _digest(path: PurePath) -> str:
    return hashlib.sha256(path.as_posix().encode("utf-8", "surrogateescape")).hexdigest()[:12]

"""Where each sample's fields lie inside a tar: the headers are read once, the data by offset.

A shard is an ordinary WebDataset tar: consecutive members that share everything before the first
dot of their base name are one sample, and the rest of the name, in lower case, is the field. The
sidecar `<shard>.index.json` holds the same facts as the headers; it is used while it matches the
tar's size and time of modification, and is never necessary.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_MEMBER_BYTES = 1 << 28  # 256 MiB: no image is larger, and a header may claim anything
SIDECAR_VERSION = 1

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)  # WebDataset's rule: (key, field)
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's metadata members, which are no samples
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class ShardError(ValueError):
    """A shard that cannot be read or may not be: names the shard and, if it can, the member."""


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, as columns (a million samples fit in some tens of megabytes).

    Attributes:
        path: the tar.
        size: its length in bytes.
        fields: names of the columns below, e.g. `("png", "cls")`.
        keys: bytes `[n]`, UTF-8; `key(row)` decodes one.
        offsets: int64 `[n, len(fields)]`, where each field's data begins; −1 if it is absent.
        sizes: int64 `[n, len(fields)]`, its length in bytes; −1 if it is absent.
        labels: int64 `[n]` if the sidecar holds them, else None (they are in the `.cls` members).
    """

    path: Path
    size: int
    fields: tuple[str, ...]
    keys: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        """The key of sample `row`."""
        return bytes(self.keys[row]).decode("utf-8", "surrogateescape")


def sidecar_path(shard: Path) -> Path:
    """Where the index of `shard` is kept: beside it, `<shard>.index.json`."""
    return shard.with_name(shard.name + ".index.json")


def read_index(shard: str | Path, *, max_member_bytes: int = MAX_MEMBER_BYTES) -> ShardIndex:
    """The index of `shard`: from its sidecar if that is up to date, else from the tar's headers.

    Raises:
        FileNotFoundError: if there is no such shard.
        ShardError: if it is truncated, compressed, no tar, or holds a member that is refused.
    """
    path = Path(shard)
    return _read_sidecar(path, max_member_bytes) or scan(path, max_member_bytes=max_member_bytes)


def scan(shard: str | Path, *, max_member_bytes: int = MAX_MEMBER_BYTES) -> ShardIndex:
    """The index of `shard` from its tar headers alone. Raises as `read_index` does."""
    path = Path(shard)
    samples: list[tuple[str, dict[str, tuple[int, int]]]] = []
    for member in _members(path, max_member_bytes):
        match = _NAME.fullmatch(member.name)
        if match is None or _META.match(member.name):
            continue  # no field, or metadata: WebDataset passes over it too
        key, field = match[1], match[2].lower()
        if not samples or samples[-1][0] != key:
            samples.append((key, {}))
        if field in samples[-1][1]:
            raise ShardError(f"{path}: {member.name!r} is there twice in one sample")
        samples[-1][1][field] = (member.offset_data, member.size)
    fields = tuple(dict.fromkeys(field for _, columns in samples for field in columns))
    places = [[columns.get(field, (-1, -1)) for field in fields] for _, columns in samples]
    table = np.array(places, np.int64).reshape(len(samples), len(fields), 2)
    keys = np.array([key.encode("utf-8", "surrogateescape") for key, _ in samples], np.bytes_)
    return ShardIndex(path, path.stat().st_size, fields, keys, table[..., 0], table[..., 1])


def write_index(index: ShardIndex, labels: NDArray[np.int64] | None = None) -> Path:
    """Writes the sidecar of `index`'s shard, with its `labels` (int64 `[n]`) if given.

    Returns the sidecar's path. It is written aside and renamed: a reader never sees half of it.
    """
    content = {
        "version": SIDECAR_VERSION,
        "tar": _identity(index.path),
        "fields": index.fields,
        "keys": [index.key(row) for row in range(len(index))],
        "offsets": index.offsets.tolist(),
        "sizes": index.sizes.tolist(),
        "labels": None if labels is None else labels.tolist(),
    }
    target = sidecar_path(index.path)
    aside = target.with_name(target.name + ".partial")
    aside.write_text(json.dumps(content, separators=(",", ":")))
    os.replace(aside, target)
    return target


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _read_sidecar(path: Path, max_member_bytes: int) -> ShardIndex | None:
    """The sidecar's index, or None if it is absent, stale, of another version or damaged."""
    try:
        content: Any = json.loads(sidecar_path(path).read_bytes())
        if content["version"] != SIDECAR_VERSION or content["tar"] != _identity(path):
            return None
        fields, keys = tuple(map(str, content["fields"])), content["keys"]
        shape = (len(keys), len(fields))
        offsets = np.array(content["offsets"], np.int64).reshape(shape)
        sizes = np.array(content["sizes"], np.int64).reshape(shape)
        labels = content["labels"]
        labels = None if labels is None else np.array(labels, np.int64).reshape(len(keys))
        names = np.array([key.encode("utf-8", "surrogateescape") for key in keys], np.bytes_)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # the headers say the same, only slower
    size = path.stat().st_size
    # A damaged sidecar must not make us read elsewhere or allocate without bound.
    absent = (offsets == -1) & (sizes == -1)
    sound = (offsets >= 0) & (sizes >= 0) & (sizes <= max_member_bytes) & (offsets <= size - sizes)
    if not (absent | sound).all():
        return None
    return ShardIndex(path, size, fields, names, offsets, sizes, labels)


def _members(path: Path, max_member_bytes: int) -> Iterator[tarfile.TarInfo]:
    """The regular members of a tar, each checked; raises ShardError for what we refuse."""
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                _check(path, member, size, max_member_bytes)
                if member.isreg():
                    yield member
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise ShardError(f"{path}: {_diagnose(path, error)}") from error
    # tarfile takes a missing end or a broken header for the end: both would lose samples silently.
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise ShardError(
            f"{path}: the tar is truncated: it ends at byte {size} without its end mark"
        )
    if block.strip(b"\0"):
        raise ShardError(f"{path}: the tar is corrupt: no valid member header at byte {end}")


def _check(path: Path, member: tarfile.TarInfo, size: int, max_member_bytes: int) -> None:
    def refuse(reason: str) -> ShardError:
        return ShardError(f"{path}: member {member.name!r} {reason}")

    if member.isdir():
        return
    if member.issparse():
        raise refuse("is sparse, which is not supported")
    if not member.isreg():
        kind = "a link" if member.issym() or member.islnk() else "a device or another special file"
        raise refuse(f"is {kind}: shards hold regular files only")
    name = member.name
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or "\0" in name:
        raise refuse("has an absolute path or '..' in its name")
    if not 0 <= member.size <= max_member_bytes:
        raise refuse(f"claims {member.size:,} bytes; at most {max_member_bytes:,} are read")
    if member.offset_data + member.size > size:
        end = member.offset_data + member.size
        raise refuse(f"ends at byte {end:,} but the tar is truncated at byte {size:,}")


def _diagnose(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(2)
    if kind := _COMPRESSED.get(head):
        return f"compressed ({kind}); samples are read by offset, so decompress the shard first"
    if "unexpected end" in str(error):
        return f"the tar is truncated ({error})"
    return f"not a readable tar ({error or 'empty file'})"

"""Where each sample's fields lie inside a tar: the headers are read once, the data by offset.

A shard is an ordinary WebDataset tar: consecutive members that share everything before the first
dot of their base name are one sample, and the rest of the name, in lower case, is the field. The
sidecar `<shard>.index.json` holds the same facts as the headers; it is used while it matches the
tar's size and time of modification, and is never necessary. Shards that are not files have their
index in `remote`, made by what is here.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from .decode import DecodeError, decode_label
from .location import Identity, Location

MAX_MEMBER_BYTES = 1 << 28  # 256 MiB: no image is larger, and a header may claim anything
SIDECAR_VERSION = 1
_MAX_LABEL_BYTES = 64
_MAX_HEADER_BYTES = 1 << 20  # of what follows a header to make it longer: a name, in general

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)  # WebDataset's rule: (key, field)
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's metadata members, which are no samples
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class ShardError(ValueError):
    """A shard that cannot be read or may not be: names the shard and, if it can, the member."""


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, as columns (a million samples fit in some tens of megabytes).

    Attributes:
        location: the tar: its path, or its address.
        size: its length in bytes.
        fields: names of the columns below, e.g. `("png", "cls")`.
        keys: bytes `[n]`, UTF-8; `key(row)` decodes one.
        offsets: int64 `[n, len(fields)]`, where each field's data begins; −1 if it is absent.
        sizes: int64 `[n, len(fields)]`, its length in bytes; −1 if it is absent.
        labels: int64 `[n]` if they are known, −1 where one is not; None: see the `.cls` members.
    """

    location: Location
    size: int
    fields: tuple[str, ...]
    keys: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def path(self) -> Path:
        """The tar, of a shard that is a file."""
        assert isinstance(self.location, Path), f"{self.location} is no file"
        return self.location

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
    try:
        data = sidecar_path(path).read_bytes()
    except OSError:
        data = b""
    identity = Identity(*_identity(path))
    index = parse_index(path, identity, data, max_member_bytes=max_member_bytes)
    return index or scan(path, max_member_bytes=max_member_bytes)


def scan(shard: str | Path, *, max_member_bytes: int = MAX_MEMBER_BYTES) -> ShardIndex:
    """The index of `shard` from its tar headers alone. Raises as `read_index` does."""
    path = Path(shard)
    with path.open("rb") as file:
        return scan_tar(file, path, path.stat().st_size, max_member_bytes=max_member_bytes)


def scan_tar(
    file: BinaryIO,
    path: Location,
    size: int,
    *,
    labels: bool = False,
    max_member_bytes: int = MAX_MEMBER_BYTES,
) -> ShardIndex:
    """The index of a tar of `size` bytes that `file` reads.

    Args:
        file: seeks and reads.
        path: what to call it.
        size: its length.
        labels: read the `.cls` members too, where that costs nothing much.
        max_member_bytes: how long one may be.

    Raises:
        ShardError: as `read_index` does.
    """
    samples: list[tuple[str, dict[str, tuple[int, int]]]] = []
    classes: list[int] = []
    for member in _members(file, path, size, max_member_bytes):
        match = _NAME.fullmatch(member.name)
        if match is None or _META.match(member.name):
            continue  # no field, or metadata: WebDataset passes over it too
        key, field = match[1], match[2].lower()
        if not samples or samples[-1][0] != key:
            samples.append((key, {}))
            classes.append(-1)
        if field in samples[-1][1]:
            raise ShardError(f"{path}: {member.name!r} is there twice in one sample")
        samples[-1][1][field] = (member.offset_data, member.size)
        if labels and field == "cls":
            classes[-1] = _label(file, member)
    fields = tuple(dict.fromkeys(field for _, columns in samples for field in columns))
    places = [[columns.get(field, (-1, -1)) for field in fields] for _, columns in samples]
    table = np.array(places, np.int64).reshape(len(samples), len(fields), 2)
    keys = np.array([key.encode("utf-8", "surrogateescape") for key, _ in samples], np.bytes_)
    known = np.array(classes, np.int64) if labels and max(classes, default=-1) >= 0 else None
    return ShardIndex(path, size, fields, keys, table[..., 0], table[..., 1], known)


def write_index(index: ShardIndex, labels: NDArray[np.int64] | None = None) -> Path:
    """Writes the sidecar of `index`'s shard, with its `labels` (int64 `[n]`) if given.

    Returns the sidecar's path. It is written aside and renamed: a reader never sees half of it.
    """
    content = dump_index(index, Identity(*_identity(index.path)), labels)
    target = sidecar_path(index.path)
    aside = target.with_name(target.name + ".partial")
    aside.write_bytes(content)
    os.replace(aside, target)
    return target


def dump_index(index: ShardIndex, identity: Identity, labels: NDArray[np.int64] | None) -> bytes:
    """A sidecar's content, for a shard of this `identity`."""
    content = {
        "version": SIDECAR_VERSION,
        "tar": identity,
        "fields": index.fields,
        "keys": [index.key(row) for row in range(len(index))],
        "offsets": index.offsets.tolist(),
        "sizes": index.sizes.tolist(),
        "labels": None if labels is None else labels.tolist(),
    }
    return json.dumps(content, separators=(",", ":")).encode()


def parse_index(
    path: Location,
    identity: Identity,
    data: bytes,
    *,
    any_tag: bool = False,
    max_member_bytes: int = MAX_MEMBER_BYTES,
) -> ShardIndex | None:
    """The index in a sidecar's content; None if it is damaged, of another version or shard.

    `any_tag`: the size is enough to take it for this shard's.
    """
    try:
        content: Any = json.loads(data)
        stated = list(content["tar"])
        if content["version"] != SIDECAR_VERSION or stated[0] != identity.size:
            return None
        if not any_tag and stated[1:] != [identity.tag]:
            return None
        fields, keys = tuple(map(str, content["fields"])), content["keys"]
        shape = (len(keys), len(fields))
        offsets = np.array(content["offsets"], np.int64).reshape(shape)
        sizes = np.array(content["sizes"], np.int64).reshape(shape)
        labels = content["labels"]
        labels = None if labels is None else np.array(labels, np.int64).reshape(len(keys))
        names = np.array([key.encode("utf-8", "surrogateescape") for key in keys], np.bytes_)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
        return None  # the headers say the same, only slower
    # A damaged sidecar must not make us read elsewhere or allocate without bound.
    absent = (offsets == -1) & (sizes == -1)
    inside = (offsets >= 0) & (sizes >= 0) & (offsets <= identity.size - sizes)
    if not (absent | (inside & (sizes <= max_member_bytes))).all():
        return None
    return ShardIndex(path, identity.size, fields, names, offsets, sizes, labels)


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _label(file: BinaryIO, member: tarfile.TarInfo) -> int:
    if member.size > _MAX_LABEL_BYTES:
        return -1
    file.seek(member.offset_data)
    try:
        return decode_label(file.read(member.size))
    except DecodeError:
        return -1  # whoever reads the sample says so


def _members(
    file: BinaryIO, path: Location, size: int, max_member_bytes: int
) -> Iterator[tarfile.TarInfo]:
    """The regular members of a tar, each checked; raises ShardError for what we refuse."""
    try:
        with tarfile.open(fileobj=cast(BinaryIO, _Bounded(file)), mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                _check(path, member, size, max_member_bytes)
                if member.isreg():
                    yield member
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise ShardError(f"{path}: {_diagnose(file, error)}") from error
    # tarfile takes a missing end or a broken header for the end: both would lose samples silently.
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise ShardError(
            f"{path}: the tar is truncated: it ends at byte {size} without its end mark"
        )
    if block.strip(b"\0"):
        raise ShardError(f"{path}: the tar is corrupt: no valid member header at byte {end}")


class _Bounded:
    """A file of which nobody reads a large piece at once: a header may claim any length."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self._file.read(size)


def _check(path: Location, member: tarfile.TarInfo, size: int, max_member_bytes: int) -> None:
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


def _diagnose(file: BinaryIO, error: Exception) -> str:
    file.seek(0)
    if kind := _COMPRESSED.get(file.read(2)):
        return f"compressed ({kind}); samples are read by offset, so decompress the shard first"
    if "unexpected end" in str(error):
        return f"the tar is truncated ({error})"
    return f"not a readable tar ({error or 'empty file'})"

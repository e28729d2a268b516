"""Where each sample's fields lie inside a tar: the headers are read once, the data by offset.

A shard is an ordinary WebDataset tar: consecutive members that share everything before the first
dot of their base name are one sample, and the rest of the name, in lower case, is the field. The
sidecar `<shard>.index.json` holds the same facts as the headers, and a checksum if one was asked
for; it is used while it matches the tar's size and time of modification, and is never necessary.
Shards that are not files have their index in `remote`, made by what is here.

Samples are those that WebDataset finds. What it passes over or follows is refused, though: links,
names that are absolute or lead upwards, members beyond any sensible size, a tar without its end.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .aside import written_aside
from .decode import DecodeError, decode_label
from .location import Identity, Location
from .packed import pack, unpack
from .tar import Member, Read, TarError, read_file, read_members

MAX_MEMBER_BYTES = 1 << 28  # 256 MiB: no image is larger, and a header may claim anything
SIDECAR_VERSION = 1
_MAX_LABEL_BYTES = 64
_MAX_NAME = 4096  # characters: no path is longer, and keys take as much room as the longest
_MAX_ROOM = 256  # places in the table for each member: most of a table is not empty

_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's metadata members, which are no samples
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
        sha256: of the whole tar, in hexadecimal; None if nobody has taken it.
    """

    location: Location
    size: int
    fields: tuple[str, ...]
    keys: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None
    sha256: str | None = None

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


def scan(
    shard: str | Path, *, labels: bool = False, max_member_bytes: int = MAX_MEMBER_BYTES
) -> ShardIndex:
    """The index of `shard` from its tar headers, with its `labels` if asked for.

    Raises as `read_index` does.
    """
    path = Path(shard)
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        read = read_file(file.fileno())
        return scan_tar(read, path, size, labels=labels, max_member_bytes=max_member_bytes)


def scan_tar(
    read: Read,
    path: Location,
    size: int,
    *,
    labels: bool = False,
    max_member_bytes: int = MAX_MEMBER_BYTES,
) -> ShardIndex:
    """The index of a tar of `size` bytes.

    Args:
        read: the bytes at (offset, size) of it.
        path: what to call it.
        size: its length.
        labels: read the `.cls` members too: into `labels`, if every sample has one.
        max_member_bytes: how long a member may be.

    Raises:
        ShardError: as `read_index` does.
    """
    keys: list[str] = []
    columns: dict[str, int] = {}
    places: list[tuple[int, int, int, int]] = []  # row, column, offset and size of each member
    classes: list[int] = []
    present: set[str] = set()
    for member in _files(read, path, size, max_member_bytes):
        key, field = split_name(member.name)
        if not key or _META.match(member.name):
            continue  # no field, or metadata: WebDataset passes over it too
        if not keys or keys[-1] != key:
            keys.append(key)
            present = set()
        if field in present:
            raise ShardError(f"{path}: {member.name!r} is there twice in one sample")
        present.add(field)
        column = columns.setdefault(field, len(columns))
        places.append((len(keys) - 1, column, member.offset, member.size))
        if labels and field == "cls":
            classes.append(_label(read, member))
    if len(keys) * len(columns) > _MAX_ROOM * len(places):
        raise ShardError(
            f"{path}: {len(keys):,} samples have {len(columns):,} different fields, such as "
            f"{next(reversed(columns))!r}: a field begins at the first dot of a name"
        )
    offsets, sizes = np.full((2, len(keys), len(columns)), -1, np.int64)
    rows, which, offsets_there, sizes_there = np.array(places, np.int64).reshape(-1, 4).T
    offsets[rows, which], sizes[rows, which] = offsets_there, sizes_there
    names = np.array([key.encode("utf-8", "surrogateescape") for key in keys], np.bytes_)
    known = np.array(classes, np.int64) if classes and len(classes) == len(keys) else None
    return ShardIndex(path, size, tuple(columns), names, offsets, sizes, known)


def split_name(name: str) -> tuple[str, str]:
    """Key and field of a member, by WebDataset's rule; an empty key if it has none.

    `"a/b.c.PNG"` → `("a/b", "c.png")`. A base name that begins with a dot is a field of its folder.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, field = base.partition(".")
    hidden = not stem and (not slash or "." in folder.rpartition("/")[2])
    return ("", "") if hidden or not dot else (folder + slash + stem, field.lower())


def write_index(index: ShardIndex, labels: NDArray[np.int64] | None = None) -> Path:
    """Writes the sidecar of `index`'s shard, with its `labels` (int64 `[n]`) if given.

    Returns the sidecar's path. It is written aside and renamed: a reader never sees half of it.
    """
    target = sidecar_path(index.path)
    with written_aside(target) as file:
        file.write(dump_index(index, Identity(*_identity(index.path)), labels))
    return target


def dump_index(index: ShardIndex, identity: Identity, labels: NDArray[np.int64] | None) -> bytes:
    """A sidecar's content, for a shard of this `identity`."""
    content = {
        "version": SIDECAR_VERSION,
        "tar": identity,
        "sha256": index.sha256,
        "fields": index.fields,
        "keys": [index.key(row) for row in range(len(index))],
        "offsets": pack(index.offsets),
        "sizes": pack(index.sizes),
        "labels": None if labels is None else pack(labels),
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
        offsets, sizes = (unpack(content[name], shape) for name in ("offsets", "sizes"))
        labels = content["labels"]
        labels = None if labels is None else unpack(labels, (len(keys),))
        # No name in a tar holds a zero byte; encoding them one by one takes longer than the rest.
        names = np.array("\0".join(keys).encode("utf-8", "surrogateescape").split(b"\0"), np.bytes_)
        if len(names) != len(keys):
            return None
        sha256 = content.get("sha256")  # older ones have none
        if sha256 is not None and not _SHA256.fullmatch(sha256):
            return None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
        return None  # the headers say the same, only slower
    # A damaged sidecar must not make us read elsewhere or allocate without bound.
    absent = (offsets == -1) & (sizes == -1)
    inside = (offsets >= 0) & (sizes >= 0) & (offsets <= identity.size - sizes)
    if not (absent | (inside & (sizes <= max_member_bytes))).all():
        return None
    return ShardIndex(path, identity.size, fields, names, offsets, sizes, labels, sha256)


def stated_checksum(data: bytes) -> tuple[int, str] | None:
    """The size and the sha256 that a sidecar's content states, be it up to date or not."""
    try:
        content: Any = json.loads(data)
        size, sha256 = content["tar"][0], content["sha256"]
        return (size, sha256) if _SHA256.fullmatch(sha256) else None
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _label(read: Read, member: Member) -> int:
    if member.size > _MAX_LABEL_BYTES:
        return -1
    try:
        return decode_label(read(member.offset, member.size))
    except DecodeError:
        return -1  # whoever reads the sample says so


def _files(read: Read, path: Location, size: int, max_member_bytes: int) -> Iterator[Member]:
    """The regular members of a tar, each checked; raises ShardError for what we refuse."""
    try:
        for member in read_members(read, size):
            if member.kind != "directory":
                if reason := _refusal(member, size, max_member_bytes):
                    raise ShardError(f"{path}: member {member.name[:_MAX_NAME]!r} {reason}")
                yield member
    except TarError as error:
        raise ShardError(f"{path}: {error}") from error


def _refusal(member: Member, size: int, max_member_bytes: int) -> str:
    """Why a member is refused; empty if it is not."""
    name, end = member.name, member.offset + member.size
    if member.kind == "sparse":
        return "is sparse, which is not supported"
    if member.kind != "file":
        kind = "a link" if member.kind == "link" else "a device or another special file"
        return f"is {kind}: shards hold regular files only"
    upwards = ".." in name and ".." in re.split(r"[/\\]", name)
    if upwards or name.startswith(("/", "\\")) or "\0" in name:
        return "has an absolute path or '..' in its name"
    if len(name) > _MAX_NAME:
        return f"has a name of {len(name):,} characters; at most {_MAX_NAME:,} are read"
    if not 0 <= member.size <= max_member_bytes:
        return f"claims {member.size:,} bytes; at most {max_member_bytes:,} are read"
    if end > size:
        return f"ends at byte {end:,} but the tar is truncated at byte {size:,}"
    return ""

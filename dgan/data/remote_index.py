"""The index of a shard that is not a file: from the sidecar beside it, or from its headers.

A sidecar was written for a file, whose time of modification is lost on the way to a server. It is
taken if it states the shard's size and the server's tag, or else if the members at both ends of
the shard, their labels too, are what it says.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np

from .decode import DecodeError, decode_label
from .index import ShardIndex, parse_index, scan_tar
from .location import Identity, Url
from .sources import Http
from .tar import BLOCK, Read, TarError, read_members

_WINDOW = 256 << 10  # what is read at once to look at headers
_EDGE = 64 << 10  # of a shard's beginning and end, compared with its sidecar
_MAX_SIDECAR_BYTES = 1 << 29
_LONG_NAME = 100


def read_sidecar(source: Http, beside: Http) -> ShardIndex | None:
    """The index that `beside` holds; None if it cannot be had, or is of another shard."""
    try:
        data = fetch_sidecar(beside)
        return match_sidecar(source.read, source.location, source.identity, data)
    except OSError:
        return None


def fetch_sidecar(beside: Http) -> bytes:
    """What `beside` holds; nothing if it cannot be had."""
    try:
        size = beside.identity.size
        return beside.read(0, size) if size <= _MAX_SIDECAR_BYTES else b""
    except OSError:
        return b""  # often there is none, and a bucket may say so by refusing


def match_sidecar(read: Read, url: Url, identity: Identity, data: bytes) -> ShardIndex | None:
    """The index in a sidecar's content; None if it is damaged or of another shard.

    Raises:
        OSError: if the shard cannot be read.
    """
    if index := parse_index(url, identity, data):
        return index
    index = parse_index(url, identity, data, any_tag=True)
    return index if index is not None and _agrees(index, read) else None


def scan_source(source: Http, read_block: Callable[[int], bytes] | None, block: int) -> ShardIndex:
    """The index of a shard from its headers, with the labels that lie between them.

    Args:
        source: the shard.
        read_block: reads a block by its number, and keeps it.
        block: how long the blocks are.

    Raises:
        OSError: if the shard cannot be read.
        ShardError: if it is truncated, compressed, no tar, or holds a member that is refused.
    """
    headers = _Headers(source, read_block, block)
    return scan_tar(headers.read, source.location, source.identity.size, labels=True)


class _Headers:
    """Reads headers of a shard: what lies between them is skipped where that pays."""

    def __init__(self, source: Http, read_block: Callable[[int], bytes] | None, block: int) -> None:
        self._source, self._read_block, self._block = source, read_block, block
        self._begin = self._fetched = 0
        self._window = b""

    def read(self, offset: int, size: int) -> bytes:
        """The bytes at (offset, size); fewer only where the shard ends."""
        data = b""
        while len(data) < size and offset < self._source.identity.size:
            if not self._begin <= offset < self._begin + len(self._window):
                self._load(offset)
            begin = offset - self._begin
            piece = self._window[begin : begin + size - len(data)]
            data, offset = data + piece, offset + len(piece)
        return data

    def _load(self, offset: int) -> None:
        # Where members are small everything is read anyway, and may as well be kept.
        dense = 2 * self._fetched >= offset or not self._source.ranges
        self._begin = offset
        if self._read_block is not None and dense:
            self._begin -= offset % self._block
            self._window = self._read_block(offset // self._block)
        else:
            self._window = self._source.read(offset, _WINDOW)
        self._fetched += len(self._window)


def _agrees(index: ShardIndex, read: Read) -> bool:
    """Whether the members at the beginning and the end of the shard are where `index` says."""
    for begin in sorted({0, max(0, index.size - _EDGE)}):
        data = read(begin, min(_EDGE, index.size - begin))
        places = index.offsets - BLOCK - begin
        inside = (places >= 0) & (index.offsets + index.sizes <= begin + len(data))
        for row, column in np.argwhere(inside & (index.offsets >= 0)):
            if not _member_agrees(index, int(row), int(column), data, int(places[row, column])):
                return False
    return len(index) > 0


def _member_agrees(index: ShardIndex, row: int, column: int, data: bytes, place: int) -> bool:
    try:
        member = next(read_members(lambda at, size: data[place + at :][:size], len(data)))
    except (TarError, StopIteration):
        return False
    name, size = f"{index.key(row)}.{index.fields[column]}".lower(), int(index.sizes[row, column])
    # A long name, or a strange one, stands in a header of its own, before this one.
    told = name.isascii() and len(name) < _LONG_NAME
    if member.size != size or (told and member.name.lower() != name):
        return False
    if index.fields[column] != "cls" or index.labels is None:
        return True
    with suppress(DecodeError):
        begin = place + BLOCK
        return decode_label(data[begin : begin + size]) == index.labels[row]
    return False

"""The index of a shard that is not a file: from the sidecar beside it, or from its headers.

A sidecar was written for a file, whose time of modification is lost on the way to a server. It is
taken if it states the shard's size and the server's tag, or else if the members at both ends of
the shard, their labels too, are what it says.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from .decode import DecodeError, decode_label
from .index import ShardIndex, parse_index, scan_tar
from .sources import Http

_WINDOW = 256 << 10  # what is read at once to look at headers
_EDGE = 64 << 10  # of a shard's beginning and end, compared with its sidecar
_MAX_SIDECAR_BYTES = 1 << 29
_HEADER = 1024
_LONG_NAME = 100


def read_sidecar(source: Http, beside: Http) -> ShardIndex | None:
    """The index that `beside` holds; None if it cannot be had, or is of another shard."""
    try:
        if beside.identity.size > _MAX_SIDECAR_BYTES:
            return None
        data = beside.read(0, beside.identity.size)
        if index := parse_index(source.location, source.identity, data):
            return index
        index = parse_index(source.location, source.identity, data, any_tag=True)
        return index if index is not None and _agrees(index, source) else None
    except OSError:
        return None  # often there is none, and a bucket may say so by refusing


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
    file: Any = io.BufferedReader(_Headers(source, read_block, block), _HEADER)
    return scan_tar(file, source.location, source.identity.size, labels=True)


class _Headers(io.RawIOBase):
    """A shard as a file, for reading headers: what lies between them is skipped where that pays."""

    def __init__(self, source: Http, read_block: Callable[[int], bytes] | None, block: int) -> None:
        self._source, self._read_block, self._block = source, read_block, block
        self._size = source.identity.size
        self._at = self._begin = self._fetched = 0
        self._window = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        if not self._begin <= self._at < self._begin + len(self._window):
            self._load()
        start = self._at - self._begin
        piece = self._window[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _load(self) -> None:
        # Where members are small everything is read anyway, and may as well be kept.
        dense = 2 * self._fetched >= self._at or not self._source.ranges
        self._begin = self._at
        if self._at >= self._size:
            self._window = b""
        elif self._read_block is not None and dense:
            self._begin -= self._at % self._block
            self._window = self._read_block(self._at // self._block)
        else:
            self._window = self._source.read(self._at, _WINDOW)
        self._fetched += len(self._window)


def _agrees(index: ShardIndex, source: Http) -> bool:
    """Whether the members at the beginning and the end of the shard are where `index` says."""
    size = source.identity.size
    for begin in sorted({0, max(0, size - _EDGE)}):
        data = source.read(begin, min(_EDGE, size - begin))
        places = index.offsets - tarfile.BLOCKSIZE - begin
        inside = (places >= 0) & (index.offsets + index.sizes <= begin + len(data))
        for row, column in np.argwhere(inside & (index.offsets >= 0)):
            if not _member_agrees(index, int(row), int(column), data, int(places[row, column])):
                return False
    return len(index) > 0


def _member_agrees(index: ShardIndex, row: int, column: int, data: bytes, place: int) -> bool:
    try:
        header = tarfile.TarInfo.frombuf(
            data[place : place + tarfile.BLOCKSIZE], "utf-8", "surrogateescape"
        )
    except tarfile.TarError:
        return False
    name, size = f"{index.key(row)}.{index.fields[column]}".lower(), int(index.sizes[row, column])
    # A long name, or a strange one, stands in a header of its own, before this one.
    told = name.isascii() and len(name) < _LONG_NAME
    if header.size != size or (told and header.name.lower() != name):
        return False
    if index.fields[column] != "cls" or index.labels is None:
        return True
    with suppress(DecodeError):
        begin = place + tarfile.BLOCKSIZE
        return decode_label(data[begin : begin + size]) == index.labels[row]
    return False

"""The members of a tar by its headers alone: V7's, POSIX's ustar and pax, GNU's.

Python's tarfile reads the same, several times slower, and takes damage for the end of a tar. Here
whatever is no header, no end mark and no data between them is an error. Nothing is read but headers
and what makes them longer, and of that no more than a megabyte.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
Read = Callable[[int, int], bytes]
"""Reads (offset, size): fewer bytes only where the tar ends."""

_FILES = b"0", b"\0", b"7"
_KINDS = {b"1": "link", b"2": "link", b"5": "directory", b"S": "sparse"}
_WITHOUT_DATA = b"1", b"2", b"3", b"4", b"5", b"6"  # links, devices, directories, pipes
_LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_SOLARIS, _PAX_OF_ALL = b"L", b"K", b"x", b"X", b"g"
_EXTENSIONS = _LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_SOLARIS, _PAX_OF_ALL
_MAX_EXTENSION = 1 << 20
_MAX_DIGITS = 20
_END = bytes(BLOCK)
_AHEAD = 4 << 20  # of a file, which the system is asked to have ready
_NEAR = 1 << 18
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class TarError(ValueError):
    """Bytes that are no tar, or not all of one."""


class Member(NamedTuple):
    """A member, and where its data lies; of a tar that was cut off that may be beyond its end.

    Attributes:
        name: as it is in the tar; bytes that are no UTF-8 become lone surrogates.
        kind: `"file"`, `"directory"`, `"link"`, `"sparse"` or `"special"`.
        offset: of its data.
        size: of its data as the header claims it, which may be any number.
    """

    name: str
    kind: str
    offset: int
    size: int


def read_members(read: Read, size: int) -> Iterator[Member]:
    """The members of a tar of `size` bytes in their order, up to its end mark, a block of zeros.

    Raises:
        TarError: if it ends without its end mark, or something in it is no header.
    """
    at = 0
    # What headers of their own say of the next member, and of all that follow.
    here: dict[bytes, bytes] = {}
    everywhere: dict[bytes, bytes] = {}
    while (block := read(at, BLOCK) if at < size else b"") != _END:
        claimed, kind = _check(block, at, size), block[156:157]
        at += BLOCK
        if kind not in _EXTENSIONS:
            member = _member(block, kind, at, claimed, {**everywhere, **here})
            yield member
            here = {}
            if member.kind != "directory" and kind not in _WITHOUT_DATA:
                at += _padded(max(0, member.size))
            continue
        data = _extension(read, at, claimed, size)
        at += _padded(claimed)
        # Of two that say the same the first holds, as for Python's tarfile.
        if kind == _LONG_NAME:
            here = {b"path": data.partition(b"\0")[0], **here}
        elif kind in (_PAX, _PAX_OF_SOLARIS):
            here = {**_pax(data, at), **here}
        elif kind == _PAX_OF_ALL:
            everywhere |= _pax(data, at)
    if here:
        raise TarError(f"the tar is corrupt: at byte {at} it ends between two headers")


def read_file(descriptor: int) -> Read:
    """Reads a file by offset, and has the system fetch what lies ahead while reads are near.

    A disk waited for at every header is several times slower than one that reads on between them.
    """
    if not hasattr(os, "posix_fadvise"):
        return lambda offset, size: os.pread(descriptor, size, offset)
    fetched = last = 0

    def read(offset: int, size: int) -> bytes:
        nonlocal fetched, last
        if 0 <= offset - last < _NEAR and offset + _AHEAD // 2 >= fetched:
            begin = max(offset, fetched)
            os.posix_fadvise(descriptor, begin, _AHEAD, os.POSIX_FADV_WILLNEED)
            fetched = begin + _AHEAD
        last = offset
        return os.pread(descriptor, size, offset)

    return read


def _check(block: bytes, at: int, size: int) -> int:
    """The size that a header claims; raises TarError if it is no header."""
    if len(block) == BLOCK:
        field = block[148:156]
        try:
            rest, stated = block[:148] + b" " * 8 + block[156:], _number(field)
            # Some old programs summed signed bytes.
            if sum(rest) == stated or sum(rest) - 256 * sum(b > 127 for b in rest) == stated:
                return _number(block[124:136])
        except ValueError:
            pass
    if at == 0 and (kind := _COMPRESSED.get(block[:2])):
        raise TarError(
            f"compressed ({kind}); samples are read by offset, so decompress the shard first"
        )
    if at == 0:
        raise TarError(f"not a readable tar ({'no valid header' if block else 'empty file'})")
    if len(block) < BLOCK:
        raise TarError(f"the tar is truncated: it ends at byte {size} without its end mark")
    raise TarError(f"the tar is corrupt: no valid member header at byte {at}")


def _member(block: bytes, kind: bytes, offset: int, size: int, said: dict[bytes, bytes]) -> Member:
    name, prefix = _text(block[:100]), _text(block[345:500])
    if kind == b"\0" and name.endswith(b"/") and b"path" not in said:
        kind = b"5"  # as V7 wrote directories
    if prefix and kind != b"S":
        name = prefix + b"/" + name
    word = "file" if kind in _FILES else _KINDS.get(kind, "special")
    if said:
        name, size = said.get(b"path", name), int(said.get(b"size", size))
        word = "sparse" if b"sparse" in said else word
    if word == "directory":
        name = name.rstrip(b"/")
    return Member(name.decode("utf-8", "surrogateescape"), word, offset, size)


def _extension(read: Read, at: int, claimed: int, size: int) -> bytes:
    if not 0 <= claimed <= _MAX_EXTENSION:
        raise TarError(f"the tar is corrupt: a header before byte {at} claims {claimed:,} bytes")
    data = read(at, claimed) if at < size else b""
    if len(data) < claimed:
        raise TarError(f"the tar is truncated: it ends at byte {size} inside a header")
    return data


def _pax(data: bytes, end: int) -> dict[bytes, bytes]:
    """Of records `"<length> <name>=<value>\\n"` those that matter: path, size, any of sparse."""
    said, at = dict[bytes, bytes](), 0
    while at < len(data) and data[at]:
        length, space, _ = data[at : at + _MAX_DIGITS].partition(b" ")
        stop = at + int(length) if length.isdigit() else -1
        name, equals, value = data[at + len(length) + 1 : stop - 1].partition(b"=")
        if not (space and equals and at < stop <= len(data) and data[stop - 1] == ord("\n")):
            raise TarError(f"the tar is corrupt: a pax header before byte {end} is damaged")
        if name == b"path":
            said[name] = value.rstrip(b"/")
        elif name == b"size":
            if not value.isdigit() or len(value) > _MAX_DIGITS:
                raise TarError(f"the tar is corrupt: a pax header before byte {end} has no size")
            said[name] = value
        elif name.startswith(b"GNU.sparse."):
            said[b"sparse"] = b""
        at = stop
    return said


def _number(field: bytes) -> int:
    """An octal number, or one to the base of 256 after a first byte of 128 or 255."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (field[0] == 0xFF) * 256 ** (len(field) - 1)
    return int(_text(field).strip() or b"0", 8)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK

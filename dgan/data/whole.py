"""All of a shard: fetched into a file without a name, and hashed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress

from .location import Location, Url
from .sources import Http, Local, NoRangesError, Opener
from .workers import ordered_map

_PIECE = 4 << 20
_CONNECTIONS = 4


class NoRoomError(OSError):
    """The temporary folder does not take a shard: no fault of the shard's."""


class _WriteError(Exception):
    """What went wrong here, which asking the server again would not mend."""


class Fetched:
    """A copy of a remote shard in the temporary folder; gone when nobody refers to it.

    Raises:
        NoRoomError: if the folder is full.
        OSError: if the shard cannot be fetched.
    """

    def __init__(self, source: Http) -> None:
        self.location, self.identity = source.location, source.identity
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        pieces = range(-(-self.identity.size // _PIECE))
        try:
            with suppress(NoRangesError):
                for number, data in ordered_map(
                    lambda number: (number, source.read(number * _PIECE, _PIECE)),
                    pieces,
                    _CONNECTIONS,
                    chunk=1,
                ):
                    self._keep(number, data)
                return
            source.read_whole(_PIECE, self._keep)
        except _WriteError as error:
            raise NoRoomError(
                f"{tempfile.gettempdir()} does not take {self.location} ({error}): let TMPDIR name "
                "a larger folder"
            ) from error

    def _keep(self, number: int, data: bytes) -> None:
        at, view = number * _PIECE, memoryview(data)
        try:
            while view:
                written = os.pwrite(self._file.fileno(), view, at)
                at, view = at + written, view[written:]
        except OSError as error:
            raise _WriteError(error.strerror) from error

    def read(self, offset: int, size: int) -> bytes:
        """As in `Source`."""
        return os.pread(self._file.fileno(), size, offset)


def open_whole(shard: Location, opener: Opener) -> Local | Fetched:
    """A shard to be read more than once: its file, or a copy of it.

    Raises:
        NoRoomError: if the temporary folder is full.
        OSError: if it is missing or cannot be fetched.
    """
    return Fetched(opener.open(shard)) if isinstance(shard, Url) else Local(shard)


def sha256(source: Local | Fetched) -> tuple[int, str]:
    """The length of all that `source` holds, and its sha256 in hexadecimal.

    Raises:
        OSError: if it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    while block := source.read(size, _PIECE):
        digest.update(block)
        size += len(block)
    return size, digest.hexdigest()

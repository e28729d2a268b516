"""Shards that are files, read from many threads; what a disk or its server loses is tried again."""

from __future__ import annotations

import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from .location import ForbiddenError, Location, MissingError
from .patience import Persistence
from .sources import Local

# A window of the order reads from a thousand shards by turns, but a process may open only so many.
_OPEN_FILES = 1024
_MAY_OPEN, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
if _MAY_OPEN != resource.RLIM_INFINITY:
    _OPEN_FILES = min(_OPEN_FILES, _MAY_OPEN // 2)

# Seconds a read: from memory it takes a third of this. From a disk, telling beforehand what will be
# read makes 64 reads three times as fast; of what is in memory it would only cost time.
_SLOW = 15e-6


class Files:
    """The shards' files, opened when first read; the least recently used is closed.

    Args:
        paths: of the shards, by number; those that are addresses are not asked for.
    """

    def __init__(self, paths: Sequence[Location]) -> None:
        self._paths = paths
        self._open: OrderedDict[int, Local] = OrderedDict()
        self._lock = threading.Lock()
        self._persist = Persistence()
        self._slow = False  # the last reads came from the disk

    def __reduce__(self) -> tuple[type[Files], tuple[Sequence[Location]]]:
        return Files, (self._paths,)  # another process opens its own

    def read(self, shard: int, size: int, offset: int) -> bytes:
        """As `os.pread` of a shard. Where it cannot be read it is opened anew and read again.

        Raises:
            SourceError: if it is gone, may not be read, or fails again and again.
        """
        try:
            return self._file(shard).read(offset, size)
        except OSError:
            return self._persist(
                f"{self._paths[shard]} at byte {offset:,}",
                lambda _: self._read_anew(shard, size, offset),
            )

    def read_each(
        self, shards: Sequence[int], sizes: Sequence[int], offsets: Sequence[int]
    ) -> list[bytes]:
        """As `os.pread` of each of `shards`, without trying anything again. Raises OSError."""
        with self._lock:
            known = [self._known(shard) for shard in shards]
        files = [file or self._file(shard) for file, shard in zip(known, shards)]
        if self._slow:
            for file, size, offset in zip(files, sizes, offsets):
                file.expect(offset, size)
        begun = time.perf_counter()
        found = [file.read(offset, size) for file, size, offset in zip(files, sizes, offsets)]
        self._slow = time.perf_counter() - begun > _SLOW * len(found)
        return found

    def close(self) -> None:
        """Closes the files; they are opened again if they are needed again."""
        self._persist.close()
        with self._lock:
            self._open.clear()

    def _read_anew(self, shard: int, size: int, offset: int) -> bytes:
        path = self._paths[shard]
        with self._lock:
            self._open.pop(shard, None)  # a handle that a server has forgotten stays dead
        try:
            return self._file(shard).read(offset, size)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingError(f"{path}: there is no such shard any more", "missing") from error
        except PermissionError as error:
            raise ForbiddenError(f"{path}: it may not be read any more", "forbidden") from error

    def _file(self, shard: int) -> Local:
        with self._lock:
            if file := self._known(shard):
                return file
        path = self._paths[shard]
        assert isinstance(path, Path), "an address is not read here"
        file = Local(path)  # without the lock: where a server is gone this does not return
        with self._lock:
            file = self._open.setdefault(shard, file)
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        return file

    def _known(self, shard: int) -> Local | None:
        """The file if it is open. The lock is held."""
        file = self._open.get(shard)
        if file is not None:
            self._open.move_to_end(shard)
        return file

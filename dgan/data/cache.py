"""Blocks of remote shards kept in a folder that the processes of a node share.

A block is a file of a size known beforehand. It is written aside and renamed, so a file of the
right name and size is a whole block, and anything else is thrown away. Who writes one holds a lock
on the file aside, which the system gives up when the process dies, however it dies. The lock only
spares the others the download: a process that has waited too long fetches the block itself.

Names of files are hashes: no part of an address or of a shard ever becomes a path.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .aside import ASIDE, Aside, own_aside, read_entry, remove_if_dead

CACHE_GIGABYTES = 50.0

_WAIT = 60.0  # seconds that another process is given to fetch a block
_LONG_WAIT = 600.0  # for all of a shard
_KEPT = 7 / 8  # of the limit, after the oldest have been removed
_SHARE = 1 / 64  # of the limit, which a process may write between two looks at the folder
_RESERVE = 2 * 10**9  # bytes of the disk left to others, whatever the limit


def default_folder() -> Path:
    """`$DGAN_CACHE`, else `dgan` in the user's cache folder (`$XDG_CACHE_HOME`, `~/.cache`)."""
    if named := os.environ.get("DGAN_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dgan"


class Cache:
    """Files by name, made when first asked for and removed when they have not been for longest.

    Args:
        folder: where; made if need be. None: `default_folder`.
        gigabytes: how large it may grow, in units of 10⁹ bytes; shared by all who use the folder.
            What is written while somebody removes the oldest comes on top, until they are done.
        wait: seconds that another process is given to make what is asked for.

    Raises:
        ValueError: if `gigabytes` is not positive.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        gigabytes: float = CACHE_GIGABYTES,
        *,
        wait: float = _WAIT,
    ) -> None:
        if not 0 < gigabytes < math.inf:
            raise ValueError(f"a cache of {gigabytes} gigabytes cannot be")
        self.folder = Path(folder) if folder else default_folder()
        self.limit = round(gigabytes * 1e9)
        self._arguments = (folder, gigabytes)
        self._wait = wait
        self._root = self.folder / "v1"
        self._lock = threading.Lock()
        self._written: float = math.inf  # nobody has looked at the folder yet
        self._evicting = False
        self._warned = False
        self._random = random.Random()  # its own: pauses must not disturb anybody's draws

    def __reduce__(self) -> tuple[type[Cache], tuple[str | Path | None, float]]:
        return Cache, self._arguments

    def read(
        self,
        name: str,
        size: int,
        make: Callable[[], bytes],
        begin: int = 0,
        end: int | None = None,
    ) -> bytes:
        """Bytes `[begin, end)` of the entry `name` of `size` bytes, which `make` makes.

        Raises whatever `make` does.
        """
        path, end = self._path(name), size if end is None else end
        found = read_entry(path, size, begin, end)
        if found is None:
            found = self._make(path, make, lambda: read_entry(path, size, 0, size))[begin:end]
        return found

    def read_text(
        self, name: str, make: Callable[[], bytes], valid: Callable[[bytes], bool]
    ) -> bytes:
        """An entry whose size is not known beforehand: `valid` tells whether it is whole."""
        path = self._path(name)

        def find() -> bytes | None:
            data = read_entry(path, None, 0, None)
            if data is not None and not valid(data):
                path.unlink(missing_ok=True)
                return None
            return data

        found = find()
        return self._make(path, make, find) if found is None else found

    def find(self, name: str, size: int) -> bytes | None:
        """All of an entry; None if it is not there."""
        return read_entry(self._path(name), size, 0, size)

    def put(self, name: str, data: bytes) -> None:
        """Makes `data` an entry, whoever else may be making it."""
        path = self._path(name)
        aside = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            aside = Aside.open(own_aside(path))
            if aside is not None:
                aside.publish(data, path)
        except OSError as error:
            self._give_up(error)
        finally:
            if aside is not None:
                aside.discard()
        self._grown(len(data))

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Keeps others out who ask for the same, but not for longer than `_LONG_WAIT`."""
        with self._claim(self._path(name), _LONG_WAIT):
            yield

    def has(self, name: str, size: int) -> bool:
        """Whether the entry is there."""
        try:
            return self._path(name).stat().st_size == size
        except OSError:
            return False

    def forget(self, name: str) -> None:
        """Removes an entry, which is then made anew."""
        with suppress(OSError):
            self._path(name).unlink()

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
        return self._root / digest[:2] / digest[2:42]

    def _make(
        self, path: Path, make: Callable[[], bytes], find: Callable[[], bytes | None]
    ) -> bytes:
        with self._claim(path, self._wait) as aside:
            # Whoever had the claim before us has probably made it.
            if (data := find()) is not None:
                return data
            data = make()
            if aside is not None:
                try:
                    aside.publish(data, path)
                except OSError as error:
                    self._give_up(error)
        self._grown(len(data))
        return data

    @contextmanager
    def _claim(self, path: Path, wait: float) -> Iterator[Aside | None]:
        """The right to make `path`: a locked file to write to; None if the folder takes none."""
        aside = None
        try:
            aside = self._wait_for(path, wait)
        except OSError as error:
            self._give_up(error)
        try:
            yield aside
        finally:
            if aside is not None:
                aside.discard()

    def _wait_for(self, path: Path, wait: float) -> Aside | None:
        until, pause, ours = (
            time.monotonic() + wait,
            0.002,
            path.with_name(path.name + ASIDE),
        )
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        while (aside := Aside.open(ours)) is None:
            if time.monotonic() > until:  # its maker lives but does not get on: stopped, perhaps
                return Aside.open(own_aside(path))
            time.sleep(pause * self._random.uniform(0.5, 1.0))
            pause = min(2 * pause, 0.05)
        return aside

    def _give_up(self, error: OSError) -> None:
        with self._lock:
            first, self._warned = not self._warned, True
        if first:
            warnings.warn(
                f"the cache {self.folder} cannot be written ({error.strerror}): shards are read "
                "over the network each time; choose another with DGAN_CACHE or `cache`",
                stacklevel=2,
            )

    def _grown(self, size: int) -> None:
        with self._lock:
            self._written += size
        while self._due():
            looked = False
            with suppress(OSError):
                looked = self._evict()
            with self._lock:  # what was written meanwhile has to be looked at too
                self._evicting = False
                if not looked:
                    self._written = math.inf  # at the next entry once more
                    return

    def _due(self) -> bool:
        """Whether the folder is to be looked at now, and by the caller."""
        with self._lock:
            if self._evicting or self._written <= self.limit * _SHARE:
                return False
            self._written, self._evicting = 0, True
            return True

    def _evict(self) -> bool:
        """Removes what dead processes left, and then the oldest entries while there is too much.

        Whether it did: another process may be at it.
        """
        guard = Aside.open(self._root / "evicting")
        if guard is None:
            return False
        try:
            entries = []
            for path in self._root.glob("*/*"):
                with suppress(FileNotFoundError):
                    if path.name.endswith(ASIDE) and remove_if_dead(path):
                        continue
                    stat = path.stat()
                    entries.append((stat.st_mtime, stat.st_size, path))
            total = sum(size for _, size, _ in entries)
            room = shutil.disk_usage(self._root).free - _RESERVE
            limit = min(self.limit, total + room)
            if total <= limit:
                return True
            for _, size, path in sorted(entries):
                if total <= limit * _KEPT:
                    break
                if not path.name.endswith(ASIDE):
                    path.unlink(missing_ok=True)
                    total -= size
            return True
        finally:
            guard.discard()

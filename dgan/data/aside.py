"""Files that are written aside, and appear under their name when they are whole."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

ASIDE = ".partial"
_FRESH = 60.0  # seconds for which a file counts as just used: its time is not set at every read


@contextmanager
def written_aside(path: Path, *, sync: bool = False) -> Iterator[BinaryIO]:
    """A file to write, which replaces `path` once it is whole; an error leaves nothing of it.

    Nobody sees half of it, even where two processes write the same. Its folder is made if need be.
    `sync`: what appears survives a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = own_aside(path)
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_aside(path: Path, text: str) -> None:
    """Writes `path`, whole or not at all."""
    with written_aside(path) as file:
        file.write(text.encode())


class Aside:
    """A locked file that becomes an entry when it is whole."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._published = False

    @classmethod
    def open(cls, path: Path) -> Aside | None:
        """Makes or takes over `path`; None if another process or thread holds it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between our opening and locking it, its holder may have renamed or removed it.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return cls(path, descriptor)
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def publish(self, data: bytes, target: Path) -> None:
        """Writes `data` and gives the file its name. Raises OSError, e.g. if the disk is full."""
        os.ftruncate(self._descriptor, 0)
        view, offset = memoryview(data), 0
        while offset < len(data):
            offset += os.pwrite(self._descriptor, view[offset:], offset)
        os.replace(self._path, target)
        self._published = True

    def discard(self) -> None:
        """Gives up the lock; what was not published is removed."""
        if not self._published:
            with suppress(OSError):
                self._path.unlink()
        with suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # also for a child forked meanwhile
        os.close(self._descriptor)


def own_aside(path: Path) -> Path:
    """A name aside that nobody else uses."""
    return path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{ASIDE}")


def remove_if_dead(path: Path) -> bool:
    """Removes what nobody holds. Whether it did."""
    aside = Aside.open(path)
    if aside is not None:
        aside.discard()
    return aside is not None


def read_entry(path: Path, size: int | None, begin: int, end: int | None) -> bytes | None:
    """Bytes `[begin, end)` of a file of `size` bytes; None if there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        stat = os.fstat(descriptor)
        if size is not None and stat.st_size != size:
            path.unlink(missing_ok=True)  # cut off: by a power failure, or by hand
            return None
        if time.time() - stat.st_mtime > _FRESH:
            with suppress(PermissionError):  # another user's
                os.utime(descriptor)
        end = stat.st_size if end is None else end
        data = os.pread(descriptor, end - begin, begin)
        return data if len(data) == end - begin else None
    except OSError:
        return None
    finally:
        os.close(descriptor)

"""One run at a time in a directory.

The first rank holds `.lock` in the run's directory. On one machine, and on shared file systems
that pass it on (NFS 4, Lustre with `flock`), the kernel's lock decides: it ends with its process,
however that ends. Where other machines do not see it, the holder's heartbeat decides: the file's
time is set every two seconds, and a holder from elsewhere that does not set it for half a minute
counts as dead. Two limits remain there: two runs that start on two machines within the same moment,
and a machine that stops for longer than that and then goes on. Both end at the next checkpoint,
when the one whose name is not in the file finds that out and publishes nothing.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from dgan.parallel.world import World

NAME = ".lock"
HEARTBEAT_S = 2.0
DEAD_S = 30.0
"""Without a heartbeat from another machine."""


class InUse(OSError):
    """Another run holds the directory."""


@contextmanager
def hold(directory: Path, world: World) -> Iterator[Callable[[], None]]:
    """Hold `directory`, made when needed, while the run goes on; all ranks enter together.

    Yields:
        What raises `InUse` if the directory was taken over meanwhile.

    Raises:
        InUse: on every rank; says who holds it.
    """
    lock, problem = None, None
    try:
        if world.is_first:
            try:
                directory.mkdir(parents=True, exist_ok=True)
                lock = Lock(directory / NAME)
            except OSError as error:
                problem = error
        if (found := world.gather(problem)[0]) is not None:
            raise found
        yield lock.confirm if lock else lambda: None
    finally:
        if lock:
            lock.release()


def is_held(directory: Path) -> bool:
    """Whether a run goes on in `directory`, as far as its heartbeat tells."""
    with suppress(FileNotFoundError):
        return time.time() - (directory / NAME).stat().st_mtime < DEAD_S
    return False


class Lock:
    """Held from construction to `release`, or to the end of the process.

    Args:
        path: of the file; its folder exists.
        dead_s: seconds without heartbeat after which a holder on another machine is dead.

    Raises:
        InUse: somebody holds it.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, *, dead_s: float = DEAD_S) -> None:
        self.path = path
        self._token = uuid4().hex
        self._descriptor = _locked(path, dead_s)
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "kernel": _kernel(),
            "token": self._token,
        }
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(holder).encode(), 0)
        except OSError:
            os.close(self._descriptor)
            raise
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def confirm(self) -> None:
        """Raise `InUse` if another run took the directory over, as from a dead one."""
        holder = _read(self.path)
        if holder and holder.get("token") != self._token:
            raise InUse(f"{_who(holder)} took {self.path.parent} over, and this run must not write")

    def release(self) -> None:
        """Let go, and leave no file."""
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            self.confirm()
            if _is(self.path, self._descriptor):
                self.path.unlink()
        os.close(self._descriptor)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with suppress(OSError):  # a file system that is away for a moment
                os.utime(self._descriptor)


def _locked(path: Path, dead_s: float) -> int:
    """A descriptor of the file at `path`, which nobody else holds."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            decided = _flock(descriptor)
            holder = _read(path)
            if holder and not (decided and holder.get("kernel") == _kernel()):
                _wait_until_dead(path, holder, dead_s)
            # Its holder may have removed it between our opening and locking it.
            if _is(path, descriptor):
                return descriptor
        except BlockingIOError:
            holder = _read(path)
            os.close(descriptor)
            raise _in_use(path, holder) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    """Take the kernel's lock; whether this file system has one. `BlockingIOError`: it is taken."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _wait_until_dead(path: Path, holder: dict[str, Any], dead_s: float) -> None:
    limit = time.monotonic() + dead_s
    first = _state(path)
    while time.monotonic() < limit and _state(path) is not None:
        time.sleep(min(HEARTBEAT_S, dead_s) / 4)
        if _state(path) not in (first, None):
            raise _in_use(path, holder)


def _state(path: Path) -> tuple[int, int] | None:
    """What a heartbeat changes. Opened anew each time: NFS asks its server only then."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read(path: Path) -> dict[str, Any]:
    """Who holds the lock; empty if that is not known."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _in_use(path: Path, holder: dict[str, Any]) -> InUse:
    return InUse(
        f"{path.parent} is in use by {_who(holder)}: two runs in one directory would overwrite "
        "each other. Wait for it, end it, or name another --run.dir"
    )


def _who(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"


def _kernel() -> str:
    """Tells machines, and restarts of one, apart: hosts of a cluster may share a name."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()

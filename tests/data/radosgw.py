"""Ceph's S3 server on this machine: a monitor, an object store in memory, a gateway, one folder."""

import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ports import free_ports

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw")
ACCESS, SECRET = "reader", "open-sesame"

CONFIGURATION = """
[global]
fsid = {fsid}
mon host = {monitor}
public network = 127.0.0.0/8
keyring = {folder}/keyring
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
crash dir = {folder}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon max pg per osd = 1000
mon data avail crit = 1
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 1073741824
[client.rgw]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
"""

# Who may do what: (name, rights).
KEYS = (
    ("mon.", {"mon": "allow *"}),
    ("client.admin", {"mon": "allow *", "osd": "allow *"}),
    ("osd.0", {"mon": "allow profile osd", "osd": "allow *"}),
    ("client.rgw", {"mon": "allow rwx", "osd": "allow rwx"}),
)


def missing() -> str:
    """Why there can be no such server here; empty if there can."""
    absent = [name for name in (*PROGRAMS, "radosgw-admin") if shutil.which(name) is None]
    packages = "Debian: ceph-mon ceph-osd ceph-common radosgw"
    return f"{', '.join(absent)} not installed ({packages})" if absent else ""


class Gateway:
    """The server; `kill` and `start` are of what speaks S3, the objects stay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        monitor, self.port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self._monitor = f"v2:127.0.0.1:{monitor}"
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self) -> Iterator["Gateway"]:
        """Start all of it; kill it at the end."""
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir()
        fsid = str(uuid.uuid4())
        settings = {"folder": self.folder, "fsid": fsid, "port": self.port}
        text = CONFIGURATION.format(monitor=f"[{self._monitor}]", **settings)
        (self.folder / "ceph.conf").write_text(text)
        for name, rights in KEYS:
            caps = [word for kind, what in rights.items() for word in ("--cap", kind, what)]
            new = ["--create-keyring"] * (name == "mon.")
            self("ceph-authtool", "keyring", *new, "--gen-key", "--name", name, *caps)
        self("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[{self._monitor}]", "map")
        with ExitStack() as stack:
            stack.callback(self.kill)
            self("ceph-mon", "-i", "a", "--mkfs", "--monmap", "map", "--keyring", "keyring")
            stack.enter_context(_ended(self._daemon("ceph-mon", "-i", "a")))
            self("ceph", "osd", "create")
            self("ceph-osd", "-i", "0", "--mkfs")
            stack.enter_context(_ended(self._daemon("ceph-osd", "-i", "0")))
            self._wait_for(lambda: "1 up" in self("ceph", "osd", "stat"))
            self.start()
            named = ("--uid", ACCESS, "--display-name", ACCESS)
            keys = ("--access-key", ACCESS, "--secret-key", SECRET)
            self("radosgw-admin", "user", "create", *named, *keys)
            yield self

    def start(self) -> None:
        """Return once it answers."""
        self._process = self._daemon("radosgw", "-n", "client.rgw")
        self._wait_for(self._answers)

    def kill(self) -> None:
        """As `kill -9`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __call__(self, *command: Any) -> str:
        """What one of Ceph's programs prints."""
        done = subprocess.run(
            self._line(command), cwd=self.folder, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def _daemon(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{command[0]}.out").open("ab") as out:
            return subprocess.Popen(
                self._line((*command, "-f")), cwd=self.folder, stdout=out, stderr=out
            )

    def _line(self, command: tuple[Any, ...]) -> list[str]:
        plain = command[0] in ("ceph-authtool", "monmaptool")
        configured = [] if plain else ["-c", f"{self.folder}/ceph.conf"]
        return [str(command[0]), *configured, *map(str, command[1:])]

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def _wait_for(self, condition: Callable[[], bool], timeout_s: float = 120) -> None:
        limit = time.monotonic() + timeout_s
        while not condition():
            logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.out"))
            assert time.monotonic() < limit, f"it did not come about\n{logs}"
            time.sleep(0.1)


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def gateway() -> Iterator[Gateway]:
    """A running server in a folder whose path is short enough for the names of sockets."""
    temporary = tempfile.TemporaryDirectory(prefix="radosgw-", ignore_cleanup_errors=True)
    with temporary as name, Gateway(Path(name)).running() as running:
        yield running

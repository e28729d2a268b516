"""Two nodes on one machine: network namespaces, joined by a cable that can be pulled (as root)."""

import os
import shutil
import signal
import subprocess
from contextlib import suppress


class Unavailable(Exception):
    """This machine has no network namespaces for us; says why."""


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Nodes:
    """Two namespaces, joined by a pair of virtual network cards: 10.77.0.1 and 10.77.0.2.

    Raises:
        Unavailable: `ip` is not installed, or may not make them.
    """

    def __init__(self) -> None:
        self.names = [f"dgan{os.getpid()}n{node}" for node in (1, 2)]
        self.cards = [f"dg{os.getpid()}v{node}" for node in (1, 2)]
        self.addresses = ["10.77.0.1", "10.77.0.2"]
        if shutil.which("ip") is None:
            raise Unavailable("`ip` (iproute2) is not installed")
        try:
            self._add()
        except subprocess.CalledProcessError as error:
            self.remove()
            raise Unavailable(f"network namespaces need root: {error.stderr.strip()}") from None

    def _add(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.cards[0], "type", "veth", "peer", "name", self.cards[1])
        for index, (name, card) in enumerate(zip(self.names, self.cards)):
            ip("link", "set", card, "netns", name)
            ip("-n", name, "addr", "add", f"{self.addresses[index]}/24", "dev", card)
            ip("-n", name, "link", "set", "lo", "up")
            self.link(index, "up")

    def remove(self) -> None:
        for name in self.names:
            with suppress(subprocess.CalledProcessError):
                for process in ip("netns", "pids", name).split():
                    os.kill(int(process), signal.SIGKILL)
                ip("netns", "del", name)

    def link(self, index: int, state: str) -> None:
        """The cable, pulled or put back."""
        ip("-n", self.names[index], "link", "set", self.cards[index], state)

    def within(self, index: int) -> tuple[str, ...]:
        """Put before a command, it runs on that node."""
        return ("ip", "netns", "exec", self.names[index])

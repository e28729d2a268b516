"""Ports for servers and process groups that tests start."""

import random
import socket
from contextlib import ExitStack, suppress


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all different.

    From below the range of which the system gives ports to connections (Linux: from 32,768 on): one
    of those may be somebody's before the process that it is for listens on it.
    """
    drawn = random.SystemRandom()
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            probe = stack.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind(("127.0.0.1", drawn.randrange(10_000, 32_000)))
                ports.append(probe.getsockname()[1])
    return ports


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]

"""HTTP as shards need it: connections kept open, every wait bounded, failures tried again.

Nothing here can wait for ever: a connection that is silent, or on the whole slower than a floor,
is given up, and a request is repeated with growing pauses until its budget is spent.
"""

from __future__ import annotations

import http.client
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import SplitResult, urljoin, urlsplit

from .connection import Connection, authorization
from .location import ForbiddenError, MissingError, SourceError, redact
from .patience import Patience, Persistence, TransientError

_MAX_REDIRECTS = 5
_IDLE_CONNECTIONS = 32
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429)
_DRAINED = 1 << 16  # a body that is not wanted is read to keep its connection, up to here


class Reply:
    """The head of a response, and its body as far as it has been read."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self._response = response.status, response.headers, response

    def read(self, size: int) -> bytes:
        """The next `size` bytes of the body; fewer only where it ends."""
        return self._response.read(size)

    @property
    def length(self) -> int | None:
        """What is left of the body, if the server said so."""
        return self._response.length

    def finish(self) -> bool:
        """Reads a small rest of the body. Whether the connection is fit for another request."""
        if self.length is not None and self.length <= _DRAINED:
            self.read(self.length)
        return self._response.isclosed() and not self._response.will_close


class Transport:
    """Requests over connections that are kept; safe to use from many threads and after a fork."""

    def __init__(self, patience: Patience | None = None) -> None:
        self.persist = Persistence(patience)
        self.patience = self.persist.patience
        self._idle: list[tuple[tuple[str, str], Connection]] = []
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __reduce__(self) -> tuple[type[Transport], tuple[Patience]]:
        return Transport, (self.patience,)  # another process opens its own connections

    def close(self) -> None:
        """Closes idle connections and ends pauses; requests open new ones if they are needed."""
        self.persist.close()
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.hang_up()

    @contextmanager
    def get(self, address: str, headers: Mapping[str, str], within: float) -> Iterator[Reply]:
        """The reply to a GET of `address`, redirects followed; none of its waits exceeds `within`.

        Raises:
            SourceError: if the server refuses, or redirects to where we do not go.
            TransientError: if it is busy or broken. OSError, HTTPException: if the connection is.
        """
        for _ in range(_MAX_REDIRECTS + 1):
            with self._exchange(address, headers, within) as reply:
                target = reply.headers.get("Location")
                if reply.status not in _REDIRECTS or target is None:
                    yield reply
                    return
                address = _follow(address, target)
        raise SourceError(f"{redact(address)}: more than {_MAX_REDIRECTS} redirects", "redirect")

    @contextmanager
    def _exchange(self, address: str, headers: Mapping[str, str], within: float) -> Iterator[Reply]:
        parts = urlsplit(address)
        origin = (parts.scheme, parts.netloc.rpartition("@")[2])
        stall = max(min(self.patience.stall, within), 0.05)
        headers = {**authorization(parts), **headers}
        connection, fresh = self._connection(origin, parts, within)
        keep = False
        try:
            try:
                response = connection.ask(parts, headers, stall)
            except (ConnectionError, http.client.BadStatusLine):
                if fresh:
                    raise
                connection.hang_up()  # the server closed it while it was idle, which is its right
                connection = self._connect(parts, within)
                response = connection.ask(parts, headers, stall)
            reply = Reply(response)
            yield reply
            keep = reply.finish()
        finally:
            self._keep(origin, connection) if keep else connection.hang_up()

    def _connect(self, parts: SplitResult, within: float) -> Connection:
        timeout = max(min(self.patience.connect, within), 0.05)
        return Connection(parts, timeout=timeout, slowest=self.patience.slowest)

    def _connection(
        self, origin: tuple[str, str], parts: SplitResult, within: float
    ) -> tuple[Connection, bool]:
        """A connection to `origin`, and whether it is a new one."""
        with self._lock:
            if self._process != os.getpid():  # a fork must not share its parent's connections
                self._idle, self._process = [], os.getpid()
            for place in reversed(range(len(self._idle))):
                if self._idle[place][0] == origin:
                    return self._idle.pop(place)[1], False
        return self._connect(parts, within), True

    def _keep(self, origin: tuple[str, str], connection: Connection) -> None:
        with self._lock:
            self._idle.append((origin, connection))
            surplus = self._idle.pop(0)[1] if len(self._idle) > _IDLE_CONNECTIONS else None
        if surplus is not None:
            surplus.hang_up()


def raise_for(reply: Reply, name: str) -> None:
    """Raises what the status of `reply` stands for; nothing if it is 2xx.

    Raises:
        SourceError: if asking again would not help; begins with `name`, which holds no secret.
        TransientError: if it may.
    """
    status = reply.status
    if 200 <= status < 300:
        return
    if status in (404, 410):
        raise MissingError(f"{name}: there is no such shard (HTTP {status})", "missing")
    if status in (401, 403, 407):
        raise ForbiddenError(f"{name}: the server refuses access (HTTP {status})", "forbidden")
    if status in _BUSY or status >= 500:
        after = reply.headers.get("Retry-After", "")
        raise TransientError(f"HTTP {status}", float(after) if after.isdigit() else 0.0)
    raise SourceError(f"{name}: the server answers HTTP {status}", f"HTTP {status}")


def _follow(address: str, target: str) -> str:
    """Where a redirect from `address` leads; the password stays with the host it was given for."""
    to = urljoin(address, target)
    old, new = urlsplit(address), urlsplit(to)
    if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
        raise SourceError(
            f"{redact(address)}: it redirects to {redact(to)}: from {old.scheme} to {new.scheme} "
            "is not followed",
            "redirect",
        )
    if old.username is not None and (old.hostname, old.port) == (new.hostname, new.port):
        user = old.netloc.rpartition("@")[0]
        new = new._replace(netloc=f"{user}@{new.netloc.rpartition('@')[2]}")
    return new.geturl()

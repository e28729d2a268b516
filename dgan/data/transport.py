"""HTTP as shards need it: connections kept open, every wait bounded, failures tried again.

Nothing here can wait for ever: a connection that is silent, or on the whole slower than a floor,
is given up, and a request is repeated with growing pauses until its budget is spent.
"""

from __future__ import annotations

import http.client
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

from .connection import Connection, authorization
from .location import ForbiddenError, MissingError, SourceError, redact

_T = TypeVar("_T")
_MAX_REDIRECTS = 5
_MAX_RETRY_AFTER = 60.0
_IDLE_CONNECTIONS = 32
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429)
_DRAINED = 1 << 16  # a body that is not wanted is read to keep its connection, up to here


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for, and how often it is asked again. All times in seconds.

    Attributes:
        connect: for a connection to be made.
        stall: without a byte.
        slowest: bytes a second that a response must reach on the whole, `stall` of grace aside.
        attempts: requests for one read, at most.
        first_pause: before the second of them; each pause is up to twice as long as the last.
        longest_pause: between two of them.
        per_read: for one read with all its attempts. Halved for every read in a row that came to
            nothing, so that a server that is gone ends a run in about twice this time.
    """

    connect: float = 10.0
    stall: float = 30.0
    slowest: float = 50_000.0
    attempts: int = 10
    first_pause: float = 0.25
    longest_pause: float = 20.0
    per_read: float = 180.0


PATIENCE = Patience()


class TransientError(Exception):
    """A failure that may pass; `retry_after` is how long the server asked us to wait."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


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
        self.patience = patience or PATIENCE
        self._idle: list[tuple[tuple[str, str], Connection]] = []
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._closed = threading.Event()
        self._random = random.Random()  # its own: pauses must not disturb anybody's draws
        self._failures = 0

    def __reduce__(self) -> tuple[type[Transport], tuple[Patience]]:
        return Transport, (self.patience,)  # another process opens its own connections

    def close(self) -> None:
        """Closes idle connections and ends pauses; requests open new ones if they are needed."""
        self._closed.set()
        with self._lock:
            idle, self._idle = self._idle, []
            self._closed = threading.Event()
        for _, connection in idle:
            connection.hang_up()

    def persist(self, what: str, attempt: Callable[[float], _T]) -> _T:
        """What `attempt` returns, repeated while it fails in ways that may pass.

        It is told the seconds that are left to it, and raises `TransientError`, an `OSError` or an
        `HTTPException` to be asked again.

        Raises:
            SourceError: if the budget is spent; begins with `what`. Its own are passed on.
        """
        patience, closed, begun = self.patience, self._closed, time.monotonic()
        budget = patience.per_read / 2 ** min(self._failures, 8)
        for tried in count(1):
            try:
                result = attempt(budget - (time.monotonic() - begun))
                self._failures = 0
                return result
            except SourceError:
                raise
            except ssl.SSLCertVerificationError as error:
                raise SourceError(f"{what}: {error.verify_message}", "bad certificate") from None
            except http.client.InvalidURL:
                raise SourceError(f"{what}: not a valid address", "bad address") from None
            except (TransientError, OSError, http.client.HTTPException) as error:
                problem, asked = _describe(error), getattr(error, "retry_after", 0.0)
            pause = min(patience.first_pause * 2 ** (tried - 1), patience.longest_pause)
            pause = max(pause * self._random.uniform(0.5, 1.0), min(asked, _MAX_RETRY_AFTER))
            spent = time.monotonic() - begun
            if tried >= patience.attempts or spent + pause >= budget or closed.wait(pause):
                self._failures += 1
                raise SourceError(f"{what}: {problem} ({tried} attempts in {spent:.1f} s)")
        raise AssertionError("the count has no end")

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


def _describe(error: Exception) -> str:
    if isinstance(error, TransientError):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"no answer in time ({error})"
    return redact(f"{type(error).__name__}: {error}")

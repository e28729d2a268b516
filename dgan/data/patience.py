"""How long and how often something is tried again before it counts as lost."""

from __future__ import annotations

import http.client
import random
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from .location import SourceError, redact

_T = TypeVar("_T")
_MAX_RETRY_AFTER = 60.0


@dataclass(frozen=True)
class Patience:
    """How long a server or a disk is waited for, and how often asked again. Times in seconds.

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


class Persistence:
    """Repeats what fails in ways that may pass; safe to use from many threads."""

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = patience or PATIENCE
        self._closed = threading.Event()
        self._random = random.Random()  # its own: pauses must not disturb anybody's draws
        self._failures = 0

    def close(self) -> None:
        """Ends the pauses that are under way, and with them what is repeated."""
        self._closed.set()
        self._closed = threading.Event()

    def __call__(self, what: str, attempt: Callable[[float], _T]) -> _T:
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


def _describe(error: Exception) -> str:
    if isinstance(error, TransientError):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"no answer in time ({error})"
    return redact(f"{type(error).__name__}: {error}")

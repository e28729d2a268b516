"""A run that no longer moves says where it stands, and ends so that it can be started again."""

import faulthandler
import os
import sys
import threading
from typing import Self

START_AGAIN = 75
"""Exit code (EX_TEMPFAIL) of a run that is not done and goes on if it is started again: a signal
of the scheduler stopped it, another rank was lost, or nothing moved."""


class Watchdog:
    """Ends this process when it has reported no new phase for too long.

    Another rank that is stuck shows as a collective that does not return: the process waits in C,
    and only another thread can say so. Code that never lets go of the interpreter's lock stops
    this thread too; collectives then end by the process groups' own timeouts.

    Args:
        rank: of this process, for the message.
        start_minutes: that a phase may take before `settle`: files are indexed, kernels compiled.
        stall_minutes: that it may take from then on. 0 for either is without end.
    """

    def __init__(
        self, *, rank: int = 0, start_minutes: float = 0.0, stall_minutes: float = 0.0
    ) -> None:
        self.rank = rank
        self.stall_seconds = 60 * stall_minutes
        self.step = 0
        self.phase = "start"
        self._limit = 60 * start_minutes
        self._idle = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def at(self, phase: str, step: int | None = None) -> None:
        """This process enters `phase` (of `step`, when a new one begins), or moves within it."""
        self.phase = phase
        self.step = self.step if step is None else step
        self._idle = 0.0

    def settle(self) -> None:
        """Everything has happened once: from now on a phase may take `stall_minutes`."""
        self._idle, self._limit = 0.0, self.stall_seconds

    @property
    def where(self) -> str:
        """Where this process stands, in words."""
        return f"rank {self.rank}, step {self.step}, phase {self.phase!r}"

    def __enter__(self) -> Self:
        if not faulthandler.is_enabled() and sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)  # a crash in C shows every thread too
        if self._limit or self.stall_seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        tick = min([1.0, *(limit / 10 for limit in (self._limit, self.stall_seconds) if limit)])
        # Ticks are counted, not time: a job that Slurm suspends for an hour has not stalled.
        while not self._ended.wait(tick):
            self._idle += tick
            if 0 < self._limit < self._idle:
                self._end()

    def _end(self) -> None:
        stderr = sys.__stderr__
        if stderr is not None:
            print(
                f"dgan: error: {self.where}: nothing has moved for {self._idle:.0f} s "
                f"(--run.{'stall' if self._limit == self.stall_seconds else 'start'}_minutes). "
                "Often another rank is stuck: one that reports an earlier phase, or nothing. "
                f"Every thread of this one follows; it ends with code {START_AGAIN}, and the run, "
                "started again, goes on from its last checkpoint",
                file=stderr,
                flush=True,
            )
            faulthandler.dump_traceback(stderr)
        os._exit(START_AGAIN)

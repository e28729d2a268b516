"""A run that no longer moves says where it stands, and ends so that it can be started again."""

import faulthandler
import os
import sys
import threading
from pathlib import Path
from typing import Self

from dgan.whereabouts import Place, Whereabouts

START_AGAIN = 75
"""Exit code (EX_TEMPFAIL) of a run that is not done and goes on if it is started again: a signal
of the scheduler stopped it, another rank was lost, or nothing moved."""


ANSWER_S = 10.0
"""That a file system may take to say where the other ranks stand."""


class Watchdog:
    """Ends this process when it has reported no new phase for too long.

    Another rank that is stuck shows as a collective that does not return: the process waits in C,
    and only another thread can say so; which rank it is, `Whereabouts` tells. Code that never lets
    go of the interpreter's lock stops this thread too; collectives then end by the process groups'
    own timeouts.

    Args:
        rank: of this process.
        size: number of ranks.
        start_minutes: that a phase may take before `settle`: files are indexed, kernels compiled.
        stall_minutes: that it may take from then on. 0 for either is without end.
        folder: where ranks tell one another where they stand; see `Whereabouts`.
    """

    def __init__(
        self,
        *,
        rank: int = 0,
        size: int = 1,
        start_minutes: float = 0.0,
        stall_minutes: float = 0.0,
        folder: Path | None = None,
    ) -> None:
        self.rank = rank
        self.stall_seconds = 60 * stall_minutes
        self.place = Place()
        self._limit = 60 * start_minutes
        limits = [limit for limit in (self._limit, self.stall_seconds) if limit]
        self._tick = min([1.0, *(limit / 10 for limit in limits)])
        self._others: Whereabouts | None = None
        if size > 1 and limits and folder is not None:
            self._others = Whereabouts(
                folder, rank=rank, size=size, here=lambda: self.place, every_s=min(limits) / 10
            )
        self._idle = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def at(self, phase: str, step: int | None = None) -> None:
        """This process enters `phase` (of `step`, when a new one begins), or moves within it."""
        before = self.place
        self.place = Place(before.step if step is None else step, phase, before.moves + 1)
        self._idle = 0.0

    def settle(self) -> None:
        """Everything has happened once: from now on a phase may take `stall_minutes`."""
        self._idle, self._limit = 0.0, self.stall_seconds

    @property
    def where(self) -> str:
        """Where this process stands, in words."""
        return f"rank {self.rank}, {self.place}"

    def __enter__(self) -> Self:
        if not faulthandler.is_enabled() and sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)  # a crash in C shows every thread too
        if self._limit or self.stall_seconds:
            self._thread.start()
        if self._others:
            self._others.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._others:
            self._others.stop()

    def _watch(self) -> None:
        # Ticks are counted, not time: a job that Slurm suspends for an hour has not stalled.
        while not self._ended.wait(self._tick):
            self._idle += self._tick
            if 0 < self._limit < self._idle:
                self._end()

    def _end(self) -> None:
        stderr = sys.__stderr__
        if stderr is not None:
            print(
                f"dgan: error: {self.where}: nothing has moved for {self._idle:.0f} s "
                f"(--run.{'stall' if self._limit == self.stall_seconds else 'start'}_minutes). "
                f"{self._held_up_by()}Every thread of this rank follows; it ends with code "
                f"{START_AGAIN}, and the run, started again, goes on from its last checkpoint",
                file=stderr,
                flush=True,
            )
            faulthandler.dump_traceback(stderr)
        os._exit(START_AGAIN)

    def _held_up_by(self) -> str:
        if self._others is None:
            return ""
        found = ["Where the others stand is not known: the run's file system does not answer"]
        others = self._others

        def look() -> None:
            try:
                found[0] = others.held_up_by()
            except OSError as error:
                found[0] = f"Where the others stand is not known ({error})"

        # What hangs may be the file system.
        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        looking.join(ANSWER_S)
        return f"{found[0]}. "

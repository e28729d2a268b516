"""Threads that decode ahead, and that nobody has to wait for."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")
_Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class Crew:
    """Threads that do tasks in turn, and end when the crew is closed or forgotten.

    Not a `ThreadPoolExecutor`, which a program waits for before it ends: a thread may be reading
    from a file system whose server is gone, and that may never return.
    """

    def __init__(self, size: int, name: str) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=_work, args=(self._tasks,), name=f"{name}_{n}", daemon=True)
            for n in range(size)
        ]
        for thread in self._threads:
            thread.start()
        self._dismiss = weakref.finalize(self, _dismiss, self._tasks, size)

    def submit(self, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """What `function(*arguments)` will return or raise."""
        future: Future[_T] = Future()
        self._tasks.put((future, function, arguments))
        return future

    def close(self, patience: float) -> None:
        """Ends the threads when they have done what was submitted; waits so many seconds."""
        self._dismiss()
        until = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))


def result_within(seconds: float, task: Future[_T], what: str) -> _T:
    """What a task returns or raises.

    Raises:
        TimeoutError: if it has not ended in time; says `what` it is.
    """
    try:
        return task.result(seconds)
    except TimeoutError:
        if task.done():  # it is what the task raised
            raise
        raise TimeoutError(
            f"{what} has not come to an end in {seconds:.0f} s: is the server of its file system "
            "gone?"
        ) from None


def _work(tasks: SimpleQueue[_Task | None]) -> None:
    while (task := tasks.get()) is not None:
        future, function, arguments = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
        # What waits for the next task must not keep the last one's memory.
        del task, future, function, arguments


def _dismiss(tasks: SimpleQueue[_Task | None], size: int) -> None:
    for _ in range(size):
        tasks.put(None)

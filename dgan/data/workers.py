"""Work by threads, in order.

Threads, because Pillow, hashlib and file reads leave the interpreter to others while they work, and
because results need no copying: measured equal to processes for PNG, JPEG and plain copies.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_CHUNK = 16  # handing one small picture over at a time costs more than encoding it
_AHEAD = 3  # chunks that wait for each worker: bounds memory

Given = TypeVar("Given")
Made = TypeVar("Made")


def count_workers(workers: int | None) -> int:
    """`workers`, or by default the cores that this process may use, at most 32.

    Raises:
        ValueError: if it is less than 1.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return min(cores or 1, 32)
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    return workers


def ordered_map(
    function: Callable[[Given], Made], items: Iterable[Given], workers: int, chunk: int = _CHUNK
) -> Generator[Made, None, None]:
    """`function` of each of `items`, in their order, computed by `workers` threads ahead of need.

    Raises:
        Exception: whatever `function` or `items` raise, when its turn comes.
    """

    def work(some: list[Given]) -> list[Made]:
        return [function(item) for item in some]

    waiting: deque[Future[list[Made]]] = deque()
    stream = iter(items)
    pool = ThreadPoolExecutor(workers)
    try:
        while some := list(islice(stream, chunk)):
            waiting.append(pool.submit(work, some))
            if len(waiting) > _AHEAD * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

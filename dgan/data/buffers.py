"""Where batches lie in memory, and how they get to a GPU.

Fresh memory is dear: the operating system clears each page of it, for one thread at a time. Two
threads that decode JPEGs into new arrays do not get half as far again as one. So memory is used
again, but only when nobody can tell.
"""

from __future__ import annotations

import weakref
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from .batch import Batch

Shape = tuple[int, ...]


class Buffers:
    """uint8 tensors in memory that is used again once no tensor or array refers to it.

    Args:
        keep: how many buffers of a shape wait to be used again; others are freed.
        pinned: whether it is page-locked, so that a GPU can fetch from it by itself. Such memory
            is PyTorch's to use again, since only PyTorch knows when a copy from it has ended.
    """

    def __init__(self, *, keep: int = 0, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: defaultdict[Shape, deque[NDArray[np.uint8]]] = defaultdict(
            lambda: deque(maxlen=keep)
        )

    def take(self, shape: Shape) -> Tensor:
        """A contiguous uint8 tensor of `shape` that holds anything."""
        if self._pinned:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        free = self._free[shape]
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(shape, np.uint8)
        # The tensor's storage refers to `lent`, and every view of the tensor to its storage.
        lent = memory.view()
        weakref.finalize(lent, free.append, memory).atexit = False
        return torch.from_numpy(lent)


class Upload:
    """Copies batches to a CUDA device on a stream of its own, the next one before it is wanted."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._ahead: tuple[Batch, dict[str, Any]] | None = None

    def __call__(self, batch: Batch, following: Batch | None = None) -> dict[str, Any]:
        """`batch` on the device, in the order of the current stream; the host waits for nothing.

        The copy of `following` begins, beside what the current stream will compute.
        """
        if self._ahead is not None and self._ahead[0] is batch:
            moved = self._ahead[1]
        else:
            moved = self._begin(batch)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for value in moved.values():
            if isinstance(value, Tensor):
                value.record_stream(current)  # not to be overwritten before that has used it
        self._ahead = None if following is None else (following, self._begin(following))
        return moved

    def _begin(self, batch: Batch) -> dict[str, Any]:
        with torch.cuda.stream(self._stream):
            return {
                name: value.to(self.device, non_blocking=True)
                if isinstance(value, Tensor)
                else value
                for name, value in batch.as_dict().items()
            }


def open_upload(device: torch.device | str | None) -> Upload | None:
    """What copies to `device`; None if that is the CPU or not given.

    Raises:
        ValueError: if it is neither the CPU nor a CUDA device that there is.
    """
    device = torch.device("cpu" if device is None else device)
    if device.type == "cpu":
        return None
    if device.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(f"batches go to the CPU or a CUDA device that there is, not to {device}")
    return Upload(device)

"""Copies of a run's tensors on the CPU, which are written while training goes on."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from dgan.parallel.pieces import Piece, Shard


class Staging:
    """Copies into memory that is used again for the next checkpoint.

    Fresh memory costs more time than the copy itself: each page is cleared at its first use, and
    memory that a GPU copies to at full speed is slow to come by. A host therefore keeps as much
    memory as this rank's part of a checkpoint takes.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Copies by name, complete on return and valid until the next call."""
        copies = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return copies

    def _copy(self, name: str, tensor: Tensor | Piece) -> Tensor | Piece | Shard:
        if isinstance(tensor, Piece):
            return Piece(tensor.shape, tensor.start, self._fill(name, tensor.values))
        if isinstance(tensor, DTensor):
            items = tensor.__create_write_items__(name, tensor)
            return Shard(items, self._fill(name, tensor.to_local()))
        return self._fill(name, tensor)

    def _fill(self, name: str, values: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or (buffer.shape, buffer.dtype) != (values.shape, values.dtype):
            buffer = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
            self._buffers[name] = buffer
        return buffer.copy_(values.detach(), non_blocking=True)

"""What one rank holds of a tensor, in a checkpoint of whole shapes."""

import math
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    ReadItem,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Where a rectangular part of a tensor begins, and its size, by dimension."""


class Piece:
    """Elements `start`, `start` + 1, … of a tensor of some shape, as ZeRO leaves them with a rank.

    In row-major order. torch.distributed.checkpoint stores rectangular chunks of a tensor; a flat
    range is a few of them, so that what ZeRO wrote is read under FSDP2 or in one process, and the
    other way round.

    Args:
        shape: of the whole tensor.
        start: the first element that is held.
        values: the elements `[n]`, a view that loading writes into; n may be 0.
    """

    def __init__(self, shape: Sequence[int], start: int, values: Tensor) -> None:
        self.shape = torch.Size(shape)
        self.start = start
        self.values = values

    def size(self) -> torch.Size:
        """Of the whole tensor."""
        return self.shape

    def parts(self) -> Iterator[tuple[Box, Tensor]]:
        """The boxes of the whole tensor that are held, each with a view of its values."""
        begin = 0
        for box in boxes(self.shape, self.start, self.start + len(self.values)):
            count = math.prod(box[1])
            yield box, self.values[begin : begin + count].view(box[1])
            begin += count

    # What torch.distributed.checkpoint asks of tensors that are spread over ranks.

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, torch.Size(offsets)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)),
                    properties=TensorProperties.create_from_tensor(values),
                    size=self.shape,
                ),
            )
            for (offsets, sizes), values in self.parts()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
            for (offsets, sizes), _ in self.parts()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        (found,) = (v for (offsets, _), v in self.parts() if torch.Size(offsets) == index.offset)
        return found


class Shard:
    """A copy on the CPU of what a DTensor, perhaps on a GPU, holds on this rank; to be written.

    Args:
        items: where it lies in the whole tensor, as the DTensor said.
        values: the copy.
    """

    def __init__(self, items: list[WriteItem], values: Tensor) -> None:
        self._items = items
        self._values = values

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        return self._items

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return self._values


class SavePlanner(DefaultSavePlanner):
    """Finds the data of a `Piece` or `Shard`; PyTorch's own looks into tensors only."""

    def lookup_object(self, index: MetadataIndex) -> Any:
        """What is stored under `index`."""
        held = self.state_dict[index.fqn]
        if isinstance(held, Piece | Shard):
            return held.__get_tensor_shard__(index)
        return super().lookup_object(index)


class LoadPlanner(DefaultLoadPlanner):
    """The same for reading into a `Piece`."""

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        """Begin to read into `state_dict`."""
        tensors = {name: t for name, t in state_dict.items() if not isinstance(t, Piece)}
        # What it does not know it would replace by None.
        super().set_up_planner(tensors, metadata, is_coordinator)
        self.state_dict = {**self.state_dict, **state_dict}

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """What is read into for `index`."""
        held = self.state_dict[index.fqn]
        if isinstance(held, Piece):
            return held.__get_tensor_shard__(index)
        return super().lookup_tensor(index)

    def load_bytes(self, read_item: ReadItem, value: object) -> None:
        """Refused: PyTorch's own would unpickle whatever it is, and checkpoints hold tensors."""
        raise pickle.UnpicklingError(f"{read_item.dest_index.fqn} is no tensor")


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """The fewest boxes, in row-major order, that make up elements `start` … `stop` − 1."""
    if start >= stop:
        return
    if not shape:
        yield (), ()
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # within one row
        yield from _in_row(shape, last, start - last * row, stop - last * row)
        return
    yield from _in_row(shape, first - 1, start - (first - 1) * row, row)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    yield from _in_row(shape, last, 0, stop - last * row)


def _in_row(shape: Sequence[int], row: int, start: int, stop: int) -> Iterator[Box]:
    for offsets, sizes in boxes(shape[1:], start, stop):
        yield (row, *offsets), (1, *sizes)

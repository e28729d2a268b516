"""Images with a vector each in the place of a class, such as the embedding of a caption."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .batch import Batch, Encoded
from .buffers import Buffers
from .dataset import ShardDataset
from .decode import DecodeError, decode_field
from .errors import SizeMismatchError
from .images import PLAIN, View

Value = str | NDArray[Any]
"""What lies beside an image: its caption, or its embedding `[D]`."""
Encode = Callable[[list[str]], Tensor]
"""Captions → their embeddings, floating `[N, D]`; each by itself, and the same at every call."""


class ConditionedDataset(ShardDataset):
    """Images as of `ShardDataset`, and beside them `"condition"`, float32 `[size]`.

    It is the `.npy` of each sample, or what a frozen encoder makes of its `.txt`: of all captions
    of a batch together, in the thread that asks for the batch, without gradients. Entries of about
    unit variance are what networks expect.

    Args:
        shards: as in `ShardDataset`.
        size: of the vectors.
        encoder: import path of an `Encode`, `mypackage.encoders:encode`; empty: vectors are stored.
        options: further ones of `ShardDataset`.

    Raises:
        SizeMismatchError: a `ValueError`, also of a stream: a stored vector is none of `size`
            numbers; names its key and shard.
        ValueError: a sample has no vector or caption (names its key and shard), the encoder cannot
            be imported or makes something else, or as `ShardDataset`.
        FileNotFoundError: if a shard is missing.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path | Sequence[str | Path]],
        *,
        size: int,
        encoder: str = "",
        **options: Any,
    ) -> None:
        self.size, self.encoder = size, encoder
        self._encode = import_encoder(encoder) if encoder else None
        self._field = "txt" if encoder else "npy"
        super().__init__(shards, fields=(self._field,), **options)
        if (bare := self.table.first_without(self._field)) is not None:
            what = "caption, <key>.txt" if encoder else "embedding, <key>.npy"
            raise ValueError(
                f"{self.describe(bare)} has no {what}: each image needs one of its own (`dgan data "
                "pack` takes those that lie beside images by the same name), or leave it out"
            )
        self.conditions([0])

    def batch(self, n: int, buffers: Buffers | None = None) -> Batch:
        """Room for `n` samples, in memory from `buffers` if given."""
        return _ConditionedBatch(
            n,
            self.shapes,
            labelled=self.has_labels,
            fields=self.fields,
            crop=self.crop,
            resize=self.resize,
            buffers=buffers or Buffers(),
            dataset=self,
        )

    def conditions(self, samples: Sequence[int]) -> Tensor:
        """The vectors of some samples, float32 `[n, size]`; no image is decoded.

        One that is damaged is replaced by that of the next good sample.
        """
        return self.together([self._good(i) for i in samples])

    def together(self, values: Sequence[Value]) -> Tensor:
        """Of captions or stored vectors the conditions, float32 `[n, size]`.

        Raises:
            ValueError: the encoder makes something else.
        """
        if not values:
            return torch.zeros(0, self.size)
        if self._encode is None:
            return torch.from_numpy(np.stack(values).astype(np.float32))
        return encoded(self._encode, [str(text) for text in values], self.size, self.encoder)

    def _good(self, i: int) -> Value:
        problem: DecodeError | None = None
        for place in (number % len(self) for number in range(i, i + len(self))):
            try:
                data = self.table.read(place, self._field)
                return checked(decode_field(self._field, data), self.size, self.table.key(place))
            except DecodeError as error:
                problem = problem or error
            except SizeMismatchError as error:
                raise SizeMismatchError(f"{self.table.shard_of(place)}: {error}") from None
        assert problem is not None, "a data set is not empty"
        raise problem


def checked(value: Value, size: int, key: str) -> Value:
    """What lies beside an image, as it is.

    Raises:
        DecodeError: a caption is empty, or a vector not finite.
        SizeMismatchError: a vector is not of `size` floating numbers.
    """
    if isinstance(value, str):
        if not value.strip():
            raise DecodeError(f"sample {key!r} has an empty caption", "missing field")
        return value
    if value.shape != (size,) or value.dtype.kind != "f":
        raise SizeMismatchError(
            f"sample {key!r} holds {value.dtype} {list(value.shape)}, but a vector of {size} "
            "floating numbers is wanted (--data.embedding)"
        )
    if not np.isfinite(value).all():
        raise DecodeError(f"the vector of sample {key!r} is not finite")
    return value


class _ConditionedBatch(Batch):
    """Room for images; what lies beside them is made vectors of when it is handed out."""

    def __init__(self, n: int, shapes: Any, *, dataset: ConditionedDataset, **options: Any) -> None:
        super().__init__(n, shapes, **options)
        self._dataset = dataset

    def decode(self, row: int, sample: Encoded, view: View = PLAIN) -> None:
        """Decodes a sample into `row`. Raises as `Batch.decode`, and as `checked`."""
        super().decode(row, sample, view)
        (values,) = self._extras.values()
        checked(values[row], self._dataset.size, sample.key)

    def as_dict(self, rows: Sequence[int] | None = None) -> dict[str, Any]:
        """The batch as the caller sees it; `rows` keeps some of them only."""
        batch = super().as_dict(rows)
        (field,) = self._extras
        batch["condition"] = self._dataset.together(batch.pop(field))
        return batch


def import_encoder(name: str) -> Encode:
    """The function, or module, at an import path, `mypackage.encoders:encode`.

    Raises:
        ValueError: it cannot be imported, or is nothing that can be called.
    """
    module, _, attribute = name.partition(":")
    try:
        encode = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"--data.encoder {name!r} cannot be imported: {error}; is its folder on PYTHONPATH?"
        ) from error
    if not callable(encode):
        raise ValueError(f"--data.encoder {name!r} is {type(encode).__name__}, not a function")
    return cast("Encode", encode)


@torch.no_grad()
def encoded(encode: Encode, captions: list[str], size: int, name: str) -> Tensor:
    """What `encode`, which messages call `name`, makes of captions: float32 `[n, size]`.

    Raises:
        ValueError: it is something else.
    """
    found = encode(captions)
    if not isinstance(found, Tensor) or found.shape != (len(captions), size):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"--data.encoder {name} makes {shape} of {len(captions)} captions, not a tensor "
            f"{[len(captions), size]}: set --data.embedding to the size of its vectors"
        )
    return found.float()

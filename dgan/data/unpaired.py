"""Two sets of images that do not belong together: each shuffled by itself, both handed out at once.

What CycleGAN learns from (Zhu et al. 2017). The halves of a paired set are two such sets: their
orders have nothing to do with each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import torch

from dgan.draws import seed_of

from .dataset import ShardDataset
from .skips import Skipped
from .stream import ShardStream

DOMAINS = ("a", "b")


class UnpairedDataset:
    """The images of two data sets, each of which has one image a sample.

    Args:
        a: the images of the first domain.
        b: those of the second.
    """

    def __init__(self, a: ShardDataset, b: ShardDataset) -> None:
        self.domains = {"a": a, "b": b}

    def __len__(self) -> int:
        return min(map(len, self.domains.values()))

    def __str__(self) -> str:
        return " beside ".join(str(dataset.table) for dataset in self.domains.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the shards' files; they are opened again if they are needed again."""
        for dataset in self.domains.values():
            dataset.close()

    def batches(
        self, batch_size: int, *, stop: int | None = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """The first samples of both, unshuffled, as many as the smaller set has.

        As `ShardDataset.batches`, with keys and images as in `UnpairedStream`. Where one is left
        out because it does not decode, so is the other's last of the batch.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        of_each = (set_.batches(batch_size, stop=stop, **options) for set_ in self.domains.values())
        for a, b in zip(*of_each):
            rows = min(len(a["__key__"]), len(b["__key__"]))
            yield {name: values[:rows] for name, values in _side_by_side(a, b).items()}


class UnpairedStream:
    """Shuffled batches of both data sets without end; each has its own order, flips and crops.

    Each item is a dict: `"__key__"` (both keys, joined by a plus sign), `"a"` and `"b"` (uint8
    `[n, C, H, W]`). What else it has is what a training loop asks of a `ShardStream`.

    Args:
        dataset: what is shown; closed with the stream.
        batch_size: images of each domain in one batch over all ranks.
        seed: of both orders, which differ.
        options: further ones of `ShardStream`, such as `rank`, `flip` and `workers`.
    """

    has_labels = False
    num_classes = 0

    def __init__(
        self, dataset: UnpairedDataset, *, batch_size: int, seed: int = 0, **options: Any
    ) -> None:
        self.dataset, self.batch_size = dataset, batch_size
        self._streams = {
            name: ShardStream(
                domain, batch_size=batch_size, seed=seed_of(seed, f"unpaired {name}"), **options
            )
            for name, domain in dataset.domains.items()
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        a, b = map(next, self._streams.values())
        return _side_by_side(a, b)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the workers and closes the files."""
        for stream in self._streams.values():
            stream.close()

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on after the last batch handed out; the same on every rank."""
        states = {name: stream.state_dict() for name, stream in self._streams.items()}
        return {"position": self.position, **states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken, at any world size and batch size.

        Raises:
            ValueError: if the state is of other data, or not of two data sets.
        """
        if not state.keys() >= self._streams.keys():
            raise ValueError(
                "the state was taken on one data set, and these are two that are not paired: open "
                "the same data, or start a new run"
            )
        for name, stream in self._streams.items():
            stream.load_state_dict(state[name])

    @property
    def skipped(self) -> Counter[str]:
        """How often a sample of either was skipped on this rank, by reason."""
        return sum((stream.skipped for stream in self._streams.values()), Counter())

    def drain_skipped(self) -> list[Skipped]:
        """(shard, key, reason) of what was skipped here since the last call."""
        return [skip for stream in self._streams.values() for skip in stream.drain_skipped()]

    @property
    def position(self) -> int:
        """Samples of each domain handed out over all ranks since the run began."""
        return self._streams["a"].position

    @property
    def num_samples(self) -> int:
        """Of the larger set: the length of an epoch."""
        return max(map(len, self.dataset.domains.values()))


def _side_by_side(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """A batch of both, of batches of each."""
    keys = ["+".join(pair) for pair in zip(a["__key__"], b["__key__"])]
    return {"__key__": keys, "a": _image(a), "b": _image(b)}


def _image(batch: dict[str, Any]) -> torch.Tensor:
    (name,) = batch.keys() - {"__key__"}
    return batch[name]

"""How well orders shuffle: dgan's, WebDataset's and a full permutation, of ImageNet's size.

    python benchmarks/data/shuffle.py

1,281 shards of 1,000 samples, sorted by class. Counts, not timings: the same on every machine.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from numpy.typing import NDArray

from dgan.data.order import BLOCK, WINDOW, Order

sys.path.insert(0, str(Path(__file__).parents[1]))
from report import store

SHARDS, PER_SHARD, CLASSES = 1281, 1000, 1000
N = SHARDS * PER_SHARD
BATCHES = (256, 1024, 4096)
BINS = 64

Samples = NDArray[np.int64]
Epoch = Callable[[int, int], Samples]
"""(seed, epoch) → the samples of that epoch in the order in which they are shown, `[N]`."""


def full(seed: int, epoch: int) -> Samples:
    return np.random.default_rng([seed, epoch]).permutation(N)


def dgan_order(block: int, window: int) -> Epoch:
    def samples(seed: int, epoch: int) -> Samples:
        return Order(N, seed, block=block, window=window).take(epoch * N, N)

    return samples


def random_blocks(block: int, window: int) -> Epoch:
    """Blocks permuted over the whole data, `window` neighbours in that order mixed."""

    def samples(seed: int, epoch: int) -> Samples:
        generator = np.random.default_rng([seed, epoch])
        phase, blocks = generator.integers(N), generator.permutation(-(-N // block))
        parts = []
        for begin in range(0, len(blocks), window):
            part = (blocks[begin : begin + window, None] * block + np.arange(block)).ravel()
            parts.append(generator.permutation(part[part < N]))
        return (np.concatenate(parts) + phase) % N

    return samples


def with_webdataset(buffer: int, ranks: int) -> Epoch:
    """Shuffled shards dealt to `ranks`, each with WebDataset's own buffer, their batches joined."""

    def samples(seed: int, epoch: int) -> Samples:
        shards = list(range(SHARDS))
        random.Random(f"{seed} {epoch}").shuffle(shards)

        def read(rank: int) -> Iterable[int]:
            numbers = (s * PER_SHARD + i for s in shards[rank::ranks] for i in range(PER_SHARD))
            rng = random.Random(f"{seed} {epoch} {rank}")
            shuffle = webdataset.filters.shuffle(buffer, initial=buffer, rng=rng)
            return shuffle(iter(numbers))

        share = BATCHES[0] // ranks
        streams = [np.fromiter(read(rank), np.int64) for rank in range(ranks)]
        whole = min(map(len, streams)) // share * share
        batches = np.stack([stream[:whole].reshape(-1, share) for stream in streams], axis=1)
        rest = [stream[whole:] for stream in streams]
        return np.concatenate([batches.ravel(), *rest])

    return samples


def cells(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> Any:
    """How often each pair occurs, `shape`."""
    return np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)


def class_variance(samples: Samples, batch: int) -> float:
    """Variance of a class's count in a batch, relative to a full permutation's (exactly)."""
    count = N // batch
    labels = samples[: count * batch] * CLASSES // N
    counts = cells(np.repeat(np.arange(count), batch), labels, (count, CLASSES))
    share = 1 / CLASSES
    expected = batch * share * (1 - share) * (N - batch) / (N - 1)
    return float(((counts - batch * share) ** 2).mean() / expected)


def shards_in_a_batch(samples: Samples, batch: int) -> float:
    count = N // batch
    shards = samples[: count * batch] // PER_SHARD
    counts = cells(np.repeat(np.arange(count), batch), shards, (count, SHARDS))
    return float((counts > 0).sum(axis=1).mean())


def uniformity(samples: Samples) -> float:
    """χ² a degree of freedom of (where it lies, when it is shown), in 64 × 64 cells.

    1 if they are independent, less if samples are spread more evenly than at random.
    """
    counts = cells(np.arange(N) * BINS // N, samples * BINS // N, (BINS, BINS))
    expected = counts.sum(axis=0) * counts.sum(axis=1)[:, None] / N
    return float(((counts - expected) ** 2 / expected).sum() / (BINS - 1) ** 2)


def distance(first: Samples, second: Samples) -> float:
    """How far apart, in epochs, a sample is shown in two of them; a third if independent."""
    return float(np.abs(np.argsort(first) - np.argsort(second)).mean() / N)


def measure(epoch: Epoch, seeds: int) -> Iterator[dict[str, float]]:
    for seed in range(seeds):
        first, second = epoch(seed, 0), epoch(seed, 1)
        assert (np.sort(first) == np.arange(N)).all(), "an epoch shows each sample once"
        yield {
            "neighbours_correlation": abs(float(np.corrcoef(first[1:], first[:-1])[0, 1])),
            "shards_in_a_batch_of_256": shards_in_a_batch(first, 256),
            "distance_between_epochs": distance(first, second),
            "position_chi2_per_degree": uniformity(first),
            **{f"class_variance_batch_{b}": class_variance(first, b) for b in BATCHES},
        }


ORDERS: dict[str, Epoch] = {
    "full permutation": full,
    f"dgan: {WINDOW} blocks of {BLOCK}, one of each stretch": dgan_order(BLOCK, WINDOW),
    "dgan with 256 blocks of 64": dgan_order(64, 256),
    "dgan with 4096 blocks of 16": dgan_order(16, 4096),
    "256 blocks of 64 at random": random_blocks(64, 256),
    "1024 blocks of 64 at random": random_blocks(64, 1024),
    "webdataset, buffer 1,000": with_webdataset(1_000, 1),
    "webdataset, buffer 10,000": with_webdataset(10_000, 1),
    "webdataset, buffer 1,000 on each of 8 ranks": with_webdataset(1_000, 8),
    "webdataset, buffer 10,000 on each of 8 ranks": with_webdataset(10_000, 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name, epoch in ORDERS.items():
        values = list(measure(epoch, arguments.seeds))
        means = {key: float(np.mean([value[key] for value in values])) for key in values[0]}
        rows.append({"order": name, **{key: float(f"{mean:.4g}") for key, mean in means.items()}})
        print(rows[-1], flush=True)
    notes = (
        f"means of {arguments.seeds} seeds; {SHARDS} shards of {PER_SHARD} samples sorted into "
        f"{CLASSES} classes; class_variance is relative to a full permutation's; webdataset "
        f"{webdataset.__version__} with shuffled shards, a rank's part of a batch from its own"
    )
    print(store("data-shuffle", rows, notes, arguments.out))


if __name__ == "__main__":
    main()

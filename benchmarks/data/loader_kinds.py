"""Loaders of `loaders.py`: each takes the folder and a number of workers, and yields batches.

Each is set up as its documentation shows, with decoding by simplejpeg into uint8 `[H, W, C]`, a
shuffle over the data set as far as it has one, and two batches ahead for each worker.
"""

import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from dgan.data import ShardDataset, ShardStream

BATCH, SIZE = 64, 256
CEILING = "decode only"
# How many buffers each thread decodes into in turn, and whether it reads each image from its shard:
# a loader that is ahead cannot do with one, nor without.
DECODE_ONLY = {
    CEILING: (1, False),
    "decode only, four buffers": (4, False),
    "read and decode, four buffers": (4, True),
}
Batches = Iterator[tuple[torch.Tensor, Any]]


def decode_only(folder: Path, workers: int, seconds: float, batches: int, reads: bool) -> float:
    """Images a second that threads decode into batches' buffers, and nothing else."""
    table = ShardDataset(pattern(folder), resolution=SIZE, channels=3).table
    order = np.random.default_rng(0).permutation(len(table))[:4000]
    encoded = table.read_each(order, "image")
    counts = [0] * workers
    begun = time.perf_counter()

    def work(worker: int) -> None:
        buffers = np.zeros((batches, BATCH, SIZE, SIZE, 3), np.uint8)
        while time.perf_counter() - begun < seconds:
            buffer = buffers[counts[worker] // BATCH % batches]
            at = (worker * 2000 + counts[worker] + np.arange(BATCH)) % len(order)
            some = table.read_each(order[at], "image") if reads else [encoded[i] for i in at]
            for row, data in enumerate(some):
                simplejpeg.decode_jpeg(data, "RGB", buffer=buffer[row])
            counts[worker] += BATCH

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun)


def ours(folder: Path, workers: int) -> Batches:
    stream = ShardStream(
        pattern(folder), batch_size=BATCH, resolution=SIZE, channels=3, workers=workers
    )
    return ((batch["image"], batch["label"]) for batch in stream)


def ring(folder: Path, workers: int, slots: int = 3) -> Batches:
    """Ours, decoded by processes into a ring of shared buffers, to measure threads against."""
    context = multiprocessing.get_context("fork")
    stream = ShardStream(pattern(folder), batch_size=BATCH, resolution=SIZE, channels=3, workers=0)
    dataset, order = stream.dataset, stream._reader.order
    shape = (workers, slots, BATCH, SIZE, SIZE, 3)
    images = torch.empty(shape, dtype=torch.uint8).share_memory_()
    labels = torch.empty(shape[:3], dtype=torch.int64).share_memory_()
    free = [context.Semaphore(slots) for _ in range(workers)]
    ready = [context.Semaphore(0) for _ in range(workers)]

    def work(worker: int) -> None:
        pixels, classes, k = images.numpy(), labels.numpy(), 0
        while True:
            free[worker].acquire()
            samples = order.take((k * workers + worker) * BATCH, BATCH).tolist()
            for row, i in enumerate(samples):
                data = dataset.table.read(i, "image")
                simplejpeg.decode_jpeg(data, "RGB", buffer=pixels[worker, k % slots, row])
                classes[worker, k % slots, row] = dataset.table.label(i)
            ready[worker].release()
            k += 1

    for worker in range(workers):
        context.Process(target=work, args=(worker,), daemon=True).start()
    step = 0
    while True:
        worker, slot = step % workers, step // workers % slots
        ready[worker].acquire()
        yield images[worker, slot], labels[worker, slot]
        free[worker].release()
        step += 1


def webdataset(folder: Path, workers: int) -> Batches:
    import webdataset as wds

    warnings.filterwarnings("ignore")
    dataset = wds.WebDataset(tars(folder), shardshuffle=100, seed=0, empty_check=False)
    dataset = dataset.shuffle(1000).map(decode_sample).batched(BATCH, collation_fn=default_collate)
    return forever(DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=2))


def indexed(folder: Path, workers: int) -> Batches:
    """PyTorch's `DataLoader` over an index of the tars."""
    options: Any = {"batch_size": BATCH, "num_workers": workers, "prefetch_factor": 2}
    return forever(DataLoader(Indexed(folder), shuffle=True, drop_last=True, **options))


def stateful(folder: Path, workers: int) -> Batches:
    from torchdata.stateful_dataloader import StatefulDataLoader

    options: Any = {"batch_size": BATCH, "num_workers": workers, "prefetch_factor": 2}
    return forever(StatefulDataLoader(Indexed(folder), shuffle=True, drop_last=True, **options))


def nodes(folder: Path, workers: int) -> Batches:
    import torchdata.nodes as tn
    from torch.utils.data import RandomSampler

    dataset = Indexed(folder)
    node = tn.Batcher(tn.SamplerWrapper(RandomSampler(dataset)), BATCH, drop_last=True)

    def fetch(rows: list[int]) -> Any:
        return default_collate([dataset[i] for i in rows])

    node = tn.ParallelMapper(node, fetch, num_workers=workers, method="thread")
    return forever(tn.Loader(tn.Prefetcher(node, prefetch_factor=2)))


def energon(folder: Path, workers: int) -> Batches:
    import megatron.energon as me

    @me.stateless
    def cook(sample: Any) -> Any:
        return me.ImageClassificationSample(
            **me.basic_sample_keys(sample),
            image=decode(sample["jpg"]),
            label=torch.tensor(int(sample["cls"])),
        )

    class Coder(me.DefaultTaskEncoder):
        cookers: Any = (me.Cooker(cook),)
        decoder = None

    dataset = me.get_train_dataset(
        folder / "energon",
        batch_size=BATCH,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        worker_config=me.WorkerConfig(rank=0, world_size=1, num_workers=workers),
        task_encoder=Coder(),
    )
    return ((batch.image, batch.label) for batch in me.get_savable_loader(dataset))


def mosaic(folder: Path, workers: int) -> Batches:
    from streaming import StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Decoded(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return decode(sample["jpg"]), sample["cls"]

    clean_stale_shared_memory()
    dataset = Decoded(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    options: Any = {"batch_size": BATCH, "num_workers": workers, "prefetch_factor": 2}
    return forever(StreamingDataLoader(dataset, drop_last=True, **options))


def litdata(folder: Path, workers: int) -> Batches:
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    from litdata import StreamingDataLoader, StreamingDataset

    class Decoded(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            sample = super().__getitem__(index)
            return decode(sample["jpg"]), sample["cls"]

    dataset = Decoded(str(folder / "litdata"), shuffle=True, drop_last=True)
    options: Any = {"batch_size": BATCH, "num_workers": workers, "prefetch_factor": 2}
    return forever(StreamingDataLoader(dataset, **options))


LOADERS: dict[str, Callable[[Path, int], Batches]] = {
    "ours": ours,
    "ours, processes": ring,
    "webdataset": webdataset,
    "Megatron-Energon": energon,
    "MosaicML streaming": mosaic,
    "litdata": litdata,
    "torchdata StatefulDataLoader": stateful,
    "torchdata nodes": nodes,
    "DataLoader, indexed": indexed,
}


class Indexed(Dataset[Any]):
    """The tars by number, as one would write it for a `DataLoader`."""

    def __init__(self, folder: Path) -> None:
        self._table = ShardDataset(pattern(folder), resolution=SIZE, channels=3).table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return decode(self._table.read(i, "image")), self._table.label(i)


def decode(data: bytes) -> torch.Tensor:
    return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB"))


def decode_sample(sample: Any) -> Any:
    return decode(sample["jpg"]), int(sample["cls"])


def forever(loader: Any) -> Batches:
    while True:
        yield from loader


def tars(folder: Path) -> list[str]:
    return [str(path) for path in sorted((folder / "tars").glob("*.tar"))]


def pattern(folder: Path) -> str:
    return str(folder / "tars" / "*.tar")


def kill_children() -> None:
    """Ends the worker processes that this process started."""
    for process in multiprocessing.active_children():
        process.kill()

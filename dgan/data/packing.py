"""Packing a source into shards: what `dgan data pack` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .encode import Encoder
from .fit import Fit
from .importers import Reading, Source, open_source
from .packer import Job, PackSummary, pack_items
from .splits import HashSplits, OneSplit
from .workers import count_workers
from .writer import Limits

_WITHOUT_PICTURES = ("audio", "arrays", "text")


def pack_source(
    source: str | Path,
    out: str | Path,
    *,
    split: str = "train",
    split_by_hash: str | None = None,
    pairs: str = "auto",
    video: bool = False,
    labels: bool = True,
    classes: Path | None = None,
    ground_truth: Path | None = None,
    holdout: int = 0,
    resolution: int | None = None,
    channels: int | None = None,
    fit: str = "crop",
    filter: str = "lanczos",
    encoding: str = "png",
    samples_per_shard: int | None = None,
    shard_megabytes: float | None = None,
    limit: int | None = None,
    skip_corrupt: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> PackSummary:
    """Packs `source` into `out/<split>-000000.tar`, …, and an index and a journal beside them.

    A pack that was cut off goes on after its complete shards when it is asked for again; one that
    was completed is left alone. See `Reading`, `Fit`, `Encoder`, `Limits`, `HashSplits` and `Job`
    for the options; `progress` is called with the samples written so far and in all, if known.

    Raises:
        FileExistsError: if `out` has other shards of the splits and `overwrite` is False.
        FileNotFoundError: if there is nothing at `source`.
        ValueError: if an option is not possible, `source` cannot be read or packed, or `out` holds
            an unfinished pack of something else.
    """
    reading = Reading(
        split=split, pairs=pairs, video=video, labels=labels, classes=classes,
        ground_truth=ground_truth, holdout=holdout,
    )  # fmt: skip
    fitting = Fit(resolution=resolution, channels=channels, mode=fit, filter=filter)
    asked = {
        "source": str(source) if str(source) == "digits" else str(Path(source).absolute()),
        "split": split, "split_by_hash": split_by_hash, "pairs": pairs, "video": video,
        "labels": labels, "classes": classes and str(classes.absolute()),
        "ground_truth": ground_truth and str(ground_truth.absolute()), "holdout": holdout,
        "resolution": resolution, "channels": channels, "fit": fit, "filter": filter,
        "encoding": encoding, "samples_per_shard": samples_per_shard,
        "shard_megabytes": shard_megabytes, "limit": limit,
    }  # fmt: skip
    job = Job(
        splits=OneSplit(split) if split_by_hash is None else HashSplits.parse(split_by_hash),
        limits=Limits(samples_per_shard, shard_megabytes),
        encoder=Encoder(fitting, encoding, halves=pairs == "side-by-side"),
        limit=limit,
        skip_corrupt=skip_corrupt,
        workers=count_workers(workers),
        asked=asked,
    )
    opened = open_source(source, reading)
    _check_kind(opened, source, job.encoder)
    total = opened.total if limit is None else min(limit, opened.total or limit)
    return pack_items(
        opened.items,
        Path(out),
        job,
        classes=opened.class_names,
        overwrite=overwrite,
        progress=lambda done: progress(done, total),
    )


def _check_kind(opened: Source, source: str | Path, encoder: Encoder) -> None:
    if opened.kind in _WITHOUT_PICTURES and (encoder.fit != Fit() or encoder.halves):
        raise ValueError(
            f"{source} holds {opened.kind} without pictures, which are packed as they are: leave "
            "resolution, channels, fit, filter and pairs out"
        )
    if encoder.halves and opened.kind not in ("folder", "shards", "imagenet"):
        raise ValueError(f"pairs side by side are wanted, but {source} holds {opened.kind}")
    if encoder.encoding == "keep" and opened.kind in ("digits", "idx", "cifar10"):
        raise ValueError(
            f"encoding 'keep' needs image files, but {source} holds arrays; choose png or webp"
        )

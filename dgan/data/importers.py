"""What people have → samples: folders of pictures, MNIST's and CIFAR-10's files, digits, shards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .arrays import Arrays, cifar_names, find_idx, read_cifar, read_idx_pair
from .dataset import ShardDataset
from .decode import PILLOW_ERRORS, DecodeError, open_image
from .fit import Fit
from .folders import SPLIT_NAMES, find_classes, list_images, read_picture
from .shards import SAMPLES_PER_SHARD, PackSummary, Sample, expand, pack

ACCEPTED = """  a folder of images (its subfolders, if any, become the classes)
  a folder with MNIST's or Fashion-MNIST's files (train-images-idx3-ubyte.gz, …)
  CIFAR-10: the folder cifar-10-batches-py, cifar-10-python.tar.gz, or idx4 files
  WebDataset shards: a folder of .tar files, or a pattern such as 'in/train-{000000..000009}.tar'
  digits: the 1,797 images of 8×8 that come with scikit-learn"""


@dataclass
class Source:
    """Samples to be read once, and what was left out so far.

    Attributes:
        kind: `"folder"`, `"idx"`, `"cifar10"`, `"shards"` or `"digits"`.
        samples: in a fixed order.
        skipped: one line for each image left out, added while `samples` is read.
        class_names: of a folder with classes; else empty.
    """

    kind: str
    samples: Iterator[Sample]
    skipped: list[str] = field(default_factory=list)
    class_names: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Sample]:
        return self.samples


def open_source(
    source: str | Path,
    split: str = "train",
    *,
    fit: Fit | None = None,
    labels: bool = True,
    holdout: int = 0,
    skip_corrupt: bool = False,
) -> Source:
    """Opens `source`, whatever it is, at `split`.

    Args:
        source: a path, a pattern of shards, or `"digits"`.
        split: `"train"`, `"test"`, …; of a folder, the subfolder of that name if there is one.
        fit: the size and channels to bring each image to.
        labels: False leaves the classes out.
        holdout: where the source has no test split of its own (digits, a folder): every so many-th
            sample is the test split's and not the training split's. 0 holds nothing out.
        skip_corrupt: leave out images of a folder or of shards that do not decode.

    Raises:
        FileNotFoundError: if there is nothing at `source`.
        ValueError: if it is nothing that can be read (the message lists what can), has no such
            split, or, while it is read, if an image does not decode.
    """
    if holdout < 0 or holdout == 1:
        raise ValueError(f"holdout must be 0 (nothing) or at least 2, got {holdout}")
    job = _Job(split, fit or Fit(), holdout, skip_corrupt)
    opened = _detect(str(source), job)
    if not labels:
        opened.samples = (sample._replace(label=None) for sample in opened.samples)
    return replace(opened, skipped=job.skipped)


def pack_source(
    source: str | Path,
    out: str | Path,
    *,
    split: str = "train",
    resolution: int | None = None,
    channels: int | None = None,
    fit: str = "crop",
    filter: str = "lanczos",
    samples_per_shard: int = SAMPLES_PER_SHARD,
    encoding: str = "png",
    labels: bool = True,
    holdout: int = 0,
    limit: int | None = None,
    skip_corrupt: bool = False,
    overwrite: bool = False,
) -> PackSummary:
    """Packs `source` into `out/<split>-000000.tar`, …; see `open_source`, `Fit` and `pack`.

    `limit` stops after that many samples.

    Raises:
        FileExistsError: if `out` has shards of this split and `overwrite` is False.
        FileNotFoundError: if there is nothing at `source`.
        ValueError: as `open_source`, `Fit` and `pack`.
    """
    fitting = Fit(resolution=resolution, channels=channels, mode=fit, filter=filter)
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    opened = open_source(
        source, split, fit=fitting, labels=labels, holdout=holdout, skip_corrupt=skip_corrupt
    )
    summary = pack(
        islice(opened, limit),
        out,
        split=split,
        samples_per_shard=samples_per_shard,
        encoding=encoding,
        overwrite=overwrite,
    )
    return replace(summary, skipped=tuple(opened.skipped))


@dataclass
class _Job:
    """What is asked of a source."""

    split: str
    fit: Fit
    holdout: int
    skip_corrupt: bool
    skipped: list[str] = field(default_factory=list)

    def keeps(self, i: int) -> bool:
        """Whether sample `i` of a source without splits of its own belongs to the split."""
        if not self.holdout:
            return True
        return (i % self.holdout == self.holdout - 1) == (self.split != "train")

    def guard(self, name: str, read: Callable[[], Sample]) -> Sample | None:
        """What `read` returns; None if it fails and such images are skipped."""
        try:
            return read()
        except (DecodeError, *PILLOW_ERRORS) as error:
            line = f"{name}: {error}"
            if not self.skip_corrupt:
                raise ValueError(f"{line}; skip_corrupt would leave it out") from error
            self.skipped.append(line)
            return None


def _detect(source: str, job: _Job) -> Source:
    path = Path(source)
    if source == "digits":
        return Source("digits", _digits(job))
    if path.is_dir():
        return _detect_folder(path, job)
    if path.is_file() and re.search(r"\.(tar\.gz|tgz)$", path.name):
        return Source("cifar10", _arrays(_cifar(path, job.split), job))
    if path.suffix == ".tar" or source.endswith("}"):
        return Source("shards", _shards(expand(source), job))
    if path.exists():
        raise ValueError(f"{source} is nothing that can be packed. What can:\n{ACCEPTED}")
    raise FileNotFoundError(f"there is no {source!r}. What can be packed:\n{ACCEPTED}")


def _detect_folder(path: Path, job: _Job) -> Source:
    archive, batches = path / "cifar-10-python.tar.gz", path / "cifar-10-batches-py"
    for cifar in (path, batches):
        if (cifar / "data_batch_1").is_file() or (cifar / "test_batch").is_file():
            return Source("cifar10", _arrays(_cifar(cifar, job.split), job))
    if archive.is_file():
        return Source("cifar10", _arrays(_cifar(archive, job.split), job))
    if idx := find_idx(path):
        if job.split not in idx:
            raise ValueError(f"{path} has the splits {', '.join(idx)}, not {job.split!r}")
        return Source("idx", _arrays((read_idx_pair(*pair) for pair in idx[job.split]), job))
    if tars := sorted(path.glob("*.tar")):
        return Source("shards", _shards(_of_split(tars, job.split), job))
    root, classes = find_classes(path, job.split)
    files = list_images(root)
    if not files:
        raise ValueError(f"{path} holds nothing that can be packed. What can:\n{ACCEPTED}")
    return Source("folder", _folder(root, files, classes, job), class_names=classes)


def _digits(job: _Job) -> Iterator[Sample]:
    if job.split != "train" and not job.holdout:
        raise ValueError("digits has no test split; holdout=5 would hold out every fifth sample")
    from sklearn.datasets import load_digits  # slow to import, and only digits needs it

    bunch: Any = load_digits()
    images = np.rint(bunch.images * 255 / 16).astype(np.uint8)  # from float64 [1797, 8, 8], 0 … 16
    return (
        Sample(f"{i:08d}", job.fit(Image.fromarray(image)), int(label))
        for i, (image, label) in enumerate(zip(images, bunch.target))
        if job.keeps(i)
    )


def _cifar(path: Path, split: str) -> Iterator[Arrays]:
    cifar_names(split)  # complains now rather than when the first sample is asked for
    return read_cifar(path, split)


def _arrays(parts: Iterator[Arrays], job: _Job) -> Iterator[Sample]:
    i = 0
    for images, labels in parts:
        for image, label in zip(images, labels.tolist()):
            picture = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
            yield Sample(f"{i:08d}", job.fit(picture), label)
            i += 1


def _shards(paths: list[Path], job: _Job) -> Iterator[Sample]:
    dataset = ShardDataset(paths)
    if dataset.image_names != ("image",):
        raise ValueError(
            f"{paths[0]} holds {', '.join(dataset.image_names)} of each sample; only single images "
            "can be packed again"
        )

    table = dataset.table

    def read(i: int) -> Sample:
        data = table.read(i, "image")
        image = open_image(data)
        image.load()
        return Sample(f"{i:08d}", job.fit(image, data), table.label(i) if labelled else None)

    labelled = dataset.has_labels
    attempts = (job.guard(dataset.describe(i), lambda i=i: read(i)) for i in range(len(dataset)))
    return (sample for sample in attempts if sample is not None)


def _of_split(tars: list[Path], split: str) -> list[Path]:
    """Those of `tars` whose names tell that they are `split`'s; all if no name tells any split."""
    names = [SPLIT_NAMES.intersection(re.split(r"[-_.]", tar.name)) for tar in tars]
    if not any(names):
        return tars
    chosen = [tar for tar, name in zip(tars, names) if split in name]
    if not chosen:
        there = ", ".join(sorted(set[str]().union(*names)))
        raise ValueError(f"{tars[0].parent} has shards of the splits {there}, not {split!r}")
    return chosen


def _folder(root: Path, files: list[Path], classes: tuple[str, ...], job: _Job) -> Iterator[Sample]:
    numbers = {name: number for number, name in enumerate(classes)}

    def read(i: int, file: Path) -> Sample:
        # The number makes the key unique, the name tells where it came from.
        key = f"{i:08d}_{re.sub(r'[^A-Za-z0-9_-]+', '_', file.stem)[:48]}"
        label = numbers[file.relative_to(root).parts[0]] if classes else None
        return Sample(key, read_picture(file, job.fit), label)

    kept = ((i, file) for i, file in enumerate(files) if job.keeps(i))
    attempts = (job.guard(str(file), lambda i=i, file=file: read(i, file)) for i, file in kept)
    return (sample for sample in attempts if sample is not None)

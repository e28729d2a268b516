"""What people have → items: folders, shards, digits; ImageNet's, MNIST's and CIFAR-10's files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import Arrays, cifar_names, find_idx, read_cifar, read_idx_pair
from .folders import SPLIT_NAMES, list_folder
from .imagenet import (
    find_imagenet,
    find_truth,
    read_classes,
    read_train,
    read_truth,
    read_validation,
    train_classes,
)
from .items import Item
from .reshard import read_shards
from .shards import expand

ACCEPTED = """  a folder of images (its subfolders, if any, become the classes), and beside
    an image the .txt (its caption) and .npy (its embedding) of the same name
  a folder of pairs: a/ and b/ with equal names in both; or pairs side by side (--pairs)
  a .txt file in UTF-8, a sample a line that is not empty
  a folder of .wav or .flac files, of .npy files, or of folders of frames (--video)
  a folder with MNIST's or Fashion-MNIST's files (train-images-idx3-ubyte.gz, …)
  CIFAR-10: the folder cifar-10-batches-py, cifar-10-python.tar.gz, or idx4 files
  ImageNet: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, or the folder that holds them
  WebDataset shards: a folder of .tar files, or a pattern such as 'in/train-{000000..000009}.tar'
  digits: the 1,797 images of 8×8 that come with scikit-learn"""
PAIRS = ("auto", "none", "folders", "side-by-side")


@dataclass(frozen=True)
class Source:
    """Samples to be packed.

    Attributes:
        kind: `"folder"`, `"pairs"`, `"audio"`, `"text"`, `"arrays"`, `"video"`, `"imagenet"`,
            `"idx"`, `"cifar10"`, `"shards"` or `"digits"`.
        items: in a fixed order; to be iterated once.
        total: how many, where that is known.
        class_names: where classes have names; else empty.
    """

    kind: str
    items: Iterable[Item]
    total: int | None = None
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a source is to be understood.

    Attributes:
        split: `"train"`, `"test"`, …; of a folder, the subfolder of that name if there is one.
        pairs: one of `PAIRS`; `"auto"` takes folders `a` and `b` for pairs if all names are equal.
        video: every folder of pictures is a clip.
        labels: False leaves the classes out.
        classes: ImageNet's list of classes; see `read_classes`.
        ground_truth: of ImageNet's validation set; None: the development kit's, if it is there.
        holdout: where the source has no test split of its own (digits, a folder): every so many-th
            sample is the test split's and not the training split's. 0 holds nothing out.

    Raises:
        ValueError: if one of these is not possible.
    """

    split: str = "train"
    pairs: str = "auto"
    video: bool = False
    labels: bool = True
    classes: Path | None = None
    ground_truth: Path | None = None
    holdout: int = 0

    def __post_init__(self) -> None:
        if self.holdout < 0 or self.holdout == 1:
            raise ValueError(f"holdout must be 0 (nothing) or at least 2, got {self.holdout}")
        if self.pairs not in PAIRS:
            raise ValueError(f"pairs must be one of {', '.join(PAIRS)}; got {self.pairs!r}")

    def keeps(self, i: int) -> bool:
        """Whether sample `i` of a source without splits of its own belongs to the split."""
        if not self.holdout:
            return True
        return (i % self.holdout == self.holdout - 1) == (self.split != "train")


def open_source(source: str | Path, reading: Reading) -> Source:
    """Opens `source` (a path, a pattern of shards, or `"digits"`), whatever it is.

    Raises:
        FileNotFoundError: if there is nothing at `source`.
        ValueError: if it is nothing that can be read (the message lists what can), has no such
            split, or, while it is read, if it is damaged.
    """
    opened = _detect(str(source), reading)
    if opened.kind != "imagenet" and (reading.classes or reading.ground_truth):
        raise ValueError(f"{source} is not ImageNet: leave --classes and --ground-truth out")
    if reading.video and opened.kind != "video":
        raise ValueError(f"--video is for folders of frames; {source} holds {opened.kind}")
    if not reading.labels:
        return replace(
            opened, items=(item._replace(label=None) for item in opened.items), class_names=()
        )
    return opened


def _detect(source: str, reading: Reading) -> Source:
    path = Path(source)
    if source == "digits":
        return Source("digits", _digits(reading))
    if path.is_dir():
        return _detect_folder(path, reading)
    if path.is_file() and re.search(r"\.(tar\.gz|tgz)$", path.name):
        return Source("cifar10", _arrays(_cifar(path, reading.split)))
    if (
        path.suffix == ".tar"
        and path.is_file()
        and (imagenet := find_imagenet(path, reading.split))
    ):
        return _imagenet(*imagenet, reading)
    if path.suffix == ".txt" and path.is_file():
        return Source("text", _lines(path, reading))
    if path.suffix == ".tar" or source.endswith("}"):
        return _shards(expand(source))
    if path.exists():
        raise ValueError(f"{source} is nothing that can be packed. What can:\n{ACCEPTED}")
    raise FileNotFoundError(f"there is no {source!r}. What can be packed:\n{ACCEPTED}")


def _detect_folder(path: Path, reading: Reading) -> Source:
    archive, batches = path / "cifar-10-python.tar.gz", path / "cifar-10-batches-py"
    for cifar in (path, batches):
        if (cifar / "data_batch_1").is_file() or (cifar / "test_batch").is_file():
            return Source("cifar10", _arrays(_cifar(cifar, reading.split)))
    if archive.is_file():
        return Source("cifar10", _arrays(_cifar(archive, reading.split)))
    if idx := find_idx(path):
        if reading.split not in idx:
            raise ValueError(f"{path} has the splits {', '.join(idx)}, not {reading.split!r}")
        return Source("idx", _arrays(read_idx_pair(*pair) for pair in idx[reading.split]))
    if imagenet := find_imagenet(path, reading.split):
        return _imagenet(*imagenet, reading)
    if tars := sorted(path.glob("*.tar")):
        return _shards(_of_split(tars, reading.split))
    kind, items, total, classes = list_folder(
        path, reading.split, pairs=reading.pairs, video=reading.video, labels=reading.labels
    )
    if not total:
        raise ValueError(f"{path} holds nothing that can be packed. What can:\n{ACCEPTED}")
    kept = (item for i, item in enumerate(items) if reading.keeps(i))
    return Source(kind, kept, sum(map(reading.keeps, range(total))), classes)


def _digits(reading: Reading) -> Iterator[Item]:
    if reading.split != "train" and not reading.holdout:
        raise ValueError("digits has no test split; holdout=5 would hold out every fifth sample")
    from sklearn.datasets import load_digits  # slow to import, and only digits needs it

    bunch: Any = load_digits()
    images = np.rint(bunch.images * 255 / 16).astype(np.uint8)  # from float64 [1797, 8, 8], 0 … 16
    return (
        Item(f"{i:08d}", f"digit {i}", {"image": image}, label=int(label))
        for i, (image, label) in enumerate(zip(images, bunch.target))
        if reading.keeps(i)
    )


def _lines(path: Path, reading: Reading) -> Iterator[Item]:
    if reading.split != "train" and not reading.holdout:
        raise ValueError(f"{path} has no {reading.split} split; holdout=5 would hold out a fifth")
    with path.open("rb") as file:
        lines = ((number, line.strip()) for number, line in enumerate(file, 1))
        for i, (number, line) in enumerate((n, line) for n, line in lines if line):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number} is not UTF-8 ({error.reason})") from error
            if reading.keeps(i):
                yield Item(f"{i:08d}", f"{path}, line {number}", files={"txt": line})


def _cifar(path: Path, split: str) -> Iterator[Arrays]:
    cifar_names(split)  # complains now rather than when the first sample is asked for
    return read_cifar(path, split)


def _arrays(parts: Iterable[Arrays]) -> Iterator[Item]:
    i = 0
    for images, labels in parts:
        for image, label in zip(images, labels.tolist()):
            yield Item(f"{i:08d}", f"image {i}", {"image": image}, label=label)
            i += 1


def _imagenet(split: str, path: Path, reading: Reading) -> Source:
    if split == "validation":
        return _imagenet_validation(path, reading)
    classes = read_classes(reading.classes)[0] if reading.classes else train_classes(path)
    return Source("imagenet", read_train(path, classes), class_names=classes)


def _imagenet_validation(path: Path, reading: Reading) -> Source:
    if not reading.labels:
        return Source("imagenet", read_validation(path, None))
    truth = reading.ground_truth or find_truth(path)
    meta = truth.with_name("meta.mat") if truth else None
    listed = reading.classes or (meta if meta and meta.is_file() else None)
    if truth is None or listed is None:
        lacking = "--ground-truth FILE" if truth is None else "--classes FILE"
        raise ValueError(
            f"the labels of {path} are in the development kit (ILSVRC2012_devkit_t12/data): "
            f"unpack it beside, or name its files; {lacking} is missing, --no-labels does without"
        )
    classes, meanings = read_classes(listed)
    labels = read_truth(truth, classes, meanings)
    return Source("imagenet", read_validation(path, labels), len(labels), classes)


def _shards(paths: list[Path]) -> Source:
    items, total = read_shards(paths)
    return Source("shards", items, total)


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

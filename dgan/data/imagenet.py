"""ImageNet as ILSVRC 2012 distributes it: a tar of tars to train on, a flat tar or folder beside.

Nothing is extracted: pictures are read from within the tars.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .items import Item, Slice

TRAIN_TAR, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_TRAIN_PICTURE = re.compile(r"n\d{8}_\d+\.JPEG", re.IGNORECASE)
_PICTURE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)
_WORDNET = re.compile(r"n\d{8}")


def find_imagenet(path: Path, split: str) -> tuple[str, Path] | None:
    """Which split of ImageNet is at `path` (a tar, or a folder of them), and where; None if none.

    Raises:
        ValueError: if `path` is ImageNet, but has no such split.
    """
    if path.is_file():
        with tarfile.open(path, "r:") as tar:
            first = tar.next()
        name = Path(first.name).name if first else ""
        if _CLASS_TAR.fullmatch(name):
            return "train", path
        return ("validation", path) if _PICTURE.fullmatch(name) else None
    validation = next(
        (p for p in (path / f"{VALIDATION}.tar", path / VALIDATION) if p.exists()), None
    )
    found = {"train": path / TRAIN_TAR, "validation": validation}
    found = {name: where for name, where in found.items() if where and where.exists()}
    if any(_PICTURE.fullmatch(p.name) for p in path.glob("ILSVRC2012_val_*")):
        found["validation"] = path
    tars = list(path.glob("n*.tar"))
    if tars and all(_CLASS_TAR.fullmatch(tar.name) for tar in tars):
        found["train"] = path
    if not found:
        return None
    split = "validation" if split in ("val", "valid") else split
    if split not in found:
        raise ValueError(f"{path} has ImageNet's {' and '.join(found)}, not {split!r}")
    return split, found[split]


def read_train(path: Path, classes: tuple[str, ...]) -> Iterator[Item]:
    """Items of the training tar of tars, or of a folder of the tars within it.

    Raises:
        ValueError: if a tar is damaged, or is of no class in `classes`.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    for name, tar in _class_tars(path):
        if name not in numbers:
            raise ValueError(f"{path} holds class {name}, which the list of classes lacks")
        for picture, place in _pictures(tar, _TRAIN_PICTURE):
            key = picture.rpartition(".")[0]
            yield Item(key, f"{path}:{picture}", {"image": place}, label=numbers[name])


def train_classes(path: Path) -> tuple[str, ...]:
    """The classes in the training tar in their usual order, that of their names."""
    return tuple(sorted(name for name, _ in _class_tars(path)))


def read_validation(path: Path, truth: list[int] | None) -> Iterator[Item]:
    """Items of the validation tar or folder, in the order of their numbers.

    Raises:
        ValueError: if a tar is damaged, or a picture has no line in the ground `truth`.
    """
    if path.is_dir():
        found = {p.name: p for p in path.iterdir() if _PICTURE.fullmatch(p.name)}
    else:
        found = dict(_pictures(Slice(path, 0, path.stat().st_size), _PICTURE))
    for name in sorted(found):
        match = _PICTURE.fullmatch(name)
        assert match is not None, "only such names were let in"
        number = int(match[1])
        if truth is not None and not 1 <= number <= len(truth):
            raise ValueError(f"{path}: {name} has no line in the {len(truth)} of the ground truth")
        label = None if truth is None else truth[number - 1]
        yield Item(name.rpartition(".")[0], f"{path}:{name}", {"image": found[name]}, label=label)


def read_classes(path: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """The classes that a file lists, and of each number in a ground truth the class it means.

    A text file has one a line, its first word is the WordNet number (`n01440764`), and line k is
    what the ground truth calls k. `meta.mat` of the development kit says both itself; classes are
    then numbered in the order of their WordNet numbers, as is usual.

    Raises:
        ValueError: if it is no such list.
    """
    if path.suffix == ".mat":
        return _read_meta(path)
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    classes = tuple(re.sub(r"\W+$", "", line[0]) for line in lines)
    for number, name in enumerate(classes, 1):
        if not _WORDNET.fullmatch(name):
            raise ValueError(f"{path}, line {number}: {name!r} is no WordNet number (n01440764)")
    if len(set(classes)) < len(classes):
        raise ValueError(f"{path} lists a class twice")
    return classes, {number: number - 1 for number in range(1, len(classes) + 1)}


def read_truth(path: Path, classes: tuple[str, ...], meanings: dict[int, int]) -> list[int]:
    """The class of each validation picture from a ground truth, a line a picture.

    The last word of a line is a number, as in the development kit, or a WordNet number.

    Raises:
        ValueError: if a line says neither, or a class that is not listed.
    """
    names = {name: number for number, name in enumerate(classes)}
    truth: list[int] = []
    for number, line in enumerate(path.read_text().split("\n"), 1):
        if not line.strip():
            continue
        word = line.split()[-1]
        label = meanings.get(int(word)) if word.isdecimal() else names.get(word)
        if label is None:
            raise ValueError(
                f"{path}, line {number}: {word!r} is none of the {len(classes)} classes listed "
                "(numbers begin at 1, as in the development kit)"
            )
        truth.append(label)
    return truth


def find_truth(path: Path) -> Path | None:
    """The development kit's ground truth beside `path`, if it is there."""
    folders = [path, path.parent]
    places = [
        f / kit / _GROUND_TRUTH for f in folders for kit in ("", "ILSVRC2012_devkit_t12/data")
    ]
    return next((place for place in places if place.is_file()), None)


def _read_meta(path: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    from scipy.io import loadmat  # slow to import; comes with scikit-learn

    try:
        synsets: Any = loadmat(path, squeeze_me=True)["synsets"]
        leaves = [row for row in synsets if int(row["num_children"]) == 0]
        wordnet = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    except (KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise ValueError(f"{path} is no meta.mat of ILSVRC 2012 ({error!r})") from error
    classes = tuple(sorted(wordnet.values()))
    return classes, {number: classes.index(name) for number, name in wordnet.items()}


def _class_tars(path: Path) -> Iterator[tuple[str, Slice]]:
    if path.is_dir():
        for tar in sorted(path.glob("n*.tar")):
            yield tar.stem, Slice(tar, 0, tar.stat().st_size)
        return
    for name, place in _members(Slice(path, 0, path.stat().st_size)):
        if match := _CLASS_TAR.fullmatch(name):
            yield match[1], place


def _pictures(tar: Slice, expected: re.Pattern[str]) -> Iterator[tuple[str, Slice]]:
    return ((name, place) for name, place in _members(tar) if expected.fullmatch(name))


def _members(place: Slice) -> Iterator[tuple[str, Slice]]:
    """The regular files in a tar that is itself part of a file: (name without folders, place)."""
    path, offset, size = place

    def window(file: BinaryIO) -> Any:
        return _Window(file, offset, size)  # it has what tarfile needs, not all of a file

    try:
        with path.open("rb") as file, tarfile.open(mode="r:", fileobj=window(file)) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                if member.offset_data + member.size > size:
                    raise ValueError(f"{path} is cut off inside {member.name!r}")
                if member.isreg():
                    inside = Slice(path, offset + member.offset_data, member.size)
                    yield Path(member.name).name, inside
    except tarfile.TarError as error:
        raise ValueError(f"{path}: the tar at byte {offset:,} cannot be read ({error})") from error


class _Window:
    """A part of a file as a file of its own, for tarfile to read."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._position = file, offset, size, 0

    def read(self, size: int = -1) -> bytes:
        rest = max(0, self._size - self._position)
        self._file.seek(self._offset + self._position)
        data = self._file.read(rest if size < 0 else min(size, rest))
        self._position += len(data)
        return data

    def seek(self, position: int, whence: int = 0) -> int:
        self._position = position + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

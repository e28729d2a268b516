"""Files in folders → items: pictures, pairs of pictures, audio, clips; classes from folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from .audio import AUDIO_EXTENSIONS
from .encode import PICTURE_SUFFIXES
from .items import Item, path_keys

SPLIT_NAMES = {"train", "test", "val", "valid", "validation"}
BESIDE = ("txt", "npy")
"""Captions and embeddings: files of a picture's name that are packed with it."""
_AUDIO_SUFFIXES = tuple(f".{extension}" for extension in AUDIO_EXTENSIONS)


class Listing(NamedTuple):
    """Files to be packed.

    Attributes:
        kind: `"folder"` (pictures), `"pairs"`, `"audio"`, `"arrays"` (`.npy`) or `"video"`.
        items: one a sample, in the order of their paths.
        total: how many.
        classes: the names of the classes, or none.
    """

    kind: str
    items: Iterable[Item]
    total: int
    classes: tuple[str, ...] = ()


def list_folder(path: Path, split: str, *, pairs: str, video: bool, labels: bool) -> Listing:
    """What the folder `path` holds of `split`.

    Args:
        path: the folder. Its subfolders are splits if all are called like one, else classes.
        split: which split.
        pairs: `"folders"`: `a/` and `b/` hold pictures of equal names; `"auto"`: if they do so.
        video: every folder of pictures is a clip.
        labels: False leaves the classes out.

    Raises:
        ValueError: if it has splits, but not this one, or pairs are not complete.
    """
    roots, root = split_roots(path, split)
    if not video and pairs in ("auto", "folders") and (found := _pairs(root, pairs)) is not None:
        return Listing("pairs", found, len(found))
    for kind, suffixes, make in (
        ("folder", PICTURE_SUFFIXES, _picture),
        ("audio", _AUDIO_SUFFIXES, _kept),
        ("arrays", (".npy",), _kept),
    ):
        if files := list_files(root, suffixes):
            if video and kind == "folder":
                return _video(root, roots, files, labels)
            classes = _classes(roots, lambda r, s=suffixes: list_files(r, s)) if labels else ()
            return Listing(kind, _items(root, files, classes, make), len(files), classes)
    return Listing("folder", (), 0)


def split_roots(path: Path, split: str) -> tuple[list[Path], Path]:
    """The folders of all splits (for the classes), and that of `split`; `path` if there are none.

    Raises:
        ValueError: if `path` has a folder for each split, but none for this one.
    """
    folders = {p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")}
    # `train` may also be a class (of vehicles): it is a split only among its like.
    if not folders or not folders <= SPLIT_NAMES:
        return [path], path
    if split in folders:
        return [path / name for name in sorted(folders)], path / split
    raise ValueError(f"{path} has the splits {', '.join(sorted(folders))}, not {split!r}")


def list_files(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files under `root` that end so, however deep, by path; hidden ones are passed over."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in suffixes
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def _classes(roots: Iterable[Path], listing: Callable[[Path], list[Path]]) -> tuple[str, ...]:
    """The names of the classes over all splits: one that a split lacks must not shift the others'.

    None if there are files beside the folders: then the folders are no classes.
    """
    parts = [file.relative_to(root).parts for root in roots for file in listing(root)]
    return () if any(len(part) == 1 for part in parts) else tuple(sorted({p[0] for p in parts}))


def _items(
    root: Path,
    files: list[Path],
    classes: tuple[str, ...],
    make: Callable[[Path], Item],
) -> Iterator[Item]:
    numbers = {name: number for number, name in enumerate(classes)}
    relative = [PurePath(file.relative_to(root)) for file in files]
    for file, path, key in zip(files, relative, path_keys(relative)):
        yield make(file)._replace(key=key, label=numbers.get(path.parts[0]))


def _picture(file: Path) -> Item:
    named = ((extension, file.with_suffix(f".{extension}")) for extension in BESIDE)
    files = {extension: path for extension, path in named if path.is_file()}
    return Item("", str(file), images={"image": file}, files=files)


def _kept(file: Path) -> Item:
    return Item("", str(file), files={file.suffix[1:].lower(): file})


def _pairs(root: Path, pairs: str) -> list[Item] | None:
    """The pairs of `root/a` and `root/b`; None if it holds none and none are insisted on."""
    folders = {p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")}
    if folders != {"a", "b"}:
        if pairs == "folders":
            there = ", ".join(sorted(folders)) or "no folders"
            raise ValueError(f"pairs are wanted of the folders a and b, but {root} has {there}")
        return None
    sides = {}
    for side in ("a", "b"):
        files = list_files(root / side, PICTURE_SUFFIXES)
        names = [file.relative_to(root / side).with_suffix("") for file in files]
        sides[side] = dict(zip(names, files))
        if len(sides[side]) < len(files):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{root / side} has several pictures called {twice}")
    if lonely := sides["a"].keys() ^ sides["b"].keys():
        if pairs == "auto":
            return None  # two classes that happen to be called so
        name = min(lonely)
        side, other = ("a", "b") if name in sides["a"] else ("b", "a")
        raise ValueError(f"{sides[side][name]} has no picture of the same name in {root / other}")
    names = sorted(sides["a"])
    keys = path_keys(name.with_name(name.name + ".pair") for name in names)
    return [
        Item(key, str(sides["a"][name]), {side: sides[side][name] for side in ("a", "b")})
        for name, key in zip(names, keys)
    ]


def _video(root: Path, roots: list[Path], files: list[Path], labels: bool) -> Listing:
    """Clips: every folder that holds frames; folders of such folders are classes."""
    clips: dict[Path, list[Path]] = {}
    for file in files:
        clips.setdefault(file.parent, []).append(file)
    if root in clips:
        raise ValueError(f"{root} holds frames itself; a clip is a folder of frames within it")

    def folders(where: Path) -> list[Path]:
        return sorted({file.parent for file in list_files(where, PICTURE_SUFFIXES)})

    classes = _classes(roots, folders) if labels else ()
    numbers = {name: number for number, name in enumerate(classes)}
    relative = [PurePath(clip.relative_to(root)) for clip in clips]
    # A folder's name may hold a dot, which is not an ending.
    keys = path_keys(path.with_name(path.name + ".clip") for path in relative)
    items = [
        Item(key, str(clip), frames=tuple(frames), label=numbers.get(path.parts[0]))
        for (clip, frames), path, key in zip(clips.items(), relative, keys)
    ]
    return Listing("video", items, len(items), classes)

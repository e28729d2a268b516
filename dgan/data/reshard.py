"""Shards → items: any WebDataset tars, to be packed again with all of their fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from .decode import split_image_field
from .index import ShardIndex, read_index
from .items import Item, Slice, check_key, path_key


def read_shards(paths: Sequence[Path]) -> tuple[Iterator[Item], int]:
    """The samples of `paths` in order, and how many they are.

    Keys stay as they are if all of them differ, so that hashes of them stay too; else the name of
    the shard goes before them.

    Raises:
        ValueError: if a shard is damaged, or there is no sample, or one has two pictures of one
            name.
    """
    indexes = [read_index(path) for path in paths]
    total = sum(map(len, indexes))
    if not total:
        raise ValueError(f"there is no sample in {paths[0]}")
    seen = {index.key(row) for index in indexes for row in range(len(index))}
    alone = len(seen) == total
    return (item for index in indexes for item in _items(index, alone)), total


def _items(index: ShardIndex, alone: bool) -> Iterator[Item]:
    fields = [(column, name, split_image_field(name)) for column, name in enumerate(index.fields)]
    for row in range(len(index)):
        key = index.key(row)
        images, files, label = {}, {}, None
        for column, name, image in fields:
            offset, size = int(index.offsets[row, column]), int(index.sizes[row, column])
            if offset < 0:
                continue
            place = Slice(index.path, offset, size)
            if image in images:
                raise ValueError(f"{index.path}: sample {key!r} has several images for {image!r}")
            if name == "cls":
                label = place
            elif image is not None:
                images[image] = place
            else:
                files[name] = place
        yield Item(_key(index.path, key, alone), f"{index.path}:{key}", images, files, label=label)


def _key(path: Path, key: str, alone: bool) -> str:
    full = key if alone else f"{path.stem}/{key}"
    try:
        check_key(full)
    except ValueError:
        # The ending is what `path_key` takes away.
        return path_key(PurePath(full + ".sample"))
    return full

"""Data sets that are published as arrays: idx files (MNIST and its kin) and CIFAR-10's batches.

CIFAR-10 is distributed as pickles, and a pickle is a program. The unpickler here knows numbers,
strings, containers and plain numeric arrays; whatever else a file asks for is an error.
"""

from __future__ import annotations

import gzip
import io
import lzma
import math
import pickle
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_IMAGES = re.compile(r"(?P<stem>.*?)-?images[-.]idx[34]-ubyte(\.gz|\.xz)?")
_SPLITS = {"t10k": "test", "test": "test", "train": "train", "val": "val"}
_MAX_BYTES = 1 << 33  # an idx header may claim anything
_MAX_BATCH_BYTES = 1 << 28


class Arrays(NamedTuple):
    """Images, uint8 `[N, H, W]` or `[N, H, W, 3]`, and their labels, uint8 `[N]`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An idx file of bytes, plain or compressed with gzip or xz: uint8 of the shape that it states.

    Raises:
        ValueError: if it is no such file, or is longer or shorter than it states.
    """
    opener: Callable[..., Any] = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            zeros, kind, dimensions = file.read(2), *file.read(2)
            if zeros != b"\0\0" or kind != 0x08 or not 1 <= dimensions <= 4:
                raise ValueError("its magic number is not that of an idx file of bytes")
            shape = tuple(np.frombuffer(file.read(4 * dimensions), ">u4").tolist())
            size = math.prod(shape)
            if size > _MAX_BYTES:
                raise ValueError(f"it claims {size:,} bytes")
            data = file.read(size + 1)
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if len(data) != size:
        raise ValueError(f"{path} states {size:,} bytes of data but holds another number")
    return np.frombuffer(data, np.uint8).reshape(shape)


def find_idx(folder: Path) -> dict[str, list[tuple[Path, Path | None]]]:
    """Of each split in `folder` its (images, labels) files, in the order of their names.

    Understands `train-images-idx3-ubyte.gz` beside `t10k-…`, and sets in parts such as
    `cifar10-train-0of5-images-idx4-ubyte.xz`, four-dimensional where there is colour.
    """
    found: dict[str, list[tuple[Path, Path | None]]] = {}
    for path in sorted(folder.iterdir()):
        if match := _IMAGES.fullmatch(path.name):
            parts = [_SPLITS[part] for part in match["stem"].split("-") if part in _SPLITS]
            split = parts[0] if parts else "train"
            prefix = f"{match['stem']}-" if match["stem"] else ""
            labels = sorted(folder.glob(f"{glob_escape(prefix)}labels[-.]idx1-ubyte*"))
            found.setdefault(split, []).append((path, labels[0] if labels else None))
    return found


def glob_escape(name: str) -> str:
    """`name` with the characters that a glob would interpret put in brackets."""
    return re.sub(r"([*?[])", r"[\1]", name)


def read_idx_pair(images: Path, labels: Path | None) -> Arrays:
    """Images and labels of two idx files.

    Raises:
        ValueError: if the labels are missing, a file is damaged, or they do not fit together.
    """
    if labels is None:
        raise ValueError(f"{images} has no labels beside it (…labels-idx1-ubyte)")
    pair = Arrays(read_idx(images), read_idx(labels))
    n, *rest = pair.images.shape
    if len(rest) not in (2, 3) or (len(rest) == 3 and rest[2] not in (1, 3)):
        raise ValueError(f"{images} holds no images: its shape is {pair.images.shape}")
    if pair.labels.shape != (n,):
        raise ValueError(f"{images} holds {n} images, {labels.name} {len(pair.labels)} labels")
    return pair


def cifar_names(split: str) -> list[str]:
    """The batches of CIFAR-10's `split`.

    Raises:
        ValueError: if it is neither `train` nor `test`.
    """
    if split not in ("train", "test"):
        raise ValueError(f"CIFAR-10 has the splits train and test, not {split!r}")
    return [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]


def read_cifar(source: Path, split: str) -> Iterator[Arrays]:
    """The batches of CIFAR-10's `split` from `cifar-10-batches-py` or its tar, one at a time.

    Raises:
        FileNotFoundError: if a batch is missing.
        ValueError: if a batch is damaged, or asks for anything but plain data.
    """
    wanted = cifar_names(split)
    if source.is_dir():
        for name in wanted:
            with (source / name).open("rb") as file:
                yield parse_cifar(file.read(_MAX_BATCH_BYTES), str(source / name))
        return
    with tarfile.open(source) as tar:
        members = {Path(member.name).name: member for member in tar if member.isreg()}
        for name in wanted:
            if name not in members:
                raise FileNotFoundError(f"{source} holds no {name}")
            file = tar.extractfile(members[name])
            assert file is not None, "a regular member always has data"
            yield parse_cifar(file.read(_MAX_BATCH_BYTES), f"{source}:{name}")


def parse_cifar(data: bytes, name: str) -> Arrays:
    """One pickled batch as `Arrays` of `[n, 32, 32, 3]`, without running what the pickle asks for.

    Raises:
        ValueError: if it is no CIFAR-10 batch or asks for anything but plain data.
    """
    try:
        content = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
        images = np.asarray(content[b"data"])
        labels = np.asarray(content[b"labels"], np.uint8)
        if images.dtype != np.uint8 or images.shape != (len(labels), 3 * 32 * 32):
            raise ValueError(f"its data is {images.dtype} {images.shape}")
    except pickle.UnpicklingError as error:
        raise ValueError(f"{name} is refused: {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError) as error:
        raise ValueError(f"{name} is no batch of CIFAR-10 ({error!r})") from error
    return Arrays(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)


class _PlainUnpickler(pickle.Unpickler):
    """Resolves the names that plain arrays need to stand-ins below, and no other name at all."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")  # NumPy 2 moved it
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and only plain data is read"
            ) from None


_NDARRAY = object()  # what pickles name as the class of an array; not the class, nothing to call
_DTYPE = re.compile(r"[|<>=]?[buif][1248]")


def _empty_array(subtype: object, shape: object, _: object) -> NDArray[Any]:
    if subtype is not _NDARRAY or shape != (0,):
        raise pickle.UnpicklingError("it asks for an array that is not plain")
    return np.empty(0, np.int8)  # the pickle's next step fills it, and NumPy checks the length


def _plain_dtype(code: str | bytes, *_: object) -> np.dtype[Any]:
    text = code.decode("ascii") if isinstance(code, bytes) else code
    if not _DTYPE.fullmatch(text):
        raise pickle.UnpicklingError(f"it asks for an array of {text!r}")
    return np.dtype(text, False, True)  # a copy: the pickle's next step sets its byte order


def _latin1(text: str | bytes, encoding: str | bytes) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text if isinstance(text, bytes) else text.encode("latin1")


_STAND_INS: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _plain_dtype,
    ("_codecs", "encode"): _latin1,  # how Python 3 writes bytes in protocol 2
}

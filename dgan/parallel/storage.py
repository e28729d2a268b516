"""The files of a checkpoint: hashed while they are written, read without executing anything.

torch.distributed.checkpoint writes a pickle beside the tensors, `.metadata`, and unpickles it when
it reads. Here only the classes that such a file needs can come out of it.
"""

import io
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, metadata
from torch.distributed.checkpoint.filesystem import FileSystem, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.futures import Future
from torch.serialization import _get_layout

from dgan.parallel.staging import Staging

DIGESTS = "digests.json"
METADATA = ".metadata"

Digest = dict[str, Any]
"""`bytes` and `sha256` of a file."""


class Writer(FileSystemWriter):
    """Writes what each rank holds; the first rank publishes it when all have written theirs.

    Args:
        folder: to write into.
        staging: makes the copies that are written while training goes on.
        publish: called on the first rank, in the thread that writes, with the digests of all
            files. What it raises is raised on every rank.
    """

    def __init__(
        self, folder: Path, staging: Staging, publish: Callable[[dict[str, Digest]], None]
    ) -> None:
        super().__init__(folder, per_thread_copy_ahead=0)
        self.fs = self._files = _HashedFiles()
        self._staging = staging
        self._publish = publish

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Copies on the CPU of what is to be written."""
        return self._staging.copy(state_dict)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[Any]:
        """Write this rank's part; the digests travel to the first rank with what was written."""
        written = super().write_data(plan, planner).value()
        done: Future[Any] = Future()
        done.set_result((written, self._files.digests))
        return done

    def finish(self, metadata: Metadata, results: list[Any]) -> None:
        """On the first rank, once every rank has written."""
        super().finish(metadata, [written for written, _ in results])
        digests = {name: digest for _, found in results for name, digest in found.items()}
        digests[METADATA] = self._files.digests[f"{METADATA}.tmp"]
        self._publish(digests)


class Reader(FileSystemReader):
    """Reads a checkpoint that may come from anywhere; tensors go through `weights_only` loads."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._metadata: Metadata | None = None

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """What the checkpoint holds, and where.

        Raises:
            pickle.UnpicklingError: the file asks for something that no metadata holds. What a
                damaged file raises may be of any type.
        """
        if self._metadata is None:
            with (Path(self.path) / METADATA).open("rb") as file:
                found = _MetadataUnpickler(file).load()
            if not isinstance(found, Metadata) or not isinstance(found.storage_data, dict):
                raise pickle.UnpicklingError("it is no metadata of a checkpoint")
            for place in found.storage_data.values():
                if Path(place.relative_path).name != place.relative_path:
                    raise pickle.UnpicklingError(f"it names {place.relative_path!r} outside of it")
            found.storage_meta = metadata.StorageMeta(load_id=self.load_id)
            self._metadata = found
        return self._metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Finds the classes of `Metadata` and what these hold, and nothing else."""

    KNOWN = (
        *(
            getattr(metadata, name)
            for name in (
                "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
                "_MEM_FORMAT_ENCODING", "TensorStorageMetadata", "BytesStorageMetadata",
                "ChunkStorageMetadata",
            )
        ),
        _StorageInfo, _get_layout, torch.Size, torch.device, OrderedDict,
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if module in ("pathlib", "pathlib._local") and name in ("PosixPath", "WindowsPath"):
            return PurePosixPath  # of the folder it was written into
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        for known in self.KNOWN:
            if (module, name) == (known.__module__, known.__name__):
                return known
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")


class _HashedFiles(FileSystem):
    """Notes the digest of every file that is written, without reading it again."""

    def __init__(self) -> None:
        self.digests: dict[str, Digest] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        with Path(path).open(mode) as file:
            stream = _Hashed(file)
            try:
                yield stream
            except BaseException:
                # PyTorch's writer of tensors reports a full disk as "unexpected pos 704 vs 598".
                if stream.error is not None:
                    raise stream.error from None
                raise
        self.digests[Path(path).name] = stream.digest()


class _Hashed(io.IOBase):
    def __init__(self, file: IO[Any]) -> None:
        self._file = file
        self._sha256 = sha256()
        self._bytes = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            count = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._sha256.update(data)
        self._bytes += count
        return count

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()

    def digest(self) -> Digest:
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}


def write_digests(folder: Path, digests: dict[str, Digest]) -> None:
    """Note in `folder` what is in its files."""
    (folder / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")


def digest_of(path: Path) -> Digest:
    """Of a file as it is on the disk."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}


def damage(folder: Path, *, rank: int = 0, ranks: int = 1) -> list[str]:
    """What is wrong with the files of `folder`; each of `ranks` reads its share of them.

    Raises:
        OSError, ValueError: the digests themselves cannot be read.
    """
    digests = json.loads((folder / DIGESTS).read_bytes())
    if not isinstance(digests, dict):
        raise ValueError("it is no table of digests")
    # Hashing releases the interpreter's lock; disks of a cluster like several readers.
    with ThreadPoolExecutor(4) as pool:
        mine = sorted(digests)[rank::ranks]
        found = pool.map(lambda name: _difference(folder, name, digests[name]), mine)
        return [problem for problem in found if problem]


def _difference(folder: Path, name: str, expected: Digest) -> str | None:
    path = folder / name
    if path.name != name:
        return f"{DIGESTS} is damaged: it names {name!r}, outside of the checkpoint"
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{path.name} has {size} bytes, {expected['bytes']} were written"
        if digest_of(path) != expected:
            return f"{path.name} is damaged: its SHA-256 is not that of what was written"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    except (KeyError, TypeError):
        return f"{DIGESTS} is damaged: it does not say what {path.name} was"
    return None

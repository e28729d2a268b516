"""The same JPEGs in each format that a loader of `loaders.py` wants."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dgan.data import expand
from dgan.data.index import scan, write_index

SHARD = 1000


def make(folder: Path, source: str, samples: int) -> None:
    """Makes what is missing in `folder`: `tars/`, `energon/`, `mds/`, `litdata/`."""
    tars = folder / "tars"
    if not tars.exists():
        make_tars(tars, list(photographs(source)), samples)
    for name, write in {"energon": energon, "mds": mds, "litdata": litdata}.items():
        if not (folder / name).exists():
            try:
                write(tars, folder / name)
            except ImportError as error:
                print(f"{name}: {error}")


def photographs(source: str) -> Iterator[bytes]:
    """256×256 JPEGs of about 20 KB, of the middles of the images in the shards `source`."""
    if not source:
        raise SystemExit("name WebDataset tars of photographs with --source")
    for shard in expand(source):
        with tarfile.open(str(shard)) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".jpeg", ".png", ".webp")):
                    file = tar.extractfile(member)
                    assert file is not None, "a file, by its name"
                    image = Image.open(io.BytesIO(file.read())).convert("RGB")
                    side = min(image.size)
                    left, top = (image.width - side) // 2, (image.height - side) // 2
                    box = (left, top, left + side, top + side)
                    image = image.resize((256, 256), Image.Resampling.LANCZOS, box=box)
                    buffer = io.BytesIO()
                    image.save(buffer, "JPEG", quality=87)
                    yield buffer.getvalue()


def make_tars(folder: Path, pictures: list[bytes], samples: int) -> None:
    folder.mkdir(parents=True)
    order = np.random.default_rng(0).permutation(samples) % len(pictures)
    for begin in range(0, samples, SHARD):
        path = folder / f"train-{begin // SHARD:06d}.tar"
        with tarfile.open(path, "w") as tar:
            for i in range(begin, min(begin + SHARD, samples)):
                for extension, data in (
                    ("jpg", pictures[order[i]]),
                    ("cls", str(i % 1000).encode()),
                ):
                    member = tarfile.TarInfo(f"{i:08d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        index = scan(path, labels=True)
        write_index(index, index.labels)


def read_tars(folder: Path) -> Iterator[tuple[bytes, int]]:
    """The bytes and the label of each sample."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            parts: dict[str, bytes] = {}
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None, "our own tars hold files only"
                parts[member.name.rpartition(".")[2]] = file.read()
                if len(parts) == 2:
                    yield parts["jpg"], int(parts["cls"])
                    parts = {}


def energon(tars: Path, folder: Path) -> None:
    import megatron.energon  # noqa: F401  # to be told that it is missing

    shutil.copytree(tars, folder, ignore=shutil.ignore_patterns("*.json"))
    program = Path(sys.executable).with_name("energon")
    options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset"]
    subprocess.run([program, "prepare", folder, *options], check=True, capture_output=True)


def mds(tars: Path, folder: Path) -> None:
    from streaming import MDSWriter  # pyright: ignore[reportMissingImports]

    with MDSWriter(out=str(folder), columns={"jpg": "bytes", "cls": "int"}) as writer:
        for jpg, label in read_tars(tars):
            writer.write({"jpg": jpg, "cls": label})


def litdata(tars: Path, folder: Path) -> None:
    import litdata  # pyright: ignore[reportMissingImports]

    inputs = [str(path) for path in sorted(tars.glob("*.tar"))]
    litdata.optimize(
        samples_of, inputs, str(folder), chunk_bytes="64MB", num_workers=1, start_method="fork"
    )
    json.loads((folder / "index.json").read_text())  # whether it came to an end


def samples_of(path: str) -> Iterator[dict[str, object]]:
    """What `litdata.optimize` stores of one tar."""
    folder = Path(path)
    with tarfile.open(folder) as tar:
        parts: dict[str, bytes] = {}
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None, "our own tars hold files only"
            parts[member.name.rpartition(".")[2]] = file.read()
            if len(parts) == 2:
                yield {"jpg": parts["jpg"], "cls": int(parts["cls"])}
                parts = {}

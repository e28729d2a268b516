import gzip
import lzma
import os
import pickle
import tarfile

import numpy as np
import pytest

from dgan.data import ShardDataset, pack_source
from dgan.data.arrays import parse_cifar, read_idx

RNG = np.random.default_rng(0)


def write_idx(path, array):
    magic = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wb") as file:
        file.write(magic + array.tobytes())


def cifar_batch(n, seed, **pickling):
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (n, 3072), dtype=np.uint8)
    labels = generator.integers(0, 10, n).tolist()
    return data, labels, pickle.dumps({b"data": data, b"labels": labels}, **pickling)


# --- idx files


def test_idx_files_in_parts_and_in_colour(tmp_path):
    images = RNG.integers(0, 256, (30, 5, 5, 3), dtype=np.uint8)
    labels = RNG.integers(0, 10, 30).astype(np.uint8)
    for part in range(3):
        rows = slice(part * 10, part * 10 + 10)
        write_idx(tmp_path / f"x-train-{part}of3-images-idx4-ubyte.xz", images[rows])
        write_idx(tmp_path / f"x-train-{part}of3-labels-idx1-ubyte.gz", labels[rows])
    dataset = ShardDataset(pack_source(str(tmp_path), tmp_path / "out").shards)
    assert dataset.labels.tolist() == labels.tolist()
    assert (dataset[29]["image"].permute(1, 2, 0).numpy() == images[29]).all()
    with pytest.raises(ValueError, match="splits train, not 'test'"):
        pack_source(str(tmp_path), tmp_path / "out", split="test")


def test_idx_files_that_lie(tmp_path):
    good = bytes([0, 0, 8, 1, 0, 0, 0, 4])
    for data in (b"", good + b"123", good + b"12345", b"\1" + good[1:] + b"1234", good[:3] + b"\7"):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(ValueError, match="x "):
            read_idx(tmp_path / "x")
    (tmp_path / "x.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"x\.gz cannot be read"):
        read_idx(tmp_path / "x.gz")
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="no labels beside it"):
        pack_source(str(tmp_path), tmp_path / "out")
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="3 images"):
        pack_source(str(tmp_path), tmp_path / "out")


# --- CIFAR-10


@pytest.mark.parametrize("form", ["folder", "parent", "archive"])
def test_cifar_as_it_is_published(tmp_path, form):
    folder = tmp_path / "in" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    batches = [cifar_batch(4, i, protocol=2) for i in range(6)]
    for name, (_, _, data) in zip(
        [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"], batches
    ):
        (folder / name).write_bytes(data)
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    source = {"folder": folder, "parent": folder.parent, "archive": archive}[form]
    train = ShardDataset(pack_source(str(source), tmp_path / "out").shards)
    assert train.labels.tolist() == [label for _, labels, _ in batches[:5] for label in labels]
    assert (train[6]["image"].flatten().numpy() == batches[1][0][2]).all()
    assert pack_source(str(source), tmp_path / "out", split="test").samples == 4
    with pytest.raises(ValueError, match="train and test, not 'val'"):
        pack_source(str(source), tmp_path / "out", split="val")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_plain_pickles_of_every_protocol_are_read(protocol):
    data, labels, pickled = cifar_batch(3, 0, protocol=protocol)
    images, read = parse_cifar(pickled, "x")
    assert read.tolist() == labels
    assert (images.transpose(0, 3, 1, 2).reshape(3, -1) == data).all()


def test_a_malicious_pickle_is_refused_and_never_run(tmp_path):
    class Evil:
        def __init__(self, function, *arguments):
            self.call = (function, arguments)

        def __reduce__(self):
            return self.call

    canary = tmp_path / "canary"
    attacks = [
        Evil(os.system, f"touch {canary}"),
        Evil(open, str(canary), "w"),
        Evil(eval, f"open({str(canary)!r}, 'w')"),
        Evil(np.fromfile, str(canary)),
        np.array([Evil(open, str(canary), "w")], object),
    ]
    for number, attack in enumerate(attacks):
        folder = tmp_path / f"in{number}" / "cifar-10-batches-py"
        folder.mkdir(parents=True)
        for i in range(1, 6):
            content = {b"data": attack, b"labels": []}
            (folder / f"data_batch_{i}").write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(ValueError, match=r"data_batch_1 is refused: it asks for"):
            pack_source(str(folder), tmp_path / "out")
    assert not canary.exists()
    pickle.loads(pickle.dumps(attacks[1])).close()  # these attacks do work where they are let in
    assert canary.exists()


@pytest.mark.parametrize("data", [b"", b"\x80\x02.", pickle.dumps([1]), pickle.dumps({b"data": 1})])
def test_a_pickle_of_something_else_is_refused(data):
    with pytest.raises(ValueError, match="x is"):
        parse_cifar(data, "x")

"""ImageNet's original layout in small: a tar of tars, a flat tar, and the development kit."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_helpers import write_tar

from dgan.data import ShardDataset, pack_source
from dgan.data.imagenet import read_classes

WORDNET = ("n00000001", "n00000002", "n00000003")
KIT = (3, 1, 2)  # the class that each number of the kit means, counted from 1


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 9, 3), value * 20, np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def tar_bytes(members: list[tuple[str, bytes]], folder: Path) -> bytes:
    return write_tar(folder / "inner", members).read_bytes()


@pytest.fixture
def original(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    inner = [
        (f"{name}.tar", tar_bytes([(f"{name}_{i}.JPEG", jpeg(label)) for i in range(2)], tmp_path))
        for label, name in enumerate(WORDNET)
    ]
    write_tar(folder / "ILSVRC2012_img_train.tar", inner[::-1])  # in no order of use
    pictures = [(f"ILSVRC2012_val_{i:08d}.JPEG", jpeg(i)) for i in (2, 1, 3, 4)]
    write_tar(folder / "ILSVRC2012_img_val.tar", pictures)
    return folder


def kit(folder: Path) -> Path:
    """The development kit as it is distributed, with a category that is no leaf."""
    from scipy.io import savemat

    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    rows = [(number, WORDNET[cls - 1], 0) for number, cls in enumerate(KIT, 1)]
    types = [("ILSVRC2012_ID", float), ("WNID", object), ("num_children", float)]
    savemat(data / "meta.mat", {"synsets": np.array([*rows, (4, "n00000009", 3)], types)[:, None]})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n1\n")
    return data


def values(dataset: ShardDataset) -> list[int]:
    return [round(int(dataset[i]["image"][0, 0, 0]) / 20) for i in range(len(dataset))]


def test_the_training_tar_is_read_without_extracting(tmp_path, original):
    summary = pack_source(original, tmp_path / "out", resolution=6, encoding="jpg")
    dataset = ShardDataset(summary.shards)
    assert dataset.table.key(0) == "n00000003_0"
    assert dataset.labels.tolist() == values(dataset) == [2, 2, 1, 1, 0, 0]
    untouched = pack_source(
        original / "ILSVRC2012_img_train.tar", tmp_path / "keep", encoding="keep"
    )
    assert jpeg(2) in untouched.shards[0].read_bytes()
    order = tmp_path / "classes.txt"
    order.write_text("n00000003 tench, fish\nn00000001: x\nn00000002\n")
    summary = pack_source(original, tmp_path / "mine", classes=order)
    assert ShardDataset(summary.shards).labels.tolist() == [0, 0, 2, 2, 1, 1]


def test_a_folder_of_class_tars_is_the_training_set(tmp_path, original):
    with tarfile.open(original / "ILSVRC2012_img_train.tar") as tar:
        tar.extractall(tmp_path / "classes", filter="data")
    dataset = ShardDataset(pack_source(tmp_path / "classes", tmp_path / "out").shards)
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("form", ["tar", "folder"])
def test_validation_labels_come_from_the_kit(tmp_path, original, form):
    kit(original)
    source = original
    if form == "folder":
        source = original / "ILSVRC2012_img_val"
        with tarfile.open(original / "ILSVRC2012_img_val.tar") as tar:
            tar.extractall(source, filter="data")
    dataset = ShardDataset(pack_source(source, tmp_path / "out", split="validation").shards)
    assert values(dataset) == [1, 2, 3, 4]
    assert dataset.labels.tolist() == [2, 0, 1, 2]  # in the order of the WordNet numbers


def test_validation_labels_from_lists_of_ones_own(tmp_path, original):
    classes, truth = tmp_path / "classes.txt", tmp_path / "truth.txt"
    classes.write_text("\n".join(WORDNET))
    options = {"split": "val", "classes": classes, "ground_truth": truth}
    for number, text in enumerate(("1\n2\n3\n1", "a.JPEG n00000001\nn00000002\nn00000003\nb 1")):
        truth.write_text(text)
        summary = pack_source(original, tmp_path / str(number), **options)
        assert ShardDataset(summary.shards).labels.tolist() == [0, 1, 2, 0]
    for text, message in (
        ("1\n2\n0\n1", r"truth\.txt, line 3: '0' is none of the 3 classes"),
        ("1\n2\nn00000007\n1", "line 3: 'n00000007'"),
        ("1\n2\n3", r"val_00000004\.JPEG has no line in the 3"),
    ):
        truth.write_text(text)
        with pytest.raises(ValueError, match=message):
            pack_source(original, tmp_path / "x", **options)


def test_what_is_missing_is_named(tmp_path, original):
    with pytest.raises(ValueError, match="--ground-truth FILE is missing, --no-labels"):
        pack_source(original, tmp_path / "x", split="validation")
    assert pack_source(original, tmp_path / "y", split="validation", labels=False).classes == 0
    with pytest.raises(ValueError, match="train and validation, not 'test'"):
        pack_source(original, tmp_path / "x", split="test")
    few = tmp_path / "few.txt"
    few.write_text("n00000003")
    with pytest.raises(ValueError, match="class n00000002, which the list"):
        pack_source(original, tmp_path / "x", classes=few)
    for text in ("tench", "n00000001\nn00000001"):
        few.write_text(text)
        with pytest.raises(ValueError, match=r"few\.txt.*(no WordNet number|twice)"):
            read_classes(few)


def test_a_damaged_tar_of_tars_is_named(tmp_path, original):
    tar = original / "ILSVRC2012_img_train.tar"
    data = tar.read_bytes()
    tar.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar"):
        pack_source(original, tmp_path / "x")
    assert not list((tmp_path / "x").glob("*.tar"))

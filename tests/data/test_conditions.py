"""Vectors beside images: stored ones, encoded captions, and what is wrong with either."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captions import SIZE, caption, captioned, encode, npy, png

from dgan.data import ShardDataset, ShardStream, pack_source
from dgan.data.conditions import ConditionedDataset
from dgan.data.errors import DecodeError

ENCODER = "captions:encode"
CASES: dict[str, dict[str, Any]] = {"stored": {}, "encoded": {"encoder": ENCODER}}
N = 12


def expected(keys: list[str]) -> torch.Tensor:
    return encode([caption(int(key)) for key in keys]).detach()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("case", CASES)
def test_each_image_has_its_own(tmp_path: Path, case: str, workers: int) -> None:
    shards = captioned(tmp_path / "x.tar", N)
    dataset = ConditionedDataset(shards, size=SIZE, **CASES[case])
    plain = ShardDataset(shards)
    seen = []
    with ShardStream(dataset, batch_size=4, seed=1, workers=workers) as stream:
        for batch in islice(stream, 3):
            assert batch.keys() == {"__key__", "image", "label", "condition"}
            assert batch["condition"].dtype == torch.float32
            assert not batch["condition"].requires_grad
            assert torch.equal(batch["condition"], expected(batch["__key__"]))
            for key, image in zip(batch["__key__"], batch["image"]):
                assert torch.equal(image, plain[int(key)]["image"])
            seen += batch["__key__"]
    assert len({*seen}) == N
    assert torch.equal(dataset[7]["condition"], expected(["7"])[0])
    assert torch.equal(dataset.conditions([5, 0, 5]), expected(["5", "0", "5"]))
    # The last of two batches over two ranks leaves one of them without a row.
    (*_, last) = dataset.batches(N - 1, rank=0, world_size=2)
    assert last["condition"].shape == (len(last["__key__"]), SIZE)


def test_half_precision_and_classes_are_as_stored(tmp_path: Path) -> None:
    half = npy(np.array([0.5, -1.25, 3.0], np.float16))
    shards = captioned(tmp_path / "x.tar", 2, [(1, "npy", half)])
    dataset = ConditionedDataset(shards, size=SIZE)
    assert dataset[1]["condition"].tolist() == [0.5, -1.25, 3.0]
    assert dataset.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("field", "options", "message"),
    [
        ("npy", {}, r"sample '0003' of .*x\.tar has no embedding, <key>\.npy"),
        ("txt", {"encoder": ENCODER}, r"sample '0003' of .*x\.tar has no caption, <key>\.txt"),
    ],
)
def test_one_that_is_missing_is_named(
    tmp_path: Path, field: str, options: dict[str, Any], message: str
) -> None:
    shards = captioned(tmp_path / "x.tar", 5, [(3, field, None), (4, field, None)])
    with pytest.raises(ValueError, match=message):
        ConditionedDataset(shards, size=SIZE, **options)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(4, np.float32), r"x\.tar: sample '0002' holds float32 \[4\], but a vector"),
        (np.zeros((1, 3)), r"x\.tar: sample '0002' holds float64 \[1, 3\]"),
        (np.zeros(3, np.int64), r"x\.tar: sample '0002' holds int64 \[3\]"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_other_vectors_end_a_stream(
    tmp_path: Path, array: np.ndarray, message: str, workers: int
) -> None:
    shards = captioned(tmp_path / "x.tar", 4, [(2, "npy", npy(array))])
    dataset = ConditionedDataset(shards, size=SIZE)
    with (
        ShardStream(dataset, batch_size=4, workers=workers) as stream,
        pytest.raises(ValueError, match=message),
    ):
        next(stream)


DAMAGED = {
    "empty": ("txt", b" \n", {"encoder": ENCODER}, "missing field"),
    "no text": ("txt", b"\xff\xfe", {"encoder": ENCODER}, "corrupt"),
    "not finite": ("npy", npy(np.array([0.0, np.nan, 0.0])), {}, "corrupt"),
    "cut off": ("npy", npy(np.zeros(3))[:-5], {}, "cut off"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_is_skipped_and_counted(tmp_path: Path, case: str) -> None:
    field, data, options, reason = DAMAGED[case]
    shards = captioned(tmp_path / "x.tar", N, [(6, field, data)])
    dataset = ConditionedDataset(shards, size=SIZE, **options)
    with ShardStream(dataset, batch_size=N, workers=1, max_skipped=1.0) as stream:
        batch = next(stream)
        assert stream.skipped == {reason: 1}
        assert [skip.key for skip in stream.drain_skipped()] == ["0006"]
    assert torch.equal(batch["condition"], expected(batch["__key__"]))
    assert torch.equal(dataset.conditions([6]), expected(["7"]))
    with pytest.raises(DecodeError, match=r"sample '0006' of .*x\.tar: "):
        list(dataset.batches(4))
    kept = [key for batch in dataset.batches(4, skip_corrupt=True) for key in batch["__key__"]]
    assert len(kept) == N - 1


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("captions:wide", r"captions:wide makes \[1, 4\] of 1 captions, not a tensor \[1, 3\]"),
        ("builtins:len", r"builtins:len makes int of 1 captions"),
        ("captions:SIZE", r"'captions:SIZE' is int, not a function"),
        ("captions:nothing", r"'captions:nothing' cannot be imported: .*is its folder on PYTHONPA"),
        ("nowhere:encode", r"'nowhere:encode' cannot be imported"),
    ],
)
def test_encoders_that_do_not_fit(tmp_path: Path, encoder: str, message: str) -> None:
    shards = captioned(tmp_path / "x.tar", 2)
    with pytest.raises(ValueError, match=message):
        ConditionedDataset(shards, size=SIZE, encoder=encoder)


def test_files_beside_images_are_packed(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"in/{i:02d}.png").parent.mkdir(exist_ok=True)
        (tmp_path / f"in/{i:02d}.png").write_bytes(png(i))
        (tmp_path / f"in/{i:02d}.txt").write_text(caption(i))
        if i != 2:
            (tmp_path / f"in/{i:02d}.npy").write_bytes(npy(encode([caption(i)])[0].detach()))
    pack_source(tmp_path / "in", tmp_path / "out")
    dataset = ConditionedDataset(tmp_path / "out/train-*.tar", size=SIZE, encoder=ENCODER)
    assert torch.equal(dataset.conditions(range(4)), expected(["0", "1", "2", "3"]))
    with pytest.raises(ValueError, match=r"sample '02' of .*has no embedding"):
        ConditionedDataset(tmp_path / "out/train-*.tar", size=SIZE)

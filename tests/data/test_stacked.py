"""Stacked digits: three images become one, and streams of them do what other streams do."""

from itertools import islice

import numpy as np
import pytest
import torch
from shard_helpers import png, write_shards, write_tar

from dgan.data import ShardDataset, ShardStream
from dgan.data.errors import DecodeError
from dgan.data.stacked import StackedDataset


def parts(key: str) -> list[str]:
    return key.split("+")


def keys(dataset, batches, state=None, **options):
    with ShardStream(dataset, **options) as stream:
        if state is not None:
            stream.load_state_dict(state)
        return [key for batch in islice(stream, batches) for key in batch["__key__"]]


def test_a_stack_is_its_three_parts(digits):
    pattern = str(digits / "train-*.tar")
    with ShardDataset(pattern) as single, StackedDataset(pattern, length=200, seed=1) as stacked:
        places = {single.table.key(i): i for i in range(len(single))}
        assert (len(stacked), stacked.channels, stacked.resolution) == (200, 3, 8)
        assert (stacked.num_classes, stacked.has_labels) == (1000, True)
        with ShardStream(stacked, batch_size=20, workers=1) as stream:
            batch = next(stream)
        assert batch["image"].shape == (20, 3, 8, 8)
        assert batch["image"].dtype == torch.uint8
        for key, image, label in zip(batch["__key__"], batch["image"], batch["label"].tolist()):
            samples = [single[places[part]] for part in parts(key)]
            assert torch.equal(image, torch.cat([sample["image"] for sample in samples]))
            a, b, c = (sample["label"] for sample in samples)
            assert label == 100 * a + 10 * b + c
        sample = stacked[17]
        assert sample["label"] == stacked.labels[17]
        assert sample["__key__"] == stacked.table.key(17)


def test_stacks_are_drawn_by_seed_and_number_alone(digits):
    pattern = str(digits / "train-*.tar")

    def named(**options):
        with StackedDataset(pattern, **options) as dataset:
            return [dataset.table.key(i) for i in range(len(dataset))]

    short = named(length=50, seed=1)
    assert named(length=80, seed=1)[:50] == short
    assert named(length=50, seed=2) != short
    assert len(set(short)) == 50
    # With replacement, and each channel by itself.
    assert all(len({parts(key)[channel] for key in short}) > 40 for channel in range(3))


def test_classes_are_as_frequent_as_independent_digits_are(digits):
    with StackedDataset(str(digits / "train-*.tar"), length=128_000) as dataset:
        counts = np.bincount(dataset.labels, minlength=1000)
    assert (counts > 0).all()
    assert counts.sum() == 128_000
    # Digits of scikit-learn are not quite equally frequent: 10 % each to within a twentieth.
    assert counts.min() > 128 * 0.7 - 50
    assert counts.max() < 128 * 1.2 + 50


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_of_the_stated_length_at_every_world_size(digits, workers):
    options = {"batch_size": 12, "seed": 4, "workers": workers}
    with StackedDataset(str(digits / "train-*.tar"), length=30) as dataset:
        whole = keys(dataset, 5, **options)
        every = {dataset.table.key(i) for i in range(30)}
        assert set(whole[:30]) == set(whole[30:60]) == every
        assert whole[:30] != whole[30:60]
        ranks = [keys(dataset, 5, rank=rank, world_size=3, **options) for rank in range(3)]
    merged = [key for i in range(0, 20, 4) for rank in ranks for key in rank[i : i + 4]]
    assert merged == whole


def test_a_stream_of_stacks_resumes_on_the_same_stacks_only(digits):
    pattern, options = str(digits / "train-*.tar"), {"batch_size": 12, "workers": 0}
    with StackedDataset(pattern, length=40) as dataset:
        with ShardStream(dataset, **options) as stream:
            seen = [key for batch in islice(stream, 4) for key in batch["__key__"]]
            state = stream.state_dict()
            following = [key for batch in islice(stream, 2) for key in batch["__key__"]]
        assert len(seen) == 48
        assert keys(dataset, 2, state, **options) == following
    for other in ({"length": 41}, {"length": 40, "seed": 1}):
        with StackedDataset(pattern, **other) as dataset, pytest.raises(ValueError, match="other"):
            keys(dataset, 1, state, **options)
    with pytest.raises(ValueError, match="other shards"):
        keys(pattern, 1, state, **options)


def test_all_parts_of_a_stack_are_mirrored_together(digits):
    pattern, options = str(digits / "train-*.tar"), {"batch_size": 24, "workers": 0}
    with StackedDataset(pattern, length=40) as dataset:
        plain = next(ShardStream(dataset, **options))["image"]
        mirrored = next(ShardStream(dataset, flip=True, **options))["image"]
    turned = [torch.equal(a.flip(2), b) for a, b in zip(plain, mirrored)]
    kept = [torch.equal(a, b) for a, b in zip(plain, mirrored)]
    assert 4 < sum(turned) < 20
    assert all(a or b for a, b in zip(turned, kept))


def test_a_stack_with_a_damaged_part_is_replaced_and_told(tmp_path):
    members = []
    for i in range(40):
        image = b"no picture" if i == 7 else png(np.full((8, 8), i))
        members += [(f"{i:02d}.png", image), (f"{i:02d}.cls", str(i % 10).encode())]
    shard = write_tar(tmp_path / "train-000000.tar", members)
    with StackedDataset(shard, length=60, resolution=8) as dataset:
        bad = [i for i in range(60) if "07" in parts(dataset.table.key(i))]
        assert bad
        with ShardStream(dataset, batch_size=60, workers=0) as stream:
            batch = next(stream)
            skipped = stream.drain_skipped()
        assert {skip.key for skip in skipped} == {dataset.table.key(i) for i in bad}
        assert not any("07" in parts(key) for key in batch["__key__"])
        with pytest.raises(DecodeError, match="07"):
            list(dataset.batches(60))
        (good,) = dataset.batches(60, skip_corrupt=True)
        assert len(good["__key__"]) == 60 - len(bad)


def test_what_cannot_be_stacked(tmp_path):
    (shard,) = write_shards(tmp_path, [5])
    with pytest.raises(ValueError, match="length ≥ 1"):
        StackedDataset(shard, length=0)
    pairs = write_tar(
        tmp_path / "pairs-000000.tar",
        [("0.a.png", png(np.zeros((8, 8)))), ("0.b.png", png(np.zeros((8, 8)))), ("0.cls", b"1")],
    )
    with pytest.raises(ValueError, match="the images a, b; only what has one image"):
        StackedDataset(pairs, length=3)
    bare = write_tar(tmp_path / "bare-000000.tar", [("0.png", png(np.zeros((8, 8))))])
    with pytest.raises(ValueError, match=r"no \.cls"):
        StackedDataset(bare, length=3)

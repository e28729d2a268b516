import os

import numpy as np
import pytest
import torch
from shard_helpers import numbered, png, write_tar

from dgan.data import ShardDataset, ShardStream
from dgan.data.decode import DecodeError
from dgan.data.order import flips


def test_batches_cover_the_data_once_at_any_world_size(shards):
    dataset = ShardDataset(shards)
    for world_size in (1, 3):
        ranks = [
            list(dataset.batches(16, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        assert {len(rank) for rank in ranks} == {7}
        seen = [key for batch in zip(*ranks) for part in batch for key in part["__key__"]]
        assert seen == [f"{i:05d}" for i in range(100)]


def test_sequential_reading_tells_of_damage_or_leaves_it_out(shards):
    shards[0].write_bytes(shards[0].read_bytes().replace(numbered(5), b"x" * len(numbered(5))))
    dataset = ShardDataset(shards)
    with pytest.raises(DecodeError, match=r"'00005' of .*train-000000\.tar"):
        list(dataset.batches(10))
    batches = list(dataset.batches(10, skip_corrupt=True))
    assert len(batches[0]["image"]) == len(batches[0]["label"]) == len(batches[0]["__key__"]) == 9


def test_pairs_yield_both_images_and_are_mirrored_together(tmp_path):
    rgb = np.zeros((6, 8, 3))
    rgb[:, :4, 0] = 9
    members = []
    for i in range(20):
        members += [(f"{i}.a.png", numbered(i)), (f"{i}.b.png", png(rgb)), (f"{i}.txt", b"hello")]
    shard = write_tar(tmp_path / "x.tar", members)
    with ShardStream(shard, batch_size=20, flip=True, fields=["txt"]) as stream:
        batch = next(stream)
    assert batch["a"].shape == (20, 1, 8, 8)
    assert batch["b"].shape == (20, 3, 6, 8)
    assert batch["txt"] == ["hello"] * 20
    mirrored = batch["b"][:, 0, 0, 0] == 0
    assert torch.equal(mirrored, torch.from_numpy(flips(0, np.arange(20))))
    numbers = torch.tensor([int(key) for key in batch["__key__"]])
    column = torch.where(mirrored, -1, 0)
    assert (batch["a"][torch.arange(20), 0, 0, column] == numbers).all()


def test_labels_only_where_every_sample_has_one(tmp_path):
    shard = write_tar(
        tmp_path / "x.tar", [("0.png", numbered(0)), ("0.cls", b"1"), ("1.png", numbered(1))]
    )
    dataset = ShardDataset(shard)
    assert (dataset.has_labels, dataset.num_classes) == (False, 0)
    assert "label" not in dataset[0]
    with pytest.raises(ValueError, match=r"'1' of .*x\.tar has no \.cls"):
        ShardDataset(shard, labels=True)


def test_shards_without_images_or_samples(tmp_path):
    with pytest.raises(ValueError, match="no sample"):
        ShardDataset(write_tar(tmp_path / "empty.tar", []))
    with pytest.raises(ValueError, match="no image"):
        ShardDataset(write_tar(tmp_path / "x.tar", [("0.wav", b"1")]))


def test_colour_is_seen_behind_a_grey_first_sample(tmp_path):
    members = [("0.png", numbered(0)), ("1.png", png(np.zeros((8, 8, 3))))]
    shard = write_tar(tmp_path / "x.tar", members)
    assert ShardDataset(shard).channels == 3
    assert ShardDataset(shard)[0]["image"].shape == (3, 8, 8)
    assert ShardDataset(shard, channels=1)[1]["image"].shape == (1, 8, 8)


def test_many_samples_are_read_as_each_one_is(shards):
    with ShardDataset(shards) as dataset:
        samples = np.random.default_rng(0).permutation(100)
        assert list(dataset.read_each(samples)) == [dataset.read(i) for i in samples.tolist()]
        os.truncate(shards[1], 5000)
        with pytest.raises(DecodeError):
            dataset.read_each(samples)
        assert len(dataset.read_each(samples[samples < 40])) == 40


def test_many_samples_are_read_with_their_fields(tmp_path):
    members = [(f"{i}.{e}", d) for i in range(9) for e, d in (("png", numbered(i)), ("txt", b"x"))]
    members[5] = ("2.json", b"{}")
    shard = write_tar(tmp_path / "x.tar", members)
    with ShardDataset(shard, fields=("txt",)) as dataset:
        some = np.array([8, 3, 0])
        assert list(dataset.read_each(some)) == [dataset.read(i) for i in some.tolist()]
        assert dataset.read_each(some)[0].fields == (b"x",)
        with pytest.raises(DecodeError):
            dataset.read_each(np.array([0, 2]))

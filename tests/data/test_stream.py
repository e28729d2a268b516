import gc
import json
import os
import threading
from itertools import islice

import numpy as np
import pytest
import torch
from shard_helpers import numbered, png, write_shards, write_tar

from dgan.data import ShardStream
from dgan.data.errors import DecodeError, SizeMismatchError
from dgan.data.order import flips


def keys(stream, batches):
    return [key for batch in islice(stream, batches) for key in batch["__key__"]]


def world(shards, batches, world_size, state=None, **options):
    """The keys of each global batch, put together from what the ranks yield."""
    ranks = []
    for rank in range(world_size):
        with ShardStream(shards, rank=rank, world_size=world_size, **options) as stream:
            if state is not None:
                stream.load_state_dict(state)
            ranks.append([batch["__key__"] for batch in islice(stream, batches)])
    return [[key for part in parts for key in part] for parts in zip(*ranks)]


def number_of(image: torch.Tensor) -> torch.Tensor:
    return image[..., 0, 0].int() + 251 * image[..., -1, -1].int()


def test_a_batch_is_what_its_keys_say(shards):
    with ShardStream(shards, batch_size=12) as stream:
        batch = next(stream)
        assert (stream.num_samples, stream.num_classes, stream.has_labels) == (100, 10, True)
        assert (stream.resolution, stream.channels) == (8, 1)
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].shape == (12, 1, 8, 8)
    assert batch["label"].dtype == torch.int64
    numbers = [int(key) for key in batch["__key__"]]
    assert number_of(batch["image"])[:, 0].tolist() == numbers
    assert batch["label"].tolist() == [number % 10 for number in numbers]


def test_each_epoch_shows_each_sample_exactly_once(shards):
    with ShardStream(shards, batch_size=30) as stream:  # batches straddle the epochs
        seen = keys(stream, 10)
        assert stream.epoch == 3.0
    epochs = [seen[i : i + 100] for i in (0, 100, 200)]
    assert all(len(set(epoch)) == 100 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("workers", [0, 3])
def test_the_order_knows_neither_ranks_nor_workers(shards, world_size, workers):
    alone = world(shards, 12, 1, batch_size=24, seed=3, workers=1)
    assert world(shards, 12, world_size, batch_size=24, seed=3, workers=workers) == alone


def test_a_batch_larger_than_the_data_straddles_epochs(shards):
    with ShardStream(shards, batch_size=250) as stream:
        seen = keys(stream, 2)
    assert all(len(set(seen[i : i + 100])) == 100 for i in range(0, 500, 100))


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 4), (4, 1), (1, 3)])
def test_resuming_goes_on_with_exactly_the_next_batch(shards, before, after):
    whole = world(shards, 20, 1, batch_size=12, seed=1)
    with ShardStream(shards, batch_size=12, seed=1, world_size=before, rank=before - 1) as stream:
        list(islice(stream, 9))
        state = json.loads(json.dumps(stream.state_dict()))  # decoded ahead, but not handed out
        assert next(stream)["__key__"] == whole[9][-12 // before :]
    assert state["position"] == 108
    assert world(shards, 11, after, state, batch_size=12) == whole[9:]


def test_a_running_stream_can_be_put_back(shards):
    with ShardStream(shards, batch_size=10, workers=2, flip=True) as stream:
        list(islice(stream, 3))
        state = stream.state_dict()
        first = [batch["image"] for batch in islice(stream, 4)]
        stream.load_state_dict(state)
        again = [batch["image"] for batch in islice(stream, 4)]
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_other_data_or_another_version_is_refused(tmp_path, shards):
    (tmp_path / "other").mkdir()
    other = write_shards(tmp_path / "other", [40, 17, 42])
    with ShardStream(shards, batch_size=10) as stream, ShardStream(other, batch_size=10) as second:
        with pytest.raises(ValueError, match="other shards: 100 samples"):
            second.load_state_dict(stream.state_dict())
        with pytest.raises(ValueError, match="version"):
            stream.load_state_dict({**stream.state_dict(), "version": 0})


def test_flips_depend_on_the_position_only(shards):
    def images(world_size, workers):
        parts = []
        for rank in range(world_size):
            with ShardStream(
                shards,
                batch_size=20,
                flip=True,
                rank=rank,
                world_size=world_size,
                workers=workers,
                seed=4,
            ) as stream:
                parts.append([batch["image"] for batch in islice(stream, 10)])
        return torch.cat([torch.cat(batch) for batch in zip(*parts)])

    flipped = images(1, 0)
    assert torch.equal(flipped, images(4, 2))
    with ShardStream(shards, batch_size=200, seed=4) as stream:
        straight = next(stream)["image"]
    coin = torch.from_numpy(flips(4, np.arange(200)))
    assert torch.equal(flipped[coin], straight[coin].flip(-1))
    assert torch.equal(flipped[~coin], straight[~coin])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 10, "world_size": 4}, "8 or 12 would be"),
        ({"batch_size": 3, "world_size": 4}, "4 would be"),
        ({"batch_size": 8, "world_size": 2, "rank": 2}, "rank must be from 0"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 8, "workers": -1}, "workers"),
        ({"batch_size": 8, "channels": 4}, "channels"),
        ({"batch_size": 8, "resolution": 0}, "resolution"),
        ({"batch_size": 8, "seed": -1}, "seed"),
    ],
)
def test_arguments_that_do_not_fit(shards, options, message):
    with pytest.raises(ValueError, match=message):
        ShardStream(shards, **options)


def test_damaged_samples_are_replaced_by_rule_and_counted(tmp_path, shards):
    tar = shards[1].read_bytes()
    shards[1].write_bytes(tar.replace(numbered(45), b"x" * len(numbered(45))))
    with ShardStream(shards, batch_size=20) as stream:
        seen = keys(stream, 10)
        assert stream.skipped == {"corrupt": 2}  # once an epoch
        assert stream.skipped.total() == 2
        assert stream.drain_skipped() == [(str(shards[1]), "00045", "corrupt")] * 2
        assert stream.drain_skipped() == []
    assert "00045" not in seen
    assert len(set(seen[:100])) == 99
    batches = world(shards, 10, 4, batch_size=20, workers=2)
    assert [key for batch in batches for key in batch] == seen


def test_a_label_that_is_no_number_is_a_damaged_sample(tmp_path):
    members = [(f"{i}.{e}", d) for i in range(20) for e, d in (("png", numbered(i)), ("cls", b"1"))]
    members[7] = ("3.cls", b"cat")
    with ShardStream(write_tar(tmp_path / "x.tar", members), batch_size=20) as stream:
        assert "3" not in next(stream)["__key__"]
        assert stream.skipped == {"bad label": 1}
        assert stream.num_classes == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_damaged_samples_stop_the_stream(tmp_path, workers):
    members = [(f"{i}.png", numbered(i) if i % 3 else b"broken") for i in range(100)]
    shard = write_tar(tmp_path / "x.tar", members)
    with (
        ShardStream(shard, batch_size=10, workers=workers) as stream,
        pytest.raises(DecodeError, match=r"more than the 10 allowed.*x\.tar"),
    ):
        list(islice(stream, 20))
    with ShardStream(shard, batch_size=10, workers=workers, max_skipped=0.5) as stream:
        list(islice(stream, 20))
        assert stream.skipped.total() > 34


def test_a_sample_without_an_image_is_a_damaged_one(tmp_path):
    members = [(f"{i}.png", numbered(i)) for i in range(9)]
    shard = write_tar(tmp_path / "x.tar", [*members, ("9.txt", b"no picture")])
    with ShardStream(shard, batch_size=10) as stream:
        next(stream)
        assert stream.skipped == {"missing field": 1}


def test_a_data_set_that_is_all_damaged(tmp_path):
    shard = write_tar(tmp_path / "x.tar", [(f"{i}.png", b"broken") for i in range(5)])
    with (
        ShardStream(shard, batch_size=2) as stream,
        pytest.raises(DecodeError, match="none decodes"),
    ):
        next(stream)
    with (
        ShardStream(shard, batch_size=2, resolution=8, channels=1) as stream,
        pytest.raises(DecodeError, match="16 samples in a row"),
    ):
        next(stream)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_of_another_size_names_key_sizes_and_remedy(tmp_path, workers):
    members = [(f"{i}.png", numbered(i)) for i in range(9)]
    shard = write_tar(tmp_path / "x.tar", [*members, ("odd.png", png(np.zeros((6, 7))))])
    with (
        ShardStream(shard, batch_size=10, workers=workers) as stream,
        pytest.raises(SizeMismatchError, match=r"'odd' is 7×6.*8×8.*dgan data pack --resolution 8"),
    ):
        next(stream)
    with (
        ShardStream(shard, batch_size=1, resolution=16) as stream,
        pytest.raises(SizeMismatchError, match="--resolution 16"),
    ):
        next(stream)


def test_after_an_error_the_same_batch_is_tried_again(tmp_path):
    members = [(f"{i}.png", numbered(i)) for i in range(9)]
    shard = write_tar(tmp_path / "x.tar", [*members, ("odd.png", png(np.zeros((6, 7))))])
    with ShardStream(shard, batch_size=2, workers=1, prefetch=3) as stream:
        for _ in range(5):
            before = stream.position
            try:
                next(stream)
            except SizeMismatchError:
                break
        with pytest.raises(SizeMismatchError):
            next(stream)
        assert stream.position == before


def test_a_shard_that_shrinks_under_the_stream_is_noticed(tmp_path):
    shards = write_shards(tmp_path, [400])
    with ShardStream(shards, batch_size=400, max_skipped=0.9) as stream:
        os.truncate(shards[0], shards[0].stat().st_size * 3 // 4)
        next(stream)
        assert stream.skipped["shard cut off"] > 80


def test_closing_leaves_no_thread_and_no_file(shards):
    stream = ShardStream(shards, batch_size=10, workers=3)
    next(stream)
    assert any(thread.name.startswith("dgan-data") for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name.startswith("dgan-data") for thread in threading.enumerate())
    open_files = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{fd}")]  # fmt: skip
    assert not any(name.endswith(".tar") for name in open_files)
    assert stream.state_dict()["position"] == 10
    with pytest.raises(RuntimeError, match="closed"):
        next(stream)


def test_a_forgotten_stream_takes_its_threads_along(shards):
    stream = ShardStream(shards, batch_size=10, workers=2)
    next(stream)
    threads = [t for t in threading.enumerate() if t.name.startswith("dgan-data")]
    del stream
    gc.collect()
    for thread in threads:
        thread.join(timeout=5)
    assert threads
    assert not any(thread.is_alive() for thread in threads)


def test_more_shards_than_files_are_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr("dgan.data.files._OPEN_FILES", 2)
    with ShardStream(write_shards(tmp_path, [5] * 12), batch_size=20, workers=3) as stream:
        assert len(set(keys(stream, 3))) == 60
        assert len(stream.dataset.table._files._open) <= 2

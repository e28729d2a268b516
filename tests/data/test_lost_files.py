"""Files that vanish, or stop being readable, under a stream: tried again, then skipped by rule."""

import os
import shutil
import time
from itertools import islice

import pytest
from shard_helpers import write_shards

from dgan.data import ShardStream
from dgan.data.decode import DecodeError
from dgan.data.patience import Patience
from dgan.data.remote import UnreadableError

QUICK = Patience(attempts=4, first_pause=0.01, longest_pause=0.02, per_read=1.0)
ALREADY_KNOWN = {"resolution": 8, "channels": 1}  # so that opening the stream reads no sample


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("dgan.data.patience.PATIENCE", QUICK)


def lose(shard, how) -> None:
    shard.unlink()
    if how == "unreadable":  # a folder can be opened like a file, but reading it is an error
        shard.mkdir()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("how", "reason"), [("gone", "missing"), ("unreadable", "unreachable")])
def test_a_file_that_is_lost_is_skipped_counted_and_named(shards, workers, how, reason):
    options = {"batch_size": 20, "workers": workers, "max_skipped": 0.5, **ALREADY_KNOWN}
    with ShardStream(shards, **options) as stream:
        lose(shards[1], how)
        seen = [key for batch in islice(stream, 5) for key in batch["__key__"]]
        skipped = stream.drain_skipped()
        assert set(stream.skipped) == {reason}
    assert len(seen) == 100
    assert {skip.shard for skip in skipped} == {str(shards[1])}
    assert {int(skip.key) for skip in skipped} == set(range(40, 57))
    assert not {int(key) for key in seen} & set(range(40, 57))


def test_ranks_replace_what_is_lost_alike(shards):
    options = {"batch_size": 20, "max_skipped": 0.5, **ALREADY_KNOWN}
    with (
        ShardStream(shards, **options) as whole,
        ShardStream(shards, rank=0, world_size=2, **options) as first,
        ShardStream(shards, rank=1, world_size=2, **options) as second,
    ):
        shards[1].unlink()
        for _ in range(5):
            assert next(first)["__key__"] + next(second)["__key__"] == next(whole)["__key__"]


def test_too_many_that_are_lost_stop_the_stream_in_time(tmp_path):
    (shard,) = write_shards(tmp_path, [60])
    begun = time.monotonic()
    with ShardStream(shard, batch_size=4, **ALREADY_KNOWN) as stream:
        lose(shard, "unreadable")
        with pytest.raises(DecodeError, match=r"16 samples in a row.*0\.tar \(unreachable\)"):
            next(stream)
    assert time.monotonic() - begun < 5


def test_a_handle_that_died_is_opened_anew(tmp_path):
    """As a network file system's does when its server has forgotten it."""
    (shard,) = write_shards(tmp_path, [20])
    with ShardStream(shard, batch_size=20, workers=0) as stream:
        expected = next(stream)["__key__"]
        handle = stream.dataset.table._files._open[0]._descriptor
        folder = os.open(tmp_path, os.O_RDONLY)
        os.dup2(folder, handle)
        os.close(folder)
        assert sorted(next(stream)["__key__"]) == sorted(expected)
        assert not stream.skipped


def test_what_comes_back_in_time_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.setattr("dgan.data.patience.PATIENCE", Patience(first_pause=0.2))
    (shard,) = write_shards(tmp_path, [20])
    with ShardStream(shard, batch_size=20, workers=1, **ALREADY_KNOWN) as stream:
        shutil.move(shard, tmp_path / "aside")
        shard.mkdir()
        stream._queue.append(stream._submit())
        time.sleep(0.1)
        shard.rmdir()
        shutil.move(tmp_path / "aside", shard)
        assert len(next(stream)["__key__"]) == 20
        assert not stream.skipped


def test_the_message_names_file_place_and_error(tmp_path):
    (shard,) = write_shards(tmp_path, [20])
    with ShardStream(shard, batch_size=20, **ALREADY_KNOWN) as stream:
        lose(shard, "unreadable")
        table = stream.dataset.table
        with pytest.raises(
            UnreadableError, match=rf"{shard} at byte \d+.*IsADirectoryError.*4 attempts"
        ):
            table.read(0, "image")
        shard.rmdir()
        with pytest.raises(UnreadableError, match=rf"{shard}: there is no such shard any more"):
            table.read(0, "image")

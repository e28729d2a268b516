"""Shards behind a real web server that fails in every way we know: nothing lost, twice, or late."""

import os
import pickle
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_helpers import numbered, write_shards, write_tar
from web_server import Fault, serving

from dgan.data import ShardDataset, ShardStream
from dgan.data.decode import DecodeError
from dgan.data.index import ShardError, scan, sidecar_path, write_index
from dgan.data.indexing import index_shards
from dgan.data.location import SourceError, Url
from dgan.data.patience import Patience

QUICK = Patience(
    connect=2.0, stall=0.3, slowest=20_000.0, attempts=9, first_pause=0.01, longest_pause=0.05,
    per_read=2.0,
)  # fmt: skip
PATTERN = "train-{000000..000002}.tar"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("dgan.data.patience.PATIENCE", QUICK)
    monkeypatch.setattr("dgan.data.remote.BLOCK", 1 << 14)  # the shards here are small
    monkeypatch.setenv("DGAN_CACHE", str(tmp_path_factory.mktemp("cache")))


def epoch(shards, **options) -> list[tuple[str, torch.Tensor, int]]:
    """What two epochs of 100 samples show, in order."""
    with ShardStream(shards, batch_size=20, seed=5, **options) as stream:
        shown = [
            sample
            for batch in islice(stream, 10)
            for sample in zip(batch["__key__"], batch["image"], batch["label"].tolist())
        ]
        assert not stream.skipped, stream.drain_skipped()
    return shown


def assert_same(shown, expected) -> None:
    assert [(key, label) for key, _, label in shown] == [(k, label) for k, _, label in expected]
    assert all(torch.equal(a, b) for (_, a, _), (_, b, _) in zip(shown, expected))
    for half in (shown[:100], shown[100:]):
        assert sorted(key for key, *_ in half) == [f"{i:05d}" for i in range(100)]


@pytest.fixture
def expected(shards):
    return epoch(shards)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("gigabytes", [0, 1])
def test_the_same_samples_in_the_same_order(tmp_path, expected, workers, gigabytes):
    with serving(tmp_path) as server:
        shown = epoch(f"{server.url}/{PATTERN}", workers=workers, cache_gigabytes=gigabytes)
        assert_same(shown, expected)


FAULTS = [
    Fault("reset", times=6),
    Fault("reset", times=4, at=0),
    Fault("truncate", times=6),
    Fault("closed", times=4),
    Fault("length", times=4, whole=False),
    Fault("shifted", times=4, whole=False),
    Fault("stall", times=3),
    Fault("slow", times=3, whole=False),
    Fault("status", times=6, status=503),
    Fault("status", times=4, status=500),
    Fault("status", times=4, status=429, headers={"Retry-After": "0"}),
    Fault("corrupt", times=1, at=512 + 30, whole=False),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}-{fault.status}")
def test_what_passes_leaves_no_trace(tmp_path, expected, fault):
    fault = Fault(**vars(fault))
    with serving(tmp_path, fault) as server:
        assert_same(epoch(f"{server.url}/{PATTERN}", workers=2), expected)
    assert fault.times == 0  # all of it happened


def test_what_passes_leaves_no_trace_without_a_cache(tmp_path, expected):
    faults = [Fault(**{**vars(fault), "times": 1}) for fault in FAULTS]
    with serving(tmp_path, *faults) as server:
        shown = epoch(f"{server.url}/{PATTERN}", workers=2, cache_gigabytes=0)
        assert_same(shown, expected)
    assert not any(fault.times for fault in faults)


def test_every_sample_arrives_exactly_once_an_epoch_whatever_fails(tmp_path, shards):
    """Seven epochs on two ranks whose batches straddle them, while every fault happens to both."""
    shown, url = {}, f"/{PATTERN}"
    list(index_shards(shards))  # else all of them would be in the cache before the first batch

    def read(rank: int, address: str) -> None:
        with ShardStream(
            address, batch_size=28, seed=3, rank=rank, world_size=2, workers=2, prefetch=4
        ) as stream:
            batches = list(islice(stream, 25))
            shown[rank] = batches, stream.skipped.total()

    faults = [Fault(**{**vars(fault), "times": 2}) for fault in FAULTS]
    with serving(tmp_path, *faults) as server:
        threads = [threading.Thread(target=read, args=(r, server.url + url)) for r in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert not any(fault.times for fault in faults)
    assert [shown[rank][1] for rank in (0, 1)] == [0, 0]
    keys, pixels = [], []
    for batches in zip(shown[0][0], shown[1][0]):
        keys += [key for batch in batches for key in batch["__key__"]]
        pixels += [image for batch in batches for image in batch["image"]]
    for begin in range(0, 700, 100):
        assert sorted(keys[begin : begin + 100]) == [f"{i:05d}" for i in range(100)]
    for key, image in zip(keys, pixels):
        assert (int(image[0, 0, 0]), int(image[0, 0, -1])) == (int(key) % 251, int(key) // 251)


@pytest.mark.parametrize("fault", FAULTS[:-1], ids=lambda fault: f"{fault.kind}-{fault.status}")
def test_what_stays_is_an_error_in_time_that_says_where(tmp_path, shards, fault):
    fault = Fault(**{**vars(fault), "times": -1})
    with serving(tmp_path, fault) as server:
        begun = time.monotonic()
        with pytest.raises(
            SourceError, match=rf"{server.url}/train-000000\.tar at byte 0: .*attempts in"
        ):
            ShardStream(f"{server.url}/train-000000.tar", batch_size=4)
        assert time.monotonic() - begun < 8


def test_a_server_that_dies_stops_the_stream_in_time(tmp_path, shards):
    with serving(tmp_path) as server:
        stream = ShardStream(
            f"{server.url}/{PATTERN}", batch_size=4, cache_gigabytes=0, resolution=8, channels=1
        )
        next(stream)
    begun = time.monotonic()
    with pytest.raises(DecodeError, match=r"16 samples in a row.*\(unreachable\)"):
        list(islice(stream, 20))
    assert time.monotonic() - begun < 15
    stream.close()


def test_a_shard_that_is_lost_is_skipped_counted_and_named(tmp_path, shards):
    with serving(tmp_path) as server:
        url = f"{server.url}/train-{{000000..000001}}.tar"
        with ShardStream(url, batch_size=19, max_skipped=0.9, cache_gigabytes=0) as stream:
            next(stream)
            shards[1].unlink()
            stream.drain_skipped()
            batches = [next(stream) for _ in range(6)]
            assert all(len(batch["__key__"]) == 19 for batch in batches)
            skipped = stream.drain_skipped()
            assert set(stream.skipped) == {"missing"}
            assert {skip.shard for skip in skipped} == {f"{server.url}/train-000001.tar"}
            assert {int(skip.key) for skip in skipped} <= set(range(40, 57))
    assert not any(40 <= int(key) < 57 for batch in batches[3:] for key in batch["__key__"])


def test_a_sample_that_is_damaged_for_good_is_skipped_on_every_rank_alike(tmp_path, shards):
    tar = shards[1].read_bytes()
    shards[1].write_bytes(tar.replace(numbered(45), b"x" * len(numbered(45))))

    def keys(where, rank, world_size):
        with ShardStream(
            where, batch_size=20, rank=rank, world_size=world_size, max_skipped=0.5
        ) as stream:
            return [batch["__key__"] for batch in islice(stream, 10)], dict(stream.skipped)

    local, reasons = keys(shards, 0, 1)
    assert reasons == {"corrupt": 2}
    with serving(tmp_path) as server:
        ranks = [keys(f"{server.url}/{PATTERN}", rank, 2) for rank in (0, 1)]
    assert [a + b for a, b in zip(ranks[0][0], ranks[1][0])] == local


def test_a_shard_that_is_replaced_under_way_is_never_mixed_in(tmp_path, shards):
    with serving(tmp_path) as server:
        url = f"{server.url}/train-000000.tar"
        with ShardStream(url, batch_size=8, max_skipped=1.0, cache_gigabytes=0) as stream:
            next(stream)
            other = [(f"{i:05d}.png", numbered(i + 500)) for i in range(40)]
            data = write_tar(tmp_path / "other.tar", other).read_bytes()
            (tmp_path / "other.tar").unlink()
            shards[0].write_bytes(data.ljust(shards[0].stat().st_size, b"\0"))
            with pytest.raises(DecodeError, match="changed"):
                list(islice(stream, 10))


# --- indexes


def test_small_members_are_read_once_and_kept(tmp_path, expected):
    with serving(tmp_path) as server:
        assert_same(epoch(f"{server.url}/{PATTERN}"), expected)
        sizes = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
        asked = [re_range(text) for text in server.asked()]
        assert sum(end - begin for begin, end in asked) <= sizes
        before = len(server.asked())
        assert_same(epoch(f"{server.url}/{PATTERN}"), expected)
        assert len(server.asked()) == before


def re_range(text: str) -> tuple[int, int]:
    begin, end = text.removeprefix("bytes=").split("-")
    return int(begin), int(end) + 1


def test_headers_of_large_members_are_read_without_their_data(tmp_path):
    noise = np.random.default_rng(0).bytes(1 << 20)
    write_tar(tmp_path / "big.tar", [(f"{i}.txt", noise) for i in range(12)])
    with serving(tmp_path) as server:
        dataset = ShardDataset(f"{server.url}/big.tar", fields=["txt"])
        asked = [re_range(text) for text in server.asked()]
        assert sum(end - begin for begin, end in asked) < 5 << 20
        assert dataset.table.read(7, "txt") == noise


def test_the_sidecar_is_used_if_it_agrees(tmp_path, shards, expected):
    for shard in shards:
        index = scan(shard)
        labels = np.array([int(index.key(row)) % 10 for row in range(len(index))])
        write_index(index, labels)
    with serving(tmp_path) as server, ShardDataset(f"{server.url}/{PATTERN}") as dataset:
        assert dataset.num_classes == 10
        assert [index.key(0) for index in map(scan, shards)] == [
            dataset.table.key(i) for i in (0, 40, 57)
        ]
        # Its two ends of each shard: these shards are hardly longer than that.
        assert len(server.asked()) <= 2 * len(shards)
        assert_same(epoch(f"{server.url}/{PATTERN}"), expected)


@pytest.mark.parametrize("damage", ["labels", "keys", "sizes", "stale", "text"])
def test_a_sidecar_that_does_not_agree_is_not_believed(tmp_path, damage):
    (shard,) = write_shards(tmp_path, [30])
    expected = [sample["image"] for sample in ShardDataset(shard)]
    index = scan(shard)
    labels = np.arange(30) % 10
    if damage == "labels":
        labels = labels[::-1].copy()
    if damage == "keys":
        index.keys[4] = b"00099"
    if damage == "sizes":
        index.sizes[29, 0] -= 1
    write_index(index, labels)
    if damage == "stale":
        write_shards(tmp_path, [29])
    if damage == "text":
        sidecar_path(shard).write_text("[]")
    with serving(tmp_path) as server, ShardDataset(f"{server.url}/train-000000.tar") as dataset:
        assert [dataset.table.key(i) for i in range(29)] == [f"{i:05d}" for i in range(29)]
        assert dataset.labels.tolist()[:29] == [i % 10 for i in range(29)]
        assert all(torch.equal(a["image"], b) for a, b in zip(dataset, expected))


def test_a_shard_that_cannot_be_indexed_is_named(tmp_path, shards):
    os.truncate(shards[1], 3000)
    (tmp_path / "no.tar").write_bytes(b"hello" * 300)
    with serving(tmp_path) as server:
        with pytest.raises(ShardError, match=rf"{server.url}/train-000001\.tar.*truncated"):
            ShardDataset(f"{server.url}/{PATTERN}")
        with pytest.raises(ShardError, match=r"/no\.tar: not a readable tar"):
            ShardDataset(f"{server.url}/no.tar")
        with pytest.raises(FileNotFoundError, match=rf"{server.url}/gone\.tar.*no such shard"):
            ShardDataset(f"{server.url}/gone.tar")


def test_a_corrupt_header_is_read_again(tmp_path, expected):
    with serving(tmp_path, Fault("corrupt", times=1, at=150, whole=False)) as server:
        assert_same(epoch(f"{server.url}/{PATTERN}"), expected)


# --- servers with ways of their own


def test_a_server_without_ranges_sends_each_shard_once(tmp_path, expected):
    with serving(tmp_path, Fault("plain")) as server:
        assert_same(epoch(f"{server.url}/{PATTERN}", workers=2), expected)
        assert len(server.asked()) <= 2 * 3
        with pytest.raises(SourceError, match="ignores Range"):
            ShardDataset(f"{server.url}/{PATTERN}", cache_gigabytes=0)


def test_a_server_without_tags_is_read(tmp_path, expected):
    with serving(tmp_path) as server:
        server.etags = False
        assert_same(epoch(f"{server.url}/{PATTERN}"), expected)


def test_local_and_remote_shards_resume_each_other(tmp_path, shards):
    with serving(tmp_path) as server:
        url = f"{server.url}/{PATTERN}"
        with ShardStream(shards, batch_size=12) as here, ShardStream(url, batch_size=12) as there:
            list(islice(here, 3))
            there.load_state_dict(here.state_dict())
            assert next(there)["__key__"] == next(here)["__key__"]
        mixed = [str(shards[0]), f"{server.url}/train-000001.tar", str(shards[2])]
        with ShardDataset(mixed) as dataset:
            assert [sample["__key__"] for sample in dataset] == [f"{i:05d}" for i in range(100)]


def test_a_data_set_goes_to_other_processes(tmp_path, shards):
    with serving(tmp_path) as server, ShardDataset(f"{server.url}/{PATTERN}") as dataset:
        asked = len(server.requests)
        copy = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(copy[50]["image"], dataset[50]["image"])
        assert len(server.requests) == asked  # neither its identity nor its blocks anew
        copy.close()


def test_nothing_secret_is_shown(tmp_path, shards):
    with serving(tmp_path) as server:
        address = server.url.replace("://", "://user:hunter2@") + "/train-000000.tar?token=hunter3"
        with ShardDataset(address) as dataset:
            texts = [dataset.describe(0), str(dataset.table), repr(dataset.shards)]
            assert dataset.shards == [Url(address)]
            sidecar = [path for path, *_ in server.requests if ".index.json" in path]
            assert sidecar == ["/train-000000.tar.index.json?token=hunter3"]
        for fault in (Fault("status", status=403), Fault("closed"), Fault("status", status=500)):
            server.faults = [fault]
            with pytest.raises(OSError, match=r"train-000000\.tar\?…") as error:
                ShardDataset(address, cache_gigabytes=0)
            texts += [str(error.value), repr(error.value)]
    assert not any("hunter" in text for text in texts), texts


def test_connections_are_kept(tmp_path, expected):
    with serving(tmp_path) as server:
        epoch(f"{server.url}/{PATTERN}", cache_gigabytes=0, workers=2)
        assert len(server.requests) > 200
        assert len(server.connections) <= 20


def test_no_thread_and_no_connection_outlives_a_stream(tmp_path, shards):
    with serving(tmp_path) as server:
        epoch(f"{server.url}/{PATTERN}", workers=2)
        names = ("dgan-data", "dgan-fetch", "dgan-index")
        for thread in threading.enumerate():
            if thread.name.startswith(names):
                thread.join(timeout=2)
        assert not any(thread.name.startswith(names) for thread in threading.enumerate())


def test_paths_in_the_cache_are_made_of_hashes_only(tmp_path, shards):
    folder = Path(os.environ["DGAN_CACHE"])
    (tmp_path / "..%2f..%2fevil.tar").write_bytes(shards[0].read_bytes())
    with serving(tmp_path) as server, ShardDataset(f"{server.url}/..%2f..%2fevil.tar") as dataset:
        assert len(dataset) == 40
    names = {part for path in folder.rglob("*") for part in path.relative_to(folder).parts}
    assert len(names) > 3
    assert all(set(name) <= set("0123456789abcdefv") for name in names), names

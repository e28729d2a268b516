"""What holds at ImageNet's size, at a small one: who reads what, and what is known of many shards.

benchmarks/data/imagenet_scale.py checks the same of 1,281,000 samples.
"""

import json

import numpy as np
import pytest
from shard_helpers import write_shards

from dgan.data import ShardDataset, ShardStream
from dgan.data.index import read_index, scan, sidecar_path, write_index
from dgan.data.mixture import Mixture
from dgan.data.order import Order

SHARDS, PER_SHARD = 40, 25
N = SHARDS * PER_SHARD
SIZES = (700, 300)


def plans(make, ranks, share, batches):
    """What every rank reads, `[batches · ranks · share]`; each makes its own order."""
    found = np.empty((batches, ranks, share), np.int64)
    for rank in range(ranks):
        order = make()
        for batch in range(batches):
            found[batch, rank] = order.take((batch * ranks + rank) * share, share)
    return found.ravel()


@pytest.mark.parametrize("share", [1, 3])
@pytest.mark.parametrize("windows", [{}, {"block": 4, "window": 10}])
def test_512_ranks_read_each_sample_once_an_epoch(share, windows):
    shown = plans(lambda: Order(N, 3, **windows), 512, share, 2)
    assert (np.bincount(shown[:N], minlength=N) == 1).all()
    assert (np.bincount(shown[N : 2 * N], minlength=N) <= 1).all()
    assert (shown == Order(N, 3, **windows).take(0, len(shown))).all()


def test_512_ranks_read_a_mixture():
    shown = plans(lambda: Mixture(SIZES, (1, 1), 3), 512, 2, 2)
    first, second = shown[shown < 700], shown[shown >= 700]
    assert abs(len(first) - len(second)) <= 1
    assert (np.bincount(first[:700], minlength=700) == 1).all()
    assert (np.bincount(second[:300] - 700, minlength=300) == 1).all()
    assert (np.bincount(second[300:600] - 700, minlength=300) == 1).all()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("many"), [PER_SHARD] * SHARDS)


def keys(shards, batches, world_size, start=0, **options):
    ranks = []
    for rank in range(world_size):
        options |= {"batch_size": 48, "seed": 2, "rank": rank, "world_size": world_size}
        with ShardStream(shards, **options) as stream:
            stream.load_state_dict({**stream.state_dict(), "position": start})
            ranks.append([next(stream)["__key__"] for _ in range(batches)])
    return [key for parts in zip(*ranks) for part in parts for key in part]


@pytest.mark.parametrize("weights", [(), (7, 3)])
def test_the_order_is_the_same_for_1_2_3_and_8_ranks(many, weights):
    shards = [many[:28], many[28:]]
    whole = keys(shards, 22, 1, weights=weights)
    assert len(set(whole[:N])) == (N if not weights else len(set(whole)))
    for world_size in (2, 3, 8):
        assert keys(shards, 22, world_size, weights=weights) == whole
        later = 15 * 48  # gone on with from there, across the end of the epoch
        assert keys(shards, 7, world_size, later, weights=weights) == whole[later:]


def test_the_state_is_small_and_does_not_grow(many):
    with ShardStream(many, batch_size=48) as stream:
        before = len(json.dumps(stream.state_dict()))
        for _ in range(40):
            next(stream)
        assert len(json.dumps(stream.state_dict())) < before + 10 < 300


def test_a_state_of_another_order_is_refused(many):
    with ShardStream(many, batch_size=48) as stream:
        before = {key: value for key, value in stream.state_dict().items() if key != "parts"}
        with pytest.raises(ValueError, match=r"version 1, and 2 is known: .*another order"):
            stream.load_state_dict({**before, "version": 1})


def test_labels_are_told_by_the_indexes(tmp_path):
    """None of the shards is read for them, as a run on a thousand shards asks for them at once."""
    shards = write_shards(tmp_path, [20, 30])
    expected = np.arange(50) % 10
    write_index(scan(shards[0]), expected[:20])
    dataset = ShardDataset(shards, resolution=8, channels=1)
    assert (dataset.table.labels == [*expected[:20], *[-1] * 30]).all()
    assert (dataset.labels == expected).all()
    assert dataset.num_classes == 10


@pytest.mark.parametrize("big", [0, 1 << 33])
def test_an_index_survives_the_disk_in_either_form(tmp_path, big):
    """Packed numbers, of four bytes or of eight, and the lists that were written before."""
    (shard,) = write_shards(tmp_path, [20])
    index, labels = scan(shard), np.arange(20) % 10
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size + big)  # a hole: it takes no room
    index.offsets[7:] += big
    sized = type(index)(**{**vars(index), "size": shard.stat().st_size})
    path = write_index(sized, labels)
    lists = json.loads(path.read_text())
    for form in ("packed", "lists"):
        if form == "lists":
            sidecar = {"offsets": index.offsets, "sizes": index.sizes, "labels": labels}
            lists |= {name: numbers.tolist() for name, numbers in sidecar.items()}
            sidecar_path(shard).write_text(json.dumps(lists))
        read = read_index(shard)
        assert (read.offsets == index.offsets).all()
        assert (read.sizes == index.sizes).all()
        assert (read.keys == index.keys).all()
        assert (read.labels == labels).all()

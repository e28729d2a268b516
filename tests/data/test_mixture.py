import json
from itertools import islice

import numpy as np
import pytest
from shard_helpers import numbered, png, write_shards, write_tar

from dgan.data import ShardDataset, ShardStream
from dgan.data.mixture import Mixture

SIZES, WEIGHTS = (300, 100, 7), (3, 1, 0.1)


def sources(samples, sizes):
    return np.searchsorted(np.cumsum(sizes), samples, side="right")


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [
        ((500, 700), (3, 1)),
        ((500, 700), (1, 1e-4)),
        ((900,), (2,)),
        (SIZES, WEIGHTS),
        ((400, 300, 200, 100), (1281167, 50000, 1, 999)),
        (range(500, 540), [1 / n for n in range(1, 41)]),
    ],
)
def test_the_ratio_is_kept_from_the_first_sample_on(sizes, weights):
    of = sources(Mixture(sizes, weights, 3).take(0, 50_000), sizes)
    share = np.array(weights) / np.sum(weights)
    shown = np.cumsum(of[:, None] == np.arange(len(sizes)), axis=0)
    due = np.arange(1, 50_001)[:, None] * share
    assert (np.abs(shown - due) < 1 + max(0, len(sizes) - 2) * share + 1e-6).all()


def test_the_ratio_does_not_drift_and_any_position_is_reached_at_once():
    far = 10**12
    shown = Mixture((1000, 10), (0.7, 0.3), 1).shown(far)
    assert sum(shown) == far
    assert abs(shown[0] - 0.7 * far) < 1


def test_each_source_shows_each_sample_once_in_each_of_its_epochs():
    samples = Mixture(SIZES, WEIGHTS, 2).take(0, 10_000)
    of = sources(samples, SIZES)
    begin = 0
    for k, n in enumerate(SIZES):
        own = samples[of == k]
        epochs = own[: len(own) // n * n].reshape(-1, n)
        assert len(epochs) > 5
        assert (np.sort(epochs, axis=1) == np.arange(begin, begin + n)).all()
        assert (epochs[0] != epochs[1]).any()
        begin += n


def test_sources_take_turns_at_random():
    of = sources(Mixture((500, 500), (1, 1), 0).take(0, 50_000), (500, 500))
    assert of[0::2].mean() == pytest.approx(0.5, abs=0.02)  # no source has the even positions
    assert 0.1 < (of[1:] == of[:-1]).mean() < 0.45
    other = sources(Mixture((500, 500), (1, 1), 1).take(0, 50_000), (500, 500))
    assert (of == other).mean() == pytest.approx(0.5, abs=0.02)


def test_sources_of_equal_size_are_walked_through_differently():
    samples = Mixture((500, 500), (1, 1), 0).take(0, 1000)
    first, second = samples[samples < 500], samples[samples >= 500] - 500
    assert (first[:400] != second[:400]).mean() > 0.9


def test_positions_can_be_asked_for_in_any_order():
    walked = Mixture(SIZES, WEIGHTS, 5).take(0, 20_000)
    shown = np.cumsum(sources(walked, SIZES)[:, None] == np.arange(3), axis=0)
    jumping = Mixture(SIZES, WEIGHTS, 5)
    for position in np.random.default_rng(0).integers(1, 19_000, 200).tolist():
        assert (jumping.take(position, 50) == walked[position : position + 50]).all()
        assert jumping.shown(position) == shown[position - 1].tolist()
    assert (jumping.take(500, 15_000) == walked[500:15_500]).all()
    assert jumping.epochs(20_000) == [n / size for n, size in zip(jumping.shown(20_000), SIZES)]


def test_a_replacement_is_of_the_same_source():
    mixture = Mixture(SIZES, WEIGHTS, 5)
    other = Mixture(SIZES, WEIGHTS, 5)
    of = sources(mixture.take(0, 3000), SIZES)
    for position in range(0, 3000, 7):
        drawn = [mixture.replacement(position, attempt) for attempt in (1, 2, 3)]
        assert (sources(drawn, SIZES) == of[position]).all()
        assert drawn == [other.replacement(position, attempt) for attempt in (1, 2, 3)]


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ((5, 5), (1,), r"1 weights for 2 entries of `shards`"),
        ((5,), (1, 2), r"2 weights for 1 entries"),
        ((5, 5), (1, 0), r"weights must be positive numbers, got \[1, 0\]"),
        ((5, 5), (1, -1), "positive"),
        ((5, 5), (1, float("nan")), "positive"),
        ((5, 5), (1, float("inf")), "positive"),
        ((5, 0), (1, 1), r"entry 1 of `shards` holds no sample"),
    ],
)
def test_weights_that_do_not_fit(sizes, weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture(sizes, weights)
    with pytest.raises(ValueError, match="seed"):
        Mixture((5, 5), (1, 1), -1)


# The same through shards.


@pytest.fixture
def two(tmp_path):
    """A hundred numbered samples in two shards, and another twenty, from 1000 on, in a third."""
    write_shards(tmp_path, [60, 40])
    members = []
    for i in range(20):
        members += [(f"{1000 + i}.png", numbered(1000 + i)), (f"{1000 + i}.cls", b"11")]
    return [str(tmp_path / "train-*.tar"), write_tar(tmp_path / "more.tar", members)]


def keys(shards, batches, world_size=1, state=None, **options):
    """The keys of the first samples, put together from what the ranks yield."""
    ranks = []
    for rank in range(world_size):
        with ShardStream(shards, rank=rank, world_size=world_size, **options) as stream:
            if state is not None:
                stream.load_state_dict(state)
            ranks.append([next(stream)["__key__"] for _ in range(batches)])
    return [int(key) for parts in zip(*ranks) for part in parts for key in part]


def test_a_stream_mixes_its_entries(two):
    with ShardStream(two, weights=[3, 1], batch_size=40) as stream:
        assert (stream.num_samples, stream.num_classes, stream.has_labels) == (120, 12, True)
        batches = [next(stream) for _ in range(10)]
        assert stream.epochs == [3.0, 5.0]
        assert stream.epoch == pytest.approx(400 / 120)
    seen = [int(key) for batch in batches for key in batch["__key__"]]
    assert sum(key >= 1000 for key in seen) == 100
    assert sorted(key for key in seen if key < 1000) == sorted(list(range(100)) * 3)
    assert sorted(key for key in seen if key >= 1000) == sorted(list(range(1000, 1020)) * 5)
    labels = [label for batch in batches for label in batch["label"].tolist()]
    assert labels == [11 if key >= 1000 else key % 10 for key in seen]


def test_an_open_data_set_is_mixed_too_and_an_entry_may_be_a_list(two, tmp_path):
    nested = [[tmp_path / "train-000000.tar", tmp_path / "train-000001.tar"], two[1]]
    straight = keys(two, 5, batch_size=20, weights=[3, 1])
    assert keys(nested, 5, batch_size=20, weights=[3, 1]) == straight
    assert keys(ShardDataset(two), 5, batch_size=20, weights=[3, 1]) == straight
    assert keys(two, 6, batch_size=20) != straight
    assert sorted(keys(nested, 6, batch_size=20)) == [*range(100), *range(1000, 1020)]


def test_one_data_set_by_any_weight_is_that_data_set(two):
    assert keys(two[:1], 5, batch_size=20, weights=[7]) == keys(two[:1], 5, batch_size=20)
    with pytest.raises(ValueError, match="positive"):
        ShardStream(two[:1], batch_size=20, weights=[0])


@pytest.mark.parametrize(("world_size", "workers"), [(2, 1), (3, 0), (8, 3)])
def test_a_mixture_knows_neither_ranks_nor_workers_nor_batches(two, world_size, workers):
    alone = keys(two, 48, batch_size=10, weights=[0.6, 0.4], seed=3)
    split = {"weights": [3, 2], "seed": 3, "world_size": world_size, "workers": workers}
    assert keys(two, 20, batch_size=24, **split) == alone


def test_a_mixture_resumes_at_another_world_size(two):
    whole = keys(two, 30, batch_size=12, weights=[1, 2], seed=4)
    with ShardStream(two, batch_size=12, weights=[1, 2], seed=4) as stream:
        for _ in range(11):
            next(stream)
        text = json.dumps(stream.state_dict())
    assert len(text) < 500
    state = json.loads(text)
    assert keys(two, 19, 4, state, batch_size=12, weights=[2, 4]) == whole[11 * 12 :]


@pytest.mark.parametrize("other", [{"weights": [1, 1]}, {"weights": [3, 1, 1]}, {}])
def test_another_mixture_is_refused(two, tmp_path, other):
    with ShardStream(two, batch_size=12, weights=[3, 1]) as stream:
        state = stream.state_dict()
    shards = two
    if len(other.get("weights", ())) == 3:  # the same shards, divided up differently
        shards = [tmp_path / "train-000000.tar", tmp_path / "train-000001.tar", two[1]]
    message = r"a mixture of 0.75 × 100 samples \+ 0.25 × 20 samples, and this is .*same `weights`"
    with (
        ShardStream(shards, batch_size=12, **other) as stream,
        pytest.raises(ValueError, match=message),
    ):
        stream.load_state_dict(state)


def test_a_state_is_small_however_many_data_sets_are_mixed(tmp_path):
    many = []
    for k in range(100):
        (tmp_path / str(k)).mkdir()
        many.append(write_shards(tmp_path / str(k), [3 + k % 5]))
    weights = [1 + k % 7 for k in range(100)]
    with ShardStream(many, batch_size=12, weights=weights) as stream:
        list(islice(stream, 30))
        text = json.dumps(stream.state_dict())
        following = next(stream)["__key__"]
    assert len(text.encode()) < 1024
    with ShardStream(many, batch_size=12, weights=weights) as stream:
        stream.load_state_dict(json.loads(text))
        assert next(stream)["__key__"] == following
    weights[77], weights[78] = weights[78], weights[77]  # which the first ones do not show
    message = r"\+ 96 more \((\w{8}) in all\), and this is .* \((?!\1)\w{8}"
    with (
        ShardStream(many, batch_size=12, weights=weights) as stream,
        pytest.raises(ValueError, match=message),
    ):
        stream.load_state_dict(json.loads(text))


def test_a_state_that_holds_all_parts_is_understood(two):
    with ShardStream(two, batch_size=12, weights=[3, 1]) as stream:
        state = stream.state_dict() | {"position": 24}
        stream.load_state_dict({**state, "parts": [[100, 0.75], [20, 0.25]]})
        assert stream.position == 24
        with pytest.raises(ValueError, match="same `weights`"):
            stream.load_state_dict({**state, "parts": [[100, 0.5], [20, 0.5]]})


def test_damaged_samples_are_replaced_from_their_own_source(two):
    two[1].write_bytes(two[1].read_bytes().replace(numbered(1003), b"x" * len(numbered(1003))))
    with ShardStream(two, batch_size=40, weights=[1, 1]) as stream:
        seen = [int(key) for _ in range(5) for key in next(stream)["__key__"]]
        assert stream.skipped == {"corrupt": 5}
    assert sum(key >= 1000 for key in seen) == 100
    assert 1003 not in seen
    assert keys(two, 5, 4, batch_size=40, weights=[1, 1], workers=2) == seen


def test_data_sets_that_are_mixed_must_have_the_same_fields(two, tmp_path):
    pairs = write_tar(tmp_path / "pairs.tar", [("0.a.png", numbered(0)), ("0.b.png", numbered(1))])
    with pytest.raises(ValueError, match=r"begins with .*train-000000.tar has 'a'"):
        ShardStream([two[0], pairs], weights=[1, 1], batch_size=4)
    text = write_tar(tmp_path / "text.tar", [("0.png", numbered(0)), ("0.txt", b"hello")])
    with pytest.raises(ValueError, match=r"begins with .*more.tar has 'txt'"):
        ShardStream([text, two[1]], weights=[1, 1], batch_size=4, fields=["txt"])
    with ShardStream([two[0], text], weights=[1, 1], batch_size=4) as stream:
        assert not stream.has_labels
    with pytest.raises(ValueError, match=r"'0' of .*text.tar has no .cls"):
        ShardStream([two[0], text], weights=[1, 1], batch_size=4, labels=True)
    with pytest.raises(ValueError, match="named twice"):
        ShardStream([two[0], two[0]], weights=[1, 1], batch_size=4)
    with pytest.raises(ValueError, match="2 weights for 1 entries"):
        ShardStream(two[0], weights=[1, 1], batch_size=4)


def test_a_small_data_set_in_colour_beside_a_large_grey_one_is_noticed(two, tmp_path):
    colour = np.zeros((8, 8, 3))
    colour[..., 0] = 200
    shard = write_tar(tmp_path / "colour.tar", [("0.png", png(colour))])
    assert ShardDataset([two[0], shard]).channels == 3
    assert ShardDataset([shard, two[0]]).channels == 3
    assert ShardDataset(two).channels == 1

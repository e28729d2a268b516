import numpy as np
import pytest

from dgan.data.order import Order, flips


@pytest.mark.parametrize(
    ("n", "block", "window"),
    [(1, 3, 2), (7, 3, 2), (7, 3, 1), (1000, 7, 5), (1001, 7, 5), (1001, 1, 9), (5000, 64, 1024)],
)
def test_each_epoch_shows_each_sample_exactly_once(n, block, window):
    order = Order(n, 3, block=block, window=window)
    stream = order.take(0, 3 * n).reshape(3, n)
    assert (np.sort(stream, axis=1) == np.arange(n)).all()
    # Another order in each epoch, and not the same one turned round.
    assert n < 10 or len(np.unique((stream[0] - stream[1]) % n)) > n // 3


def test_a_window_takes_one_block_of_each_stretch():
    """So that sorted data are as mixed in each window as they are on the whole."""
    n, block, window = 10_000, 10, 50  # 1,000 blocks in 20 windows: stretches of 200 samples
    order = Order(n, 1, block=block, window=window)
    phase = order.take(0, n).reshape(20, 500)
    for samples in phase.tolist():
        blocks = np.unique([(s - order._phase) % n // block for s in samples])
        assert (blocks // 20 == np.arange(50)).all()


def test_a_small_set_is_permuted_as_a_whole():
    """As if at random: every sample is everywhere, whatever lies beside it."""
    places = np.argsort([Order(2000, seed).take(0, 2000) for seed in range(40)], axis=1)
    assert abs(np.corrcoef(places[:, 0], places[:, 1])[0, 1]) < 0.5
    apart = np.abs(np.diff(places, axis=1)).mean()
    assert apart == pytest.approx(2000 / 3, rel=0.03)


def test_any_position_can_be_asked_for_alone():
    walked = Order(1001, 5, block=7, window=5).take(0, 3003)
    jumping = Order(1001, 5, block=7, window=5)
    for position in np.random.default_rng(0).integers(0, 3003, 200).tolist():
        assert jumping.index(position) == walked[position]
    assert (jumping.take(990, 500) == walked[990:1490]).all()


def test_seeds_and_epochs_differ():
    assert (Order(100, 0).take(0, 100) != Order(100, 1).take(0, 100)).any()
    assert (Order(100, 0).take(0, 100) != Order(100, 0).take(100, 100)).any()


def test_large_sets_are_mixed_over_all_shards():
    n, batch = 200_000, 256  # 200 shards of 1,000
    samples = Order(n).take(0, 40 * batch)
    shards = samples.reshape(40, batch) // 1000
    assert np.mean([len(set(row)) for row in shards.tolist()]) > 140  # 144 if drawn at random
    assert abs(np.corrcoef(samples[1:], samples[:-1])[0, 1]) < 0.05


def test_classes_that_lie_sorted_are_mixed():
    """Counts of a class in a batch vary little more than under a full permutation."""
    n, classes, batch = 400_000, 400, 1000
    labels = Order(n, 2).take(0, n) * classes // n
    numbered = labels + np.repeat(np.arange(n // batch), batch) * classes
    counts = np.bincount(numbered, minlength=n // batch * classes)
    share = batch / n
    hypergeometric = (n // classes) * share * (1 - share)  # the variance under a full permutation
    assert counts.var() < 1.4 * hypergeometric


def test_replacements_are_drawn_by_rule():
    order = Order(1000, 1)
    drawn = [order.replacement(5, attempt) for attempt in range(1, 6)]
    assert drawn == [Order(1000, 1).replacement(5, attempt) for attempt in range(1, 6)]
    assert len(set(drawn)) > 1
    assert order.replacement(6, 1) != drawn[0]


def test_flips_are_a_fair_coin_of_seed_and_position():
    positions = np.arange(100_000)
    coin = flips(0, positions)
    assert abs(coin.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(coin[1:], coin[:-1])[0, 1]) < 0.01
    assert (flips(0, positions[500:700]) == coin[500:700]).all()
    assert (flips(1, positions) != coin).any()


@pytest.mark.parametrize("bad", [{"n": 0}, {"n": 5, "seed": -1}, {"n": 5, "block": 0}])
def test_impossible_orders_are_refused(bad):
    with pytest.raises(ValueError, match="at least"):
        Order(**bad)

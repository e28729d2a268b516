"""How many samples may be skipped: in an epoch, in any epoch, and after a restart."""

import pytest
from shard_helpers import numbered, write_tar

from dgan.data import ShardStream
from dgan.data.decode import DecodeError
from dgan.data.errors import REASONS
from dgan.data.skips import SkipLimit, Skipped

SOME = [Skipped("x.tar", str(i), "corrupt") for i in range(9)]


def checked(limit, totals, every) -> int:
    """How many of the cumulative `totals`, seen every so many samples, are let pass."""
    for number, total in enumerate(totals):
        try:
            limit.check(total, (number + 1) * every, SOME)
        except DecodeError:
            return number
    return len(totals)


def test_the_same_bad_samples_in_every_epoch_never_add_up():
    assert checked(SkipLimit(1000, 0.02), [20 * (1 + i // 10) for i in range(1000)], 100) == 1000
    # Nor if several epochs are looked at together, or a fraction of one.
    assert checked(SkipLimit(1000, 0.02), [50 * (i + 1) for i in range(100)], 2500) == 100
    assert checked(SkipLimit(1000, 0.02), [6 * (i + 1) for i in range(100)], 333) == 100


def test_more_than_that_stops_in_the_epoch_in_which_it_happens():
    assert checked(SkipLimit(1000, 0.02), [0] * 95 + [7, 14, 21], 100) == 97
    assert checked(SkipLimit(1000, 0.02), [51 * (i + 1) for i in range(100)], 2500) == 0


def test_ten_always_may():
    assert checked(SkipLimit(50, 0.0), [10, 10, 20, 20], 25) == 4
    assert checked(SkipLimit(50, 0.0), [11], 25) == 0


def test_it_goes_on_counting_after_a_restart():
    limit, later = SkipLimit(1000, 0.02), SkipLimit(1000, 0.02)
    for position, total in ((900, 18), (1100, 20), (1500, 33)):
        limit.check(total, position, SOME)
    later.restart(limit.before, 1500)
    later.check(40, 1600, SOME)
    with pytest.raises(DecodeError, match=r"21 samples do not decode where 700 were shown.*the 20"):
        later.check(41, 1700, SOME)


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_limit_is_a_fraction(fraction):
    with pytest.raises(ValueError, match="max_skipped is a fraction"):
        SkipLimit(9, fraction)


def test_a_stream_that_jumps_does_not_count_the_way(tmp_path):
    members = [(f"{i}.png", numbered(i) if i % 10 else b"broken") for i in range(100)]
    shard = write_tar(tmp_path / "x.tar", members)
    with ShardStream(shard, batch_size=50, max_skipped=0.15) as stream:
        for epoch in range(8):
            stream.load_state_dict({**stream.state_dict(), "position": 300 * epoch})
            next(stream), next(stream)
        assert stream.skipped.total() > 60
        assert set(stream.skipped) <= set(REASONS)

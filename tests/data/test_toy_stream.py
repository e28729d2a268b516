"""Toy streams: the distributions they say, and the same points whoever draws them."""

from itertools import islice

import numpy as np
import pytest
import torch

from dgan.data.toy import TOYS, ToyDataset, ToyStream, find_toy


def drawn(toy: str, batches: int, state: dict | None = None, **options: int) -> torch.Tensor:
    stream = ToyStream(toy, **options)
    if state is not None:
        stream.load_state_dict(state)
    return torch.cat([batch["sample"] for batch in islice(stream, batches)])


def world(toy: str, batches: int, world_size: int, **options: int) -> torch.Tensor:
    """Global batches, put together from what the ranks draw."""
    ranks = [
        drawn(toy, batches, rank=rank, world_size=world_size, **options).unflatten(0, (batches, -1))
        for rank in range(world_size)
    ]
    return torch.cat(ranks, dim=1).flatten(0, 1)


@pytest.mark.parametrize("toy", TOYS)
def test_points_depend_on_seed_and_position_alone(toy: str) -> None:
    whole = drawn(toy, 6, batch_size=12, seed=3)
    assert whole.dtype == torch.float32
    assert whole.shape == (72, TOYS[toy].dimension)
    for world_size in (2, 3, 4):
        assert torch.equal(world(toy, 6, world_size, batch_size=12, seed=3), whole)
    assert torch.equal(drawn(toy, 3, batch_size=24, seed=3), whole)
    if toy != "dirac":
        assert not torch.equal(drawn(toy, 6, batch_size=12, seed=4), whole)
        assert len(whole.unique(dim=0)) == len(whole)


def test_a_stream_goes_on_where_its_state_was_taken_at_any_world_size() -> None:
    stream = ToyStream("grid", batch_size=12, seed=5)
    for _ in range(4):
        next(stream)
    state = stream.state_dict()
    assert stream.position == state["position"] == 48
    following = torch.cat([batch["sample"] for batch in islice(stream, 2)])
    for rank in range(3):
        other = drawn("grid", 2, state, batch_size=12, seed=99, rank=rank, world_size=3)
        rows = [*range(4 * rank, 4 * rank + 4), *range(12 + 4 * rank, 12 + 4 * rank + 4)]
        assert torch.equal(other, following[rows])
    with pytest.raises(ValueError, match="taken on 'grid', and this is the toy 'ring'"):
        ToyStream("ring", batch_size=12).load_state_dict(state)
    with pytest.raises(ValueError, match="taken on 'shards'"):
        ToyStream("ring", batch_size=12).load_state_dict({"position": 3, "fingerprint": "0"})


def test_keys_are_positions() -> None:
    stream = ToyStream("ring", batch_size=6, rank=1, world_size=2)
    assert [next(stream)["__key__"] for _ in range(2)] == [["3", "4", "5"], ["9", "10", "11"]]


@pytest.mark.parametrize(("toy", "modes"), [("ring", 8), ("grid", 25)])
def test_mixtures_are_those_of_the_protocol(toy: str, modes: int) -> None:
    if toy == "ring":
        turns = [2 * np.pi * k / 8 for k in range(8)]
        centres = np.array([(np.cos(t), np.sin(t)) for t in turns])
    else:
        centres = np.array([(x, y) for y in (-4, -2, 0, 2, 4) for x in (-4, -2, 0, 2, 4)])
    sigma = {"ring": 0.01, "grid": 0.05}[toy]
    assert TOYS[toy].modes == modes == len(centres)
    points = drawn(toy, 100, batch_size=1000, seed=1).double().numpy() * TOYS[toy].scale
    offsets = points[:, None] - centres[None]
    nearest = (offsets**2).sum(-1).argmin(1)
    counts = np.bincount(nearest, minlength=modes)
    # Each count is binomial: five of its standard deviations.
    share = len(points) / modes
    assert np.abs(counts - share).max() < 5 * np.sqrt(share)
    own = offsets[np.arange(len(points)), nearest] / sigma
    assert np.abs(own.mean(0)).max() < 0.02
    covariance = np.cov(own.T)
    np.testing.assert_allclose(covariance, np.eye(2), atol=0.03)
    # Of a normal distribution in the plane exp(−9/2) lies outside of three σ.
    far = ((own**2).sum(1) > 9).mean()
    assert far == pytest.approx(np.exp(-4.5), abs=0.002)


def test_the_roll_turns_twice_and_grows() -> None:
    points = TOYS["swissroll"].points(0, 0, 20_000)
    radius = np.hypot(*points.T)
    assert radius.min() == pytest.approx(1 / 3, abs=0.06)
    assert radius.max() == pytest.approx(1, abs=0.06)
    turns = np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi)
    # Radius/angle of the spiral: 4.5π at radius 1, whole turns off by what is noise.
    off = (radius * 4.5 * np.pi / (2 * np.pi) - turns) % 1
    off = np.minimum(off, 1 - off)
    assert off.max() < 0.12
    assert np.median(off) < 0.03


def test_dirac_is_a_point_of_the_line() -> None:
    assert drawn("dirac", 2, batch_size=3).tolist() == [[0.0]] * 6


def test_centres_are_modes_and_stretches() -> None:
    grid = TOYS["grid"].centres()
    assert grid.shape == (25, 1, 2)
    assert len({tuple(centre) for centre in grid[:, 0].tolist()}) == 25
    roll = TOYS["swissroll"].centres()
    assert roll.shape[0] == TOYS["swissroll"].modes
    flat = roll.reshape(-1, 2)
    # Dense enough that the distance to them is that to the curve.
    assert np.linalg.norm(np.diff(flat, axis=0), axis=1).max() < TOYS["swissroll"].sigma


def test_reference_points_are_fixed_and_not_those_of_the_stream() -> None:
    dataset = ToyDataset(TOYS["ring"], size=50, seed=2)
    parts = [torch.cat([b["sample"] for b in dataset.batches(n)]) for n in (7, 50)]
    assert torch.equal(*parts)
    assert len(parts[0]) == len(dataset) == 50
    ranks = [torch.cat([b["sample"] for b in dataset.batches(20, rank=r, world_size=3, stop=31)])
             for r in range(3)]  # fmt: skip
    assert sum(map(len, ranks)) == 31
    assert {tuple(p) for p in torch.cat(ranks).tolist()} == {
        tuple(p) for p in parts[0][:31].tolist()
    }
    assert not torch.equal(parts[0], drawn("ring", 1, batch_size=50, seed=2))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="no toy 'circle': choose from ring, grid"):
        find_toy("circle")
    with pytest.raises(ValueError, match=r"batch_size 5 .* into 2 ranks"):
        ToyStream("ring", batch_size=5, world_size=2)
    with pytest.raises(ValueError, match="rank must be from 0 to world_size - 1 = 1: 2"):
        ToyStream("ring", batch_size=4, rank=2, world_size=2)

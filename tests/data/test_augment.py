"""Crops: what is cut out, and that a sample's crop depends on its position alone."""

import io
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from shard_helpers import png, write_tar

from dgan.data import ShardDataset, ShardStream
from dgan.data.errors import SizeMismatchError
from dgan.data.fit import Fit
from dgan.data.images import PLAIN, View, crop_box, decode_image
from dgan.data.order import crops, flips

RANDOM = np.random.default_rng(0)
WIDE = RANDOM.integers(0, 256, (20, 33, 3), dtype=np.uint8)


def shown(data: bytes, resolution: int, crop: str, view: View = PLAIN, channels: int = 3):
    row = np.empty((resolution, resolution, channels), np.uint8)
    decode_image(data, row, key="k", crop=crop, view=view)
    return row


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A shard of 30 images of many sizes, PNG and JPEG; every other one is in both fields."""
    random, members = np.random.default_rng(1), []
    for i in range(30):
        height, width = random.integers(16, 40, 2)
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        members.append((f"{i:02d}.png", png(pixels)) if i % 2 else (f"{i:02d}.jpg", jpeg(pixels)))
    return write_tar(tmp_path_factory.mktemp("pictures") / "x.tar", members)


@pytest.mark.parametrize("resolution", [8, 20, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_centre_is_what_packing_would_have_stored(resolution, channels):
    for data in (png(WIDE), png(WIDE.transpose(1, 0, 2)), jpeg(WIDE)):
        fitted = Fit(resolution=resolution, channels=channels)(Image.open(io.BytesIO(data)))
        found = shown(data, resolution, "centre", channels=channels)
        assert (found == np.asarray(fitted).reshape(found.shape)).all()
        # An evaluation of a model trained on random crops looks at the same.
        assert (shown(data, resolution, "random", channels=channels) == found).all()


@pytest.mark.parametrize("at", [(0.0, 0.0), (0.5, 0.2), (0.999, 0.999)])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_window_is_cut_out_as_it_is(at, mirror):
    left, top = int(at[0] * (33 - 16 + 1)), int(at[1] * (20 - 16 + 1))
    expected = WIDE[top : top + 16, left : left + 16]
    found = shown(png(WIDE), 16, "window", View(mirror, at))
    assert (found == expected[:, :: -1 if mirror else 1]).all()


def test_a_random_crop_is_the_largest_square_somewhere():
    for at, left in (((0.0, 0.7), 0), ((0.5, 0.0), 7), ((0.999, 0.3), 13)):
        square = Image.fromarray(WIDE[:, left : left + 20])
        found = shown(png(WIDE), 20, "random", View(at=at))
        assert (found == np.asarray(square)).all()
        box = (left, 0, left + 20, 20)
        smaller = Image.fromarray(WIDE).resize((12, 12), Image.Resampling.LANCZOS, box=box)
        assert (shown(png(WIDE), 12, "random", View(at=at)) == np.asarray(smaller)).all()


def test_every_place_is_equally_likely_and_none_outside():
    at = crops(3, np.arange(40_000)).tolist()
    boxes = np.array([crop_box((12, 9), "window", 8, place) for place in at])
    assert (boxes[:, 2:] - boxes[:, :2] == 8).all()
    counts = np.zeros((5, 2))
    np.add.at(counts, (boxes[:, 0], boxes[:, 1]), 1)
    # 10 places of 4,000 each: five standard deviations of a binomial count.
    assert (abs(counts - 4000) < 5 * (40_000 * 0.1 * 0.9) ** 0.5).all()


def test_draws_are_uniform_and_know_nothing_of_each_other():
    positions = np.arange(100_000)
    drawn = np.column_stack([crops(5, positions), flips(5, positions), crops(6, positions)])
    assert drawn[:, :2].min() >= 0
    assert drawn[:, :2].max() < 1
    assert abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.02
    assert abs(drawn.mean(0) - 0.5).max() < 0.01
    assert (crops(5, positions[[7, 99]]) == drawn[[7, 99], :2]).all()


def read(shard, batches, world_size=1, state=None, **options):
    """The images of each global batch, put together from what the ranks yield."""
    ranks = []
    for rank in range(world_size):
        with ShardStream(shard, rank=rank, world_size=world_size, **options) as stream:
            if state is not None:
                stream.load_state_dict(state)
            ranks.append([batch["image"] for batch in islice(stream, batches)])
    return [torch.cat(parts) for parts in zip(*ranks)]


@pytest.mark.parametrize("crop", ["random", "window"])
def test_a_samples_crop_knows_neither_ranks_nor_workers(pictures, crop, monkeypatch):
    options = {"batch_size": 12, "seed": 2, "resolution": 16, "crop": crop, "flip": True}
    alone = read(pictures, 8, workers=0, **options)
    monkeypatch.setattr("dgan.data.reader._READ_TOGETHER", 3)
    for world_size, workers in ((2, 1), (3, 2)):
        others = read(pictures, 8, world_size, workers=workers, **options)
        assert all(torch.equal(a, b) for a, b in zip(alone, others))


def test_resuming_goes_on_with_the_same_crops_at_another_world_size(pictures):
    options = {"batch_size": 6, "seed": 2, "resolution": 16, "crop": "random", "channels": 3}
    whole = read(pictures, 12, **options)
    with ShardStream(pictures, **options) as stream:
        list(islice(stream, 7))
        state = stream.state_dict()
    rest = read(pictures, 5, 3, state, **options)
    assert all(torch.equal(a, b) for a, b in zip(whole[7:], rest))


def test_each_epoch_crops_anew_and_evaluation_never(pictures):
    options = {"resolution": 16, "crop": "random", "channels": 3}
    first, second = {}, {}
    with ShardStream(pictures, batch_size=30, **options) as stream:
        for seen in (first, second):
            batch = next(stream)
            seen |= dict(zip(batch["__key__"], batch["image"]))
    # Squares have but one crop; of 30 random sizes hardly any is one.
    assert sum(not torch.equal(first[key], second[key]) for key in first) > 15
    dataset = ShardDataset(pictures, **options)
    centre = ShardDataset(pictures, resolution=16, crop="centre", channels=3)
    (batch,) = dataset.batches(30)
    assert torch.equal(batch["image"], next(centre.batches(30))["image"])
    assert torch.equal(dataset[4]["image"], batch["image"][4])


def test_a_pair_is_cropped_alike(tmp_path):
    random, members = np.random.default_rng(2), []
    for i in range(12):
        data = png(random.integers(0, 256, (24, 30, 3)))
        members += [(f"{i}.a.png", data), (f"{i}.b.png", data)]
    shard = write_tar(tmp_path / "x.tar", members)
    with ShardStream(shard, batch_size=12, resolution=16, crop="window", flip=True) as stream:
        batch = next(stream)
    assert torch.equal(batch["a"], batch["b"])


def test_what_cannot_be_cropped(tmp_path, pictures):
    with pytest.raises(ValueError, match="crop must be one of none, centre, random, window"):
        ShardStream(pictures, batch_size=4, resolution=16, crop="top")
    with pytest.raises(ValueError, match="needs a resolution"):
        ShardStream(pictures, batch_size=4, crop="random")
    dataset = ShardDataset(pictures, resolution=16, crop="random")
    with pytest.raises(ValueError, match="resize and cache: ask the ShardDataset"):
        ShardStream(dataset, batch_size=4, crop="window")
    shard = write_tar(tmp_path / "x.tar", [("odd.png", png(np.zeros((30, 12))))])
    with (
        ShardStream(shard, batch_size=1, resolution=16, crop="window") as stream,
        pytest.raises(SizeMismatchError, match=r"'odd' is 12×30.*16×16.*'random' or 'centre'"),
    ):
        next(stream)
    with (
        ShardStream(shard, batch_size=1, resolution=16) as stream,
        pytest.raises(SizeMismatchError, match=r"'odd' is 12×30.*crop 'centre' or 'random'"),
    ):
        next(stream)

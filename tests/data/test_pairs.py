"""Pairs and images that are not paired: what becomes of both halves, and what is refused."""

import io
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pairs import pairs
from PIL import Image
from tiny import tiny

from dgan.data import ShardDataset, ShardStream
from dgan.data.images import View, decode_image
from dgan.data.unpaired import UnpairedDataset, UnpairedStream
from dgan.opening import open_stream
from dgan.parallel.world import launch


def test_resizing_and_cutting_at_once_gives_the_pixels_of_both_in_turn() -> None:
    """286 → 256, here 20 → 16, of a square image and of one that is wider."""
    draw = np.random.default_rng(0)
    for width in (16, 24):
        image = Image.fromarray(draw.integers(0, 256, (16, width, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        resized = image.resize((width * 20 // 16, 20), Image.Resampling.LANCZOS)
        for at in ((0.0, 0.0), (0.5, 0.9), (0.99, 0.99)):
            row = np.empty((16, 16, 3), np.uint8)
            view = View(at=at)
            decode_image(buffer.getvalue(), row, key="k", crop="random", resize=20, view=view)
            left, top = int(at[0] * (resized.width - 15)), int(at[1] * 5)
            wanted = np.asarray(resized.crop((left, top, left + 16, top + 16)))
            assert np.abs(row.astype(int) - wanted).max() <= 1, (width, at)
    plain = np.empty((16, 16, 3), np.uint8)
    buffer = io.BytesIO()
    square = Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    square.save(buffer, "PNG")
    decode_image(buffer.getvalue(), plain, key="k", crop="random", resize=20)
    assert (plain == np.asarray(square)).all()  # evaluation cuts nothing


def test_both_halves_are_cropped_and_mirrored_alike(tmp_path: Path) -> None:
    """`b` is 255 − `a`, and stays so up to the rounding of resizing, whatever is drawn."""
    shards = pairs(tmp_path / "pairs.tar", 6, channels=3)
    options: dict[str, Any] = {"crop": "random", "resize": 20, "flip": True, "seed": 1}
    with ShardStream(shards, batch_size=6, resolution=16, workers=0, **options) as stream:
        shown: dict[str, list[torch.Tensor]] = {}
        for batch in islice(stream, 8):
            total = batch["a"].int() + batch["b"].int()
            assert (total - 255).abs().max() <= 1
            for key, image in zip(batch["__key__"], batch["a"]):
                shown.setdefault(key, []).append(image)
    for views in shown.values():
        assert len({view.numpy().tobytes() for view in views}) > 5


def test_a_data_set_can_be_opened_for_one_half(tmp_path: Path) -> None:
    shards = pairs(tmp_path / "pairs.tar", 3)
    with ShardDataset(shards, images=("b",)) as half, ShardDataset(shards) as whole:
        assert half[1].keys() == {"__key__", "b"}
        assert torch.equal(half[1]["b"], whole[1]["b"])


@pytest.fixture
def halves(tmp_path: Path) -> UnpairedDataset:
    shards = pairs(tmp_path / "pairs.tar", 40)
    return UnpairedDataset(*(ShardDataset(shards, images=(name,)) for name in "ab"))


def test_halves_of_pairs_are_shuffled_by_themselves(halves: UnpairedDataset) -> None:
    with UnpairedStream(halves, batch_size=8, workers=0) as stream:
        keys = [key.split("+") for batch in islice(stream, 10) for key in batch["__key__"]]
    for half in zip(*keys):
        for epoch in (half[:40], half[40:]):
            assert sorted(epoch) == [f"{i:04d}" for i in range(40)]  # each once an epoch
    assert 0 <= sum(a == b for a, b in keys) < 8


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stream_of_both_goes_on_where_it_was(halves: UnpairedDataset, ranks: int) -> None:
    with UnpairedStream(halves, batch_size=6, seed=4, flip=True, workers=0) as stream:
        before, after = list(islice(stream, 9)), next(stream)
    with UnpairedStream(halves, batch_size=6, seed=4, flip=True, workers=0) as stream:
        list(islice(stream, 9))
        state = stream.state_dict()
    assert state["position"] == 54
    parts = []
    for rank in range(ranks):
        place = {"rank": rank, "world_size": ranks}
        with UnpairedStream(halves, batch_size=6, flip=True, workers=0, **place) as stream:
            stream.load_state_dict(state)
            parts.append(next(stream))
    assert [key for part in parts for key in part["__key__"]] == after["__key__"]
    for name in "ab":
        assert torch.equal(torch.cat([part[name] for part in parts]), after[name])
        assert not torch.equal(before[0][name], after[name])
    with (
        UnpairedStream(halves, batch_size=6, workers=0) as stream,
        pytest.raises(ValueError, match="the state was taken on one data set"),
    ):
        stream.load_state_dict({"position": 3})


def opened(shards: Any, kind: str, **changes: Any) -> dict[str, Any]:
    plan = {"data__resolution": 16, "data__kind": kind, "data__classes": 0, "data__workers": 0}
    with launch() as world, open_stream(tiny(shards, "", **plan | changes), world) as stream:
        return next(iter(stream))


def test_two_sets_of_plain_images_are_domains(tmp_path: Path) -> None:
    sets = tuple(str(pairs(tmp_path / f"{n}.tar", n, names="png")) for n in (5, 9))
    batch = opened(sets, "unpaired")
    assert batch["a"].shape == batch["b"].shape == (16, 1, 16, 16)


def test_what_is_refused_is_named(tmp_path: Path) -> None:
    plain = str(pairs(tmp_path / "plain.tar", 3, names="png"))
    colour = str(pairs(tmp_path / "colour.tar", 3, channels=3))
    both = str(pairs(tmp_path / "both.tar", 3))
    half = str(pairs(tmp_path / "half.tar", 2, names="a.png"))
    cases = [
        (plain, "pairs", r"sample '0000' of \S+plain\.tar has no image 'a'"),
        (plain, "unpaired", r"sample '0000' of \S+plain\.tar has no image 'a'.*data pack --pairs"),
        (half, "pairs", r"sample '0000' of \S+half\.tar has no image 'b'"),
        ((both, half), "pairs", r"sample '0000' of \S+half\.tar has no image 'b'"),
        ((both, plain), "unpaired", r"sample '0000' of \S+both\.tar has no image 'image'"),
        ((plain,) * 3, "unpaired", r"--data\.shards has 3 entries; .* takes two"),
        (colour, "pairs", r"'0000' of \S+colour\.tar: 'a' is a colour image.*channels is 1: set"),
    ]
    for shards, kind, message in cases:
        with pytest.raises(ValueError, match=message):
            opened(shards, kind)
    batch = opened(both, "pairs", data__channels=3)  # grey ones lose nothing
    assert batch["b"].shape == (16, 3, 16, 16)

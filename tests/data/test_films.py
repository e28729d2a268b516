"""Clips in shards: which frames are shown, from where, of what size; and what is no clip."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from films import array, films, frames_of, strip, write
from PIL import Image

from dgan.data import ShardStream, pack_source
from dgan.data.clips import ClipDataset, Places, split_labelled

SIZES = {"channels": 1, "resolution": 8, "frames": 4, "stride": 2}
PLACES = 12 - (3 * 2 + 1) + 1  # of 12 frames, where 7 may begin


def places_of(sample: torch.Tensor, clip: int) -> list[tuple[int, bool]]:
    """Where in the clip the sample begins, and whether it is mirrored."""
    whole = torch.from_numpy(frames_of(clip)).permute(3, 0, 1, 2)
    seen = [(begin, whole[:, begin : begin + 7 : 2]) for begin in range(PLACES)]
    found = [(begin, False) for begin, frames in seen if torch.equal(frames, sample)]
    return found + [(begin, True) for begin, frames in seen if torch.equal(frames.flip(3), sample)]


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_shows_frames_from_anywhere(tmp_path: Path, arrays: bool, workers: int) -> None:
    dataset = ClipDataset(films(tmp_path / "x.tar", 6, arrays=arrays), **SIZES)
    assert (dataset.channels, dataset.resolution, dataset.num_classes) == (1, 8, 3)
    seen: Counter[tuple[int, bool]] = Counter()
    with ShardStream(dataset, batch_size=6, seed=1, workers=workers, flip=True) as stream:
        for batch in islice(stream, 60):
            assert batch["image"].shape == (6, 1, 4, 8, 8)
            assert batch["image"].dtype == torch.uint8
            assert sorted(batch["__key__"]) == [f"{i:03d}" for i in range(6)]
            for key, clip, label in zip(batch["__key__"], batch["image"], batch["label"].tolist()):
                (place,) = places_of(clip, int(key))
                seen[place] += 1
                assert label == int(key) % 3
    # Six places, two ways: 30 of each are expected, 5.2 is the standard deviation.
    assert len(seen) == 2 * PLACES
    assert 10 <= min(seen.values()) <= max(seen.values()) <= 50


def test_the_order_and_the_places_do_not_depend_on_ranks(tmp_path: Path) -> None:
    shards = films(tmp_path / "x.tar", 6)

    def shown(rank: int, ranks: int) -> list[torch.Tensor]:
        stream = ShardStream(
            ClipDataset(shards, **SIZES), batch_size=4, rank=rank, world_size=ranks
        )
        with stream:
            return [batch["image"].clone() for batch in islice(stream, 5)]

    halves = [torch.cat(parts) for parts in zip(shown(0, 2), shown(1, 2))]
    for whole, both in zip(shown(0, 1), halves):
        assert torch.equal(whole, both)


def test_alone_a_clip_is_seen_from_its_middle(tmp_path: Path) -> None:
    dataset = ClipDataset(films(tmp_path / "x.tar", 3), **SIZES)
    assert [places_of(dataset[i]["image"], i) for i in range(3)] == 3 * [[(PLACES // 2, False)]]


def test_places_are_evenly_spread(tmp_path: Path) -> None:
    dataset = Places(films(tmp_path / "x.tar", 3), each=3, **SIZES)
    assert len(dataset) == 9
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    parts = [batch for rank in range(2) for batch in dataset.batches(9, rank=rank, world_size=2)]
    keys = [key for batch in parts for key in batch["__key__"]]
    assert keys == ["000"] * 3 + ["001"] * 3 + ["002"] * 3
    clips = torch.cat([batch["image"] for batch in parts])
    begins = [places_of(clip, int(key))[0][0] for key, clip in zip(keys, clips)]
    assert begins == [1, 3, 5] * 3
    assert torch.cat([batch["label"] for batch in parts]).tolist() == dataset.labels.tolist()
    assert "'001' of" in dataset.describe(5)


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_frame_is_resized_by_itself(tmp_path: Path, arrays: bool, channels: int) -> None:
    shards = films(tmp_path / "x.tar", 1, arrays=arrays, channels=channels, size=16)
    sample = ClipDataset(shards, **SIZES | {"channels": channels})[0]["image"]
    clip = frames_of(0, channels=channels, size=16)[PLACES // 2 :: 2]
    for found, frame in zip(sample.unbind(1), clip):
        image = Image.fromarray(frame[..., 0] if channels == 1 else frame)
        expected = np.asarray(image.resize((8, 8), Image.Resampling.LANCZOS)).reshape(8, 8, -1)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_grey_strips_become_colour_ones(tmp_path: Path) -> None:
    shards = films(tmp_path / "x.tar", 1)
    sample = ClipDataset(shards, **SIZES | {"channels": 3})[0]["image"]
    assert torch.equal(sample, ClipDataset(shards, **SIZES)[0]["image"].expand(3, -1, -1, -1))


def test_a_packed_folder_of_frames_is_a_clip(tmp_path: Path) -> None:
    for place, frame in enumerate(frames_of(4)):
        (tmp_path / "in" / "walk" / "one").mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame[..., 0]).save(tmp_path / "in" / "walk" / "one" / f"{place:02}.png")
    pack_source(tmp_path / "in", tmp_path / "out", video=True)
    dataset = ClipDataset(str(tmp_path / "out" / "*.tar"), **SIZES)
    assert places_of(dataset[0]["image"], 4) == [(PLACES // 2, False)]


BAD: dict[str, tuple[str, bytes, str]] = {
    "short": ("png", strip(frames_of(9, frames=6)), r"has 6 frames, but 4 with a stride of 2 take"),
    "short array": ("npy", array(frames_of(9, frames=6)), r"has 6 frames, but 4 with a stride"),
    "colour": ("png", strip(frames_of(9, channels=3)), r"is in colour, and --data\.channels is 1"),
    "no strip": (
        "png",
        strip(frames_of(9)[:, :, :5]),
        r"is 60×8 \(width × height\), no strip of square",
    ),
    "channels": (
        "npy",
        array(frames_of(9, channels=3)),
        r"uint8 \[12, 3, 8, 8\], but uint8 \[frames, 1, side, side\]",
    ),
    "floats": ("npy", array(frames_of(9) / 255), r"holds float64 \[12, 1, 8, 8\], but uint8"),
    "not square": ("npy", array(frames_of(9)[:, :, :4]), r"holds uint8 \[12, 1, 8, 4\], but uint8"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_such_clip_is_refused_by_key_and_shard(tmp_path: Path, case: str) -> None:
    """At the start if it is the first sample, else when its turn comes, however it is read."""
    ending, data, message = BAD[case]
    names = rf"x\.tar: sample '{{}}' .*{message}"
    good = array(frames_of(1)) if ending == "npy" else strip(frames_of(1))
    first = write(tmp_path / "x.tar", {f"bad.{ending}": data, f"good.{ending}": good})
    with pytest.raises(ValueError, match=names.format("bad")):
        ClipDataset(first, **SIZES)
    (tmp_path / "later").mkdir()
    later = write(tmp_path / "later" / "x.tar", {f"good.{ending}": good, f"k.{ending}": data})
    dataset = ClipDataset(later, **SIZES)
    for workers in (0, 1):
        with (
            ShardStream(dataset, batch_size=2, workers=workers) as stream,
            pytest.raises(ValueError, match=names.format("k")),
        ):
            next(stream)
    with pytest.raises(ValueError, match=names.format("k")):
        list(dataset.batches(2, skip_corrupt=True))


def test_shards_of_something_else_are_no_clips(tmp_path: Path) -> None:
    one = strip(frames_of(0))
    pairs = write(tmp_path / "pairs.tar", {"k.a.png": one, "k.b.png": one})
    with pytest.raises(ValueError, match=r"'k' of .*pairs\.tar is no clip: it has a, b; a clip is"):
        ClipDataset(pairs, **SIZES)
    texts = write(tmp_path / "texts.tar", {"k.txt": b"words"})
    with pytest.raises(ValueError, match=r"'k' of .*texts\.tar is no clip: it has no image"):
        ClipDataset(texts, **SIZES)
    mixed = write(tmp_path / "mixed.tar", {"a.png": one, "b.npy": array(frames_of(1))})
    with pytest.raises(ValueError, match=r"'a' of .*mixed\.tar has no 'npy', others have"):
        ClipDataset(mixed, **SIZES)


def test_a_damaged_clip_is_skipped(tmp_path: Path) -> None:
    damaged = strip(frames_of(0))[:-200]
    shards = write(tmp_path / "x.tar", {"bad.png": damaged, "good.png": strip(frames_of(1))})
    with ShardStream(ClipDataset(shards, **SIZES), batch_size=4, workers=0) as stream:
        assert next(stream)["__key__"] == ["good"] * 4
        assert stream.skipped["corrupt"] >= 2


def test_no_clip_is_trained_on_and_held_out(tmp_path: Path) -> None:
    dataset = ClipDataset(films(tmp_path / "x.tar", 25), **SIZES)
    fit, held_out = split_labelled(dataset)
    clips = [torch.from_numpy(frames_of(i)).permute(3, 0, 1, 2) for i in range(25)]

    def names(samples: torch.Tensor) -> set[int]:
        firsts = {frame.numpy().tobytes(): i for i, c in enumerate(clips) for frame in c.unbind(1)}
        return {firsts[sample[:, 0].numpy().tobytes()] for sample in samples}

    assert names(held_out.clips) == {16, 17, 18, 19}
    assert names(fit.clips) == set(range(25)) - {16, 17, 18, 19}
    assert len(fit.labels) == 21 * 16
    assert held_out.labels.tolist() == [i % 3 for i in range(16, 20) for _ in range(16)]
    few = ClipDataset(films(tmp_path / "few.tar", 4), **SIZES)
    with pytest.raises(ValueError, match=r"has 4 clips: a classifier of them takes 5 or more"):
        split_labelled(few)

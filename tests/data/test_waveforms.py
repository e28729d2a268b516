"""Recordings in shards: cut and placed as said; others are refused by key and shard."""

import io
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import LENGTH, RATE, clips, tone, wav, write_clips

from dgan.data import ShardStream
from dgan.data.waveforms import AudioDataset, place

soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")

PLAN: dict[str, Any] = {"channels": 1, "resolution": LENGTH, "rate": RATE}


def test_recordings_come_out_as_they_are(tmp_path: Path) -> None:
    left, right = tone(0), tone(1)
    path = write_clips(tmp_path / "x.tar", [wav(np.stack([left, right], 1))])
    dataset = AudioDataset(path, **PLAN | {"channels": 2})
    sample = dataset[0]["image"]
    assert sample.dtype == torch.float32
    assert np.array_equal(sample.numpy() * 2**15, np.stack([left, right]))
    assert (dataset.channels, dataset.resolution, dataset.num_classes) == (2, LENGTH, 1)


def test_flac_is_read_too(tmp_path: Path) -> None:
    file = io.BytesIO()
    soundfile.write(file, tone(4), RATE, format="FLAC")
    path = write_clips(tmp_path / "x.tar", [file.getvalue()], "flac")
    assert np.array_equal(AudioDataset(path, **PLAN)[0]["image"][0].numpy() * 2**15, tone(4))


@pytest.mark.parametrize(
    ("frames", "at", "expected"),
    [
        (7, None, [2, 3, 4, 5]),
        (7, 0.0, [1, 2, 3, 4]),
        (7, 0.999, [4, 5, 6, 7]),
        (7, 0.5, [3, 4, 5, 6]),
        (4, 0.999, [1, 2, 3, 4]),
        (2, None, [0, 1, 2, 0]),
        (2, 0.0, [1, 2, 0, 0]),
        (2, 0.999, [0, 0, 1, 2]),
        (1, 0.3, [0, 1, 0, 0]),
    ],
)
def test_longer_ones_are_cut_and_shorter_ones_put_into_silence(
    frames: int, at: float | None, expected: list[int]
) -> None:
    row = np.full((1, 4), 9, np.float32)
    place(np.arange(1, frames + 1, dtype=np.float32)[None], row, at)
    assert row[0].tolist() == expected


def test_the_loudest_sample_is_the_peak(tmp_path: Path) -> None:
    silent = np.zeros(LENGTH, np.int16)
    path = write_clips(tmp_path / "x.tar", [wav(tone(2)), wav(silent)])
    dataset = AudioDataset(path, **PLAN, peak=0.5)
    loud = dataset[0]["image"]
    assert loud.abs().max().item() == pytest.approx(0.5)
    assert torch.allclose(loud[0] / 0.5, torch.from_numpy(tone(2) / np.abs(tone(2)).max()).float())
    assert not dataset[1]["image"].any()


def test_windows_are_drawn_by_position(tmp_path: Path) -> None:
    """The same on one rank and on two, and others in the second epoch."""
    dataset = AudioDataset(clips(tmp_path / "x.tar", 6), **PLAN, crop="window")
    epochs = [{}, {}]
    with ShardStream(dataset, batch_size=6, seed=3, workers=1) as stream:
        for seen, batch in zip(epochs, islice(stream, 2)):
            for key, clip, label in zip(batch["__key__"], batch["image"], batch["label"]):
                seen[key] = clip.clone()
                assert label == int(key) % 3
    found = {}
    for rank in range(2):
        with ShardStream(dataset, batch_size=6, seed=3, rank=rank, world_size=2) as stream:
            batch = next(stream)
            found |= dict(zip(batch["__key__"], batch["image"].clone()))
    assert found.keys() == epochs[0].keys()
    assert all(torch.equal(clip, epochs[0][key]) for key, clip in found.items())
    moved = {key for key, clip in found.items() if not torch.equal(clip, epochs[1][key])}
    assert 1 <= len(moved) <= 5  # '0002' is as long as it is to be
    assert "0002" not in moved


OTHERS = {
    "rate": (wav(tone(1), rate=800), {}, r"has 800 samples a second, but the rate is to be 1000"),
    "channels": (wav(np.stack([tone(1)] * 2, 1)), {}, r"has 2 channels, but 1 are wanted"),
    "short": (wav(tone(1, 99)), {"crop": "none"}, r"has 99 samples, but 256 are wanted: crop 'cen"),
    "long": (wav(tone(1, 300)), {"crop": "none"}, r"has 300 samples, but 256 are wanted: crop"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_others_are_refused_by_key_and_shard(case: str, tmp_path: Path) -> None:
    other, changes, message = OTHERS[case]
    plan = {**PLAN, "crop": "centre", **changes}
    named = rf"sample '0002' of .*b\.tar {message}"
    write_clips(tmp_path / "a.tar", [wav(tone(i)) for i in range(3)])
    shards = [tmp_path / "a.tar", write_clips(tmp_path / "b.tar", [wav(tone(0))] * 2 + [other])]
    dataset = AudioDataset(shards, **plan)
    with pytest.raises(ValueError, match=named):
        dataset[5]
    with (
        pytest.raises(ValueError, match=named),
        ShardStream(dataset, batch_size=6, max_skipped=1.0) as stream,
    ):
        next(stream)
    first = write_clips(tmp_path / "first.tar", [other])
    with pytest.raises(ValueError, match=rf"sample '0000' of .*first\.tar {message}"):
        AudioDataset(first, **plan)


def test_what_is_damaged_is_skipped(tmp_path: Path) -> None:
    infinite = io.BytesIO()
    soundfile.write(infinite, np.full(LENGTH, np.inf, np.float32), RATE, "FLOAT", format="WAV")
    files = [wav(tone(0)), wav(tone(1))[:-9], wav(tone(2)), infinite.getvalue()]
    dataset = AudioDataset(write_clips(tmp_path / "x.tar", files), **PLAN)
    with ShardStream(dataset, batch_size=4, workers=0, max_skipped=1.0) as stream:
        batch = next(stream)
        assert set(batch["__key__"]) == {"0000", "0002"}
        assert {(s.key, s.reason) for s in stream.drain_skipped()} >= {
            ("0001", "corrupt"),
            ("0003", "corrupt"),
        }


def test_what_holds_no_audio_is_refused(tmp_path: Path) -> None:
    write_clips(tmp_path / "x.tar", [b"text"], "txt")
    with pytest.raises(ValueError, match=r"sample '0000' of .*x\.tar has no \.wav or \.flac"):
        AudioDataset(tmp_path / "x.tar", **PLAN)
    with pytest.raises(ValueError, match="crop must be one of none, centre, window; got 'random'"):
        AudioDataset(tmp_path / "x.tar", **PLAN, crop="random")

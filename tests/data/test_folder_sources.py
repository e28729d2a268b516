"""Pairs, audio and clips from folders."""

import io
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from shard_helpers import numbered, png, real

from dgan.data import ShardDataset, pack_source
from dgan.data.index import read_index


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def wav(frames: int, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.arange(frames, dtype="<i2").tobytes())
    return buffer.getvalue()


def flac(rate: int = 16000) -> bytes:
    """A FLAC's description of its stream, and a byte for the frames that we do not decode."""
    packed = (rate << 44) | (1 << 41) | (15 << 36) | 100
    return b"fLaC\x80" + (34).to_bytes(3, "big") + bytes(10) + struct.pack(">Q", packed) + bytes(17)


# --- pairs


def test_two_folders_of_equal_names_are_pairs(tmp_path):
    for i in range(4):
        put(tmp_path / "in" / "a" / f"deep/{i}.v1.png", numbered(i))
        put(tmp_path / "in" / "b" / f"deep/{i}.v1.png", numbered(i + 10))
    for pairs in ("auto", "folders"):
        (shard,) = pack_source(tmp_path / "in", tmp_path / pairs, pairs=pairs).shards
        dataset = ShardDataset(shard)
        assert dataset.image_names == ("a", "b")
        assert [int(dataset[i]["b"][0, 0, 0]) for i in range(4)] == [10, 11, 12, 13]
        read = list(webdataset.WebDataset(str(shard), shardshuffle=False))
        assert [s["a.png"] for s in read] == [numbered(i) for i in range(4)]
    classes = pack_source(tmp_path / "in", tmp_path / "none", pairs="none")
    assert (classes.samples, classes.classes) == (8, 2)
    put(tmp_path / "in" / "a" / "lonely.png", numbered(0))
    with pytest.raises(ValueError, match=r"a/lonely\.png has no picture of the same name in .*b"):
        pack_source(tmp_path / "in", tmp_path / "x", pairs="folders")
    assert pack_source(tmp_path / "in", tmp_path / "auto2").classes == 2
    with pytest.raises(ValueError, match="the folders a and b"):
        pack_source(tmp_path / "in" / "a", tmp_path / "x", pairs="folders")


def test_halves_side_by_side_are_pairs(tmp_path):
    put(tmp_path / "in" / "0.png", numbered(251 * 7 + 3))  # left half 3, right half 7
    dataset = ShardDataset(
        pack_source(tmp_path / "in", tmp_path / "out", pairs="side-by-side").shards
    )
    assert dataset.shapes == {"a": (1, 8, 4), "b": (1, 8, 4)}
    assert (dataset[0]["a"] == 3).all()
    assert (dataset[0]["b"] == 7).all()
    put(tmp_path / "in" / "odd.png", png(np.zeros((8, 7))))
    with pytest.raises(ValueError, match=r"odd\.png: it is 7 wide"):
        pack_source(tmp_path / "in", tmp_path / "x", pairs="side-by-side")


def test_facades_become_pairs(tmp_path):
    source = real("facades") / "facades-val-000000.tar"
    summary = pack_source(
        source, tmp_path / "out", pairs="side-by-side", resolution=64, limit=5, encoding="jpg"
    )
    dataset = ShardDataset(summary.shards)
    assert dataset.shapes == {"a": (3, 64, 64), "b": (3, 64, 64)}
    original = Image.open(io.BytesIO(ShardDataset(source).table.read(0, "image")))
    expected = original.crop((0, 0, 256, 256)).resize((64, 64), Image.Resampling.LANCZOS)
    difference = dataset[0]["a"].permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)
    assert abs(difference).mean() < 4  # but for JPEG


# --- audio


def test_audio_is_kept_byte_for_byte(tmp_path):
    put(tmp_path / "in" / "no" / "x.WAV", wav(100))
    put(tmp_path / "in" / "yes" / "y.flac", flac())
    summary = pack_source(tmp_path / "in", tmp_path / "out")
    assert (summary.samples, summary.classes, summary.resolution) == (2, 2, 0)
    one, two = webdataset.WebDataset(str(summary.shards[0]), shardshuffle=False)
    assert (one["wav"], one["cls"], two["flac"], two["cls"]) == (wav(100), b"0", flac(), b"1")
    with pytest.raises(ValueError, match="audio without pictures"):
        pack_source(tmp_path / "in", tmp_path / "x", resolution=8)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.wav", wav(100)[:-10], "10 bytes missing"),
        ("x.wav", b"RIFFxxxxWAVE", "no samples"),
        ("x.wav", wav(4)[:30], "cut off in its header"),
        ("x.wav", flac(), "no WAV"),
        ("x.wav", wav(4, rate=1).replace(b"\x01\0\0\0\x02\0\0\0", bytes(8)), "claims 0 Hz"),
        ("x.flac", wav(4), "no FLAC"),
        ("x.flac", b"", "no FLAC|cut off"),
        ("x.flac", flac()[:40], "no samples"),
    ],
)
def test_damaged_audio_is_named(tmp_path, name, data, message):
    put(tmp_path / "in" / name, data)
    with pytest.raises(ValueError, match=rf"{name}.*({message})"):
        pack_source(tmp_path / "in", tmp_path / "out")


def test_spoken_digits_are_split_by_their_keys(tmp_path):
    source = real("fsdd") / "fsdd-test-000000.tar"
    summary = pack_source(source, tmp_path / "out", split_by_hash="70/15/15")
    assert sum(summary.splits.values()) == 300
    assert summary.classes == 10
    assert read_index(summary.shards[0]).fields == ("wav", "cls")


# --- clips


def test_folders_of_frames_become_arrays(tmp_path):
    for clip, frames in (("run/one", 3), ("walk/two.v2", 5)):
        for i in range(frames):
            put(tmp_path / "in" / clip / f"{i:02d}.png", numbered(i))
    summary = pack_source(tmp_path / "in", tmp_path / "out", video=True, resolution=4, channels=3)
    one, two = webdataset.WebDataset(str(summary.shards[0]), shardshuffle=False)
    assert (one["__key__"], one["cls"], two["cls"]) == ("run/one", b"0", b"1")
    clip = np.load(io.BytesIO(two["npy"]), allow_pickle=False)
    assert (clip.shape, clip.dtype) == ((5, 3, 4, 4), np.uint8)
    assert clip[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    put(tmp_path / "in" / "run" / "one" / "99.png", png(np.zeros((5, 5))))
    with pytest.raises(ValueError, match=r"frame 99\.png is 5×5.*--resolution"):
        pack_source(tmp_path / "in", tmp_path / "x", video=True)
    with pytest.raises(ValueError, match="holds frames itself"):
        pack_source(tmp_path / "in" / "run" / "one", tmp_path / "x", video=True)


def test_arrays_are_kept_and_never_pickles(tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "x.npy", np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2))
    (shard,) = pack_source(tmp_path / "in", tmp_path / "out").shards
    (sample,) = webdataset.WebDataset(str(shard), shardshuffle=False)
    assert sample["npy"] == (tmp_path / "in" / "x.npy").read_bytes()
    np.save(tmp_path / "in" / "evil.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"evil\.npy.*does not decode"):
        pack_source(tmp_path / "in", tmp_path / "x")


def test_video_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--video is for folders of frames"):
        pack_source("digits", tmp_path / "x", video=True)
    with pytest.raises(ValueError, match="digits is not ImageNet"):
        pack_source("digits", tmp_path / "x", classes=tmp_path)

"""Checking shards: what is damaged, missing or there twice is named, and what is sound is not."""

import io
import json
import os
import wave

import numpy as np
import pytest
from shard_helpers import numbered, png, real, write_shards, write_tar

from dgan.data import pack_source
from dgan.data.index import ShardError, read_index, scan, sidecar_path, write_index
from dgan.data.indexing import index_shards
from dgan.data.verify import verify_shards
from dgan.data.verify_report import as_json, as_lines


def kinds(report):
    return sorted((problem.kind, problem.key) for problem in report.problems)


def test_sound_shards_have_no_problem_and_are_counted(tmp_path):
    shards = pack_source("digits", tmp_path, samples_per_shard=700, limit=1500).shards
    seen = []
    report = verify_shards(
        shards, workers=2, progress=lambda done, total: seen.append((done, total))
    )
    assert report.problems == []
    assert list(report.samples.values()) == [700, 700, 100]
    assert report.shapes == {"png": {"8×8 grey": 1500}}
    assert sum(report.labels.values()) == 1500
    assert seen[-1] == (1500, 1500)
    lines = list(as_lines(report))
    assert lines[0].startswith("3 shards, 1,500 samples, ")
    assert any(line.startswith("      0 ") and "█" in line for line in lines)
    content = json.loads(json.dumps(as_json(report)))
    assert content["shards"][0]["sha256"] == report.checksums[shards[0]]
    assert content["classes"]["9"] == report.labels[9]


def test_everything_that_is_wrong_is_named(tmp_path):
    good = write_shards(tmp_path, [10, 10])
    cut = png(np.zeros((64, 64)))[:-30]
    bad = write_tar(
        tmp_path / "bad.tar",
        [
            ("00003.png", numbered(3)),  # the key is in the first shard too
            ("00003.cls", b"3"),
            ("cut.png", cut),
            ("cut.cls", b"1"),
            ("text.png", b"no image"),
            ("text.cls", b"one"),
            ("bare.png", numbered(1)),
            ("twice.png", numbered(1)),
            ("twice.cls", b"1"),
            ("between.png", numbered(1)),
            ("between.cls", b"1"),
            ("twice.jpg", numbered(1)),
            ("twice.cls", b"1"),
        ],
    )
    os.truncate(good[1], 4000)
    empty = write_tar(tmp_path / "empty.tar", [])
    report = verify_shards([*good, bad, empty])
    assert kinds(report) == [
        ("bad label", "text"),
        ("damaged shard", ""),
        ("does not decode", "cut"),
        ("does not decode", "text"),
        ("duplicate key", "00003"),
        ("duplicate key", "twice"),
        ("missing", ""),
        ("missing", "bare"),
    ]
    text = "\n".join(as_lines(report))
    assert "8 problems" in text
    assert "train-000001.tar" in text
    assert "1 of 7 samples have no cls, the first is 'bare'" in text


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path):
    (shard,) = pack_source("digits", tmp_path, limit=20).shards
    times = shard.stat()
    data = bytearray(shard.read_bytes())
    data[-20] ^= 1  # behind the end mark, where no sample lies
    shard.write_bytes(data)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    report = verify_shards([shard])
    assert kinds(report) == [("checksum", "")]
    (tmp_path / "train.pack.json").unlink()  # then nobody knows what it was
    assert verify_shards([shard]).problems == []


def test_an_index_that_says_other_labels_is_found(tmp_path):
    (shard,) = write_shards(tmp_path, [5])
    write_index(scan(shard), np.array([0, 1, 2, 9, 4]))
    (problem,) = verify_shards([shard]).problems
    assert (problem.kind, problem.key) == ("bad label", "00003")
    assert "the index says 9, the tar 3" in problem.what


def test_every_kind_of_field_is_looked_at(tmp_path):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((2, 2, 44100, 0, "NONE", ""))
        file.writeframes(bytes(400))
    array = io.BytesIO()
    np.save(array, np.zeros((2, 3), np.float32))
    fields = {
        "wav": buffer.getvalue(),
        "npy": array.getvalue(),
        "json": b"{}",
        "txt": b"hello",
        "mp4": b"-",
    }
    shard = write_tar(tmp_path / "x.tar", [(f"k.{name}", data) for name, data in fields.items()])
    report = verify_shards([shard])
    assert report.problems == []
    assert report.shapes["wav"] == {"44100 Hz, 2 channels, 16 bit": 1}
    assert report.shapes["npy"] == {"float32 [2, 3]": 1}
    assert report.unchecked == {"mp4"}
    wrong = [("k.wav", fields["wav"][:-1]), ("k.npy", b"-"), ("k.json", b"{"), ("k.txt", b"\xff")]
    report = verify_shards([write_tar(tmp_path / "y.tar", wrong)])
    assert kinds(report) == [("does not decode", "k")] * 4


# --- the index


def test_indexes_are_written_for_any_tar(tmp_path):
    shards = write_shards(tmp_path, [30, 20])
    done = list(index_shards(shards, workers=2))
    assert [(one.samples, one.labelled) for one in done] == [(30, True), (20, True)]
    for shard in shards:
        index, bare = read_index(shard), scan(shard)
        assert index.labels is not None
        assert index.labels.tolist() == [int(index.key(row)) % 10 for row in range(len(index))]
        assert (index.offsets == bare.offsets).all()
        assert sidecar_path(shard).is_file()


def test_labels_that_are_damaged_or_missing(tmp_path):
    bad = write_tar(tmp_path / "bad.tar", [("a.cls", b"x"), ("b.cls", b"7")])
    none = write_tar(tmp_path / "none.tar", [("a.png", b"-"), ("a.cls", b"1"), ("b.png", b"-")])
    list(index_shards([bad, none], workers=1))
    labels = read_index(bad).labels
    assert labels is not None
    assert labels.tolist() == [-1, 7]
    assert read_index(none).labels is None


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_shard_gets_no_index(tmp_path, workers):
    shards = write_shards(tmp_path, [10, 10, 10])
    os.truncate(shards[1], 3000)
    with pytest.raises(ShardError, match=r"train-000001\.tar"):
        list(index_shards(shards, workers=workers))
    assert sidecar_path(shards[0]).is_file()
    assert not sidecar_path(shards[1]).exists()


def test_real_images_are_sound():
    report = verify_shards([real("imagenet-1k-samples") / "imagenet-1k-samples-000000.tar"])
    assert report.problems == []
    assert len(report.labels) == sum(report.samples.values()) == 250

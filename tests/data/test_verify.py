"""Checking shards: what is damaged, missing or there twice is named, and what is sound is not."""

import errno
import hashlib
import io
import json
import os
import sys
import wave

import numpy as np
import pytest
from shard_helpers import numbered, png, real, write_shards, write_tar
from web_server import Fault, Server, serving

from dgan.data import ShardDataset, pack_source
from dgan.data.index import (
    ShardError,
    parse_index,
    read_index,
    scan,
    sidecar_path,
    write_index,
)
from dgan.data.indexing import Indexer, index_shards
from dgan.data.location import Identity, Location, Url
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
    (problem,) = verify_shards([shard]).problems
    assert (problem.kind, "not as it was packed" in problem.what) == ("checksum", True)
    (tmp_path / "train.pack.json").unlink()  # the index knows too
    (problem,) = verify_shards([shard]).problems
    assert (problem.kind, "not as it was indexed" in problem.what) == ("checksum", True)
    sidecar_path(shard).unlink()  # then nobody knows what it was
    assert verify_shards([shard]).problems == []


def test_a_checksum_is_compared_whatever_the_time_of_the_file(tmp_path):
    shards = write_shards(tmp_path, [20, 20, 20])
    list(index_shards(shards, Indexer(checksums=True), workers=2))
    for shard in shards:
        assert read_index(shard).sha256 == hashlib.sha256(shard.read_bytes()).hexdigest()
    os.utime(shards[0], ns=(1, 1))  # as after a copy
    data = bytearray(shards[1].read_bytes())
    data[-20] ^= 1
    shards[1].write_bytes(data)
    shards[2].write_bytes(shards[2].read_bytes() + bytes(512))
    report = verify_shards(shards)
    assert [problem.shard for problem in report.problems] == list(map(str, shards[1:]))
    assert kinds(report) == [("checksum", "")] * 2
    list(index_shards(shards, workers=1))  # anew, without checksums
    assert read_index(shards[1]).sha256 is None
    assert verify_shards(shards).problems == []


def test_indexes_with_and_without_a_checksum_are_read(tmp_path):
    (shard,) = write_shards(tmp_path, [5])
    list(index_shards([shard], Indexer(checksums=True)))
    content = json.loads(sidecar_path(shard).read_text())
    del content["sha256"]  # as indexes were before there were checksums
    sidecar_path(shard).write_text(json.dumps(content))
    index = read_index(shard)
    assert (index.sha256, index.labels is None) == (None, False)
    for wrong in ("x", 5, ["a"], "A" * 64):
        sidecar_path(shard).write_text(json.dumps({**content, "sha256": wrong}))
        assert read_index(shard).labels is None  # that is, from the headers


def test_audio_is_decoded_to_its_end_where_that_can_be(tmp_path, monkeypatch):
    soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(-9999, 9999, 20_000).astype(np.int16)
    soundfile.write(buffer, noise, 8_000, format="FLAC")
    sound = buffer.getvalue()
    at = len(sound) // 2  # in a frame: its header says nothing of it
    damaged = sound[:at] + bytes([sound[at] ^ 8]) + sound[at + 1 :]
    shard = write_tar(tmp_path / "x.tar", [("0.flac", sound), ("1.flac", damaged)])
    report = verify_shards([shard])
    assert kinds(report) == [("does not decode", "1")]
    assert report.shapes == {"flac": {"8000 Hz, 1 channel, 16 bit": 1}}
    assert not report.unchecked
    monkeypatch.setitem(sys.modules, "soundfile", None)  # as where it is not installed
    report = verify_shards([shard])
    assert (report.problems, report.unchecked) == ([], {"flac"})


def test_an_index_that_says_other_places_is_found(tmp_path):
    (shard,) = write_shards(tmp_path, [5])
    index = scan(shard)
    index.offsets[3, 0] += 1
    write_index(index)
    (problem,) = verify_shards([shard]).problems
    assert (problem.kind, "index it anew" in problem.what) == ("wrong index", True)


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


# --- shards behind a server


def urls(server: Server, count: int) -> list[Location]:
    return [Url(f"{server.url}/train-{i:06d}.tar") for i in range(count)]


def test_shards_behind_a_server_are_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("DGAN_CACHE", str(tmp_path / "cache"))
    shards = write_shards(tmp_path, [20, 20, 20, 20])
    list(index_shards(shards[:3], Indexer(checksums=True)))
    with serving(tmp_path) as server:
        there = urls(server, 4)
        report = verify_shards(there)
        assert report.problems == []
        assert dict(report.labels) == dict.fromkeys(range(10), 8)
        assert [report.checksums[url] for url in there] == [
            hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards
        ]
        data = shards[0].read_bytes()
        at = data.index(b"IDAT") + 10
        shards[0].write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        index = read_index(shards[1])
        assert index.labels is not None
        write_index(index, index.labels[::-1])  # as if it were another shard's
        os.truncate(shards[2], 3000)
        shards[3].unlink()
        report = verify_shards(there)
    assert [(problem.kind, problem.shard) for problem in report.problems] == [
        ("checksum", str(there[0])),
        ("does not decode", str(there[0])),
        ("checksum", str(there[2])),
        ("damaged shard", str(there[2])),
        ("damaged shard", str(there[3])),
    ]
    assert "truncated" in report.problems[3].what
    assert "there is no such shard" in report.problems[4].what
    assert as_json(report)["shards"][3]["bytes"] is None
    assert any("5 problems" in line for line in as_lines(report))
    assert not (tmp_path / "cache").exists()  # it is the server's bytes that are checked


@pytest.mark.parametrize(
    "fault", [Fault("plain"), Fault("reset", times=3), Fault("status", times=3, whole=False)]
)
def test_what_passes_is_no_problem(tmp_path, monkeypatch, fault):
    monkeypatch.setattr("dgan.data.whole._PIECE", 1 << 14)
    monkeypatch.setattr("dgan.data.remote_index._WINDOW", 1 << 12)
    shards, fault = write_shards(tmp_path, [20]), Fault(**vars(fault))
    with serving(tmp_path, fault) as server:
        report = verify_shards(urls(server, 1))
        assert report.problems == []
        assert fault.times <= 0
        indexer = Indexer(tmp_path / "out")
        (done,) = index_shards(urls(server, 1), indexer)
    assert (done.samples, done.labelled) == (20, True)
    content = (tmp_path / "out" / "train-000000.tar.index.json").read_bytes()
    size = shards[0].stat().st_size
    index = parse_index(shards[0], Identity(size, ""), content, any_tag=True)
    assert index is not None
    assert (index.offsets == scan(shards[0]).offsets).all()


@pytest.mark.parametrize("faults", [[], [Fault("plain")]])
def test_a_full_disk_is_no_damaged_shard(tmp_path, monkeypatch, faults):
    monkeypatch.setattr("dgan.data.whole._PIECE", 1 << 14)
    write_shards(tmp_path, [20])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with serving(tmp_path, *faults) as server:
        with pytest.raises(OSError, match=r"does not take .*tar \(No space left .*TMPDIR"):
            verify_shards(urls(server, 1))
        assert len(server.requests) < 9  # nobody asked the server to mend it


def test_an_index_made_over_the_network_is_believed_there(tmp_path, monkeypatch):
    monkeypatch.setenv("DGAN_CACHE", str(tmp_path / "cache"))
    shards = write_shards(tmp_path, [40, 40])
    with serving(tmp_path) as server:
        there = urls(server, 2)
        with pytest.raises(ValueError, match=r"train-000000\.tar cannot be written .*--out"):
            index_shards(there)
        with pytest.raises(ValueError, match=r"two of the shards would have the index .*000000"):
            index_shards([shards[0], there[0]], Indexer(tmp_path / "x"))
        assert server.requests == []
        list(index_shards(there, Indexer(out=tmp_path)))  # that is, beside the shards
        asked = len(server.asked())
        with ShardDataset([url.address for url in there if isinstance(url, Url)]) as dataset:
            assert dataset.labels.tolist() == [i % 10 for i in range(80)]
        assert len(server.asked()) == asked  # no header was read
    assert scan(shards[0]).keys.tolist() == read_index(shards[0]).keys.tolist()


def test_real_images_are_sound():
    report = verify_shards([real("imagenet-1k-samples") / "imagenet-1k-samples-000000.tar"])
    assert report.problems == []
    assert len(report.labels) == sum(report.samples.values()) == 250

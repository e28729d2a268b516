"""Packing: going on after an interruption, shards by size, splits by hash, keys, workers."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset
from shard_helpers import numbered, png, write_tar

from dgan.data import ShardDataset, pack_source
from dgan.data.index import read_index
from dgan.data.items import path_key
from dgan.data.splits import HashSplits


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    for i in range(60):
        file = folder / f"class{i % 3}" / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(numbered(i))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.tar"))}


def keys(folder: Path, pattern: str) -> list[str]:
    indexes = [read_index(shard) for shard in sorted(folder.glob(pattern))]
    return [index.key(row) for index in indexes for row in range(len(index))]


class Stop(Exception):
    pass


def stop_at(samples: int):
    def progress(done: int, total: int | None) -> None:
        assert total == 60
        if done == samples:
            raise Stop

    return progress


# --- interruptions


@pytest.mark.parametrize("split_by_hash", [None, "60/20/20"])
def test_a_pack_that_was_cut_off_goes_on(tmp_path, pictures, split_by_hash):
    options = {"samples_per_shard": 7, "split_by_hash": split_by_hash, "encoding": "png"}
    whole = pack_source(pictures, tmp_path / "whole", **options)
    assert whole.kept == 0
    out = tmp_path / "out"
    with pytest.raises(Stop):
        pack_source(pictures, out, **options, progress=stop_at(31))
    assert not list(out.glob("*.tar"))  # a part never looks like a small data set
    (aside,) = out.iterdir()
    complete = {p: p.stat().st_mtime_ns for p in aside.glob("*.tar")}
    assert complete
    assert not list(aside.glob("*.partial"))
    resumed = pack_source(pictures, out, **options, workers=2)
    assert resumed.kept == len(complete)
    for path, time in complete.items():
        assert (out / path.name).stat().st_mtime_ns == time  # not written again
    assert contents(out) == contents(tmp_path / "whole")
    assert resumed.splits == whole.splits
    assert not aside.exists()


def test_a_killed_pack_goes_on_with_what_was_left_out(tmp_path, pictures):
    for name in ("class0/003.png", "class2/050.png"):
        (pictures / name).write_bytes(b"broken")
    options = {"samples_per_shard": 10, "skip_corrupt": True}
    out = tmp_path / "out"
    if (child := os.fork()) == 0:  # no handler runs: as after kill -9
        pack_source(
            pictures, out, **options, progress=lambda done, _: os._exit(9) if done == 45 else None
        )
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert list(out.glob(".packing-train/*.partial"))
    summary = pack_source(pictures, out, **options)
    assert (summary.samples, summary.kept) == (58, 4)
    assert sorted(line.partition(":")[0][-14:] for line in summary.skipped) == [
        "class0/003.png",
        "class2/050.png",
    ]
    assert len(set(keys(out, "*.tar"))) == 58


def test_an_unfinished_pack_of_something_else_is_refused(tmp_path, pictures):
    out = tmp_path / "out"
    with pytest.raises(Stop):
        pack_source(pictures, out, samples_per_shard=10, progress=stop_at(25))
    with pytest.raises(ValueError, match=r"samples_per_shard was 10 and is 9.*--overwrite"):
        pack_source(pictures, out, samples_per_shard=9)
    with pytest.raises(ValueError, match=r"source was .* and is 'digits'"):
        pack_source("digits", out, samples_per_shard=10)
    assert len(list(out.glob(".packing-train/*.tar"))) == 2  # it may still be finished
    (pictures / "class0" / "000.png").unlink()
    with pytest.raises(ValueError, match="has changed since this pack"):
        pack_source(pictures, out, samples_per_shard=10)
    assert pack_source(pictures, out, samples_per_shard=9, overwrite=True).samples == 59


def test_the_same_pack_again_writes_nothing(tmp_path, pictures):
    first = pack_source(pictures, tmp_path / "out", resolution=4)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    again = pack_source(pictures, tmp_path / "out", resolution=4)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    assert (again.samples, again.shards, again.kept) == (first.samples, first.shards, 1)
    with pytest.raises(FileExistsError, match="resolution was 4 and is None"):
        pack_source(pictures, tmp_path / "out")
    assert not list((tmp_path / "out").glob(".packing*"))  # a refusal leaves no trace
    first.shards[0].unlink()  # not all there any more
    assert pack_source(pictures, tmp_path / "out", resolution=4).kept == 0


def test_a_publication_that_was_cut_off_is_finished(tmp_path, pictures):
    out = tmp_path / "out"
    pack_source(pictures, out, samples_per_shard=20)
    whole = contents(out)
    aside = out / ".packing-train"
    aside.mkdir()
    for name in ("train-000002.tar", "train-000002.tar.index.json"):
        (out / name).rename(aside / name)
    (out / "train.pack.json").rename(aside / "journal.json")
    assert pack_source(pictures, out, samples_per_shard=20).samples == 60
    assert contents(out) == whole


# --- shards


def test_shards_by_size_never_exceed_it(tmp_path, pictures):
    summary = pack_source(pictures, tmp_path / "out", shard_megabytes=0.03)
    sizes = [shard.stat().st_size for shard in summary.shards]
    assert len(sizes) > 2
    assert max(sizes) <= 30_000
    assert min(sizes[:-1]) > 15_000
    assert summary.samples == len(ShardDataset(summary.shards)) == 60
    for wrong in ({"shard_megabytes": 0}, {"samples_per_shard": 0}, {"workers": 0}, {"limit": 0}):
        with pytest.raises(ValueError, match=r"at least 1|positive"):
            pack_source(pictures, tmp_path / "x", **wrong)


def test_workers_change_nothing(tmp_path, pictures):
    for workers in (1, 3):
        out = tmp_path / str(workers)
        pack_source(pictures, out, resolution=6, samples_per_shard=25, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


@pytest.mark.parametrize(("encoding", "field"), [("png", "png"), ("jpg", "jpg"), ("webp", "webp")])
def test_what_changes_is_encoded_as_asked(tmp_path, pictures, encoding, field):
    (shard,) = pack_source(pictures, tmp_path / "out", resolution=4, encoding=encoding).shards
    assert read_index(shard).fields == (field, "cls")
    (kept,) = pack_source(pictures, tmp_path / "kept", encoding=encoding).shards
    assert read_index(kept).fields == ("png", "cls")  # as they were


def test_keep_leaves_every_size_and_byte(tmp_path, pictures):
    wide = png(np.zeros((3, 9, 4)))  # with transparency, which would be dropped
    (pictures / "class0" / "wide.png").write_bytes(wide)
    with pytest.raises(ValueError, match=r"--resolution.*--encoding keep"):
        pack_source(pictures, tmp_path / "out")
    (shard,) = pack_source(pictures, tmp_path / "out", encoding="keep").shards
    assert wide in shard.read_bytes()
    with pytest.raises(ValueError, match="'keep' leaves pictures as they are"):
        pack_source(pictures, tmp_path / "x", encoding="keep", resolution=8)
    with pytest.raises(ValueError, match="holds arrays"):
        pack_source("digits", tmp_path / "x", encoding="keep")
    (pictures / "x.bmp").write_bytes(b"BM")
    with pytest.raises(ValueError, match=r"x\.bmp"):
        pack_source(pictures, tmp_path / "x", encoding="keep")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 100_000])  # Pillow warns of one and refuses the other
def test_a_bomb_is_refused(tmp_path, side):
    (tmp_path / "in").mkdir()
    data = png(np.zeros((4, 4)))
    at = data.index(b"IHDR")
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + data[at + 12 : at + 17]
    whole = data[:at] + header + zlib.crc32(header).to_bytes(4, "big") + data[at + 21 :]
    (tmp_path / "in" / "bomb.png").write_bytes(whole)
    for encoding in ("png", "keep"):
        with pytest.raises(ValueError, match=r"bomb\.png: .*pixels"):
            pack_source(tmp_path / "in", tmp_path / "out", encoding=encoding)


# --- keys and splits


def test_keys_come_from_paths_and_never_collide(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    stems = ("a", "b.c", "b_c", "ü", "__m__", "-", "x" * 180)
    names = ["a.jpg", *(f"{stem}.png" for stem in stems)]
    for name in names:
        (folder / name).write_bytes(numbered(3))
    summary = pack_source(folder, tmp_path / "out")
    found = keys(tmp_path / "out", "*.tar")
    assert len(set(found)) == len(names) == summary.samples
    assert {"a", "b_c"} <= set(found)
    read = webdataset.WebDataset(str(summary.shards[0]), shardshuffle=False)
    assert [sample["__key__"] for sample in read] == found
    assert path_key(Path("../../x.png")).startswith("x-")


def test_no_sample_changes_its_split_as_data_grows(tmp_path, pictures):
    options = {"split_by_hash": "50/25/25", "samples_per_shard": 9}
    summary = pack_source(pictures, tmp_path / "small", **options)
    assert set(summary.splits) == {"train", "validation", "test"}
    assert sum(summary.splits.values()) == 60
    for i in range(60, 120):
        (pictures / f"class{i % 3}" / f"0{i:03d}.png").write_bytes(numbered(i))
    pack_source(pictures, tmp_path / "large", **options)
    small, large = (
        {split: set(keys(tmp_path / out, f"{split}-*.tar")) for split in summary.splits}
        for out in ("small", "large")
    )
    assert all(small[split] < large[split] for split in small)
    assert sum(map(len, large.values())) == 120


def test_shares_are_as_asked_and_add_up():
    splits = HashSplits.parse("90/0/10")
    found = [splits.of(f"{i}") for i in range(5000)]
    assert splits.names == ("train", "test")
    assert set(found) == {"train", "test"}
    assert found.count("test") == pytest.approx(500, abs=80)
    for wrong in ("90/10", "90/5/6", "a/b/c", "110/-5/-5", "nan/0/100"):
        with pytest.raises(ValueError, match="as in 90/5/5"):
            HashSplits.parse(wrong)


def test_shards_are_packed_again_with_all_they_hold(tmp_path):
    samples = [(f"s{i}", numbered(i), f"text {i}".encode()) for i in range(8)]
    for part in range(2):
        members = []
        for i, (key, image, text) in enumerate(samples[part * 4 : part * 4 + 4]):
            members += [(f"{key}.png", image), (f"{key}.txt", text), (f"{key}.cls", b"%d" % i)]
        write_tar(tmp_path / f"in-{part}.tar", members)
    summary = pack_source(f"{tmp_path}/in-{{0..1}}.tar", tmp_path / "out", resolution=4)
    dataset = ShardDataset(summary.shards, fields=["txt"])
    assert [(s["__key__"], s["txt"], s["label"]) for s in dataset] == [
        (f"s{i}", f"text {i}", i % 4) for i in range(8)
    ]
    for part in range(2):  # numbered anew in each: the shard's name tells them apart
        write_tar(tmp_path / f"in-{part}.tar", [("0.png", numbered(1))])
    pack_source(f"{tmp_path}/in-{{0..1}}.tar", tmp_path / "twice")
    assert keys(tmp_path / "twice", "*.tar") == ["in-0/0", "in-1/0"]


def test_the_journal_says_what_was_packed(tmp_path, pictures):
    pack_source(pictures, tmp_path / "out", samples_per_shard=40)
    journal = json.loads((tmp_path / "out" / "train.pack.json").read_text())
    assert journal["classes"] == ["class0", "class1", "class2"]
    assert [record["facts"]["samples"] for record in journal["shards"]] == [40, 20]
    assert journal["asked"]["source"] == str(pictures)

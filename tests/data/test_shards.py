import io
import json
import os
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image
from shard_helpers import numbered, png, write_tar

from dgan.data import ShardDataset, expand
from dgan.data.index import MAX_MEMBER_BYTES, ShardError, read_index, scan, sidecar_path
from dgan.data.shards import Sample, pack


def samples(n: int, size: int = 8) -> list[Sample]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n, size, size), dtype=np.uint8)
    return [Sample(f"{i:04d}", image, i % 3) for i, image in enumerate(images)]


# --- which shards a pattern names


def test_expand_understands_braces_globs_and_lists(tmp_path, shards):
    assert expand(f"{tmp_path}/train-{{000000..000002}}.tar") == shards
    assert expand(f"{tmp_path}/train-*.tar") == shards
    assert expand([shards[1], str(shards[0])]) == [shards[1], shards[0]]


@pytest.mark.parametrize("pattern", ["train-{000000..000003}.tar", "val-*.tar", "gone.tar"])
def test_a_missing_shard_is_named_with_a_hint(tmp_path, shards, pattern):
    with pytest.raises(FileNotFoundError, match="dgan data pack") as error:
        expand(str(tmp_path / pattern))
    assert pattern in str(error.value)


@pytest.mark.parametrize("url", ["pipe:cat x.tar", "s3://b/x.tar", "http://h/x.tar", "file:x.tar"])
def test_pipes_and_addresses_are_refused(url):
    with pytest.raises(ValueError, match="only local shards so far"):
        expand(url)


def test_what_else_expand_refuses(tmp_path, shards):
    with pytest.raises(ValueError, match="no shards are named"):
        expand([])
    with pytest.raises(ValueError, match="named twice"):
        expand([shards[0], shards[0]])
    with pytest.raises(ValueError, match="is a folder"):
        expand(tmp_path)
    with pytest.raises(ValueError, match="braces"):
        expand("train-{000000..000003.tar")


# --- packing


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for out in ("a", "b"):
        summary = pack(samples(25), tmp_path / out, samples_per_shard=10)
    names = [f"train-00000{i}.tar" for i in range(3)]
    assert [shard.name for shard in summary.shards] == names
    assert (summary.samples, summary.classes, summary.resolution, summary.channels) == (25, 3, 8, 1)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len(list((tmp_path / "a").iterdir())) == 7  # shards, indexes, the journal: no more


def test_webdataset_reads_what_pack_wrote(tmp_path):
    given = samples(7)
    summary = pack(given, tmp_path)
    read = list(webdataset.WebDataset(str(summary.shards[0]), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [sample.key for sample in given]
    for wrote, sample in zip(given, read):
        assert (np.asarray(Image.open(io.BytesIO(sample["png"]))) == wrote.image).all()
        assert int(sample["cls"]) == wrote.label


def test_what_webdataset_wrote_is_read(tmp_path):
    given = samples(12)
    with webdataset.ShardWriter(str(tmp_path / "w-%06d.tar"), maxcount=5, verbose=0) as writer:
        for key, image, label in given:
            writer.write({"__key__": key, "png": image, "cls": label, "json": {"of": key}})
    dataset = ShardDataset(f"{tmp_path}/w-*.tar", fields=["json"])
    assert len(dataset) == 12
    for wrote, sample in zip(given, dataset):
        assert sample["__key__"] == wrote.key
        assert (sample["image"][0].numpy() == wrote.image).all()
        assert sample["label"] == wrote.label
        assert sample["json"] == {"of": wrote.key}


def test_pack_leaves_shards_that_are_there_alone(tmp_path):
    pack(samples(25), tmp_path, samples_per_shard=10)
    with pytest.raises(FileExistsError, match="already has 3 shards"):
        pack(samples(5), tmp_path)
    pack(samples(5), tmp_path, split="test")
    pack(samples(5), tmp_path, overwrite=True)
    assert len(ShardDataset(f"{tmp_path}/train-*.tar")) == 5  # and none of the old ones is left
    assert not (tmp_path / "train-000001.tar.index.json").exists()


def test_a_pack_that_fails_leaves_what_was_there(tmp_path):
    pack(samples(5), tmp_path)
    before = (tmp_path / "train-000000.tar").read_bytes()
    with pytest.raises(ValueError, match="8×8"):
        pack([*samples(9), samples(1, size=9)[0]._replace(key="x")], tmp_path, overwrite=True)
    assert (tmp_path / "train-000000.tar").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "train-000000.tar",
        "train-000000.tar.index.json",
        "train.pack.json",
    ]


@pytest.mark.parametrize("key", ["/etc/x", "../x", "a/../b", "a.b", "", "a\nb", "..", "a\\b"])
def test_keys_that_are_no_names_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match="not fit to be a name"):
        pack([Sample(key, np.zeros((4, 4), np.uint8))], tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no sample to pack"),
        ([samples(1)[0], samples(1)[0]], "there twice"),
        ([samples(2)[0], samples(2)[1]._replace(label=None)], "no label"),
    ],
)
def test_samples_that_do_not_fit_together_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        pack(content, tmp_path)


# --- the index


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar_is_read(tmp_path, format):
    long = "d" * 60 + "/" + "n" * (60 if format == tarfile.USTAR_FORMAT else 160)
    members = [
        ("a.PNG", b"1234"),
        ("a.cls", b"7"),
        (f"{long}.a.png", b"56"),
        (f"{long}.b.png", b""),
    ]
    tar = write_tar(
        tmp_path / "x.tar", [("readme", b"-"), ("__m__/x.json", b"{}"), *members], format
    )
    index = scan(tar)
    assert index.fields == ("png", "cls", "a.png", "b.png")
    assert [index.key(row) for row in range(len(index))] == ["a", long]
    assert index.sizes.tolist() == [[4, 1, -1, -1], [-1, -1, 2, 0]]
    data = tar.read_bytes()
    assert data[index.offsets[0, 0] :][:4] == b"1234"
    assert data[index.offsets[1, 2] :][:2] == b"56"


def test_the_sidecar_agrees_and_is_used_only_while_it_is_true(tmp_path):
    (shard,) = pack(samples(6), tmp_path).shards
    quick, slow = read_index(shard), scan(shard)
    assert quick.labels is not None
    assert slow.labels is None
    assert (quick.offsets == slow.offsets).all()
    assert (quick.sizes == slow.sizes).all()
    assert (quick.keys == slow.keys).all()
    size = shard.stat().st_size
    write_tar(shard, [(f"other{i}.png", numbered(i)) for i in range(6)])
    os.truncate(shard, size)  # as long as before: only its time tells
    assert read_index(shard).key(0) == "other0"


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": 99}', "bounds", ""])
def test_a_damaged_sidecar_is_ignored(tmp_path, damage):
    (shard,) = pack(samples(6), tmp_path).shards
    sidecar = sidecar_path(shard)
    if damage == "bounds":
        content = json.loads(sidecar.read_text())
        content["sizes"] = [[1 << 40, 1]] * 6
        damage = json.dumps(content)
    sidecar.write_text(damage)
    assert read_index(shard).labels is None  # that is, from the headers
    assert len(ShardDataset(shard).labels) == 6


def odd_member(path, **attributes):
    with tarfile.open(path, "w") as tar:
        good = tarfile.TarInfo("good.png")
        tar.addfile(good)
        odd = tarfile.TarInfo("odd.png")
        for name, value in attributes.items():
            setattr(odd, name, value)
        tar.addfile(odd)
    return path


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a link"),
        ({"type": tarfile.LNKTYPE, "linkname": "good.png"}, "a link"),
        ({"type": tarfile.CHRTYPE}, "a device"),
        ({"type": tarfile.FIFOTYPE}, "a device"),
        ({"type": tarfile.GNUTYPE_SPARSE}, "sparse"),
        ({"name": "/abs.png"}, "absolute"),
        ({"name": "a/../../up.png"}, r"'\.\.'"),
        ({"size": MAX_MEMBER_BYTES + 1}, "claims"),
        ({"size": 500_000}, "truncated"),
    ],
)
def test_members_that_are_refused(tmp_path, attributes, reason):
    path = odd_member(tmp_path / "bad.tar", **attributes)
    with pytest.raises(ShardError, match=reason) as error:
        scan(path)
    assert "bad.tar" in str(error.value)
    assert str(attributes.get("name", "odd.png")) in str(error.value)


@pytest.mark.parametrize("keep", [100, 700, 1300, 2048, 3000])
def test_a_truncated_tar_is_named(tmp_path, keep):
    path = write_tar(tmp_path / "cut.tar", [(f"{i}.bin", bytes(512)) for i in range(8)])
    os.truncate(path, keep)
    with pytest.raises(ShardError, match=r"cut\.tar.*(truncated|not a readable tar)"):
        scan(path)


def test_a_tar_with_a_broken_header_loses_no_sample_silently(tmp_path):
    path = write_tar(tmp_path / "broken.tar", [(f"{i}.bin", bytes(512)) for i in range(8)])
    data = bytearray(path.read_bytes())
    data[2 * 1024 + 150] ^= 0xFF  # in the checksum of the third header
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"broken\.tar.*corrupt"):
        scan(path)


def test_files_that_are_no_tars(tmp_path):
    (tmp_path / "no.tar").write_bytes(b"hello" * 300)
    (tmp_path / "gz.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(ShardError, match=r"no\.tar: not a readable tar"):
        scan(tmp_path / "no.tar")
    with pytest.raises(ShardError, match="compressed"):
        scan(tmp_path / "gz.tar")


def test_the_same_field_twice_is_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.png", b"1"), ("a.png", b"2")])
    with pytest.raises(ShardError, match="twice"):
        scan(path)
    path = write_tar(tmp_path / "y.tar", [("a.png", png(np.zeros((4, 4)))), ("a.jpg", b"2")])
    with pytest.raises(ValueError, match="several images"):
        ShardDataset(path)

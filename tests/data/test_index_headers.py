"""Headers of tars, read as Python's tarfile and webdataset do; what is damaged is always told."""

import io
import os
import random
import tarfile
import tracemalloc
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import webdataset
from shard_helpers import write_tar
from webdataset.tariterators import base_plus_ext

from dgan.data.index import MAX_MEMBER_BYTES, ShardError, scan, scan_tar, split_name
from dgan.data.tar import Member, Read, TarError, read_members

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
LETTERS = "abcXYZ019-_ é中😀\udcff"
UTF_8 = "utf-8", "surrogateescape"


def reader(file: io.BytesIO) -> Read:
    return lambda offset, size: file.getbuffer()[offset : offset + size].tobytes()


def members_of(data: bytes) -> list[Member]:
    return list(read_members(reader(io.BytesIO(data)), len(data)))


def reference(data: bytes) -> list[tuple[str, str, int, int]]:
    """What Python's tarfile finds."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            kind = "special"
            if member.issparse():
                kind = "sparse"
            elif member.isreg():
                kind = "file"
            elif member.isdir():
                kind = "directory"
            elif member.issym() or member.islnk():
                kind = "link"
            found.append((member.name, kind, member.offset_data, member.size))
    return found


def some_name(draw: random.Random, format: int, length: int) -> str:
    letters = LETTERS if format != tarfile.USTAR_FORMAT else "abcXYZ019-_é"
    parts = []
    while length > 0:
        part = "".join(draw.choices(letters, k=min(length, draw.randint(1, 60))))
        parts.append(part)
        length -= len(part) + 1
    return "/".join(parts) + draw.choice(["", ".png", ".CLS", ".a.b.jpg", "."])


def some_tar(draw: random.Random, format: int) -> bytes:
    """A tar of any members: long and strange names, folders, links, empty ones, huge numbers."""
    file = io.BytesIO()
    comment = {"comment": "né=à\n"} if format == tarfile.PAX_FORMAT and draw.random() < 0.3 else {}
    with tarfile.open(
        fileobj=file, mode="w", format=format, pax_headers=comment, errors="surrogateescape"
    ) as tar:
        for _ in range(draw.randint(1, 12)):
            longest = 60 if format == tarfile.USTAR_FORMAT else 300
            info = tarfile.TarInfo(some_name(draw, format, draw.randint(1, longest)))
            kinds = [tarfile.REGTYPE] * 8 + [tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE]
            # Some tarfiles take this type with a long name for a directory.
            kinds += [tarfile.FIFOTYPE, *[tarfile.AREGTYPE] * (len(info.name.encode(*UTF_8)) < 90)]
            info.type = draw.choice(kinds)
            info.linkname = some_name(draw, format, 30) if info.issym() else ""
            info.size = draw.choice([0, 1, 511, 512, 513, draw.randint(0, 3000)])
            info.size *= info.isreg()
            info.mtime = draw.choice([0, 1.5, 2**33]) if format != tarfile.USTAR_FORMAT else 7
            if format == tarfile.PAX_FORMAT and draw.random() < 0.2:
                info.pax_headers = {"SCHILY.xattr.user.x": "=" * draw.randint(0, 700)}
                info.pax_headers |= {"size": str(info.size)} if draw.random() < 0.5 else {}
            tar.addfile(info, io.BytesIO(draw.randbytes(info.size)))
    return file.getvalue() + bytes(512 * draw.randint(0, 30))


@pytest.mark.parametrize("format", FORMATS)
def test_members_are_those_of_tarfile(format):
    draw, seen = random.Random(format), set()
    for _ in range(150):
        data = some_tar(draw, format)
        found = members_of(data)
        assert [tuple(member) for member in found] == reference(data)
        seen |= {member.kind for member in found}
    assert seen == {"file", "directory", "link", "special"}


def test_what_only_other_programs_write():
    """Numbers to the base of 256, pax sizes, headers for all members, V7's folders, old sums."""
    body = b"x" * 700 + bytes(324)
    plain = tarfile.TarInfo("a.bin")
    plain.size = 700
    based = bytearray(plain.tobuf(tarfile.GNU_FORMAT))
    based[124:136] = b"\x80" + (700).to_bytes(11, "big")
    larger = tarfile.TarInfo("b.bin")
    larger.pax_headers = {"size": "700", "path": "lönger/" * 30 + "b.bin"}
    for_all = tarfile.TarInfo.create_pax_global_header({"comment": "0123"})
    v7 = bytearray(tarfile.TarInfo("folder/").tobuf(tarfile.USTAR_FORMAT))
    v7[156:157] = b"\0"
    signed = tarfile.TarInfo("é.bin")
    signed.size = 700
    signed = bytearray(signed.tobuf(tarfile.GNU_FORMAT))
    negative = sum(b - 256 * (b > 127) for b in signed[:148] + b" " * 8 + signed[156:])
    signed[148:156] = b"%06o\0 " % negative
    parts = [summed(based), body, for_all, larger.tobuf(tarfile.PAX_FORMAT), body, summed(v7)]
    data = b"".join([*parts, bytes(signed), body, bytes(1024)])
    found = members_of(data)
    assert [member.name for member in found] == [
        "a.bin", "lönger/" * 30 + "b.bin", "folder", "é.bin",
    ]  # fmt: skip
    assert [member.size for member in found] == [700, 700, 0, 700]
    assert [tuple(member) for member in found] == reference(data)
    assert all(data[m.offset :][: m.size] == b"x" * m.size for m in found)


def test_what_a_header_says_of_all_members_that_follow():
    one = tarfile.TarInfo("a.bin").tobuf(tarfile.USTAR_FORMAT)
    names = tarfile.TarInfo.create_pax_global_header({"path": "all.bin"})
    data = one + names + one + one + bytes(1024)
    assert [member.name for member in members_of(data)] == ["a.bin", "all.bin", "all.bin"]
    assert [tuple(member) for member in members_of(data)] == reference(data)
    sizes = tarfile.TarInfo.create_pax_global_header({"size": "600"})
    data = sizes + (one + b"x" * 600 + bytes(424)) * 2 + bytes(1024)
    assert [member.size for member in members_of(data)] == [600, 600]


def summed(header: bytearray) -> bytes:
    """`header` with its checksum set right."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("size", [2**33, 2**62, 2**80])
def test_sizes_beyond_the_tar_are_claims(size):
    info = tarfile.TarInfo("a.bin")
    info.size = size
    data = info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    with pytest.raises(TarError, match="truncated"):
        members_of(data)
    with pytest.raises(ShardError, match=f"'a.bin' claims {size:,} bytes"):
        scan_tar(reader(io.BytesIO(data)), Path("x.tar"), len(data))


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_a_header_for_a_header_may_not_be_endless(kind):
    for size in (2**21, 2**40, -1):
        info = tarfile.TarInfo("././@LongLink")
        info.size, info.type = size, kind
        data = info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
        with pytest.raises(TarError, match="claims"):
            members_of(data)
    info.size = 300
    one = info.tobuf(tarfile.GNU_FORMAT) + b"9 path=x\n".ljust(512, b"\0")
    with pytest.raises(TarError, match="inside a header"):
        members_of(one[:700])
    with pytest.raises(TarError, match="truncated"):
        members_of(one)
    last = tarfile.TarInfo("last").tobuf(tarfile.GNU_FORMAT)
    assert len(members_of(one * 5000 + last + bytes(512))) == 1  # where tarfile recurses
    if kind in (b"L", b"x"):
        with pytest.raises(TarError, match="between two headers"):
            members_of(one + bytes(512))


@pytest.mark.parametrize(
    "records",
    [b"9 path=x", b"99 path=x\n", b"0 path=x\n", b"8 path=x\n", b"path=x\n", b"12 size=5x2\n",
     b"9" * 400 + b" path=x\n", b"-9 path=x\n", b"9 path:x\n", b"12 size=-12\n"],
)  # fmt: skip
def test_a_damaged_pax_header_is_told(records):
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = b"x", len(records)
    data = info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0")
    data += tarfile.TarInfo("a.bin").tobuf(tarfile.USTAR_FORMAT) + bytes(1024)
    with pytest.raises(TarError, match="pax header before byte 1024"):
        members_of(data)


def test_sparse_files_by_pax_are_refused(tmp_path):
    info = tarfile.TarInfo("a.bin")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.PAX_FORMAT) + b"0\n".ljust(1536, b"\0"))
    with pytest.raises(ShardError, match=r"'a\.bin' is sparse"):
        scan(tmp_path / "x.tar")


# --- damage


@pytest.mark.parametrize("format", FORMATS)
def test_a_tar_cut_off_anywhere_is_told(format):
    data = some_tar(random.Random(5), format)
    found = members_of(data)
    ends = [m.offset + -(-m.size // 512) * 512 for m in found]
    for keep in [*range(0, ends[-1], 97), *ends, ends[-1] + 511]:
        with pytest.raises(TarError, match=r"truncated|not a readable tar|between two headers"):
            members_of(data[:keep])
    assert members_of(data[: ends[-1] + 512]) == found


@pytest.mark.parametrize("format", FORMATS)
def test_damage_is_an_error_or_changes_nothing_that_tarfile_would_not_see(format):
    """Flipped, overwritten, removed and repeated bytes; half of the headers with a right sum."""
    draw, outcomes = random.Random(100 + format), {"told": 0, "read": 0}
    for _ in range(400):
        data = bytearray(some_tar(draw, format))
        headers = [m.offset - 512 for m in members_of(bytes(data))]
        for _ in range(draw.randint(1, 3)):
            at = draw.choice(headers) if headers and draw.random() < 0.7 else 0
            at = min(at + draw.randrange(512), len(data) - 1)
            what = draw.random()
            if what < 0.5:
                data[at] ^= 1 << draw.randrange(8)
            elif what < 0.8:
                data[at : at + 8] = draw.choice([draw.randbytes(8), b"\xff" * 8, b"77777777"])
            elif what < 0.9:
                del data[at : at + draw.choice([1, 512, 1000])]
            else:
                data[at:at] = data[at : at + draw.choice([1, 512, 1024])]
        if headers and draw.random() < 0.5:
            at = draw.choice(headers)
            data[at : at + 512] = summed(bytearray(data[at : at + 512].ljust(512, b"\0")))
        data = bytes(data)
        with suppress(ShardError):
            index = scan_tar(reader(io.BytesIO(data)), Path("x.tar"), len(data))
            inside = (index.offsets >= 0) & (index.offsets + index.sizes <= len(data))
            assert (inside | (index.sizes == -1)).all()
        try:
            found = [m for m in members_of(data) if m.kind == "file"]
        except TarError:
            outcomes["told"] += 1
            continue
        outcomes["read"] += 1
        try:
            expected = [m for m in reference(data) if m[1] == "file"]
        except (tarfile.TarError, RecursionError, ValueError):
            continue  # stricter: it looks at owners and times too
        # It takes what it cannot read for the end: it may see less, but nothing else.
        assert [tuple(m) for m in found][: len(expected)] == expected
    assert min(outcomes.values()) > 10, outcomes


@pytest.mark.parametrize("format", FORMATS)
def test_no_flipped_bit_in_a_header_goes_unnoticed(tmp_path, format):
    data = write_tar(tmp_path / "x.tar", [("a.bin", b"1"), ("b.bin", b"2")], format).read_bytes()
    for at in range(2 * 8 * 512):
        block, bit = divmod(at, 8 * 512)
        broken = bytearray(data)
        broken[1024 * block + bit // 8] ^= 1 << bit % 8
        try:
            found = members_of(bytes(broken))
        except TarError:
            continue
        # Spaces, leading zeros and the ends of texts in the checksum's own field say the same.
        assert 148 <= bit // 8 < 156
        assert found == members_of(data)


def test_noise_is_no_tar():
    draw = random.Random(0)
    for size in (0, 1, 511, 512, 513, 5000):
        for _ in range(50):
            with pytest.raises(TarError):
                members_of(draw.randbytes(size))


# --- room


def test_memory_is_bounded_by_the_length_of_the_tar(tmp_path):
    """One long name, or as many fields as members, would otherwise make a table of any size."""
    many = [(f"{i}.{i}x.bin", b"") for i in range(3000)]
    path = write_tar(tmp_path / "fields.tar", many, tarfile.USTAR_FORMAT)
    tracemalloc.start()
    with pytest.raises(ShardError, match=r"3,000 different fields, such as '2999x\.bin'"):
        scan(path)
    long = [("n" * 5000 + ".bin", b"")]
    write_tar(tmp_path / "name.tar", [*many[:9], *long], tarfile.GNU_FORMAT)
    with pytest.raises(ShardError, match="has a name of 5,004 characters"):
        scan(tmp_path / "name.tar")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    frames = [(f"{clip}.{i}.bin", b"") for clip in range(3) for i in range(1000)]
    index = scan(write_tar(tmp_path / "clips.tar", frames))  # many fields that all samples have
    assert index.offsets.shape == (3, 1000)


# --- webdataset


def test_names_are_divided_as_webdataset_does():
    draw = random.Random(1)
    names = ["".join(draw.choices("a.b/A_", k=draw.randint(1, 9))) for _ in range(20_000)]
    for name in names:
        key, field = base_plus_ext(name)
        assert split_name(name) == ((key, field.lower()) if key else ("", "")), name
    split_name("/" * 10**6 + "." + "/" * 10**6)  # in no time


def grouped(path: Path) -> list[dict[str, bytes]]:
    samples = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    return [{k: v for k, v in sample.items() if k not in OURS} for sample in samples]


OURS = ("__url__", "__local_path__")


def indexed(path: Path) -> list[dict[str, bytes]]:
    """Samples as the index has them, in webdataset's form."""
    index, data, samples = scan(path), path.read_bytes(), []
    for row in range(len(index)):
        sample = {"__key__": index.key(row)}
        for field, offset, size in zip(index.fields, index.offsets[row], index.sizes[row]):
            if offset >= 0:
                sample[field] = data[offset : offset + size]
        samples.append(sample)
    return samples


@pytest.mark.parametrize("format", FORMATS)
def test_samples_are_grouped_as_webdataset_does(tmp_path, format):
    members = [
        ("__meta__", b"no sample"),
        ("__index__/about.json", b"no sample either"),
        ("README", b"no field"),
        ("a/b/000.jpg", b"1"),
        ("a/b/000.cls", b"2"),
        ("a/b/001.JPG", b"3"),  # fields in upper case
        ("a/b/001.Cls", b"4"),
        ("a.v2/c.d/000.left.png", b"5"),  # dots in folders
        ("a.v2/c.d/000.right.png", b"6"),
        ("Key.jpg", b"7"),  # keys keep their case
        ("key.jpg", b"8"),
        ("a/b/000.txt", b"9"),  # the same key once more, not beside: a sample of its own
        ("./here.png", b"10"),
        ("folder/.hidden", b"11"),
        ("folder.x/.hidden", b"12"),
        ("end.", b"13"),
        ("é/ü.ñ", b"14"),
    ]
    path = write_tar(tmp_path / "x.tar", members, format)
    assert indexed(path) == grouped(path)
    assert len(indexed(path)) == 10
    assert [a["__key__"] for a, b in pairwise(indexed(path)) if "txt" in b] == ["key"]


def test_any_samples_are_grouped_as_webdataset_does(tmp_path):
    draw = random.Random(2)
    compared = 0
    for _ in range(60):
        names = ["".join(draw.choices("ab.AB/", k=draw.randint(2, 6))) for _ in range(8)]
        names = [f"x{name}" for name in names if not name.endswith("/") and ".." not in name]
        path = write_tar(tmp_path / "x.tar", [(name, name.encode()) for name in names])
        try:
            expected = grouped(path)
        except ValueError:  # a field twice
            with pytest.raises(ShardError, match="there twice in one sample"):
                scan(path)
            continue
        assert indexed(path) == expected
        compared += 1
    assert compared > 20


def test_where_we_refuse_what_webdataset_takes(tmp_path):
    """It reads on past links, and sees nothing in names: a stream never leaves its tar."""
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
        tar.addfile(tarfile.TarInfo("b.png"))
    assert [sample["__key__"] for sample in grouped(tmp_path / "link.tar")] == ["b"]
    for name in ("../x.png", "/x.png", "a/../x.png"):
        write_tar(tmp_path / "up.tar", [(name, b"1")])
        assert len(grouped(tmp_path / "up.tar")) == 1
        with pytest.raises(ShardError, match=r"absolute path or '\.\.'"):
            scan(tmp_path / "up.tar")
    with pytest.raises(ShardError, match="a link"):
        scan(tmp_path / "link.tar")
    cut = write_tar(tmp_path / "cut.tar", [("a.png", b"1"), ("b.png", b"2")])
    os.truncate(cut, 2048)  # without an end: perhaps not the end
    assert len(grouped(cut)) == 2
    with pytest.raises(ShardError, match="truncated"):
        scan(cut)


def test_the_largest_member_is_the_largest_there_is(tmp_path):
    info = tarfile.TarInfo("a.bin")
    info.size = MAX_MEMBER_BYTES
    with (tmp_path / "x.tar").open("wb") as file:  # with a hole in it
        file.write(info.tobuf(tarfile.PAX_FORMAT))
        file.seek(MAX_MEMBER_BYTES, os.SEEK_CUR)
        file.write(bytes(1024))
    assert scan(tmp_path / "x.tar").sizes.tolist() == [[MAX_MEMBER_BYTES]]

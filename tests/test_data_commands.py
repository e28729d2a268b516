"""`dgan data`: pack (or import), index, verify and show as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import dgan
from PIL import Image

from dgan.data.index import sidecar_path

sys.path.append(str(Path(__file__).parent / "data"))
from web_server import serving

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(24):
        file = tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 12, 3), i * 10, np.uint8)).save(file)
    return tmp_path / "photos"


def test_from_photos_to_a_contact_sheet(capsys: Capture, tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "shards"
    options = ("--split-by-hash", "50/25/25", "--resolution", 8, "--workers", 2)
    packed = dgan(capsys, "data", "pack", photos, out, *options)
    assert packed.code == 0, packed
    assert packed.out.startswith("24 samples in 3 shards under ")
    assert "train " in packed.out
    assert "test " in packed.out
    again = dgan(capsys, "data", "pack", photos, out, *options)
    assert (again.code, "3 of the shards were there already" in again.out) == (0, True)
    shards = sorted(out.glob("*.tar"))
    for shard in shards:
        sidecar_path(shard).unlink()
    indexed = dgan(capsys, "data", "index", *shards)
    assert indexed.code == 0, indexed
    assert indexed.out.startswith("3 shards indexed: 24 samples in ")
    assert "MB/s" in indexed.out
    assert all(sidecar_path(shard).is_file() for shard in shards)
    verified = dgan(capsys, "data", "verify", f"{out}/*.tar", "--json", tmp_path / "r" / "v.json")
    assert verified.code == 0, verified
    assert "3 shards, 24 samples, " in verified.out
    assert "8×8 colour ×24" in verified.out
    assert "0 cat " in verified.out
    assert json.loads((tmp_path / "r" / "v.json").read_text())["problems"] == []
    sheet = dgan(capsys, "data", "show", *shards, tmp_path / "x.png", "--count", 6, "--columns", 3)
    assert sheet.code == 0, sheet
    assert Image.open(tmp_path / "x.png").size == (3 * 68 + 4, 2 * (68 + 13) + 4)
    assert "Traceback" not in packed.err + indexed.err + verified.err + sheet.err


def test_import_is_another_name_of_pack(capsys: Capture, tmp_path: Path, photos: Path) -> None:
    for name in ("pack", "import"):
        outcome = dgan(capsys, "data", name, photos, tmp_path / name, "--resolution", 8)
        assert outcome.out.startswith("24 samples in 1 shards"), outcome
    shard = "train-000000.tar"
    assert (tmp_path / "pack" / shard).read_bytes() == (tmp_path / "import" / shard).read_bytes()
    usage = dgan(capsys, "--help").out.splitlines()
    assert "  data import  The same as data pack." in usage
    assert "usage: dgan data import" in dgan(capsys, "data", "import", "--help").out


def test_shards_behind_a_server(
    capsys: Capture, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGAN_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "shards"
    assert dgan(capsys, "data", "pack", photos, out, "--samples-per-shard", 12).code == 0
    for shard in out.glob("*.tar"):
        sidecar_path(shard).unlink()
    with serving(out) as server:
        there = server.url.replace("://", "://me:hunter2@") + "/train-{000000..000001}.tar"
        indexed = dgan(capsys, "data", "index", there, "--checksums", "--out", out)
        assert indexed.out.startswith("2 shards indexed: 24 samples in "), indexed
        assert all(sidecar_path(shard).is_file() for shard in out.glob("*.tar"))
        verified = dgan(capsys, "data", "verify", there, "--json", tmp_path / "v.json")
        assert verified.code == 0, verified
        assert "2 shards, 24 samples, " in verified.out
        report = json.loads((tmp_path / "v.json").read_text())
        assert report["shards"][1]["path"].endswith("/train-000001.tar")
        shown = dgan(capsys, "data", "show", there, tmp_path / "there.png", "--count", 6)
        assert shown.code == 0, shown
        here = dgan(capsys, "data", "show", f"{out}/*.tar", tmp_path / "here.png", "--count", 6)
        assert here.code == 0, here
        assert Image.open(tmp_path / "there.png").size == Image.open(tmp_path / "here.png").size
        (out / "train-000001.tar").write_bytes(b"x" * 5000)
        damaged = dgan(capsys, "data", "verify", there)
        assert (damaged.code, "damaged shard: 1" in damaged.out) == (1, True)
        gone = dgan(capsys, "data", "verify", f"{server.url}/gone.tar")
        assert (gone.code, "no such shard" in gone.out) == (1, True)
        assert (
            "no such shard"
            in dgan(capsys, "data", "index", f"{server.url}/gone.tar", "--out", tmp_path).error()
        )
        assert (
            "no such shard"
            in dgan(capsys, "data", "show", f"{server.url}/gone.tar", tmp_path / "x.png").error()
        )
        told = [indexed, verified, shown, damaged, gone]
        texts = [outcome.out + outcome.err for outcome in told] + [json.dumps(report)]
        assert not any("hunter2" in text or "Traceback" in text for text in texts)


def test_damage_is_named_and_ends_with_1(capsys: Capture, tmp_path: Path, photos: Path) -> None:
    assert dgan(capsys, "data", "pack", photos, tmp_path / "out").code == 0
    shard = tmp_path / "out" / "train-000000.tar"
    data = shard.read_bytes()
    at = data.index(b"IDAT") + 10
    shard.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    outcome = dgan(capsys, "data", "verify", shard)
    assert outcome.code == 1, outcome
    assert "2 problems" in outcome.out
    assert "checksum: 1" in outcome.out
    assert "'cat/00' .png: " in outcome.out
    assert "Traceback" not in outcome.err
    os.truncate(shard, 5000)
    outcome = dgan(capsys, "data", "verify", shard)
    assert (outcome.code, "damaged shard: 1" in outcome.out) == (1, True)
    assert "train-000000.tar" in dgan(capsys, "data", "index", shard).error()
    assert "train-000000.tar" in dgan(capsys, "data", "show", shard, tmp_path / "x.png").error()


def test_what_cannot_be_is_one_message(capsys: Capture, tmp_path: Path, photos: Path) -> None:
    cases = {
        ("verify", "no-*.tar"): "there is no shard",
        ("show", "no.tar", "x.png"): "there is no shard",
        ("show", "no.tar"): "SHARDS OUT.png",
        ("show", photos, "no.tar"): "is a PNG: name it so",
        ("index", photos): "is a folder",
        ("index", "https://host/x.tar"): "name a folder with --out",
        ("index", "s3://bucket"): "is s3://bucket/key",
        ("verify", "http:///x.tar"): "names no host",
        ("verify", "pipe:cat x.tar"): "commands are never run",
        ("show", "ftp://host/x.tar", "x.png"): "not ftp:",
        ("pack", photos, "out", "--split-by-hash", "90/5"): "as in 90/5/5",
        ("pack", photos, "out", "--shard-megabytes", -1): "must be positive",
        ("pack", photos, "out", "--pairs", "folders"): "the folders a and b",
        ("pack", photos, "out", "--encoding", "keep", "--resolution", 8): "'keep' leaves",
        ("pack", photos, "out", "--workers", 0): "workers must be at least 1",
    }
    for (command, *arguments), message in cases.items():
        arguments = [tmp_path / a if a == "out" else a for a in arguments]
        assert message in dgan(capsys, "data", command, *arguments).error(), arguments
    assert not (tmp_path / "out").exists()


def test_an_interrupted_pack_goes_on(capsys: Capture, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(20):  # large enough that packing is under way when the signal comes
        pixels = generator.integers(0, 256, (1200, 1200, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i:03d}.bmp")
    arguments = ["data", "pack", str(tmp_path / "in"), str(tmp_path / "out")]
    arguments += ["--samples-per-shard", "2", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dgan", *arguments],
        stderr=subprocess.PIPE,
        # What a shell starts in the background ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    aside = tmp_path / "out" / ".packing-train"
    end = time.monotonic() + 60
    while len(list(aside.glob("*.tar"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert b"Traceback" not in error
    assert not list((tmp_path / "out").glob("*.tar"))
    outcome = dgan(capsys, *arguments)
    assert outcome.code == 0, outcome
    assert outcome.out.startswith("20 samples in 10 shards")
    assert "of the shards were there already" in outcome.out
    assert dgan(capsys, "data", "verify", tmp_path / "out" / "*.tar").code == 0

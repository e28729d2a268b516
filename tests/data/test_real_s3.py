"""Shards in a real object store: Ceph's gateway checks what it is told, and is killed under way."""

import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import dgan
from radosgw import ACCESS, SECRET, Gateway, gateway, missing
from shard_helpers import write_shards

from dgan.data import ShardDataset, ShardStream
from dgan.data.index import sidecar_path
from dgan.data.indexing import index_shards
from dgan.data.location import ForbiddenError, SourceError, Url
from dgan.data.shards import locate
from dgan.data.sources import Http, Opener

boto3 = pytest.importorskip("boto3", reason="the extra s3 is not installed")
TransferConfig = pytest.importorskip("boto3.s3.transfer").TransferConfig
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=missing() or "not skipped"),
]

SIZES = [400, 170, 430]  # samples in the shards


@pytest.fixture(scope="module")
def server() -> Iterator[Gateway]:
    with gateway() as running:
        yield running


@pytest.fixture(autouse=True)
def _account(server: Gateway, monkeypatch, tmp_path_factory) -> None:
    monkeypatch.setenv("DGAN_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setattr("dgan.data.remote.BLOCK", 1 << 14)  # the shards here are small


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[Path]:
    found = write_shards(tmp_path_factory.mktemp("shards"), SIZES)
    list(index_shards(found))
    return found


@pytest.fixture
def bucket(tmp_path: Path) -> tuple[Any, str]:
    client, name = boto3.client("s3"), f"shards-{secrets.token_hex(6)}"
    client.create_bucket(Bucket=name)
    return client, name


@pytest.fixture
def uploaded(bucket, shards) -> str:
    """The shards and their indexes in a bucket, as a pattern."""
    client, name = bucket
    for shard in shards:
        for path in (shard, sidecar_path(shard)):
            client.upload_file(str(path), name, f"deep/{path.name}")
    client.put_object(Bucket=name, Key="deep/er/train-9.tar", Body=b"not asked for")
    return f"s3://{name}/deep/train-*.tar"


def shown(stream: ShardStream, batches: int) -> list[tuple[str, bytes, int]]:
    samples = []
    for batch in islice(stream, batches):
        images = [image.numpy().tobytes() for image in batch["image"]]
        samples += zip(batch["__key__"], images, batch["label"].tolist())
    return samples


@pytest.fixture(scope="module")
def expected(shards: list[Path]) -> list[tuple[str, bytes, int]]:
    """Two epochs of the local shards: each sample once in each."""
    with ShardStream(shards, batch_size=50, seed=5) as stream:
        samples = shown(stream, 40)
    for epoch in (samples[:1000], samples[1000:]):
        assert sorted(key for key, *_ in epoch) == [f"{i:05d}" for i in range(1000)]
    return samples


# --- what is read


@pytest.mark.parametrize("gigabytes", [0, 1])
@pytest.mark.parametrize("pattern", ["*", "{000000..000002}", "00000[0-2]"])
def test_the_same_samples_in_the_same_order(uploaded, expected, gigabytes, pattern):
    address = uploaded.replace("*", pattern)
    for _ in range(1 + gigabytes):  # the second time from the cache
        with ShardStream(
            address, batch_size=50, seed=5, workers=2, cache_gigabytes=gigabytes
        ) as stream:
            assert shown(stream, 40) == expected
            assert not stream.skipped


def test_the_commands(bucket, tmp_path, capsys):
    client, name = bucket
    packed = dgan(capsys, "data", "pack", "digits", tmp_path / "d", "--samples-per-shard", 700)
    assert packed.code == 0, packed
    for shard in (tmp_path / "d").glob("*.tar"):
        client.upload_file(str(shard), name, shard.name)
    address = f"s3://{name}/train-*.tar"
    assert "name a folder with --out" in dgan(capsys, "data", "index", address).error()
    out = tmp_path / "indexes"
    indexed = dgan(capsys, "data", "index", address, "--checksums", "--out", out)
    assert indexed.out.startswith("3 shards indexed: 1797 samples"), indexed
    for path in out.iterdir():
        client.upload_file(str(path), name, path.name)
    verified = dgan(capsys, "data", "verify", address)
    assert (verified.code, "3 shards, 1,797 samples" in verified.out) == (0, True), verified
    sheets = [tmp_path / "there.png", tmp_path / "here.png"]
    for where, sheet in zip((address, f"{tmp_path}/d/*.tar"), sheets):
        assert dgan(capsys, "data", "show", where, sheet).code == 0
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    damaged = bytearray((tmp_path / "d" / "train-000001.tar").read_bytes())
    damaged[-700] ^= 1  # in what fills a member up: only the checksum tells
    client.put_object(Bucket=name, Key="train-000001.tar", Body=bytes(damaged))
    verified = dgan(capsys, "data", "verify", address)
    assert (verified.code, f"s3://{name}/train-000001.tar" in verified.out) == (1, True), verified


def source(address: str) -> Http:
    return Opener().open(Url(address))


def test_ranges_of_what_was_uploaded_in_parts(bucket, tmp_path):
    """The gateway keeps an object in pieces of 4 MiB, and each part in pieces of its own."""
    client, name = bucket
    part, data = 5 << 20, np.random.default_rng(0).bytes(13 << 20)
    (tmp_path / "x").write_bytes(data)
    config = TransferConfig(multipart_threshold=part, multipart_chunksize=part)
    client.upload_file(str(tmp_path / "x"), name, "x.tar", Config=config)
    shard = source(f"s3://{name}/x.tar")
    assert shard.identity.size == len(data)
    assert shard.identity.tag.endswith('-3"')
    for middle in (4 << 20, part, 2 * part, len(data)):
        for begin, size in ((middle - 7, 14), (middle - part // 2, part), (middle - 1, 1)):
            assert shard.read(begin, size) == data[begin : begin + size]


@pytest.mark.parametrize("key", ["a b/100%25/é+{0}.tar", "=&;,:@$!'()~.tar", 'x#y/"<>^`|.tar'])
def test_what_a_key_may_hold_is_signed(bucket, key):
    client, name = bucket
    client.put_object(Bucket=name, Key=key, Body=bytes(range(100)))
    assert source(f"s3://{name}/{key}").read(5, 20) == bytes(range(5, 25))


def test_more_keys_than_one_answer_lists(bucket):
    client, name = bucket
    names = [f"many/{i:04d}.tar" for i in range(1050)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: client.put_object(Bucket=name, Key=key, Body=b""), names))
    found = locate(f"s3://{name}/many/*.tar", Opener())
    assert list(map(str, found)) == [f"s3://{name}/{key}" for key in names]


# --- what is refused


def test_what_is_missing(bucket, uploaded):
    _, name = bucket
    for address, message in {
        f"s3://{name}/none.tar": r"/none\.tar: there is no such shard",
        f"s3://{name}/none-*.tar": "there is no shard",
        f"s3://{name}-no/x.tar": "NoSuchBucket: .* AWS_ENDPOINT_URL",
        f"s3://{name}-no/*.tar": "NoSuchBucket: .* AWS_ENDPOINT_URL",
    }.items():
        with pytest.raises(FileNotFoundError, match=message):
            ShardDataset(address)


@pytest.mark.parametrize("shard", ["train-*.tar", "train-000000.tar"])
@pytest.mark.parametrize(
    ("key", "secret", "message"),
    [
        (ACCESS, "hunter2", "SignatureDoesNotMatch: .* set AWS_SECRET_ACCESS_KEY"),
        ("nobody", "hunter2", "InvalidAccessKeyId: .* set AWS_ACCESS_KEY_ID"),
        ("", "", "AccessDenied: .* without credentials.* set AWS_ACCESS_KEY_ID"),
    ],
)
def test_who_may_not_read_is_told_what_to_do(uploaded, monkeypatch, shard, key, secret, message):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with pytest.raises(ForbiddenError, match=rf"deep/{re.escape(shard)}: {message}") as error:
        ShardDataset(uploaded.replace("train-*.tar", shard))
    assert "hunter2" not in str(error.value)


def test_what_is_public_is_read_without_credentials(bucket, shards, monkeypatch):
    """No index lies beside it, and who may not list a bucket is not told so but refused."""
    client, name = bucket
    client.upload_file(str(shards[1]), name, "x.tar", ExtraArgs={"ACL": "public-read"})
    client.put_object(Bucket=name, Key="private.tar", Body=b"1")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with ShardDataset(f"s3://{name}/x.tar") as dataset:
        assert [sample["__key__"] for sample in dataset] == [f"{i:05d}" for i in range(400, 570)]
    for key in ("private.tar", "missing.tar"):
        with pytest.raises(ForbiddenError, match="without credentials"):
            ShardDataset(f"s3://{name}/{key}")


def test_a_shard_that_is_replaced_is_never_mixed_in(bucket):
    client, name = bucket
    client.put_object(Bucket=name, Key="x.tar", Body=b"1" * 1000)
    shard = source(f"s3://{name}/x.tar")
    assert shard.read(0, 10) == b"1" * 10
    client.put_object(Bucket=name, Key="x.tar", Body=b"2" * 1000)
    with pytest.raises(SourceError, match="replaced"):
        shard.read(10, 10)


# --- who is killed


@pytest.mark.parametrize("gigabytes", [0, 1])
def test_the_server_is_killed_and_started_again(server, uploaded, expected, gigabytes):
    samples, at_restart = [], []

    def restart() -> None:
        at_restart.append(len(samples))
        server.start()

    with ShardStream(
        uploaded, batch_size=50, seed=5, workers=2, cache_gigabytes=gigabytes
    ) as stream:
        for _ in range(4):
            server.kill()  # while batches are being fetched ahead
            killed_at, later = len(samples), threading.Timer(1.0, restart)
            later.start()
            for _ in range(10):
                samples += shown(stream, 1)
            later.join()
            # Without a cache nothing can arrive meanwhile but what was on its way.
            assert gigabytes or at_restart[-1] <= killed_at + 3 * 50
        assert not stream.skipped
    assert samples == expected


READER = """
import sys
from dgan.data import ShardStream, remote
remote.BLOCK = 1 << 12
for batch in ShardStream(sys.argv[1], batch_size=50, workers=2):
    pass
"""


def test_the_reader_is_killed_while_it_fills_the_cache(uploaded, shards, expected, monkeypatch):
    monkeypatch.setattr("dgan.data.remote.BLOCK", 1 << 12)
    folder = Path(os.environ["DGAN_CACHE"])

    def kept() -> dict[Path, int]:
        found = [path for path in folder.rglob("*") if len(path.name) == 40]
        return {path: path.stat().st_ino for path in found}

    limit, blocks = time.monotonic() + 60, sum(shard.stat().st_size for shard in shards) >> 12
    with subprocess.Popen([sys.executable, "-c", READER, uploaded]) as reader:
        while len(kept()) < 40 and time.monotonic() < limit:
            time.sleep(0.002)
        reader.kill()
    left = kept()
    assert 40 <= len(left) < blocks
    with ShardStream(uploaded, batch_size=50, seed=5) as stream:
        assert shown(stream, 40) == expected
    assert left.items() <= kept().items()  # and was used
    assert not list(folder.rglob("*.partial"))

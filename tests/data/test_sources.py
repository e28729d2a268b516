"""Sources of shards: files, web servers and buckets, and what is refused."""

import datetime
import ipaddress
import os
import re
import socket
import ssl
import threading
import time
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from shard_helpers import write_shards
from web_server import Fault, serving

from dgan.data import ShardDataset, ShardStream
from dgan.data.connection import _tls
from dgan.data.contact_sheet import contact_sheet
from dgan.data.indexing import Indexer, index_shards
from dgan.data.location import ForbiddenError, Identity, MissingError, SourceError, Url, redact
from dgan.data.patience import Patience
from dgan.data.s3 import Account
from dgan.data.shards import locate
from dgan.data.sources import Http, Local, Opener
from dgan.data.verify import verify_shards

QUICK = Patience(
    connect=1.0, stall=0.3, slowest=20_000.0, attempts=4, first_pause=0.01, longest_pause=0.05,
    per_read=3.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("DGAN_CACHE", str(tmp_path_factory.mktemp("cache")))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def data(tmp_path) -> bytes:
    data = os.urandom(100_000)
    (tmp_path / "x.tar").write_bytes(data)
    return data


def source(address: str) -> Http:
    return Opener(QUICK).open(Url(address))


# --- addresses


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host:8/a/b.tar?X-Amz-Signature=abc#f", "https://…@host:8/a/b.tar?…"),
        ("http://h/a.tar", "http://h/a.tar"),
        ("https://h/it's.tar?sig=abc", "https://h/it's.tar?…"),
        ("at 's3://b/k' and http://u@h/?q=1 too", "at 's3://b/k' and http://…@h/?… too"),
    ],
)
def test_secrets_are_redacted(text, shown):
    assert redact(text) == shown
    assert str(Url(text)) == shown
    assert "secret" not in repr(Url(text))


def test_an_address_signed_anew_is_the_same_shard():
    first = Url("https://u:p@h/a%20b.tar?id=3&X-Amz-Date=1&X-Amz-Signature=2&token=x")
    assert first.key == Url("https://h/a%20b.tar?id=3&X-Amz-Date=8&X-Amz-Signature=9").key
    assert first.key != Url("https://h/a%20b.tar?id=4").key
    assert first.name == "a b.tar"
    assert "p@" not in first.key


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("pipe:cat /etc/passwd", "commands are never run"),
        ("pipe://cat", "commands are never run"),
        ("file:///etc/passwd", "name the file itself"),
        ("gs://bucket", "gs://bucket/key"),
        ("gs://key:secret@bucket/x.tar", "credentials"),
        ("hdfs://u:secret@h/x.tar", "not hdfs:"),
        ("http:x.tar", "not http:"),
        ("http:///x.tar", "names no host"),
        ("http://h:port/x.tar", "(?i)port"),
        ("s3://bucket", "s3://bucket/key"),
        ("s3://key:secret@bucket/x.tar", "credentials"),
        ("http://h/{0..1.tar", "braces"),
    ],
)
def test_what_is_no_shard_is_refused(address, message):
    for open_shards in (ShardDataset, lambda a: ShardStream(a, batch_size=1)):
        with pytest.raises(ValueError, match=message) as error:
            open_shards(address)
        assert "secret" not in str(error.value)


def test_braces_in_addresses():
    found = locate(["https://h/{00..02}.tar?a=*", "s3://b/{x,y}/1.tar"], Opener())
    assert found == [
        *(Url(f"https://h/{i}.tar?a=*") for i in ("00", "01", "02")),
        Url("s3://b/x/1.tar"),
        Url("s3://b/y/1.tar"),
    ]
    with pytest.raises(ValueError, match="named twice"):
        locate(["https://h/1.tar", "https://h/{1..2}.tar"], Opener())


# --- files and web servers


def test_a_file(tmp_path, data):
    local = Local(tmp_path / "x.tar")
    assert local.identity == Identity(100_000, (tmp_path / "x.tar").stat().st_mtime_ns)
    assert local.read(99_990, 100) == data[99_990:]


def test_ranges(tmp_path, data):
    with serving(tmp_path) as server:
        shard = source(f"{server.url}/x.tar")
        assert shard.identity.size == 100_000
        assert shard.identity.tag
        for begin, size in ((0, 1), (5, 1000), (99_990, 10), (99_990, 100), (0, 100_000)):
            assert shard.read(begin, size) == data[begin : begin + size]
        assert shard.read(100_000, 5) == b""
        whole = []
        shard.read_whole(40_000, lambda number, block: whole.append((number, block)))
        assert whole == [(0, data[:40_000]), (1, data[40_000:80_000]), (2, data[80_000:])]
        assert len(server.connections) == 1


def test_a_whole_that_breaks_off_is_handed_over_once(tmp_path, data):
    with serving(tmp_path, Fault("reset", times=2, at=50_000, whole=False)) as server:
        whole = []
        source(f"{server.url}/x.tar").read_whole(20_000, lambda *block: whole.append(block))
        assert [number for number, _ in whole] == [0, 1, 2, 3, 4]
        assert b"".join(block for _, block in whole) == data


@pytest.mark.parametrize(
    ("status", "kind"), [(404, MissingError), (410, MissingError), (403, ForbiddenError),
                         (401, ForbiddenError), (400, SourceError)]
)  # fmt: skip
def test_what_no_repetition_helps_is_asked_once(tmp_path, data, status, kind):
    with serving(tmp_path, Fault("status", status=status)) as server:
        with pytest.raises(kind, match=rf"{server.url}/x\.tar: .*HTTP {status}"):
            _ = source(f"{server.url}/x.tar").identity
        # A connection that breaks before the answer is opened anew at once; no more than that.
        assert len(server.requests) <= 2


def test_pauses_grow_and_are_as_long_as_the_server_asks(tmp_path, data):
    with serving(tmp_path, Fault("status", times=3)) as server:
        patient = Patience(first_pause=0.1, longest_pause=0.3)
        assert Opener(patient).open(Url(f"{server.url}/x.tar")).identity.size == 100_000
        times = [at for *_, at in server.requests]
        pauses = [b - a for a, b in pairwise(times)]
        assert all(low <= p for low, p in zip((0.05, 0.1, 0.15), pauses))
    with serving(tmp_path, Fault("status", times=1, headers={"Retry-After": "1"})) as server:
        assert source(f"{server.url}/x.tar").identity.size == 100_000
        assert server.requests[1][2] - server.requests[0][2] >= 1.0


def test_a_server_that_is_gone_costs_less_each_time():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    opener, spent = Opener(Patience(first_pause=0.2, longest_pause=0.2, per_read=0.8)), []
    for _ in range(4):
        begun = time.monotonic()
        with pytest.raises(SourceError, match=r"refused .*attempts in"):
            _ = opener.open(Url(f"http://127.0.0.1:{port}/x.tar")).identity
        spent.append(time.monotonic() - begun)
    assert spent[0] > 0.3
    assert spent[3] < 0.15


@pytest.mark.parametrize("drip", [b"", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10_000])
def test_a_server_that_says_nothing_or_never_ends_is_given_up(drip):
    """`drip` comes byte by byte: no single wait is long, but all of them together are."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=send, args=(client,), daemon=True).start()

        def send(client: socket.socket) -> None:
            try:
                for byte in drip or b"":
                    client.send(bytes([byte]))
                    time.sleep(0.02)
                client.recv(1 << 20)
                time.sleep(10)
            except OSError:
                pass

        threading.Thread(target=answer, daemon=True).start()
        begun = time.monotonic()
        with pytest.raises(SourceError, match="no answer in time"):
            _ = source(f"http://127.0.0.1:{listener.getsockname()[1]}/x.tar").identity
        assert time.monotonic() - begun < 5
        listener.shutdown(socket.SHUT_RDWR)


# --- redirects


def test_redirects_are_followed_and_keep_the_password_at_home(tmp_path, data):
    with serving(tmp_path) as other:
        moved = Fault("redirect", match="^/old", target=f"{other.url}/x.tar")
        near = Fault("redirect", match="^/near", target="/x.tar")
        with serving(tmp_path, moved, near) as server:
            base = server.url.replace("://", "://me:secret@")
            assert source(f"{base}/old.tar").read(7, 9) == data[7:16]
            assert source(f"{base}/near.tar").read(7, 9) == data[7:16]
            assert all(server.authorizations)
        assert other.authorizations
        assert not any(other.authorizations)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://h/x", "gopher://h", "s3://b/k"])
def test_redirects_to_elsewhere_are_refused(tmp_path, target):
    with serving(tmp_path, Fault("redirect", target=target)) as server:
        with pytest.raises(SourceError, match="is not followed"):
            _ = source(f"{server.url}/x.tar").identity
        assert len(server.requests) == 1


def test_redirects_in_a_circle_end(tmp_path):
    with (
        serving(tmp_path, Fault("redirect", target="/x.tar")) as server,
        pytest.raises(SourceError, match="more than 5 redirects"),
    ):
        _ = source(f"{server.url}/x.tar").identity


def test_a_proxy_is_used(tmp_path, data, monkeypatch):
    with serving(tmp_path) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("://", "://me:secret@"))
        monkeypatch.setenv("no_proxy", "")
        assert source("http://shards.invalid/x.tar").read(7, 9) == data[7:16]
        assert proxy.requests[0][0] == "http://shards.invalid/x.tar"


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 and its key, in one file."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "both.pem").write_bytes(private + signed.public_bytes(pem))
    return folder / "both.pem"


def test_tls_is_verified(tmp_path, data, monkeypatch):
    pem = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with serving(tmp_path) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.url.replace("http:", "https:") + "/x.tar"
        try:
            with pytest.raises(SourceError, match="self-signed certificate"):
                _ = source(url).identity
            monkeypatch.setenv("SSL_CERT_FILE", str(pem))
            _tls.cache_clear()
            assert source(url).read(7, 9) == data[7:16]
            server.faults = [Fault("redirect", target=server.url + "/x.tar")]
            with pytest.raises(SourceError, match="from https to http is not followed"):
                _ = source(url).identity
        finally:
            _tls.cache_clear()


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="the option is Linux's")
def test_answers_are_acknowledged_at_once(tmp_path, data):
    """A server with Nagle's algorithm sends a body only when its head has been acknowledged."""
    with serving(tmp_path) as server:
        opener = Opener(QUICK)
        shard = opener.open(Url(f"{server.url}/x.tar"))
        for _ in range(20):  # after a few exchanges a system begins to acknowledge late
            shard.read(5, 10)
        ((_, connection),) = opener.transport._idle
        assert connection._paced._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK)


# --- buckets


@pytest.fixture(scope="module")
def endpoint():
    """moto's server speaks S3 but accepts any secret: what a wrong one does is not tested here."""
    server_of = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch, tmp_path):
    boto3 = pytest.importorskip("boto3", reason="the extra s3 is not installed")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client, name = boto3.client("s3"), f"shards-{tmp_path.name.replace('_', '-').lower()[:40]}"
    client.create_bucket(Bucket=name)
    return client, name


def test_a_stream_from_a_bucket(bucket, tmp_path):
    client, name = bucket
    shards = write_shards(tmp_path, [40, 17, 43])
    for shard in shards:
        client.upload_file(str(shard), name, f"deep/er/{shard.name}")
    client.put_object(Bucket=name, Key="deep/er/no/train-9.tar", Body=b"not asked for")
    for pattern in ("deep/er/train-{000000..000002}.tar", "deep/er/train-*.tar"):
        with (
            ShardStream(shards, batch_size=20) as here,
            ShardStream(f"s3://{name}/{pattern}", batch_size=20) as there,
        ):
            assert there.dataset.num_classes == 10
            for a, b in islice(zip(here, there), 5):
                assert a["__key__"] == b["__key__"]
                assert (a["image"] == b["image"]).all()
            there.load_state_dict(here.state_dict())


def test_gs_is_google_s_store_by_its_s3(monkeypatch):
    pytest.importorskip("boto3", reason="the extra s3 is not installed")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "GOOG1EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hmac")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere")  # which is of s3://
    address = Account(QUICK, "gs").sign("my-bucket", "deep/er/a b.tar").address
    parts = urlsplit(address)
    assert (parts.scheme, parts.netloc) == ("https", "storage.googleapis.com")
    assert parts.path == "/my-bucket/deep/er/a%20b.tar"
    query = parse_qs(parts.query)
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert re.fullmatch(r"GOOG1EXAMPLE/\d{8}/auto/s3/aws4_request", query["X-Amz-Credential"][0])
    assert not any("checksum" in name for name in query)
    assert Url("gs://my-bucket/x.tar").sidecar == Url("gs://my-bucket/x.tar.index.json")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    public = Account(QUICK, "gs").sign("my-bucket", "x.tar").address
    assert public == "https://storage.googleapis.com/my-bucket/x.tar"


def test_a_stream_from_gs_beside_one_from_s3(bucket, endpoint, monkeypatch, tmp_path):
    client, name = bucket
    shards = write_shards(tmp_path, [40, 17, 43])
    for shard in shards:
        client.upload_file(str(shard), name, shard.name)
    monkeypatch.setattr("dgan.data.s3.GOOGLE", endpoint)
    mixed = [f"gs://{name}/train-00000[01].tar", f"s3://{name}/train-000002.tar"]
    with ShardStream(shards, batch_size=50) as here, ShardStream(mixed, batch_size=50) as there:
        assert str(there.dataset.shards[1]) == f"gs://{name}/train-000001.tar"
        for a, b in islice(zip(here, there), 4):
            assert a["__key__"] == b["__key__"]
            assert (a["image"] == b["image"]).all()


def test_every_sample_of_a_bucket_arrives_exactly_once_an_epoch(bucket, tmp_path):
    client, name = bucket
    for shard in write_shards(tmp_path, [40, 17, 43]):
        client.upload_file(str(shard), name, shard.name)
    ranks = [
        ShardStream(f"s3://{name}/train-*.tar", batch_size=14, rank=rank, world_size=2, workers=2)
        for rank in (0, 1)
    ]
    keys = [key for batches in islice(zip(*ranks), 50) for b in batches for key in b["__key__"]]
    for begin in range(0, 700, 100):  # batches straddle epochs
        assert sorted(keys[begin : begin + 100]) == [f"{i:05d}" for i in range(100)]
    for stream in ranks:
        assert not stream.skipped
        stream.close()


def test_what_fails_on_the_way_to_a_bucket_leaves_no_trace(tmp_path, monkeypatch):
    """A server that speaks as much of S3 as reading takes, and fails as it is told to."""
    pytest.importorskip("boto3", reason="the extra s3 is not installed")
    monkeypatch.setattr("dgan.data.patience.PATIENCE", replace(QUICK, attempts=20))
    monkeypatch.setattr("dgan.data.remote.BLOCK", 1 << 14)
    (tmp_path / "bucket").mkdir()
    shards = write_shards(tmp_path / "bucket", [40, 17, 43])
    list(index_shards(shards))
    kinds = ("reset", "truncate", "closed", "stall", "status", "length", "shifted")
    faults = [Fault(kind, times=2, whole=False) for kind in kinds]
    with serving(tmp_path, *faults) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        address = "s3://bucket/train-{000000..000002}.tar"
        with (
            ShardStream(address, batch_size=20, workers=2) as there,
            ShardStream(shards, batch_size=20) as here,
        ):
            keys = []
            for a, b in islice(zip(there, here), 10):
                assert a["__key__"] == b["__key__"]
                assert (a["image"] == b["image"]).all()
                keys += a["__key__"]
            assert not there.skipped
    assert not any(fault.times for fault in faults)
    for epoch in (keys[:100], keys[100:]):
        assert sorted(epoch) == [f"{i:05d}" for i in range(100)]


def test_shards_in_a_bucket_are_indexed_checked_and_shown(bucket, tmp_path):
    client, name = bucket
    shards = write_shards(tmp_path, [40, 17])
    for shard in shards:
        client.upload_file(str(shard), name, shard.name)
    opener = Opener()
    found = locate(f"s3://{name}/train-*.tar", opener)
    indexer = Indexer(tmp_path / "indexes", checksums=True, opener=opener)
    assert [(one.samples, one.labelled) for one in index_shards(found, indexer)] == [
        (40, True),
        (17, True),
    ]
    for written in (tmp_path / "indexes").iterdir():
        client.upload_file(str(written), name, written.name)
    report = verify_shards(found, opener=opener)
    assert report.problems == []
    assert list(report.samples.values()) == [40, 17]
    client.put_object(Bucket=name, Key=shards[1].name, Body=shards[1].read_bytes() + bytes(512))
    (problem,) = verify_shards(found, opener=Opener()).problems
    assert (problem.kind, problem.shard) == ("checksum", f"s3://{name}/{shards[1].name}")
    sheet = contact_sheet(f"s3://{name}/train-000000.tar", count=9)
    assert sheet.tobytes() == contact_sheet(shards[0], count=9).tobytes()


def test_what_a_bucket_lacks(bucket, monkeypatch):
    _, name = bucket
    with pytest.raises(FileNotFoundError, match=f"s3://{name}/none"):
        ShardDataset(f"s3://{name}/none.tar")
    with pytest.raises(FileNotFoundError, match="there is no shard"):
        ShardDataset(f"s3://{name}/*.tar")
    for key in ("*.tar", "x.tar"):
        with pytest.raises(MissingError, match=r"NoSuchBucket: .*set AWS_ENDPOINT_URL"):
            ShardDataset(f"s3://no-such-bucket-here/{key}")
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)  # from now on it asks
    with pytest.raises(ForbiddenError, match=r"InvalidAccessKeyId: .*set AWS_ACCESS_KEY_ID"):
        ShardDataset(f"s3://{name}/*.tar")


def test_a_server_that_is_not_there_is_named(monkeypatch):
    """An address in S3 does not tell which one it is."""
    pytest.importorskip("boto3", reason="the extra s3 is not installed")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(SourceError, match=r"s3://bucket/x\.tar at byte 0.*asking 127\.0\.0\.1:1$"):
        _ = source("s3://bucket/x.tar").identity
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:1")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:1: AWS_ENDPOINT_URL is as in https://"):
        _ = source("s3://bucket/x.tar").identity


def test_shards_that_are_opened_side_by_side_move_together(tmp_path, monkeypatch):
    """All of them learn of the bucket's region from answers to what was signed for another."""
    pytest.importorskip("boto3", reason="the extra s3 is not installed")
    (tmp_path / "bucket").mkdir()
    write_shards(tmp_path / "bucket", [4, 7, 3])
    headers = {"x-amz-bucket-region": "eu-west-1"}
    with serving(tmp_path, Fault("status", times=3, status=400, headers=headers)) as server:
        server.latency = 0.1
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        with ShardDataset("s3://bucket/train-{000000..000002}.tar") as dataset:
            assert len(dataset) == 14
        regions = [
            "us-east-1" if "us-east-1" in path else "eu-west-1" for path, *_ in server.requests
        ]
    assert regions == ["us-east-1"] * 3 + ["eu-west-1"] * (len(regions) - 3)


def test_a_key_is_taken_as_it_is_written(bucket, data):
    client, name = bucket
    key = "a b/100%25/é+{0}.tar"
    client.put_object(Bucket=name, Key=key, Body=data)
    assert source(f"s3://{name}/{key}").read(5, 20) == data[5:25]


@pytest.mark.parametrize(
    ("status", "moved"), [(301, True), (400, True), (400, False), (403, False)]
)
def test_an_address_is_signed_anew(tmp_path, data, monkeypatch, status, moved):
    """In another region than thought, and when credentials changed while the stream was open."""
    pytest.importorskip("boto3", reason="the extra s3 is not installed")
    (tmp_path / "bucket").mkdir()
    (tmp_path / "x.tar").rename(tmp_path / "bucket" / "x.tar")
    with serving(tmp_path) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        shard = source("s3://bucket/x.tar")
        assert shard.read(0, 10) == data[:10]
        if not moved:
            monkeypatch.setattr("dgan.data.s3._SETTLED", 0.0)
        extra = {"x-amz-bucket-region": "eu-west-1"} if moved else {}
        server.faults = [Fault("status", times=1, status=status, headers=extra)]
        assert shard.read(7, 9) == data[7:16]
        region = "eu-west-1" if moved else "us-east-1"
        assert region in server.requests[-1][0]
        server.faults = [Fault("status", status=status, headers=extra)]
        monkeypatch.setattr("dgan.data.s3._SETTLED", 100.0)
        with pytest.raises(SourceError, match=f"HTTP {status}") as error:
            shard.read(7, 9)
        assert "Signature" not in str(error.value)


def test_without_credentials_a_bucket_is_read_as_anybody_may(tmp_path, data, monkeypatch):
    pytest.importorskip("boto3", reason="the extra s3 is not installed")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    (tmp_path / "bucket").mkdir()
    (tmp_path / "x.tar").rename(tmp_path / "bucket" / "x.tar")
    with serving(tmp_path) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        assert source("s3://bucket/x.tar").read(7, 9) == data[7:16]
        assert server.requests[0][0] == "/bucket/x.tar"
        server.faults = [Fault("status", status=403)]
        with pytest.raises(ForbiddenError, match="without credentials"):
            _ = source("s3://bucket/x.tar").identity

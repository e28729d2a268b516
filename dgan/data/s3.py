"""Shards in S3 and what speaks like it: boto3 finds credentials and signs, our transport reads.

boto3 reading by itself costs six times the processor time of a small request, under the lock that
the training loop needs too, and has time-outs and retries of its own. An address that it signs is
good for an hour, and reading it is plain HTTP. Where the store is (AWS_ENDPOINT_URL), who we are
and in which region is settled by boto3's usual variables and files; without credentials a bucket
is read as anybody may.

Google's object store speaks S3 as well (its XML API), to HMAC keys: gs:// is that, with such keys
where AWS's are looked for.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from .location import ForbiddenError, Identity, MissingError, SourceError, Url, redact
from .patience import Patience, TransientError
from .sources import Http
from .transport import Reply, Transport

_T = TypeVar("_T")
GOOGLE = "https://storage.googleapis.com"
_VALID = 3600  # seconds for which an address is signed
_REUSED = 1800  # seconds for which it is used: a read may be long
_SETTLED = 60.0  # seconds after which a refusal may come from the signature
_WILD = re.compile(r"[*?[]")
_MOVED = (301, 307, 400)  # how a bucket answers in another region than its own
_STALE = (400, 403)  # how it refuses credentials that have expired
_MISSING = ("404", "NoSuchKey", "NoSuchBucket", "NotFound")
_FORBIDDEN = ("401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_CODE = re.compile(rb"<Code>([A-Za-z]+)</Code>")
_CODE_WITHIN = 4096  # bytes of a refusal
_ADVICE = {
    "AccessDenied": "these credentials may not read it (s3:GetObject, of a pattern s3:ListBucket), "
    "or it is missing and they may not know",
    "ExpiredToken": "these credentials have expired: get new ones",
    "InvalidAccessKeyId": "the server does not know the access key: set AWS_ACCESS_KEY_ID or "
    "AWS_PROFILE and, if the server is not AWS, AWS_ENDPOINT_URL",
    "InvalidObjectState": "it lies in an archive: restore it first",
    "NoSuchBucket": "the server has no such bucket: if it is not AWS, set AWS_ENDPOINT_URL",
    "RequestTimeTooSkewed": "set the clock of this machine",
    "SignatureDoesNotMatch": "the secret key is not that of the access key: set "
    "AWS_SECRET_ACCESS_KEY or AWS_PROFILE",
}
_NOBODY = (
    "it was asked without credentials, as AWS's client found none: set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
)


class Signed(NamedTuple):
    """An address, the region it was signed for, and when."""

    address: str
    region: str | None
    since: float


class Account:
    """Who reads and where: boto3's clients, one a region. Safe to use from many threads.

    Args:
        patience: with the server.
        scheme: `s3`, or `gs` for Google's.
    """

    def __init__(self, patience: Patience, scheme: str = "s3") -> None:
        self._patience, self._scheme = patience, scheme
        self._clients: dict[str | None, Any] = {}
        self._regions: dict[str, str] = {}
        self._lock = threading.Lock()
        self.anonymous = False

    def sign(self, bucket: str, key: str) -> Signed:
        """An address at which anybody may read `key` for an hour."""
        region, named = self._regions.get(bucket), {"Bucket": bucket, "Key": key}
        with self._translated(f"{self._scheme}://{bucket}/{key}"):
            address = self._client(bucket).generate_presigned_url(
                "get_object", Params=named, ExpiresIn=_VALID
            )
        return Signed(address, region, time.monotonic())

    def list(self, url: Url) -> list[Url]:
        """The keys that a pattern with `*`, `?` or `[…]` names, sorted; none of them crosses a `/`.

        Raises:
            SourceError: if the bucket cannot be listed.
        """
        bucket, pattern = split(url)
        prefix, parts = _WILD.split(pattern, maxsplit=1)[0], pattern.split("/")
        with self._translated(str(url)):
            pages = self._client(bucket).get_paginator("list_objects_v2")
            keys = [
                entry["Key"]
                for page in pages.paginate(Bucket=bucket, Prefix=prefix)
                for entry in page.get("Contents", ())
            ]
        found = (
            key
            for key in keys
            if len(key.split("/")) == len(parts) and all(map(fnmatchcase, key.split("/"), parts))
        )
        return [Url(f"{self._scheme}://{bucket}/{key}") for key in sorted(found)]

    def move(self, bucket: str, region: str) -> None:
        """From now on signs for `bucket` as being in `region`."""
        with self._lock:
            self._regions[bucket] = region

    def explain(self, code: str) -> str:
        """What an error that S3 calls `code` means and what to do; empty if we do not know."""
        advice = _NOBODY if self.anonymous and code in _FORBIDDEN else _ADVICE.get(code)
        return f"{code}: {advice}" if advice else ""

    def _client(self, bucket: str) -> Any:
        with self._lock:
            region = self._regions.get(bucket)
            if region not in self._clients:
                self._clients[region] = self._connect(region)
            return self._clients[region]

    def _connect(self, region: str | None) -> Any:
        try:
            from boto3.session import Session
            from botocore import UNSIGNED
            from botocore.config import Config
        except ImportError:
            raise ValueError(f"{self._scheme}:// needs boto3: pip install 'dgan[s3]'") from None
        session = Session()
        self.anonymous = session.get_credentials() is None
        config = Config(
            signature_version=UNSIGNED if self.anonymous else "s3v4",
            connect_timeout=self._patience.connect,
            read_timeout=self._patience.stall,
            retries={"total_max_attempts": self._patience.attempts, "mode": "standard"},
        )
        place = {"endpoint_url": GOOGLE, "region_name": "auto"} if self._scheme == "gs" else {}
        try:
            return session.client("s3", **{"region_name": region, **place}, config=config)
        except ValueError as error:
            raise ValueError(f"{error}: AWS_ENDPOINT_URL is as in https://host:port") from None

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        """boto3's errors as ours."""
        try:
            yield
        except Exception as error:
            if not type(error).__module__.startswith(("botocore", "boto3")):
                raise
            response = getattr(error, "response", None) or {}
            code = str(response.get("Error", {}).get("Code", ""))
            kind = SourceError
            if code in _MISSING:
                kind = MissingError
            elif code in _FORBIDDEN:
                kind = ForbiddenError
            message = self.explain(code) or redact(str(error))
            raise kind(f"{name}: {message}", code or "unreachable") from None


class S3(Http):
    """A shard in a bucket. Arguments and errors are as of `Http`."""

    def __init__(
        self,
        url: Url,
        transport: Transport,
        account: Account,
        *,
        identity: Identity | None = None,
    ) -> None:
        super().__init__(url, transport, identity=identity)
        self._bucket, self._key = split(url)
        self._account = account
        self._signed: Signed | None = None
        self._lock = threading.Lock()

    @contextmanager
    def _get(self, wanted: str | None, within: float) -> Iterator[Reply]:
        with self._lock:
            if self._signed is None or time.monotonic() - self._signed.since > _REUSED:
                self._signed = self._account.sign(self._bucket, self._key)
            signed = self._signed
        headers = {} if wanted is None else {"Range": wanted}
        with self._transport.get(signed.address, headers, within) as reply:
            self._check_signature(reply, signed)
            yield reply

    def _check_signature(self, reply: Reply, signed: Signed) -> None:
        """Raises TransientError if the same request may succeed once it is signed anew."""
        region = reply.headers.get("x-amz-bucket-region") or signed.region
        moved = reply.status in _MOVED and region != signed.region
        if not moved and reply.status not in _STALE:
            return
        with self._lock:
            if self._signed is signed:  # else another thread has been here
                self._signed = None
        if moved:
            self._account.move(self._bucket, str(region))
        # Signed long ago, perhaps by credentials that are no longer valid; or elsewhere.
        if moved or time.monotonic() - signed.since > _SETTLED:
            raise TransientError(f"HTTP {reply.status}: the address has to be signed anew")

    def _accept(self, reply: Reply) -> None:
        try:
            super()._accept(reply)
        except SourceError as error:
            found = _CODE.search(reply.read(_CODE_WITHIN))
            code = found[1].decode() if found else str(reply.status)
            if not (explained := self._account.explain(code)):
                raise
            raise type(error)(f"{self.location}: {explained}", error.reason) from None

    def _persist(self, offset: int, attempt: Callable[[float], _T]) -> _T:
        try:
            return super()._persist(offset, attempt)
        except SourceError as error:
            if error.reason != "unreachable" or self._signed is None:
                raise
            host = urlsplit(self._signed.address).netloc  # an address in S3 does not tell it
            raise SourceError(f"{error}, asking {host}", error.reason) from None


def is_pattern(url: Url) -> bool:
    """Whether an address in a bucket names shards by `*`, `?` or `[…]`."""
    return url.in_bucket and _WILD.search(url.address) is not None


def split(url: Url) -> tuple[str, str]:
    """Bucket and key. The key is taken as it is written: nothing in it is percent-encoded.

    Raises:
        ValueError: if either is missing, or the address holds credentials.
    """
    bucket, _, key = url.address.partition("://")[2].partition("/")
    if "@" in bucket:
        raise ValueError(f"{url}: credentials belong into AWS's variables or files, not in here")
    if not bucket or not key:
        raise ValueError(f"{url}: an address in a bucket is {url.scheme}://bucket/key")
    return bucket, key

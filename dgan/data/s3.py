"""Shards in S3 and what speaks like it: boto3 finds credentials and signs, our transport reads.

boto3 reading by itself costs six times the processor time of a small request, under the lock that
the training loop needs too, and has time-outs and retries of its own. An address that it signs is
good for an hour, and reading it is plain HTTP. Where the store is (AWS_ENDPOINT_URL), who we are
and in which region is settled by boto3's usual variables and files; without credentials a bucket
is read as anybody may.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from typing import Any

from .location import ForbiddenError, Identity, MissingError, SourceError, Url, redact
from .sources import Http
from .transport import Patience, Reply, TransientError, Transport

_VALID = 3600  # seconds for which an address is signed
_REUSED = 1800  # seconds for which it is used: a read may be long
_SETTLED = 60.0  # seconds after which a refusal may come from the signature
_WILD = re.compile(r"[*?[]")
_MOVED = (301, 307, 400)  # how a bucket answers in another region than its own
_MISSING = ("404", "NoSuchKey", "NoSuchBucket", "NotFound")
_FORBIDDEN = ("401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")


class Account:
    """Who reads and where: boto3's clients, one a region. Safe to use from many threads."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._clients: dict[str | None, Any] = {}
        self._regions: dict[str, str] = {}
        self._lock = threading.Lock()
        self.anonymous = False

    def sign(self, bucket: str, key: str) -> str:
        """An address at which anybody may read `key` for an hour."""
        with _translated(f"s3://{bucket}/{key}"):
            return self._client(bucket).generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=_VALID
            )

    def list(self, url: Url) -> list[Url]:
        """The keys that a pattern with `*`, `?` or `[…]` names, sorted; none of them crosses a `/`.

        Raises:
            SourceError: if the bucket cannot be listed.
        """
        bucket, pattern = split(url)
        prefix, parts = _WILD.split(pattern, maxsplit=1)[0], pattern.split("/")
        with _translated(str(url)):
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
        return [Url(f"s3://{bucket}/{key}") for key in sorted(found)]

    def move(self, bucket: str, region: str) -> bool:
        """From now on signs for `bucket` as being in `region`. Whether that is news."""
        with self._lock:
            news = self._regions.get(bucket) != region
            self._regions[bucket] = region
            return news

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
            raise ValueError("s3:// needs boto3: pip install 'dgan[s3]'") from None
        session = Session()
        self.anonymous = session.get_credentials() is None
        config = Config(
            signature_version=UNSIGNED if self.anonymous else "s3v4",
            connect_timeout=self._patience.connect,
            read_timeout=self._patience.stall,
            retries={"total_max_attempts": self._patience.attempts, "mode": "standard"},
        )
        return session.client("s3", region_name=region, config=config)


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
        self._signed, self._since = "", -float("inf")
        self._lock = threading.Lock()

    def _get(self, wanted: str | None, within: float) -> AbstractContextManager[Reply]:
        with self._lock:
            if time.monotonic() - self._since > _REUSED:
                self._signed = self._account.sign(self._bucket, self._key)
                self._since = time.monotonic()
            address = self._signed
        return self._transport.get(address, {} if wanted is None else {"Range": wanted}, within)

    def _accept(self, reply: Reply) -> None:
        region = reply.headers.get("x-amz-bucket-region")
        moved = reply.status in _MOVED and region is not None
        if moved or reply.status == 403:
            with self._lock:
                # Signed long ago, perhaps by credentials that are no longer valid; or elsewhere.
                stale = time.monotonic() - self._since > _SETTLED
                self._since = -float("inf")
            if stale or (moved and self._account.move(self._bucket, str(region))):
                raise TransientError(f"HTTP {reply.status}: the address has to be signed anew")
        try:
            super()._accept(reply)
        except ForbiddenError as error:
            hint = " without credentials: AWS's client found none" * self._account.anonymous
            raise ForbiddenError(f"{error}{hint}", error.reason) from None


def is_pattern(url: Url) -> bool:
    """Whether an address in S3 names shards by `*`, `?` or `[…]`."""
    return url.scheme == "s3" and _WILD.search(url.address) is not None


def split(url: Url) -> tuple[str, str]:
    """Bucket and key. The key is taken as it is written: nothing in it is percent-encoded.

    Raises:
        ValueError: if either is missing, or the address holds credentials.
    """
    bucket, _, key = url.address.partition("://")[2].partition("/")
    if "@" in bucket:
        raise ValueError(f"{url}: credentials belong into AWS's variables or files, not in here")
    if not bucket or not key:
        raise ValueError(f"{url}: an address in S3 is s3://bucket/key")
    return bucket, key


@contextmanager
def _translated(name: str) -> Iterator[None]:
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
        message = f"{name}: {redact(str(error))}"
        raise kind(message, code or "unreachable") from None

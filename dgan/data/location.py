"""Where a shard is: a path, or an address that may hold secrets and never shows them."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

# Parts of a query that say who may read, not what: they change while the shard stays the same.
_SIGNING = re.compile(
    r"x-(amz|goog)-.*|signature|expires|awsaccesskeyid|googleaccessid|key-pair-id|policy"
    r"|token|access_token|sig|se|st|sp|sv|sr|spr|sks|ske|skt|skv|skoid|sktid",
    re.IGNORECASE,
)
# Parts of a query that say what, not who: they may be shown and written down.
_PLAIN = re.compile(r"alt|dl|download|generation|raw|ref|rev|version|versionid", re.IGNORECASE)
BUCKETS = ("s3", "gs")
_VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_ADDRESS = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)([^\s/?#'\"]*@)?([^\s?]*)(\?[^\s'\"]*)?")


class SourceError(OSError):
    """A shard that cannot be read, and asking again would not help.

    `reason` is a word or two, to count by.
    """

    def __init__(self, message: str, reason: str = "unreachable") -> None:
        super().__init__(message)
        self.reason = reason


class MissingError(SourceError, FileNotFoundError):
    """The server says that there is no such shard."""


class ForbiddenError(SourceError, PermissionError):
    """The server does not let us read the shard."""


class Identity(NamedTuple):
    """What tells one content of a shard from another.

    Attributes:
        size: in bytes.
        tag: of a file its time of modification, else the server's ETag or Last-Modified; may be
            empty if the server sends neither.
    """

    size: int
    tag: int | str


@dataclass(frozen=True)
class Url:
    """An address of a shard. `str` and `repr` of it leave out its password and its query.

    Attributes:
        address: all of it, for requests only.
    """

    address: str = field(repr=False)

    def __str__(self) -> str:
        return redact(self.address)

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    @property
    def scheme(self) -> str:
        """Lower-case, without the colon."""
        return urlsplit(self.address).scheme

    @property
    def name(self) -> str:
        """The last part of its path, as `Path.name` of a file."""
        return unquote(posixpath.basename(urlsplit(self.address).path))

    @property
    def sidecar(self) -> Url:
        """Where its index is kept: beside it, `<shard>.index.json`."""
        parts = urlsplit(self.address)
        return Url(urlunsplit(parts._replace(path=parts.path + ".index.json")))

    @property
    def key(self) -> str:
        """The address without what only says who may read: what the cache knows it by."""
        parts = urlsplit(self.address)
        query = parse_qsl(parts.query, keep_blank_values=True)
        kept = "&".join(
            f"{quote(name)}={quote(value)}" for name, value in query if not _SIGNING.fullmatch(name)
        )
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=host, query=kept, fragment=""))

    @property
    def in_bucket(self) -> bool:
        """Whether it is a key of an object store, in which nothing is percent-encoded."""
        return self.scheme in BUCKETS


Location = Path | Url


def holds_secret(address: str) -> bool:
    """Whether `address` (or a path) says who may read, other than by names of variables.

    A user or a password does, and whatever is in the query but for what is known to be harmless.
    """
    _, user, _, query = _cut(address)
    parts = user.split(":")
    for part in query.split("&"):
        name, _, value = part.rpartition("=")
        if not _PLAIN.fullmatch(name):
            parts.append(value)
    return any(part and not _VARIABLE.fullmatch(part) for part in parts)


def fill_in(address: str) -> str:
    """`address` with the environment's values for each `$NAME` before its `@` and in its query.

    Raises:
        ValueError: if there is no such variable.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise ValueError(
                f"{redact(address)} names ${found[1]}, but there is no such environment variable: "
                "export it to every process that reads the shards"
            )
        return os.environ[found[1]]

    scheme, user, rest, query = _cut(address)
    # A password may hold an @, so it is quoted; a query is written as it is to be sent.
    user = _VARIABLE.sub(lambda found: quote(value(found), safe=""), user)
    return f"{scheme}{user}{'@' * bool(user)}{rest}{'?' * bool(query)}{_VARIABLE.sub(value, query)}"


def _cut(address: str) -> tuple[str, str, str, str]:
    """Scheme with its `://`, user and password, host and path, query."""
    scheme, mark, rest = address.partition("://")
    if not mark:
        return "", "", address, ""
    # In the keys of a bucket a question mark is a wildcard.
    rest, _, query = (rest, "", "") if scheme.lower() in BUCKETS else rest.partition("?")
    authority, slash, path = rest.partition("/")
    user, _, host = authority.rpartition("@")
    return scheme + mark, user, host + slash + path, query


def redact(text: str) -> str:
    """`text` with the user, password and query of every address in it replaced by `…`."""

    def hide(found: re.Match[str]) -> str:
        scheme, user, rest, query = found.groups()
        return f"{scheme}{'…@' * bool(user)}{rest}{'?…' * bool(query)}"

    return _ADDRESS.sub(hide, text)

"""A connection on which no wait is without end: silence and slowness both close it."""

from __future__ import annotations

import base64
import http.client
import io
import os
import socket
import ssl
import time
import urllib.request
from collections.abc import Mapping
from functools import cache
from typing import Any, cast
from urllib.parse import SplitResult, quote, unquote, urlsplit

_BUFFER = 1 << 17
# Servers that wait for the head of an answer to be acknowledged before they send its body (Nagle's
# algorithm; Ceph's by default) would wait 40 ms for each small request. Linux only.
_QUICK_ACK: int | None = getattr(socket, "TCP_QUICKACK", None)
_ALLOWED = "/?%:@!$&'()*+,;=~-._[]"  # in a path and query, besides letters and digits


class Paced:
    """A socket whose reading end gives up on silence, and on less than `slowest` bytes a second.

    `http.client` closes what it reads from before the body is read if the server will not keep
    the connection: here that does nothing, and `hang_up` closes.
    """

    def __init__(self, sock: socket.socket, slowest: float) -> None:
        self._socket, self._slowest = sock, slowest
        self._begun = self._stall = 0.0
        self._received = 0

    def begin(self, stall: float) -> None:
        """A request is about to be sent: no wait for it or its answer exceeds `stall` seconds."""
        self._begun, self._received, self._stall = time.monotonic(), 0, stall
        self._socket.settimeout(stall)

    def receive_into(self, buffer: Any) -> int:
        """As `socket.recv_into`. Raises TimeoutError."""
        left = self._begun + self._stall + self._received / self._slowest - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"slower than {self._slowest:,.0f} bytes a second")
        self._socket.settimeout(min(left, self._stall))
        if _QUICK_ACK is not None:  # the system forgets it
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)
        count = self._socket.recv_into(buffer)
        self._received += count
        return count

    def sendall(self, data: bytes) -> None:
        """As `socket.sendall`."""
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """What a response reads from."""
        assert mode == "rb", "http.client writes by sendall"
        return io.BufferedReader(_Reading(self), _BUFFER)

    def close(self) -> None:
        """Nothing: the response may not have been read yet."""

    def hang_up(self) -> None:
        """Closes the connection."""
        self._socket.close()


class _Reading(io.RawIOBase):
    def __init__(self, paced: Paced) -> None:
        self._paced = paced

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._paced.receive_into(buffer)


class Connection:
    """A connection to the server of an address, or to the proxy that the environment names."""

    def __init__(self, parts: SplitResult, *, timeout: float, slowest: float) -> None:
        host, port = parts.hostname or "", parts.port
        proxy = None
        if not urllib.request.proxy_bypass(host):
            proxy = urllib.request.getproxies().get(parts.scheme)
        end = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else parts
        self._whole_address = bool(proxy) and parts.scheme == "http"
        self._proxy_headers = authorization(end, "Proxy-Authorization") if proxy else {}
        secure = parts.scheme == "https"
        if secure:
            client = http.client.HTTPSConnection(
                end.hostname or "", end.port if proxy else port, timeout=timeout, context=_tls()
            )
        else:
            client = http.client.HTTPConnection(end.hostname or "", end.port, timeout=timeout)
        if proxy and secure:
            client.set_tunnel(host, port or 443, self._proxy_headers)
        client.connect()
        self._paced = Paced(client.sock, slowest)
        client.sock = cast(Any, self._paced)
        client.auto_open = False  # a connection that is lost is replaced, not quietly renewed
        self._client = client

    def ask(
        self, parts: SplitResult, headers: Mapping[str, str], stall: float
    ) -> http.client.HTTPResponse:
        """Sends a GET and returns the head of the answer. Raises OSError, HTTPException."""
        path = quote((parts.path or "/") + f"?{parts.query}" * bool(parts.query), _ALLOWED)
        host = parts.netloc.rpartition("@")[2]
        headers = {"Host": host, "Accept-Encoding": "identity", **headers}
        if self._whole_address:
            path, headers = f"{parts.scheme}://{host}{path}", {**headers, **self._proxy_headers}
        self._paced.begin(stall)
        self._client.request("GET", path, headers=headers)
        return self._client.getresponse()

    def hang_up(self) -> None:
        """Closes it."""
        self._paced.hang_up()


def authorization(parts: SplitResult, name: str = "Authorization") -> dict[str, str]:
    """The header that says what stands before the `@` of an address; none if nothing does."""
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {name: "Basic " + base64.b64encode(pair.encode()).decode()}


@cache
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    if bundle := os.environ.get("AWS_CA_BUNDLE"):  # what S3's own clients understand
        context.load_verify_locations(bundle)
    return context

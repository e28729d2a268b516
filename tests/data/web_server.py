"""A web server of one folder, with ranges, that breaks as it is told to."""

import http.server
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Fault:
    """What goes wrong with requests whose path matches; the first `times` of them, −1: always.

    Kinds: `reset` and `truncate` (after `at` bytes of the body), `stall` (there, for `seconds`),
    `slow` (`rate` bytes a second), `corrupt` (the byte `at` of the file), `length` (half of it is
    announced and sent), `status`, `plain` (Range is ignored), `redirect` (to `target`), `shifted`
    (another range than was asked for), `closed` (before any answer).
    """

    kind: str
    match: str = r"\.tar$"
    times: int = -1
    at: int = 1000
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 30.0
    rate: float = 2000.0
    target: str = ""
    whole: bool = True  # False: only requests for more than one byte


class Server(http.server.ThreadingHTTPServer):
    """Serves `folder`; `requests` holds (path, Range header, time) of each request."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, faults: Sequence[Fault] = (), latency: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.faults, self.latency = folder, list(faults), latency
        self.etags = True
        self.requests: list[tuple[str, str, float]] = []
        self.authorizations: list[str | None] = []
        self.connections: list[socket.socket] = []
        self.stopped = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, match: str = r"\.tar$") -> list[str]:
        """The ranges that were asked for of paths that match, but for those of one byte."""
        return [r for path, r, _ in self.requests if re.search(match, path) and r != "bytes=0-0"]

    def fault_for(self, path: str, wanted: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if not re.search(fault.match, path) or fault.times == 0:
                    continue
                if not fault.whole and wanted == "bytes=0-0":
                    continue
                fault.times -= 1
                return fault
        return None

    def get_request(self) -> tuple[socket.socket, object]:
        request, address = super().get_request()
        self.connections.append(request)
        return request, address

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up is no news


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        # A proxy is asked for whole addresses.
        server, path = self.server, re.sub(r"^http://[^/]*|[?].*$", "", self.path)
        wanted = self.headers.get("Range", "")
        server.requests.append((self.path, wanted, time.monotonic()))
        server.authorizations.append(self.headers.get("Authorization"))
        time.sleep(server.latency)
        fault = server.fault_for(path, wanted)
        kind = fault.kind if fault else ""
        if fault and kind == "closed":
            return self._hang_up()
        if fault and kind in ("status", "redirect"):
            code = fault.status if kind == "status" else 302
            extra = {"Location": fault.target} if kind == "redirect" else {}
            return self._send_head(code, {**extra, **fault.headers, "Content-Length": "0"})
        file = server.folder / path.lstrip("/")
        if not file.is_file():
            return self._send_head(404, {"Content-Length": "0"})
        data, stat = file.read_bytes(), file.stat()
        if fault and kind == "corrupt" and fault.at < len(data):
            data = data[: fault.at] + bytes([data[fault.at] ^ 0x40]) + data[fault.at + 1 :]
        headers = {"ETag": f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'} if server.etags else {}
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        status, body = 200, data
        if found and kind != "plain":
            begin, end = int(found[1]), min(int(found[2]) + 1, len(data))
            if begin >= len(data):
                headers["Content-Range"] = f"bytes */{len(data)}"
                return self._send_head(416, {**headers, "Content-Length": "0"})
            if kind == "shifted":
                begin, end = begin + 1, end + 1
            status, body = 206, data[begin:end]
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        if kind == "length":
            body = body[: len(body) // 2]
        self._send_head(status, {**headers, "Content-Length": str(len(body))})
        self._send_body(body, fault)
        return None

    def _send_head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_body(self, body: bytes, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        if fault and kind in ("reset", "truncate", "stall"):
            self.wfile.write(body[: min(fault.at, len(body) - 1)])
            self.wfile.flush()
            if kind == "stall":
                self.server.stopped.wait(fault.seconds)
            self._hang_up(reset=kind == "reset")
        elif fault and kind == "slow":
            step = max(1, int(fault.rate / 20))
            for begin in range(0, len(body), step):
                self.wfile.write(body[begin : begin + step])
                if self.server.stopped.wait(0.05):
                    return
        else:
            self.wfile.write(body)

    def _hang_up(self, reset: bool = True) -> None:
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()


@contextmanager
def serving(folder: Path, *faults: Fault, latency: float = 0.0) -> Iterator[Server]:
    """A server of `folder` in threads of this process."""
    server = Server(folder, faults, latency)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
        for connection in server.connections:  # a server that is gone answers nobody
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

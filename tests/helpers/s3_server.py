"""Local S3 servers for tests: moto behind a proxy that fails on demand."""

from __future__ import annotations

import http.client
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from moto.moto_api._internal import moto_api_backend
from moto.server import ThreadedMotoServer

KEYS = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "x")
KEYS["AWS_DEFAULT_REGION"] = "us-east-1"
_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>please {}</Message></Error>"
_KEPT = ("content-length", "content-type", "content-range", "etag", "last-modified")


@dataclass(frozen=True)
class Fault:
    """What happens to one request: an error, a wait, or a body cut short."""

    status: int = 0
    code: str = "InternalError"
    wait_s: float = 0  # before the answer
    body_bytes: int = -1  # then the connection is dropped; -1: all
    stall_s: float = 0  # between these bytes and the drop
    drop: bool = False  # the connection, without an answer


@dataclass
class Script:
    """Faults by key (``bucket/key``, or ``bucket`` for its listing), and the requests that came.

    The faults of a key are used up one a request, the last one is kept if ``always`` has the key.
    """

    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    always: set[str] = field(default_factory=set)
    requests: Counter[str] = field(default_factory=Counter)

    def fail(self, key: str, *faults: Fault, always: bool = False) -> None:
        self.faults[key] = list(faults)
        if always:
            self.always.add(key)

    def next_fault(self, key: str) -> Fault:
        self.requests[key] += 1
        left = self.faults[key]
        if not left:
            return Fault()
        return left[0] if key in self.always and len(left) == 1 else left.pop(0)


@dataclass(frozen=True)
class Server:
    """``url``: through the proxy; ``script``: what fails."""

    url: str
    script: Script


class Quiet(BaseHTTPRequestHandler):
    """A handler that logs nothing and can break off."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, headers: dict[str, str], body: bytes, sent: int = -1) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent < 0 else body[:sent])
        if sent >= 0:
            self.wfile.flush()
            self.close_connection = True


def _handler(script: Script, host: str, port: int) -> type[Quiet]:
    class Proxy(Quiet):
        def do_GET(self) -> None:
            key = unquote(urlsplit(self.path).path).strip("/")
            fault = script.next_fault(key)
            time.sleep(fault.wait_s)
            if fault.drop:
                self.close_connection = True
            elif fault.status:
                body = _ERROR.format(fault.code, "slow down").encode()
                length = {"Content-Length": str(len(body)), "Content-Type": "application/xml"}
                self.answer(fault.status, length, body)
            else:
                self.forward(fault)

        do_HEAD = do_GET
        do_PUT = do_POST = do_DELETE = do_GET

        def forward(self, fault: Fault) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            content = self.rfile.read(length)
            connection = http.client.HTTPConnection(host, port)
            connection.request(self.command, self.path, content, dict(self.headers.items()))
            found = connection.getresponse()
            body = found.read()
            headers = {k: v for k, v in found.getheaders() if k.lower() in _KEPT}
            headers.setdefault("Content-Length", str(len(body)))
            self.answer(found.status, headers, body, fault.body_bytes)
            time.sleep(fault.stall_s)
            connection.close()

    return Proxy


@contextmanager
def serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server in a thread; gives its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def faulty_s3() -> Iterator[Server]:
    """moto's S3 behind a proxy that fails as scripted; the environment has credentials for it."""
    moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        script = Script()
        proxy = _handler(script, *moto.get_host_and_port())
        with serve(proxy) as url, pytest.MonkeyPatch.context() as patch:
            for name, value in KEYS.items():
                patch.setenv(name, value)
            yield Server(url, script)
    finally:
        moto_api_backend.reset()  # what it holds is this process's, whatever the server
        moto.stop()

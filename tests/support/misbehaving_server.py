"""A small HTTP server on loopback that holds files and
misbehaves as told, for tests of downloads.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Misdeed = Callable[["Handler", bytes], bool]


@dataclass
class Server:
    """Attributes: files: name -> content. etags: name -> ETag to send. misdeeds: name -> what to do
    in place of each next regular answer to GET, first come first served; a misdeed
        that returns False leaves the regular answer to happen.
    always: name -> what to do in place of every answer to GET.
    asked: (method, name, Range header) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    misdeeds: dict[str, list[Misdeed]] = field(default_factory=dict)
    always: dict[str, Misdeed] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    head_works: bool = True
    url: str = ""

    def gets(self, name: str) -> list[str | None]:
        """Range headers of the GET requests for a file."""
        return [r for method, asked, r in self.asked if method == "GET" and asked == name]


class Handler(BaseHTTPRequestHandler):
    state: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    @property
    def file(self) -> str:
        return self.path.lstrip("/")

    def do_HEAD(self) -> None:
        self.state.asked.append(("HEAD", self.file, None))
        if not self.state.head_works:
            self.answer(405)
        elif self.file in self.state.files:
            self.answer(200, {"Content-Length": str(len(self.state.files[self.file]))})
        else:
            self.answer(404)

    def do_GET(self) -> None:
        self.state.asked.append(("GET", self.file, self.headers.get("Range")))
        content = self.state.files.get(self.file)
        if content is None and self.file not in self.state.always:
            self.answer(404)
            return
        queue = self.state.misdeeds.get(self.file, [])
        misdeed = queue.pop(0) if queue else self.state.always.get(self.file)
        if misdeed is None or not misdeed(self, content or b""):
            self.regular(content or b"")

    def regular(self, content: bytes, stop: int | None = None) -> None:
        """What a good server says, cut off after `stop` bytes of the body."""
        etag = self.state.etags.get(self.file)
        headers = {"ETag": etag} if etag else {}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        current = self.headers.get("If-Range") in (None, etag)
        if wanted is None or not current:
            self.answer(200, headers | {"Content-Length": str(len(content))}, content[:stop])
        elif int(wanted[1]) >= len(content):
            self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
        else:
            self.send_range(content, int(wanted[1]), headers, stop)

    def send_range(
        self, content: bytes, start: int, headers: dict[str, str], stop: int | None = None
    ) -> None:
        body = content[start:]
        place = {
            "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}",
            "Content-Length": str(len(body)),
        }
        self.answer(206, headers | place, body[:stop])

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | (headers or {})).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True


@contextmanager
def serving() -> Iterator[Server]:
    state = Server()
    handler = type("BoundHandler", (Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def break_off(after: int) -> Misdeed:
    """Close the connection after so many bytes of the body."""

    def misdeed(handler: Handler, content: bytes) -> bool:
        handler.regular(content, stop=after)
        return True

    return misdeed


def fail(status: int, **headers: str) -> Misdeed:
    def misdeed(handler: Handler, content: bytes) -> bool:
        handler.answer(status, {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return misdeed


def ignore_ranges(handler: Handler, content: bytes) -> bool:
    handler.answer(200, {"Content-Length": str(len(content))}, content)
    return True


def announce(length: int | None) -> Misdeed:
    """Send everything under a wrong Content-Length, or under none."""

    def misdeed(handler: Handler, content: bytes) -> bool:
        handler.answer(200, {"Content-Length": "" if length is None else str(length)}, content)
        return True

    return misdeed

"""A small HTTP server around a function request -> reply; standard library, loopback by default."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from foreact.errors import UserError

Handle = Callable[[str, str, bytes], tuple[int, Any]]
"""(method, path with query, body) -> (status, JSON value)."""

MAX_BODY = 64 * 2**20
"""Largest body in bytes by default: more than six raw 1600 x 900 pictures in base64."""

log = logging.getLogger(__name__)


def make_server(
    handle: Handle,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    max_body: int = MAX_BODY,
    timeout_s: float = 30.0,
) -> ThreadingHTTPServer:
    """A server that is bound and waits for `serve_forever`; a thread per connection calls `handle`.

    Args:
        handle: answers a request; it must stand being called by several threads. What it raises
            becomes a 500 with one sentence, and a traceback in the log.
        host: address to listen on. There is no authentication: anything but loopback is for
            networks you trust.
        port: 0 takes any free one; `server_address` tells which.
        max_body: larger bodies are refused before they are read.
        timeout_s: a connection that sends nothing for so long is closed.

    Raises:
        UserError: the address cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps the connection between requests
        timeout = timeout_s

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            length = self.headers.get("Content-Length", "0")
            if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
                return self._refuse(411, "Send the body whole, with a Content-Length.")
            if len(length) > 18 or int(length) > max_body:
                return self._refuse(
                    413, f"The body has {length} bytes, at most {max_body} are taken."
                )
            body = self.rfile.read(int(length))
            if len(body) < int(length):  # the client went away
                self.close_connection = True
                return None
            try:
                status, reply = handle(self.command, self.path, body)
                text = json.dumps(reply, allow_nan=False)
            except Exception:
                log.exception("%s %s failed", self.command, self.path)
                status, text = (
                    500,
                    json.dumps({"detail": "The server failed on this request; its log says why."}),
                )
            return self._send(status, text)

        def _refuse(self, status: int, sentence: str) -> None:
            self.close_connection = True  # the unread body would be taken for the next request
            self._send(status, json.dumps({"detail": sentence}))

        def _send(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            log.info("%s %s", self.address_string(), format % args)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            log.info("the connection to %s broke", client_address[0], exc_info=True)

    try:
        return Server((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"Cannot listen on {host}:{port} ({error}); choose another --port or --host."
        ) from None

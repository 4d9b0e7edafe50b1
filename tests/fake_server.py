"""What stand-ins for the servers of others share: real HTTP on this machine, and answers as bad as one likes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-a-very-secret-key"


@dataclass
class Plain:
    """What the server sends, as it is."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    data: bytes = b""
    cut_after: int | None = None
    """Close the connection after so many bytes of the data."""
    write: Callable[[Any], None] | None = None
    """Writes the whole answer to the connection by itself, headers included."""


def fail(status: int, text: str = "no", code: str | None = None, **headers: str) -> Plain:
    """Make an error in the form of the protocol; `_` in the names of headers stands for `-`."""
    data = json.dumps({"error": {"message": text, "code": code, "type": "error"}}).encode()
    return Plain(status, {name.replace("_", "-"): value for name, value in headers.items()}, data)


class FakeHandler(BaseHTTPRequestHandler):
    """Sends answers as they are told, and logs nothing."""

    def send_plain(self, plain: Plain) -> None:
        with suppress(OSError):  # the client has gone
            if plain.write is not None:
                self.close_connection = True
                plain.write(self.wfile)
                return
            self.send_response(plain.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(plain.data)))
            for name, value in plain.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(plain.data[: plain.cut_after])
        self.close_connection = self.close_connection or plain.cut_after is not None

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def running(handler: type[FakeHandler]) -> Iterator[str]:
    """Run a server on a free port of this machine; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

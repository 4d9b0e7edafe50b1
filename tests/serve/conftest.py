"""A real server in a thread, over an editor that computes next to nothing."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from restage.edit.editors.picture_client import Part, encode_form
from restage.serve.config import ServeConfig
from restage.serve.served import ServedEditor, open_served

for package in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(package, reason="needs restage[serve]")

from restage.serve.app import running_server  # noqa: E402


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


class Running(NamedTuple):
    """A server that answers."""

    url: str
    token: str

    def ask(self, page: str, content: bytes | None = None, **headers: str) -> Answer:
        """Ask for a page below `/`; underscores in the names of headers stand for dashes."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if content is None else "POST", page, content, named)
        answer = connection.getresponse()
        found = Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        connection.close()
        return found

    def edit(self, *parts: Part, **headers: str) -> Answer:
        content, kind = encode_form(parts)
        return self.ask("/v1/images/edits", content, Content_Type=kind, **headers)


@contextmanager
def serving(served: ServedEditor, **changes: Any) -> Iterator[Running]:
    config = ServeConfig(**{"editor": served.editor_name, "port": 18_300, "window": 0.02, **changes})
    with running_server(served, config) as (server, address, token):
        thread = threading.Thread(target=server.run)
        thread.start()
        deadline_s = time.monotonic() + 60
        while not server.started and thread.is_alive() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert server.started
        try:
            yield Running(address, token)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def grade() -> Iterator[Running]:
    with serving(open_served("grade", None, device="cpu"), max_side=64, max_megabytes=0.2) as running:
        yield running


@pytest.fixture
def serve_it() -> Callable[..., Any]:
    return serving

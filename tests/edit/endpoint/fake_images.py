"""A server that speaks `/v1/images/edits` over real HTTP, and can be told to misbehave."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.fake_server import FakeHandler, Plain, fail, running


class Asked(NamedTuple):
    """A request, taken apart."""

    fields: dict[str, str]
    files: dict[str, list[bytes]]

    @property
    def picture(self) -> np.ndarray:
        """The picture to edit, "h w 3"."""
        (content,) = self.files.get("image") or self.files["image[]"][:1]
        return pixels_of(content)


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def encode(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind, **options)
    return file.getvalue()


def answer_with(**row: Any) -> Plain:
    return Plain(data=json.dumps({"created": 1, "data": [row]}).encode())


def answer_bytes(content: bytes) -> Plain:
    return answer_with(b64_json=base64.b64encode(content).decode())


def invert(asked: Asked) -> Plain:
    """A good answer: the negative."""
    return answer_bytes(encode(255 - asked.picture))


def take_apart(kind: str, content: bytes) -> Asked:
    """Read a form; by hand, since the parser of e-mails takes minutes for pictures."""
    boundary = b"--" + kind.partition("boundary=")[2].encode()
    fields: dict[str, str] = {}
    files: dict[str, list[bytes]] = {}
    for part in content.split(boundary)[1:-1]:
        head, _, payload = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        found = re.search(r'name="([^"]*)"(; filename=)?', head.decode())
        assert found, head
        if found[2]:
            files.setdefault(found[1], []).append(payload.removesuffix(b"\r\n"))
        else:
            fields[found[1]] = payload.removesuffix(b"\r\n").decode()
    return Asked(fields, files)


class FakeImages:
    """A record of what was asked, and what is answered."""

    def __init__(self) -> None:
        self.url = ""
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.asked: list[Asked] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.fetched: list[tuple[str, dict[str, str]]] = []
        """Paths and headers of what was asked for by GET."""
        self.num_paid = 0
        """Answers of status 200 that were sent whole."""
        self.answer: Callable[[Asked], Plain] = invert
        self.models: Callable[[], Plain] = lambda: fail(404, "no such page")
        self.pages: dict[str, Plain] = {}


def _handler(server: FakeImages) -> type[FakeHandler]:
    class Handler(FakeHandler):
        def do_GET(self) -> None:
            server.fetched.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            known = server.models() if self.path.endswith("/models") else fail(404, "no such page")
            self.send_plain(server.pages.get(self.path, known))

        def do_POST(self) -> None:
            asked = take_apart(self.headers["content-type"], self.rfile.read(int(self.headers["content-length"])))
            with server.lock:
                server.asked.append(asked)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                server.paths.append(self.path)
                answer = server.answer
            plain = answer(asked)
            with server.lock:
                server.num_paid += plain.status == 200
            self.send_plain(plain)

    return Handler


@contextmanager
def serve_images() -> Iterator[FakeImages]:
    """Run a server on a free port of this machine."""
    fake = FakeImages()
    with running(_handler(fake)) as fake.url:
        yield fake

"""A server that speaks the chat completions protocol over real HTTP, and can be told to misbehave."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.fake_server import FakeHandler, Plain, running

COLORS = ("red", "green", "blue", "black", "white", "silver", "golden", "brown")

Body = dict[str, Any]


def asked_number(body: Body) -> int:
    """Return how many pairs a request asks for."""
    text = body["messages"][1]["content"]
    found = re.search(r"Write (\d+) items", text) or re.search(r"each of these (\d+) captions", text)
    assert found, text
    return int(found[1])


def good_items(body: Body) -> list[Body]:
    """Write pairs as a willing model does: about the topics, or from the user's captions."""
    text = body["messages"][1]["content"]
    if "Captions: " in text:
        captions = json.loads(text.split("Captions: ")[1])
        return [
            {"source": c, "target": f"{c} in the rain", "instruction": "make it rain", "words": ["rain"]}
            for c in captions
        ]
    topics = text.split("Topics: ")[1].rstrip(".").split(", ")
    places = ["a beach", "a hill", "a pier", "a lawn", "a road", "a roof", "a rock"]
    return [
        {
            "source": f"a {COLORS[i % 8]} {noun} on {places[body['seed'] % 7]}",
            "target": f"a {COLORS[(i + 3) % 8]} {noun} on {places[body['seed'] % 7]}",
            "instruction": f"make the {noun} {COLORS[(i + 3) % 8]}",
            "undo": f"make the {noun} {COLORS[i % 8]} again",
            "words": [noun],
        }
        for i, noun in enumerate(topics)
    ]


def message(content: str | None, *, finish: str = "stop", refusal: str | None = None) -> bytes:
    """The body of an answer."""
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "fake",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish,
                    "message": {"role": "assistant", "content": content, "refusal": refusal},
                }
            ],
            "usage": {"prompt_tokens": 300, "completion_tokens": 200, "total_tokens": 500},
        }
    ).encode()


def answer_well(body: Body) -> Plain:
    """Make an answer without a fault."""
    return Plain(data=message(json.dumps({"pairs": good_items(body)})))


class FakeLlm:
    """A record of what was asked, and the script of what is answered next."""

    def __init__(self) -> None:
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.num_paid = 0
        """Answers of status 200 that were sent."""
        self.script: list[Callable[[Body], Plain]] = []
        """Answers to the first requests; then all are good."""
        self.lock = threading.Lock()
        self.url = ""
        self.default: Callable[[Body], Plain] = answer_well

    def next_answer(self, body: Body) -> Plain:
        """Take the next answer of the script."""
        with self.lock:
            self.bodies.append(body)
            answer = self.script.pop(0) if self.script else self.default
        return answer(body)


def _handler(server: FakeLlm) -> type[FakeHandler]:
    class Handler(FakeHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.paths.append(self.path)
            plain = server.next_answer(body)
            with server.lock:
                server.num_paid += plain.status == 200 and plain.write is None
            self.send_plain(plain)

    return Handler


@contextmanager
def serve() -> Iterator[FakeLlm]:
    """Run a server on a free port of this machine."""
    fake = FakeLlm()
    with running(_handler(fake)) as fake.url:
        yield fake

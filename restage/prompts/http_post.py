"""One HTTP request with JSON in and bytes out, within a total time and a total size; `endpoint` asks with it.

Clients of HTTP limit the time between two bytes: a server that sends one now and then holds them for ever.
"""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["MAX_ANSWER_BYTES", "HttpAnswer", "post_json"]

MAX_ANSWER_BYTES = 8_000_000
"""Far more than any model writes in one answer."""
CHUNK_BYTES = 65_536


class HttpAnswer(NamedTuple):
    """What a server answered, whatever its status."""

    status: int
    headers: Mapping[str, str]
    """By name in lower case."""
    content: bytes


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, which would send the key to another server."""

    def redirect_request(self, *args: Any) -> None:
        return None


def post_json(url: str, body: Any, *, headers: Mapping[str, str], timeout_s: float) -> HttpAnswer:
    """Send a request once, within a time for everything, from the name's address to the last byte.

    Raises:
        OSError: the server cannot be reached, ends too early, or takes too long.
        ValueError: the answer is too large, or the URL is none.
    """
    content = json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json", **headers}, method="POST")
    deadline_s = time.monotonic() + timeout_s

    def send() -> HttpAnswer:
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=timeout_s) as response:
                return _read(response, deadline_s)
        except urllib.error.HTTPError as error:
            with error:
                return _read(error, deadline_s)
        except http.client.HTTPException as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from None

    return _within(timeout_s, send)


def _read(response: Any, deadline_s: float) -> HttpAnswer:
    parts, size = [], 0
    while part := response.read1(CHUNK_BYTES):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline_s:
            raise TimeoutError("the answer did not end in time")
    headers = {name.lower(): value for name, value in response.headers.items()}
    expected = headers.get("content-length", "")
    if expected.isdigit() and size < int(expected):
        raise ConnectionError(f"the answer ended after {size} of {expected} bytes")
    return HttpAnswer(response.status, headers, b"".join(parts))


def _within(timeout_s: float, call: Callable[[], HttpAnswer]) -> HttpAnswer:
    """Call in a thread that is left behind after the time: reading headers cannot be stopped from outside."""
    outcomes: queue.SimpleQueue[HttpAnswer | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcomes.put(call())
        except Exception as error:  # handed over to the caller, which raises it
            outcomes.put(error)

    threading.Thread(target=run, daemon=True, name="llm-request").start()
    try:
        outcome = outcomes.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"no whole answer in {timeout_s:g} s") from None
    if isinstance(outcome, Exception):
        raise outcome
    return outcome

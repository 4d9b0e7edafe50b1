"""What stands before the pages of the server: strangers are refused, and bodies that are too large or too slow."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from restage.run.doors import Door

__all__ = ["ApiError", "Guard"]

READ_TIME_S = 60.0
"""Seconds that the body of a request may take to arrive."""
PAGES = ("/health", "/metrics", "/v1/models", "/v1/images/edits", "/v1/images/generations")

Send = Callable[[Any], Awaitable[None]]


class ApiError(Exception):
    """A request that is answered with an error, in the protocol's form."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error as the protocol has it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


class Guard:
    """Around the application: refuses strangers before anything is read, and bodies that are too large or too slow."""

    def __init__(self, app: Any, *, door: Door, needs_token: bool, max_bytes: int, counts: Counter[tuple[str, int]]):
        self.app, self.door, self.needs_token, self.max_bytes, self.counts = app, door, needs_token, max_bytes, counts

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent: list[int] = []

        async def counted_send(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent.append(message["status"])
                page = scope["path"] if scope["path"] in PAGES else "other"
                self.counts[page, message["status"]] += 1
            await send(message)

        error = self._refusal(scope)
        if error is None:
            try:
                await self.app(scope, self._bounded(receive), counted_send)
                return
            except ApiError as refused:
                if sent:
                    raise
                error = refused
        from starlette.responses import JSONResponse

        headers = {**error.headers, "Connection": "close"}
        await JSONResponse(error.body(), error.status, headers)(scope, receive, counted_send)

    def _refusal(self, scope: Any) -> ApiError | None:
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        if refusal := self.door.refusal(headers.get("host", []), headers.get("origin", [])):
            return ApiError(403, f"refused: {refusal}")
        tokens = [value.partition(" ")[2].strip() for value in headers.get("authorization", [])]
        # Whoever looks after the machine may ask whether the server lives without the token.
        if self.needs_token and scope["path"] != "/health" and not self.door.knows(tokens):
            return ApiError(401, "the token is missing or wrong; it is what restage serve printed")
        length = headers.get("content-length", ["0"])[0]
        if not length.isdigit() or int(length) > self.max_bytes:
            return ApiError(413, f"the request is larger than {self.max_bytes} bytes")
        return None

    def _bounded(self, receive: Any) -> Any:
        size, deadline_s = 0, time.monotonic() + READ_TIME_S

        async def receive_some() -> Any:
            nonlocal size
            is_read = size < 0
            left_s = None if is_read else max(0.0, deadline_s - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), left_s)
            except TimeoutError:
                raise ApiError(408, f"the request did not arrive within {READ_TIME_S:g} s") from None
            if not is_read:
                size += len(message.get("body", b""))
                if size > self.max_bytes:
                    raise ApiError(413, f"the request is larger than {self.max_bytes} bytes")
                if not message.get("more_body"):
                    size = -1
            return message

        return receive_some

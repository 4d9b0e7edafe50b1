"""Answers of a language model on disk, a file for each request, so that nothing is paid twice.

A request that was sent and whose answer never came to disk leaves a mark: it may have been paid, and is counted so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restage.records import InputError, content_id, read_json, write_json

__all__ = ["AnswerCache", "Reply", "Usage"]


@dataclass(frozen=True)
class Usage:
    """Tokens of requests."""

    num_requests: int = 0
    num_input: int = 0
    num_output: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.num_requests + other.num_requests,
            self.num_input + other.num_input,
            self.num_output + other.num_output,
        )

    def cost(self, input_price: float, output_price: float) -> float:
        """In the currency of the prices, which are for a million tokens."""
        return (self.num_input * input_price + self.num_output * output_price) / 1e6


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model answered."""

    content: str
    refusal: str = ""
    """Why it would not answer, in its words."""
    finish_reason: str = ""
    """`stop`, `length`, `content_filter`, or whatever the server says."""
    usage: Usage = Usage()


@dataclass(frozen=True)
class _Kept:
    """What a file of the cache says, beside the request."""

    reply: Reply


class AnswerCache:
    """A folder of answers; may be shared by runs. Each file is written in one move, so a kill tears nothing."""

    def __init__(self, folder: Path) -> None:
        """Open the folder and add up what it cost so far."""
        self.folder = folder
        self.past = Usage()
        """Of all answers, and what was set aside for those that were lost when a session was killed."""
        self.num_lost = 0
        """Requests whose answers were lost."""
        for path in sorted(folder.glob("*/*.asked")):
            if not path.with_suffix(".json").exists():
                write_json(path.with_suffix(".lost"), _usage_of(path.with_suffix(".lost")) + _usage_of(path))
            path.unlink()
        for path in sorted(folder.glob("*/*.lost")):
            lost = _usage_of(path)
            self.num_lost += lost.num_requests
            self.past += lost
        for path in sorted(folder.glob("*/*.json")):
            if (reply := self._read(path)) is not None:
                self.past += reply.usage

    @staticmethod
    def request_id(request: Mapping[str, Any]) -> str:
        """Content id of a request."""
        return content_id("request", request)

    def _path(self, request_id: str, suffix: str) -> Path:
        name = request_id.removeprefix("request-")
        return self.folder / name[:2] / f"{name}{suffix}"

    @staticmethod
    def _read(path: Path) -> Reply | None:
        try:
            return read_json(path, _Kept).reply
        except InputError:
            return None  # a file that a failing disk spoilt is asked for again

    def find(self, request_id: str) -> Reply | None:
        """The answer to a request, if it was ever given."""
        return self._read(self._path(request_id, ".json"))

    def mark_asked(self, request_id: str, reserved: Usage) -> None:
        """Leave a mark before a request is sent."""
        write_json(self._path(request_id, ".asked"), reserved)

    def unmark(self, request_id: str) -> None:
        """Take the mark away: the request certainly cost nothing."""
        self._path(request_id, ".asked").unlink(missing_ok=True)

    def keep(self, request_id: str, request: Mapping[str, Any], reply: Reply) -> None:
        """Write an answer, then take the mark away."""
        write_json(self._path(request_id, ".json"), {"request": request, "reply": reply})
        self.unmark(request_id)


def _usage_of(path: Path) -> Usage:
    try:
        return read_json(path, Usage)
    except InputError:
        return Usage()

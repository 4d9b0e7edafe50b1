"""Answers of a language model on disk, a file for each request, so that nothing is paid twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restage.records import InputError, read_json, write_json
from restage.run.paid import PaidAnswers, Usage

__all__ = ["AnswerCache", "Reply"]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model answered."""

    content: str
    refusal: str = ""  # why it would not answer, in its words
    finish_reason: str = ""  # `stop`, `length`, `content_filter`, or whatever the server says
    usage: Usage = Usage()


@dataclass(frozen=True)
class _Kept:
    reply: Reply


class AnswerCache(PaidAnswers):
    """A folder of replies."""

    def usage_of(self, path: Path) -> Usage:
        """Return the tokens that a reply cost; see `PaidAnswers.usage_of`."""
        reply = self._read(path)
        return Usage() if reply is None else reply.usage

    @staticmethod
    def _read(path: Path) -> Reply | None:
        try:
            return read_json(path, _Kept).reply
        except InputError:
            return None  # a file that a failing disk spoilt is asked for again

    def find(self, request_id: str) -> Reply | None:
        """The answer to a request, if it was ever given."""
        return self._read(self.path(request_id))

    def keep(self, request_id: str, request: Mapping[str, Any], reply: Reply) -> None:
        """Write an answer, then take the mark away."""
        write_json(self.path(request_id), {"request": request, "reply": reply})
        self.unmark(request_id)

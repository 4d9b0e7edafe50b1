"""Prints what may hold names from outside, such as those of files, so that no part of it commands the terminal."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["printable", "say"]

# Control characters but tab and line feed, halves of surrogate pairs, and what turns the direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Spell out what a terminal would obey instead of show: an escape becomes `\x1b`."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: str, *, end: str = "\n", file: Any = None) -> None:
    """Print text that may hold names from outside, to a text stream (default: stdout as it is now)."""
    print(printable(text), end=end, file=file, flush=True)

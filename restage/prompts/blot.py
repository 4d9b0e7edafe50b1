"""Blots keys out of whatever is kept or said, however they are written there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["Blotter", "secrets_of_url"]

MIN_LENGTH = 4
"""Shorter keys are no secrets, but placeholders, and stand in many words."""
BLOT = "(key)"


def _any_spelling(character: str) -> str:
    """Return a pattern for a character: plain, or escaped as JSON, URLs and pages do."""
    code = ord(character)
    hexed = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in f"{code:02x}")
    escaped = rf"\\+(?:u00{hexed}|x{hexed})|%{hexed}|&#(?:0*{code}|[xX]0*{hexed});?"
    return rf"(?:\\*{re.escape(character)}|{escaped})"


class Blotter:
    """Knows the secrets of an endpoint."""

    def __init__(self, secrets: Iterable[str]) -> None:
        """Learn the secrets; the longest are blotted out first, since one may be a part of another."""
        known = sorted({secret for secret in secrets if len(secret) >= MIN_LENGTH}, key=len, reverse=True)
        patterns = ["".join(map(_any_spelling, secret)) for secret in known]
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    def text(self, text: str) -> str:
        """Return a text without the secrets, and without halves of characters, which cannot be written."""
        return self._sub(text.encode("utf-8", "replace").decode())

    def _sub(self, text: str) -> str:
        return self._pattern.sub(BLOT, text) if self._pattern else text

    def value(self, value: Any) -> Any:
        """Return JSON values without the secrets in any text, names included."""
        if isinstance(value, str):
            return self._sub(value)
        if isinstance(value, dict):
            return {self._sub(name): self.value(item) for name, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, list) else value


def secrets_of_url(url: str) -> set[str]:
    """Return what may be secret in a URL: user, password, the values of the query, and long parts of the path."""
    parts = urlsplit(url)
    found = {parts.username or "", parts.password or "", parts.fragment, *dict(parse_qsl(parts.query)).values()}
    found |= {part for part in parts.path.split("/") if len(part) >= 16}
    return {spelling for secret in found for spelling in (secret, unquote(secret))} - {""}

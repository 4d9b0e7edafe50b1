"""Where a server is and how it lets us in: addresses and keys, kept out of all that is written or said.

Who asks language models and who asks picture models both use it. Keys stay in memory (`Access`); whatever a server
says or sends has them blotted out before it is kept or shown (`Blotter`).
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from restage.records import InputError

__all__ = ["Access", "Blotter", "Place", "check_recordable", "resolve_access", "secrets_of_url", "split_url"]

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


DEFAULT_URL = "https://api.openai.com/v1"


@runtime_checkable
class Place(Protocol):
    """The settings that say where a model is; each may be completed from the environment."""

    @property
    def base_url(self) -> str:
        """Address of any OpenAI-compatible endpoint; empty for OPENAI_BASE_URL, else OpenAI's own."""
        ...

    @property
    def key_variable(self) -> str:
        """Name of the environment variable that holds the key."""
        ...


@dataclass(frozen=True)
class Access:
    """Which model to ask, where, and with which key. Never recorded; its text form hides the secrets."""

    base_url: str  # address without user, password and query
    model: str
    key: str
    query: str
    """Query of the address with its question mark, such as the version that some servers ask for; empty for none."""
    shown_url: str
    """The address as it may be shown: of one from the environment, which may hold secrets anywhere, the host alone."""
    secrets: frozenset[str]  # the key, and what may be secret in the address
    headers: Mapping[str, str]  # headers in place of a user and password in the address

    def __repr__(self) -> str:
        return f"Access({self.shown_url!r}, {self.model!r}, key hidden)"


def resolve_access(place: Place, *, model: str, pages: tuple[str, ...], flags: str) -> Access:
    """Complete an address and a key from the environment; refuses OpenAI's own address without a key.

    Args:
        place: The settings.
        model: Name of the model to ask.
        pages: Pages of the protocol that people paste with the address, such as `/chat/completions`.
        flags: What the flags of these settings start with, such as `--llm.`; messages name them.
    """
    url = place.base_url or os.environ.get("OPENAI_BASE_URL", "")
    key = os.environ.get(place.key_variable, "")
    if not key and not url:
        raise InputError(
            f"{place.key_variable} is not set; set it, or name a server that needs no key by {flags}base-url"
        )
    if not key.isprintable() or not key.isascii():
        raise InputError(f"{place.key_variable} holds characters that no key has, such as a line end; set it again")
    name = f"{flags}base-url" if place.base_url or not url else "OPENAI_BASE_URL"
    parts = split_url(url or DEFAULT_URL, name)
    host, path = parts.netloc.rpartition("@")[2], parts.path.rstrip("/")
    for page in pages:
        path = path.removesuffix(page)
    headers = {}
    if parts.username or parts.password:
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    shown = f"{parts.scheme}://{host}" + (path if name != "OPENAI_BASE_URL" else "")
    secrets = frozenset({key, *(secrets_of_url(url) if name == "OPENAI_BASE_URL" else ()), *headers.values()} - {""})
    query = f"?{parts.query}" if parts.query else ""
    return Access(f"{parts.scheme}://{host}{path}", model, key, query, shown, secrets, headers)


def check_recordable(base_url: str) -> None:
    """Refuse an address with a secret in it, since settings are recorded."""
    parts = split_url(base_url, "base_url") if base_url else None
    if parts is not None and (parts.username or parts.password or parts.query):
        raise InputError("base_url must hold no user, password or query, since it is recorded; use key_variable")


def split_url(url: str, name: str) -> SplitResult:
    """Split an address that can be asked."""
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_right, parts = False, None
    if parts is None or not is_right or not url.isascii() or not url.isprintable() or " " in url:
        raise InputError(f"{name} is no address of a server; expected one such as http://127.0.0.1:8000/v1")
    return parts

"""Settings of the writer that asks a language model: where it is, how it is asked, and what it may cost.

Its keys are blotted out of whatever is kept or said (`Blotter`).
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from restage.records import InputError

__all__ = ["Access", "Blotter", "LlmConfig", "LlmLimits", "find_access", "secrets_of_url"]

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


@dataclass(frozen=True, kw_only=True)
class LlmLimits:
    """How fast a model is asked, and when to stop; this decides how much is written, never what."""

    num_parallel: int = 4
    """Requests under way at the same time."""
    timeout_s: float = 120.0
    """Seconds that the server may take for one answer."""
    max_tries: int = 6
    """Number of times that a request is sent, with growing pauses, if the server is busy, fails or does not answer."""
    requests_per_minute: int = 0
    """Number of requests a minute; 0 = no limit."""
    tokens_per_minute: int = 0
    """Number of tokens a minute, in and out together; 0 = no limit."""
    input_price: float = 0.0
    """Price of a million tokens that are sent, in the currency of `max_cost`."""
    output_price: float = 0.0
    """Price of a million tokens that are answered."""
    max_cost: float | None = None
    """Stop before a request that could exceed this cost; all requests in the cache folder count. Needs the prices."""
    max_tokens: int | None = None
    """Stop before a request that could exceed this number of tokens, in and out together."""

    def __post_init__(self) -> None:
        if self.num_parallel < 1 or self.max_tries < 1 or self.timeout_s <= 0:
            raise InputError("num_parallel and max_tries must be at least 1, and timeout_s above 0")
        if min(self.requests_per_minute, self.tokens_per_minute, self.input_price, self.output_price) < 0:
            raise InputError("rates and prices must not be negative")
        if self.max_cost is not None and not (self.input_price or self.output_price):
            raise InputError("max_cost needs prices; add --llm.limits.input-price and --llm.limits.output-price")


@dataclass(frozen=True, kw_only=True)
class LlmConfig:
    """Which model writes, and how it is asked."""

    base_url: str = ""
    """Address of any OpenAI-compatible endpoint; default: OPENAI_BASE_URL, else OpenAI's own."""
    model: str = ""
    """Name of the model at the endpoint; default: RESTAGE_LLM_MODEL."""
    key_variable: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key. The key itself is never a flag, since flags are recorded."""
    pairs_per_request: int = 10
    """Number of prompt pairs asked for in one request."""
    temperature: float = 1.0
    """Temperature at which the model samples."""
    max_output_tokens: int = 4000
    """Number of tokens that an answer may have; the cost limit expects as many of an answer that is under way."""
    max_words: int = 50
    """Number of words that a caption may have; longer ones are rejected (a CLIP text encoder takes 77 tokens)."""
    cache: Path | None = None
    """Folder where answers are kept, so that nothing is paid for twice; default: `prompts/llm` in the run."""
    limits: LlmLimits = LlmLimits()
    """Limits on rate and cost."""

    def __post_init__(self) -> None:
        if self.pairs_per_request < 1 or self.max_output_tokens < 1 or self.max_words < 3:
            raise InputError("pairs_per_request and max_output_tokens must be at least 1, max_words at least 3")
        parts = _split(self.base_url, "base_url") if self.base_url else None
        if parts is not None and (parts.username or parts.password or parts.query):
            raise InputError("base_url must hold no user, password or query, since it is recorded; use key_variable")

    def identity(self) -> dict[str, Any]:
        """Return what decides what is written; with anything else changed, the same work goes on."""
        return {
            "model": self.model or os.environ.get("RESTAGE_LLM_MODEL", ""),
            "pairs_per_request": self.pairs_per_request,
            "temperature": self.temperature,
            "max_output_tokens": self.max_output_tokens,
            "max_words": self.max_words,
        }


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


def find_access(config: LlmConfig) -> Access:
    """Complete the config from the environment; refuses one without a model, OpenAI's key, or a server's address."""
    url = config.base_url or os.environ.get("OPENAI_BASE_URL", "")
    model = config.model or os.environ.get("RESTAGE_LLM_MODEL", "")
    key = os.environ.get(config.key_variable, "")
    if not model:
        raise InputError("no model is named; set RESTAGE_LLM_MODEL or --llm.model")
    if not key and not url:
        raise InputError(
            f"{config.key_variable} is not set; set it, or name a server that needs no key by --llm.base-url"
        )
    if not key.isprintable() or not key.isascii():
        raise InputError(f"{config.key_variable} holds characters that no key has, such as a line end; set it again")
    name = "--llm.base-url" if config.base_url or not url else "OPENAI_BASE_URL"
    parts = _split(url or DEFAULT_URL, name)
    host = parts.netloc.rpartition("@")[2]
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    headers = {}
    if parts.username or parts.password:
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    shown = f"{parts.scheme}://{host}" + (path if name != "OPENAI_BASE_URL" else "")
    secrets = frozenset({key, *(secrets_of_url(url) if name == "OPENAI_BASE_URL" else ()), *headers.values()} - {""})
    query = f"?{parts.query}" if parts.query else ""
    return Access(f"{parts.scheme}://{host}{path}", model, key, query, shown, secrets, headers)


def _split(url: str, name: str) -> SplitResult:
    """Split an address that can be asked."""
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_right, parts = False, None
    if parts is None or not is_right or not url.isascii() or not url.isprintable() or " " in url:
        raise InputError(f"{name} is no address of a server; expected one such as http://127.0.0.1:8000/v1")
    return parts

"""One OpenAI-compatible endpoint: asks, tries again, keeps within its limits, and remembers every answer.

Only this module talks to the network. Keys stay in memory: what is kept or said has them blotted out. Clients of HTTP
limit the time between two bytes, and a server that sends one now and then holds them for ever; so a request here has a
total time and a total size.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import math
import queue
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from restage.prompts.answers import AnswerCache, Budget, RateLimit, Reply, Usage
from restage.prompts.llm_config import Blotter, LlmConfig, find_access
from restage.prompts.orders import WritingStopped
from restage.records import InputError, canonical_json, content_id, derive_seed

__all__ = ["Asked", "Endpoint", "HttpAnswer", "MAX_ANSWER_BYTES", "post_json"]

MAX_ANSWER_BYTES = 8_000_000
"""Far more than any model writes in one answer."""
CHUNK_BYTES = 65_536


class HttpAnswer(NamedTuple):
    """What a server answered, whatever its status."""

    status: int
    headers: Mapping[str, str]  # values by name in lower case
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


FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
LONGEST_RETRY_AFTER_S = 600.0
"""Seconds that a server may ask to wait; for longer waits the user decides when to go on."""
BYTES_PER_TOKEN = 3
"""Fewer than any common tokenizer has on English text, so that estimates are on the safe side."""
FORMATS = ("json_schema", "json_object", "text")
"""Kinds of structured output, best first; a server that refuses one is asked for the next."""
OPTIONAL = ("seed", "temperature")
"""Fields that some servers or models refuse, in the order in which they are given up if nothing says which is meant."""
UNNAMED = re.compile(r"param|field|argument|unsupported|unrecogni[sz]ed|unexpected|unknown", re.IGNORECASE)
"""Words by which a server refuses a field without naming it."""
MAX_TOKENS_REPORTED = 10**9


class Asked(NamedTuple):
    """An answer, and the id it is kept under."""

    request_id: str
    reply: Reply


class _Refused(Exception):
    """The server cannot take the request in this form."""


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait, which it gives as seconds or as a date; None if it does not."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


class _ServerError(Exception):
    """The server answered with an error; the message is what it says."""

    def __init__(self, answer: HttpAnswer, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.headers, self.code = answer.status, answer.headers, code


class Endpoint:
    """Asks one model. Safe to use from several threads."""

    def __init__(self, config: LlmConfig, cache: Path) -> None:
        """Open the cache; nothing is sent yet."""
        self._config = config
        self._access = find_access(config)
        self.blotter = Blotter(self._access.secrets)
        self._base_url = self._access.base_url
        self.said: list[str] = []
        """What was found out about the server, for people."""
        self.cache = AnswerCache(cache)
        self.budget = Budget(config.limits, self.cache.past)
        self._requests = RateLimit(config.limits.requests_per_minute)
        self._tokens = RateLimit(config.limits.tokens_per_minute)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._format = 0
        self._length_name = "max_tokens"
        self._left_out: set[str] = set()

    def close(self) -> None:
        """Wake up whoever waits, and let no new request out."""
        self._stop.set()

    def ask(self, messages: list[dict[str, str]], *, schema: Mapping[str, Any], seed: int) -> Asked:
        """The answer to a request: the kept one, else the server's.

        Raises:
            WritingStopped: the budget does not allow it, or the endpoint was closed.
            InputError: the server refuses the request, or does not answer.
        """
        request = {
            "model": self._access.model,
            "messages": messages,
            "schema": schema,
            "temperature": self._config.temperature,
            "max_output_tokens": self._config.max_output_tokens,
            "seed": seed % 2**31,
        }
        request_id = content_id("request", request)
        found = self.cache.find(request_id)
        if found is None:
            found = self._pay(request_id, request)
        return Asked(request_id, found)

    def _pay(self, request_id: str, request: dict[str, Any]) -> Reply:
        num_input = len(canonical_json(request).encode()) // BYTES_PER_TOKEN
        reserved = Usage(1, num_input, self._config.max_output_tokens)
        self.budget.reserve(reserved)
        spent = Usage()
        try:
            reply = self._try(request_id, request, reserved)
            spent = reply.usage
            self._tokens.take(spent.num_input + spent.num_output - reserved.num_input - reserved.num_output)
        finally:
            self.budget.settle(reserved, spent)
        self.cache.keep(request_id, request, reply)
        return reply

    def _try(self, request_id: str, request: dict[str, Any], reserved: Usage) -> Reply:
        """Send a request until there is an answer."""
        pauses = random.Random(derive_seed("pause", request_id))
        last = ""
        tries = 0
        while tries < self._config.limits.max_tries:
            self._wait(max(self._requests.take(1), self._tokens.take(reserved.num_input + reserved.num_output)))
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**tries) * pauses.uniform(0.5, 1.0)
            self.cache.mark_asked(request_id, reserved)
            try:
                return self._send(request_id, request, reserved)
            except _Refused:
                self.cache.unmark(request_id)
                continue  # in another form
            except _ServerError as error:
                last = f"{error.status} {error}"
                if error.status < 500:
                    self.cache.unmark(request_id)  # refused before any work, so not paid
                self._check_hopeless(error, last)
                asked_s = _retry_after_s(error.headers)
                if asked_s is not None and asked_s > LONGEST_RETRY_AFTER_S:
                    raise WritingStopped(f"the server asks to wait {asked_s:.0f} s: {last}") from None
                pause_s = pause_s if asked_s is None else asked_s
            except (OSError, ValueError) as error:
                last = self._clean(f"{type(error).__name__}: {error}")
            tries += 1
            if tries < self._config.limits.max_tries:
                self._wait(pause_s)
        raise InputError(
            f"{self._access.shown_url} gave no answer in {tries} tries ({last}); "
            "what was answered is kept: the same command goes on from there"
        )

    def _check_hopeless(self, error: _ServerError, message: str) -> None:
        """Stop at once if trying again cannot help."""
        if error.status in (401, 403):
            raise InputError(
                f"the endpoint does not accept the key of {self._config.key_variable}: {message}"
            ) from None
        if error.status == 429 and error.code == "insufficient_quota":
            raise WritingStopped(f"the account has no quota left: {message}") from None
        if error.status not in (408, 409, 429) and error.status < 500:
            raise InputError(f"the endpoint refuses the request: {message}") from None

    def _body(self, request: dict[str, Any]) -> dict[str, Any]:
        body = {key: request[key] for key in ("model", "messages", *OPTIONAL) if key not in self._left_out}
        body[self._length_name] = request["max_output_tokens"]
        kind = FORMATS[self._format]
        if kind == "json_schema":
            schema = {"name": "prompt_pairs", "strict": True, "schema": request["schema"]}
            body["response_format"] = {"type": kind, "json_schema": schema}
        elif kind == "json_object":
            body["response_format"] = {"type": kind}
        return body

    def _send(self, request_id: str, request: dict[str, Any], reserved: Usage) -> Reply:
        body, base_url = self._body(request), self._base_url
        # Servers that know the header give a repeated request the answer that was paid for.
        headers = {"Idempotency-Key": request_id, "Authorization": f"Bearer {self._access.key or 'none'}"}
        headers |= self._access.headers
        timeout_s = self._config.limits.timeout_s
        answer = post_json(
            f"{base_url}/chat/completions{self._access.query}", body, headers=headers, timeout_s=timeout_s
        )
        try:
            found = json.loads(answer.content)
        except (ValueError, RecursionError):
            found = None
        if answer.status >= 300:
            message, code = self._describe(answer, found)
            self._adapt(body, answer.status, message, base_url)
            raise _ServerError(answer, message, code)
        if not (isinstance(found, dict) and isinstance(found.get("choices"), list)):
            message, _ = self._describe(answer, found)
            self._adapt(body, 404, message, base_url)
            raise ValueError(f"the answer holds no message: {message}")
        return self._read(found, reserved)

    def _adapt(self, body: Mapping[str, Any], status: int, message: str, base_url: str) -> None:
        """Give up what the server may have refused, and remember it."""
        has_version = any(part[:1] == "v" and part[1:2].isdigit() for part in base_url.split("/")[3:])
        if status in (404, 405) and not has_version:
            if self._base_url == base_url:
                self._base_url = f"{base_url}/v1"
                self.said.append(f"{self._access.shown_url} has no such page, so {self._access.shown_url}/v1 is asked")
            raise _Refused
        if status not in (400, 422):
            return
        with self._lock:
            named = [name for name in OPTIONAL if name in body and name in message]
            if self._length_name == "max_tokens" and "max_completion_tokens" in message:
                self._length_name = "max_completion_tokens"
            elif named:
                self._leave_out(named[0])
            elif "response_format" in body:
                kind = body["response_format"]["type"]
                self._format = max(self._format, FORMATS.index(kind) + 1)
            elif UNNAMED.search(message) and (left := [name for name in OPTIONAL if name in body]):
                self._leave_out(left[0])
            else:
                return
        raise _Refused

    def _leave_out(self, name: str) -> None:
        if name not in self._left_out:
            self._left_out.add(name)
            self.said.append(f"the server refuses {name!r}, which is left out from now on")

    def _describe(self, answer: HttpAnswer, found: Any) -> tuple[str, str]:
        """Return what the server says in an error, wherever it says it, and the error's code."""
        error = found.get("error", found) if isinstance(found, dict) else found
        fields = error if isinstance(error, dict) else {}
        names = ("message", "detail", "msg", "error")
        said = next((fields[name] for name in names if fields.get(name)), error)
        said = said or answer.content.decode("utf-8", "replace")
        text = said if isinstance(said, str) else json.dumps(said)
        shown = "".join(character if character.isprintable() else " " for character in self._clean(text))
        return " ".join(shown.split())[:300], str(fields.get("code", ""))

    def _read(self, found: Mapping[str, Any], reserved: Usage) -> Reply:
        """Take from an answer what matters; servers differ in what they leave out."""
        choice = found["choices"][0] if found["choices"] else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise ValueError("the answer holds no message")
        content, refusal, finish = message.get("content"), message.get("refusal"), choice.get("finish_reason")
        if isinstance(content, list):  # parts, of which some are texts
            content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
        if content is not None and not isinstance(content, str):
            raise ValueError("the answer's content is no text")
        content = self._clean(content or "")
        usage = found.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        num_input, num_output = (_count(counts.get(f"{name}_tokens")) for name in ("prompt", "completion"))
        return Reply(
            content=content,
            refusal=self._clean(refusal) if isinstance(refusal, str) else "",
            finish_reason=self._clean(finish)[:40] if isinstance(finish, str) else "",
            usage=Usage(
                1,
                reserved.num_input if num_input is None else num_input,
                len(content.encode()) // BYTES_PER_TOKEN if num_output is None else num_output,
            ),
        )

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise WritingStopped("writing was stopped")

    def _clean(self, text: str) -> str:
        return self.blotter.text(text)


def _count(value: Any) -> int | None:
    """Return a number of tokens; None if it is none, such as a negative one, which would lower the cost."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS_REPORTED
    return value if is_count else None

"""Asks HTTP servers, patiently and within limits: the only module that talks to the network while models are asked.

Clients of HTTP limit the time between two bytes, and a server that sends one now and then holds them for ever; so a
request here has a total time and a total size. Redirects are not followed, since they would send the key elsewhere.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import math
import queue
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from restage.records import InputError, derive_seed
from restage.run.access import Access, Blotter
from restage.run.paid import AskingStopped

__all__ = ["Client", "HttpAnswer", "MAX_ANSWER_BYTES", "Patience", "Refused", "Rejected", "ServerError", "Unanswered"]
__all__ += ["parse", "send_request"]

Found = TypeVar("Found")

MAX_ANSWER_BYTES = 8_000_000
"""Far more than any model writes in one answer."""
CHUNK_BYTES = 65_536


class HttpAnswer(NamedTuple):
    """What a server answered, whatever its status."""

    status: int
    headers: Mapping[str, str]  # values by name in lower case
    content: bytes


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


def send_request(
    url: str,
    content: bytes | None = None,
    *,
    headers: Mapping[str, str],
    timeout_s: float,
    max_bytes: int = MAX_ANSWER_BYTES,
) -> HttpAnswer:
    """Send a request once (POST if it has a content), within a time for all, from the name's address to the last byte.

    Raises:
        OSError: the server cannot be reached, ends too early, or takes too long.
        ValueError: the answer is too large, or the URL is none.
    """
    request = urllib.request.Request(url, content, dict(headers), method="GET" if content is None else "POST")
    deadline_s = time.monotonic() + timeout_s

    def send() -> HttpAnswer:
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=timeout_s) as response:
                return _read(response, deadline_s, max_bytes)
        except urllib.error.HTTPError as error:
            with error:
                return _read(error, deadline_s, max_bytes)
        except http.client.HTTPException as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from None

    return _within(timeout_s, send)


def _read(response: Any, deadline_s: float, max_bytes: int) -> HttpAnswer:
    parts, size = [], 0
    while part := response.read1(CHUNK_BYTES):
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise ValueError(f"the answer is longer than {max_bytes} bytes")
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

    threading.Thread(target=run, daemon=True, name="http-request").start()
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


class Refused(Exception):
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


class ServerError(Exception):
    """The server answered with an error; the message is what it says."""

    def __init__(self, answer: HttpAnswer, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.headers, self.code = answer.status, answer.headers, code


class Rejected(InputError):
    """The server refuses a request for what is in it; another one may be taken."""

    def __init__(self, message: str, error: ServerError) -> None:
        super().__init__(message)
        self.status, self.code = error.status, error.code


class Unanswered(InputError):
    """The server gave no answer to a request, however often it was asked."""


@runtime_checkable
class Patience(Protocol):
    """How long a server is waited for, and how often it is asked."""

    @property
    def timeout_s(self) -> float:
        """Seconds that the server may take for one answer."""
        ...

    @property
    def max_tries(self) -> int:
        """Number of times that a request is sent if the server is busy, fails or does not answer."""
        ...


class Client:
    """Asks one server. Safe to use from several threads."""

    def __init__(
        self, access: Access, *, key_variable: str, patience: Patience, max_bytes: int = MAX_ANSWER_BYTES
    ) -> None:
        """Nothing is sent yet."""
        self.access, self.blotter = access, Blotter(access.secrets)
        self.said: list[str] = []
        """What was found out about the server, for people."""
        self._key_variable, self._patience, self._max_bytes = key_variable, patience, max_bytes
        self._base_url = access.base_url
        self._stop = threading.Event()

    def close(self) -> None:
        """Wake up whoever waits, and let no new request out."""
        self._stop.set()

    def wait(self, seconds: float) -> None:
        """Wait, unless the client is closed: AskingStopped."""
        if self._stop.wait(seconds):
            raise AskingStopped("asking was stopped")

    def clean(self, text: str) -> str:
        """Return a text without the secrets."""
        return self.blotter.text(text)

    def send(
        self,
        page: str,
        content: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = math.inf,
    ) -> HttpAnswer:
        """Ask for a page of the protocol once, and return the answer if its status is that of a success.

        Raises:
            ServerError: the server answered with an error.
            Refused: it has no such page, and will be asked for it below `/v1` from now on.
            OSError, ValueError: see `send_request`.
        """
        base_url = self._base_url
        sent = {"Authorization": f"Bearer {self.access.key or 'none'}", **(headers or {}), **self.access.headers}
        answer = send_request(
            f"{base_url}{page}{self.access.query}",
            content,
            headers=sent,
            timeout_s=min(timeout_s, self._patience.timeout_s),
            max_bytes=self._max_bytes,
        )
        if answer.status >= 300:
            message, code = self.describe(answer)
            self.check_page(answer.status, base_url)
            raise ServerError(answer, message, code)
        return answer

    def check_page(self, status: int, base_url: str | None = None) -> None:
        """Raise Refused if a page may be missing because the address lacks its version, which it then gets."""
        base_url = self._base_url if base_url is None else base_url
        has_version = any(part[:1] == "v" and part[1:2].isdigit() for part in base_url.split("/")[3:])
        if status in (404, 405) and not has_version:
            if self._base_url == base_url:
                self._base_url, shown = f"{base_url}/v1", self.access.shown_url
                self.said.append(f"{shown} has no such page, so {shown}/v1 is asked")
            raise Refused

    def describe(self, answer: HttpAnswer) -> tuple[str, str]:
        """Return what the server says in an error, wherever it says it, and the error's code."""
        found = parse(answer)
        error = found.get("error", found) if isinstance(found, dict) else found
        fields = error if isinstance(error, dict) else {}
        names = ("message", "detail", "msg", "error")
        said = next((fields[name] for name in names if fields.get(name)), error)
        said = said or answer.content.decode("utf-8", "replace")
        text = said if isinstance(said, str) else json.dumps(said)
        shown = "".join(character if character.isprintable() else " " for character in self.clean(text))
        return " ".join(shown.split())[:300], str(fields.get("code", ""))

    def persist(
        self,
        name: str,
        send: Callable[[], Found],
        *,
        before: Callable[[], None] = lambda: None,
        unpaid: Callable[[], None] = lambda: None,
    ) -> Found:
        """Send a request until there is an answer.

        Args:
            name: Name of the request, which its pauses are drawn by.
            send: Sends it once; Refused to be called again at once, in another form.
            before: Called before it is sent, each time.
            unpaid: Called when it was refused before any work.

        Raises:
            AskingStopped: the server asks for a very long wait, or the account is empty.
            Rejected: the server refuses the request.
            Unanswered: it does not answer.
            InputError: it does not accept the key, or sends us elsewhere.
        """
        pauses = random.Random(derive_seed("pause", name))
        last, tries, max_tries = "", 0, self._patience.max_tries
        while tries < max_tries:
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**tries) * pauses.uniform(0.5, 1.0)
            before()
            try:
                return send()
            except Refused:
                unpaid()
                continue
            except ServerError as error:
                last = f"{error.status} {error}"
                if error.status < 500:
                    unpaid()
                self._check_hopeless(error, last)
                asked_s = _retry_after_s(error.headers)
                if asked_s is not None and asked_s > LONGEST_RETRY_AFTER_S:
                    raise AskingStopped(f"the server asks to wait {asked_s:.0f} s: {last}") from None
                pause_s = pause_s if asked_s is None else asked_s
            except (OSError, ValueError) as error:
                last = self.clean(f"{type(error).__name__}: {error}")
            tries += 1
            if tries < max_tries:
                self.wait(pause_s)
        raise Unanswered(
            f"{self.access.shown_url} gave no answer in {tries} tries ({last}); "
            "what was answered is kept: the same command goes on from there"
        )

    def _check_hopeless(self, error: ServerError, message: str) -> None:
        """Stop at once if trying again cannot help."""
        if 300 <= error.status < 400:
            raise InputError(f"the endpoint sends requests to another address, which is not followed: {message}")
        if error.status in (401, 403):
            raise InputError(f"the endpoint does not accept the key of {self._key_variable}: {message}") from None
        if error.status == 429 and error.code == "insufficient_quota":
            raise AskingStopped(f"the account has no quota left: {message}") from None
        if error.status not in (408, 409, 429) and error.status < 500:
            raise Rejected(f"the endpoint refuses the request: {message}", error) from None


def parse(answer: HttpAnswer) -> Any:
    """Return an answer's JSON; None if it holds none."""
    try:
        return json.loads(answer.content)
    except (ValueError, RecursionError):
        return None

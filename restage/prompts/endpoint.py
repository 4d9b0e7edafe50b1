"""One OpenAI-compatible endpoint: asks, tries again, keeps within its limits, and remembers every answer.

Only this module talks to the network. Keys stay in memory: what is kept or said of an error has them blotted out.
"""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from restage.prompts.answers import AnswerCache, Reply, Usage
from restage.prompts.limits import Budget, RateLimit
from restage.prompts.llm_config import LlmConfig, find_access
from restage.prompts.orders import WritingStopped
from restage.records import InputError, MissingExtra, canonical_json, derive_seed

__all__ = ["Asked", "Endpoint"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
LONGEST_RETRY_AFTER_S = 600.0
BYTES_PER_TOKEN = 3
"""Fewer than any common tokenizer has on English text, so that estimates are on the safe side."""
FORMATS = ("json_schema", "json_object", "text")
"""Kinds of structured output, best first; a server that refuses one is asked for the next."""


class Asked(NamedTuple):
    """An answer, and the id it is kept under."""

    request_id: str
    reply: Reply


class _Refused(Exception):
    """The server cannot take the request in this form."""


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait (`Retry-After`, as seconds or as a date); None if it does not say."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


class Endpoint:
    """Asks one model. Safe to use from several threads."""

    def __init__(self, config: LlmConfig, cache: Path) -> None:
        """Make the client; nothing is sent yet.

        Raises:
            MissingExtra: the `openai` package is not installed.
            InputError: no model is named, or there is no key.
        """
        try:
            import openai
        except ImportError:
            raise MissingExtra("openai", "llm") from None
        self._errors = openai
        self._config = config
        self._access = find_access(config)
        self._client = openai.OpenAI(
            base_url=self._access.base_url,
            api_key=self._access.key or "none",
            timeout=config.limits.timeout_s,
            max_retries=0,  # ours heed the limits, and a Retry-After of any length
        )
        self.cache = AnswerCache(cache)
        self.budget = Budget(config.limits, self.cache.past)
        self._requests = RateLimit(config.limits.requests_per_minute)
        self._tokens = RateLimit(config.limits.tokens_per_minute)
        self._stop = threading.Event()
        self._format = 0
        self._length_name = "max_tokens"

    @property
    def model(self) -> str:
        """Its name at the endpoint."""
        return self._access.model

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
        request_id = self.cache.request_id(request)
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
            except self._errors.APIStatusError as error:
                last = self._describe(error)
                if error.status_code < 500:
                    self.cache.unmark(request_id)  # refused before any work, so not paid
                self._check_hopeless(error, last)
                asked_s = _retry_after_s(error.response.headers)
                pause_s = min(asked_s, LONGEST_RETRY_AFTER_S) if asked_s is not None else pause_s
            except (self._errors.APIConnectionError, self._errors.APIResponseValidationError, ValueError) as error:
                last = self._clean(f"{type(error).__name__}: {error}")
            tries += 1
            if tries < self._config.limits.max_tries:
                self._wait(pause_s)
        raise InputError(
            f"{self._access.base_url} gave no answer in {tries} tries ({last}); "
            "what was answered is kept: the same command goes on from there"
        )

    def _check_hopeless(self, error: Any, message: str) -> None:
        """Say so at once where trying again cannot help.

        Raises:
            InputError: as described.
            WritingStopped: there is no money left at the server.
        """
        status = error.status_code
        if status in (401, 403):
            raise InputError(
                f"the endpoint does not accept the key of {self._config.key_variable}: {message}"
            ) from None
        if status == 429 and getattr(error, "code", None) == "insufficient_quota":
            raise WritingStopped(f"the account has no quota left: {message}") from None
        if status not in (408, 409, 429) and status < 500:
            raise InputError(f"the endpoint refuses the request: {message}") from None

    def _body(self, request: dict[str, Any]) -> dict[str, Any]:
        body = {key: request[key] for key in ("model", "messages", "temperature", "seed")}
        body[self._length_name] = request["max_output_tokens"]
        kind = FORMATS[self._format]
        if kind == "json_schema":
            schema = {"name": "prompt_pairs", "strict": True, "schema": request["schema"]}
            body["response_format"] = {"type": kind, "json_schema": schema}
        elif kind == "json_object":
            body["response_format"] = {"type": kind}
        return body

    def _send(self, request_id: str, request: dict[str, Any], reserved: Usage) -> Reply:
        """Send a request once.

        Raises:
            _Refused: it may be taken in another form, which is used from now on.
        """
        body, sent_format = self._body(request), self._format
        try:
            # Servers that know the header give a repeated request the answer that was paid for.
            headers = {"Idempotency-Key": request_id}
            completion = self._client.chat.completions.create(**body, extra_headers=headers)
        except (self._errors.BadRequestError, self._errors.UnprocessableEntityError) as error:
            if (
                self._length_name in body
                and "max_completion_tokens" in str(error)
                and self._length_name == "max_tokens"
            ):
                self._length_name = "max_completion_tokens"
                raise _Refused from None
            if sent_format + 1 < len(FORMATS):
                self._format = max(self._format, sent_format + 1)
                raise _Refused from None
            raise
        return self._read(completion, reserved)

    def _read(self, completion: Any, reserved: Usage) -> Reply:
        """Take from an answer what matters; servers differ in what they leave out.

        Raises:
            ValueError: it is no answer at all.
        """
        choices = getattr(completion, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise ValueError("the answer holds no message")
        message, usage = choices[0].message, getattr(completion, "usage", None)
        content = self._clean(message.content or "")
        num_input = getattr(usage, "prompt_tokens", None)
        num_output = getattr(usage, "completion_tokens", None)
        return Reply(
            content=content,
            refusal=self._clean(getattr(message, "refusal", None) or ""),
            finish_reason=str(choices[0].finish_reason or ""),
            usage=Usage(
                1,
                reserved.num_input if num_input is None else int(num_input),
                len(content.encode()) // BYTES_PER_TOKEN if num_output is None else int(num_output),
            ),
        )

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise WritingStopped("writing was stopped")

    def _clean(self, text: str) -> str:
        return text.replace(self._access.key, "(key)") if self._access.key else text

    def _describe(self, error: Any) -> str:
        return self._clean(f"{error.status_code} {' '.join(str(error.message).split())}")[:300]

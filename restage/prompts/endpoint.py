"""One OpenAI-compatible endpoint of a language model: asks, keeps within the user's limits, remembers every answer.

Keys stay in memory: what is kept or said has them blotted out.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from restage.prompts.answers import AnswerCache, Reply
from restage.prompts.llm_config import LlmConfig, find_access
from restage.records import canonical_json, content_id
from restage.run.http import Client, Refused, ServerError, parse
from restage.run.paid import Budget, RateLimit, Usage

__all__ = ["Asked", "Endpoint"]

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


class Endpoint:
    """Asks one model. Safe to use from several threads."""

    def __init__(self, config: LlmConfig, cache: Path) -> None:
        """Open the cache; nothing is sent yet."""
        self._config = config
        self._access = find_access(config)
        self.client = Client(self._access, key_variable=config.key_variable, patience=config.limits)
        self.cache = AnswerCache(cache)
        self.budget = Budget(config.limits, self.cache.past)
        self._requests = RateLimit(config.limits.requests_per_minute)
        self._tokens = RateLimit(config.limits.tokens_per_minute)
        self._lock = threading.Lock()
        self._format = 0
        self._length_name = "max_tokens"
        self._left_out: set[str] = set()

    def ask(self, messages: list[dict[str, str]], *, schema: Mapping[str, Any], seed: int) -> Asked:
        """The answer to a request: the kept one, else the server's.

        Raises:
            AskingStopped: the budget does not allow it, or the endpoint was closed.
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

        def before() -> None:
            self.client.wait(max(self._requests.take(1), self._tokens.take(reserved.num_input + reserved.num_output)))
            self.cache.mark_asked(request_id, reserved)

        return self.client.persist(
            request_id,
            lambda: self._send(request_id, request, reserved),
            before=before,
            unpaid=lambda: self.cache.unmark(request_id),
        )

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
        body = self._body(request)
        # Servers that know the header give a repeated request the answer that was paid for.
        headers = {"Content-Type": "application/json", "Idempotency-Key": request_id}
        try:
            answer = self.client.send("/chat/completions", json.dumps(body).encode(), headers=headers)
        except ServerError as error:
            self._adapt(body, error.status, str(error))
            raise
        found = parse(answer)
        if not (isinstance(found, dict) and isinstance(found.get("choices"), list)):
            self.client.check_page(404)
            raise ValueError(f"the answer holds no message: {self.client.describe(answer)[0]}")
        return self._read(found, reserved)

    def _adapt(self, body: Mapping[str, Any], status: int, message: str) -> None:
        """Give up what the server may have refused, and remember it."""
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
        raise Refused

    def _leave_out(self, name: str) -> None:
        if name not in self._left_out:
            self._left_out.add(name)
            self.client.said.append(f"the server refuses {name!r}, which is left out from now on")

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
        content = self.client.clean(content or "")
        usage = found.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        num_input, num_output = (_count(counts.get(f"{name}_tokens")) for name in ("prompt", "completion"))
        return Reply(
            content=content,
            refusal=self.client.clean(refusal) if isinstance(refusal, str) else "",
            finish_reason=self.client.clean(finish)[:40] if isinstance(finish, str) else "",
            usage=Usage(
                1,
                reserved.num_input if num_input is None else num_input,
                len(content.encode()) // BYTES_PER_TOKEN if num_output is None else num_output,
            ),
        )


def _count(value: Any) -> int | None:
    """Return a number of tokens; None if it is none, such as a negative one, which would lower the cost."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS_REPORTED
    return value if is_count else None

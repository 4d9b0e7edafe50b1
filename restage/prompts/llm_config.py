"""Settings of the writer that asks a language model: where it is, how it is asked, and what it may cost."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restage.records import InputError
from restage.run.access import Access, check_recordable, resolve_access
from restage.run.paid import Usage

__all__ = ["LlmConfig", "LlmLimits", "find_access"]


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

    def cost(self, usage: Usage) -> float:
        """Return the cost of some usage, in the currency of the prices."""
        return (usage.num_input * self.input_price + usage.num_output * self.output_price) / 1e6

    def refusal(self, spent: Usage, total: Usage, needed: Usage) -> str:
        """Return why a request is not sent that may need so much and lead to this total; empty if it may go."""
        if self.max_cost is not None and self.cost(total) > self.max_cost:
            return (
                f"the cost limit of {self.max_cost:g} is reached: {self.cost(spent):.4g} is spent and the "
                f"next request may cost {self.cost(needed):.4g}; raise --llm.limits.max-cost to go on"
            )
        if self.max_tokens is not None and total.num_input + total.num_output > self.max_tokens:
            used = spent.num_input + spent.num_output
            return (
                f"the limit of {self.max_tokens} tokens is reached: {used} are used; "
                "raise --llm.limits.max-tokens to go on"
            )
        return ""


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
        check_recordable(self.base_url)

    def identity(self) -> dict[str, Any]:
        """Return what decides what is written; with anything else changed, the same work goes on."""
        return {
            "model": self.model or os.environ.get("RESTAGE_LLM_MODEL", ""),
            "pairs_per_request": self.pairs_per_request,
            "temperature": self.temperature,
            "max_output_tokens": self.max_output_tokens,
            "max_words": self.max_words,
        }


def find_access(config: LlmConfig) -> Access:
    """Complete the config from the environment; refuses one without a model, OpenAI's key, or a server's address."""
    model = config.model or os.environ.get("RESTAGE_LLM_MODEL", "")
    if not model:
        raise InputError("no model is named; set RESTAGE_LLM_MODEL or --llm.model")
    return resolve_access(config, model=model, pages=("/chat/completions",), flags="--llm.")

"""What the prompts stage asks a writer for, and what it gets back; every writer imports this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from restage.prompts.forms import Form, FormSpace, write_form
from restage.prompts.llm_config import LlmConfig
from restage.records import PromptPair

__all__ = ["Answer", "Example", "Order", "Writer", "WriterSettings", "WritingStopped"]


class WritingStopped(Exception):
    """A limit of the user's was reached; what was written before remains. The message names the limit."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """One prompt pair to write."""

    kind: str
    """The kind of edit."""
    seed: int
    """Seed that chooses among all that can be written."""
    form: Form | None = None
    """The form to write with; None leaves it to the writer."""
    is_control: bool = False
    """Whether the form was drawn regardless of what was learned."""
    caption: str = ""
    """The source caption, if it is the user's."""

    @property
    def form_text(self) -> str:
        """The `form` field of the pair; empty if the writer names it."""
        return write_form(self.form, is_control=self.is_control) if self.form else ""


class Answer(NamedTuple):
    """What became of an order: a pair, or the reason why there is none and what came instead."""

    order: Order
    pair: PromptPair | None = None
    reason: str = ""
    raw: str = ""
    is_final: bool = False
    """Whether ordering the same again is useless."""
    request: str = ""
    """Id of the request that it came from, if the writer makes requests."""


class Example(NamedTuple):
    """An accepted pair that shows a writer what works."""

    source: str
    target: str
    instruction: str


@dataclass(frozen=True, kw_only=True)
class WriterSettings:
    """What writers are made from; each takes what it needs."""

    llm: LlmConfig = LlmConfig()
    cache: Path = Path("llm")
    """Folder for answers that cost something."""
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """Accepted pairs of earlier runs, by form, best first."""


class Writer(ABC):
    """Writes prompt pairs; each writer is a class in a file of its own, and a line in the menu `WRITERS`."""

    chunk_size: int = 1
    """Number of orders of one kind and form that it takes at once."""
    num_parallel: int = 1
    """Number of such chunks that it works on at the same time."""
    max_draws: int = 200
    """Number of times that a pair is ordered before the order is given up."""
    form_space: FormSpace | None = None
    """The forms that it can write with; None if it cannot be asked for a form."""
    is_endless: bool = False
    """Whether it can always write another pair, so that a place left empty is an error."""
    asks_model: bool = False
    """Whether what it writes depends on the settings of the language model."""

    @abstractmethod
    def __init__(self, settings: WriterSettings) -> None:
        """Make it ready to write."""

    @abstractmethod
    def write(self, chunks: Sequence[Sequence[Order]]) -> Iterator[Answer]:
        """Answer every order, in order; the same orders get the same answers."""

    def remark(self) -> str:
        """What the user should know before it starts; empty if there is nothing to say."""
        return ""

    def facts(self) -> dict[str, Any]:
        """What the stage's record says of its work; nothing that depends on kills and restarts."""
        return {}

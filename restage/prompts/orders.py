"""What the prompts stage asks a writer for, and the loop that keeps what is new and within the quotas.

Plans say what is ordered: kinds of edit in turn, a user's captions, or the forms that learn. Every writer imports this.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from restage.prompts.forms import Choice, Form, FormChooser, FormSpace, write_form
from restage.prompts.llm_config import LlmConfig
from restage.prompts.rejects import Duplicates, TokenLimits
from restage.records import InputError, PromptPair, derive_seed

__all__ = ["Answer", "CaptionPlan", "Example", "FormPlan", "KindPlan", "NounQuota", "Order", "Plan", "Writer"]
__all__ += ["WriterSettings", "collect"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """One prompt pair to write."""

    kind: str  # the kind of edit
    seed: int  # seed that chooses among all that can be written
    form: Form | None = None
    """The form to write with; None leaves it to the writer."""
    is_control: bool = False  # whether the form was drawn regardless of what was learned
    caption: str = ""  # the source caption, if it is the user's

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
    is_final: bool = False  # whether ordering the same again is useless
    request: str = ""  # id of the request that it came from, if the writer makes requests


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
    edition: int = 1  # edition of the world's grammar


class Writer(ABC):
    """Writes prompt pairs; each writer is a class in a file of its own, and a line in the menu `WRITERS`."""

    chunk_size: int = 1  # number of orders of one kind and form that it takes at once
    num_parallel: int = 1  # number of such chunks that it works on at the same time
    max_draws: int = 200  # number of times that a pair is ordered before the order is given up
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


LOOKAHEAD = 8
"""Number of chunks whose orders are gathered for each chunk that is written, so that chunks of one form fill up."""


@dataclass
class _Slot:
    index: int
    order: Order
    draw: int = 0


class Plan(ABC):
    """Decides what to order for each place."""

    max_draws: int  # number of times that a place is ordered for before it is given up

    @abstractmethod
    def order(self, index: int, draw: int = 0, last: Order | None = None) -> Order:
        """Return the order for a place; `draw` orders for it, the last of them `last`, came to nothing."""

    def instead(self, index: int, last: Order) -> Order | None:
        """Return something else to order for a place that is given up; None leaves it empty."""
        return None


@dataclass(frozen=True)
class KindPlan(Plan):
    """Orders the kinds of edit in turn."""

    kinds: Sequence[str]
    writer: str
    seed: int
    max_draws: int = 200
    """Number of repeats in a row after which a writer is taken to have no new pair of a kind."""
    is_strict: bool = True
    """Whether a place that stays empty is an error, for a writer that can always write."""

    def order(self, index: int, draw: int = 0, last: Order | None = None) -> Order:
        """The kind follows from the place."""
        kind = self.kinds[index % len(self.kinds)]
        return Order(kind=kind, seed=derive_seed(self.seed, "prompt", self.writer, index, draw))

    def instead(self, index: int, last: Order) -> Order | None:
        """Nothing else has this kind."""
        if self.is_strict:
            raise InputError(
                f"writer {self.writer!r} has no new pair of kind {last.kind!r} after {index}; ask for fewer"
            )
        return None


@dataclass(frozen=True)
class CaptionPlan(Plan):
    """Orders edits of a user's captions in turn, each time round with another kind of edit."""

    captions: Sequence[str]
    kinds: Sequence[str]
    seed: int
    max_draws: int = 20

    def order(self, index: int, draw: int = 0, last: Order | None = None) -> Order:
        """Caption and kind follow from the place; a caption that allows no such edit is left out."""
        turn, number = divmod(index, len(self.captions))
        return Order(
            kind=self.kinds[(turn + number) % len(self.kinds)],
            seed=derive_seed(self.seed, "caption", index, draw),
            caption=self.captions[number],
        )


@dataclass(frozen=True)
class FormPlan(Plan):
    """Orders the forms that are chosen, one for each place."""

    chooser: FormChooser
    seed: int
    max_draws: int = 60

    def order(self, index: int, draw: int = 0, last: Order | None = None) -> Order:
        """A place keeps its form, whatever comes to nothing."""
        return self._order(self.chooser.choose() if last is None else _choice_of(last), index, draw)

    def instead(self, index: int, last: Order) -> Order | None:
        """Another form, which still has new pairs."""
        return self._order(self.chooser.exhaust(_choice_of(last)), index, 0)

    def _order(self, choice: Choice, index: int, draw: int) -> Order:
        form, is_control = choice
        seed = derive_seed(self.seed, "form", str(form), index, draw)
        return Order(kind=form.kind, seed=seed, form=form, is_control=is_control)


def _choice_of(order: Order) -> Choice:
    if order.form is None:
        raise ValueError("an order of a FormPlan has a form")
    return Choice(order.form, order.is_control)


class NounQuota:
    """Limits the number of pairs whose edit is about the same noun, which is the first of the pair's words."""

    LEAST = 4
    """Number of pairs about a noun that are allowed however few pairs there are in all."""

    def __init__(self, max_share: float, num_pairs: int) -> None:
        self.limit = max(self.LEAST, math.ceil(max_share * num_pairs))
        self._counts: Counter[str] = Counter()

    def find(self, pair: PromptPair) -> str:
        """Return why a pair is one too many, in a few words; empty if it is not."""
        noun = self._noun(pair)
        return f"enough pairs about {noun!r}" if noun and self._counts[noun] >= self.limit else ""

    def count(self, pair: PromptPair) -> None:
        """Count a pair that is kept."""
        self._counts[self._noun(pair)] += 1

    @staticmethod
    def _noun(pair: PromptPair) -> str:
        return "" if pair.kind in ("ground", "time") or not pair.words else pair.words[0].casefold()


def _chunks(slots: Iterable[_Slot], size: int, count: int) -> list[list[Order]]:
    """Group the orders by kind and form; the groups are in the order of their first members."""
    groups: dict[tuple[str, str], list[list[Order]]] = {}
    chunks: list[list[Order]] = []
    for slot in slots:
        found = groups.setdefault((slot.order.kind, slot.order.form_text), [])
        if not found or len(found[-1]) == size:
            found.append([])
            chunks.append(found[-1])
        found[-1].append(slot.order)
    return chunks[:count]


def collect(
    writer: Writer,
    plan: Plan,
    *,
    num_pairs: int,
    duplicates: Duplicates,
    quota: NounQuota | None,
    limits: TokenLimits = TokenLimits(),  # noqa: B008
) -> Iterator[Answer]:
    """Order pairs until every place is filled or given up; yields each answer, with a reason if it is not kept.

    Raises:
        AskingStopped: the writer reached a limit.
        InputError: the writer or the plan cannot go on.
    """

    def judge(answer: Answer) -> Answer:
        """Give the answer a reason if its pair is not to be kept."""
        pair = answer.pair
        if pair is None:
            return answer
        reason = limits.find(pair) or (quota.find(pair) if quota else "") or duplicates.find(pair)
        if quota and not reason:
            quota.count(pair)
        return answer._replace(reason=reason)

    max_draws = min(writer.max_draws, plan.max_draws)
    window = writer.chunk_size * writer.num_parallel * (LOOKAHEAD if writer.chunk_size > 1 else 1)
    open_slots: dict[int, _Slot] = {}
    next_index = 0
    # A window is written as a whole before new places open, so that what is asked together does not depend on timing.
    while open_slots or next_index < num_pairs:
        while next_index < num_pairs and len(open_slots) < window:
            open_slots[next_index] = _Slot(next_index, plan.order(next_index))
            next_index += 1
        slots = {slot.order: slot for slot in open_slots.values()}
        for answer in writer.write(_chunks(open_slots.values(), writer.chunk_size, writer.num_parallel)):
            judged, slot = judge(answer), slots[answer.order]
            if not judged.reason or not _order_again(slot, plan, 0 if judged.is_final else max_draws):
                del open_slots[slot.index]
            yield judged


def _order_again(slot: _Slot, plan: Plan, max_draws: int) -> bool:
    """Put another order on a place; returns False if the place stays empty."""
    slot.draw += 1
    if slot.draw < max_draws:
        slot.order = plan.order(slot.index, slot.draw, slot.order)
        return True
    other = plan.instead(slot.index, slot.order)
    if other is None:
        return False
    slot.draw, slot.order = 0, other
    return True

"""The settings of prompts: what is written and how forms are learned; apart from the writers, which load numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from restage.prompts.llm_config import LlmConfig
from restage.records import InputError, added_later
from restage.world.description import EDIT_KINDS, KINDS_OF_EDITION

__all__ = ["PROMPT_KINDS", "WRITER_NAMES", "FormsConfig", "PromptsConfig", "RoundsConfig"]

WRITER_NAMES = ("grammar", "llm")
"""The names on the menu `restage.prompts.writers.WRITERS`."""
PROMPT_KINDS = {
    edition: tuple(kind for kind in kinds if kind != "look")  # which words alone cannot ask for
    for edition, kinds in KINDS_OF_EDITION.items()
}
"""Kinds of edit that can be written, by edition of the world's grammar."""


@dataclass(frozen=True, kw_only=True)
class FormsConfig:
    """How forms are chosen by what is known about them."""

    control_share: float = 0.2
    """Share of pairs whose form is drawn evenly from the original forms, whatever was learned: the acceptance of these
    pairs is the unbiased yield."""
    min_kind_share: float = 0.5
    """Smallest share of a kind of edit among the other pairs, as a multiple of an even share."""
    max_kind_share: float = 2.0
    """Largest share of a kind of edit among the other pairs, as a multiple of an even share."""
    children_per_round: int = 3
    """Number of new forms for each kind of edit; they are made from its form with the highest lower bound."""
    max_forms_per_kind: int = 16
    """Number of forms of a kind at which no new ones are made."""
    min_trials: int = 6
    """Number of pairs that a form must have been tried with before it gets children."""
    good_enough: float = 0.9
    """Acceptance at which a form gets no more children, since little is to be gained and variety is lost."""
    lower_quantile: float = 0.1
    """Quantile of the posterior that serves as its lower bound."""
    prior_strength: float = 2.0
    """Number of pairs that the parent's acceptance counts as in the prior of its child."""

    def __post_init__(self) -> None:
        if not 0 <= self.control_share <= 1:
            raise InputError(f"control_share must lie in [0, 1], got {self.control_share}")
        if not 0 <= self.min_kind_share <= 1 <= self.max_kind_share:
            raise InputError(
                f"expected min_kind_share <= 1 <= max_kind_share, got {self.min_kind_share}, {self.max_kind_share}"
            )
        if not 0 < self.lower_quantile < 1 or self.prior_strength <= 0:
            raise InputError("lower_quantile must lie between 0 and 1, and prior_strength must be above 0")


MAX_PROMPTS = 20_000_000
"""Number of prompt pairs that can be told apart in 4 GB of memory."""


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """The prompt pairs that a run works with."""

    num_prompts: int = 120
    """Number of pairs to write; unless forms learn, the numbers of pairs of each kind differ by at most one."""
    writer: str = "grammar"
    """Writer of the pairs: `grammar` (of the miniature world), or `llm` (any OpenAI-compatible endpoint;
    restage[llm])."""
    kinds: tuple[str, ...] = EDIT_KINDS
    """Kinds of edit to write, in turn."""
    path: Path | None = None
    """JSON Lines file with the user's own pairs, which are taken instead; the pictures that they name lie in or below
    its folder. All other settings are then unused."""
    captions: Path | None = None
    """Text file with the user's own captions to edit, one a line. The grammar skips those that it cannot read."""
    near_duplicates: float = 0.92
    """Share of content words, above 0 and up to 1, at which two pairs with the same change are duplicates; captions of
    up to 12 content words must have the same ones."""
    max_noun_share: float = 0.25
    """Largest share of pairs whose edit is about the same noun (at least 4 pairs; no quota applies to `captions`)."""
    use_forms: bool = False
    """Choose each pair's form by what was accepted before, instead of kinds in turn."""
    learn_from: tuple[Path, ...] = ()
    """Runs from whose finished pairs forms are learned; implies --use-forms True."""
    forms: FormsConfig = FormsConfig()
    """How forms are chosen."""
    llm: LlmConfig = LlmConfig()
    """The language model, for the writer `llm`."""
    edition: int = added_later(1)
    """Edition of the world's grammar, for the writer `grammar`: 2 says where things are added, and knows the kinds
    `move` and `pattern` besides."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_prompts <= MAX_PROMPTS:
            raise InputError(f"num_prompts must be at least 1 and at most {MAX_PROMPTS}, got {self.num_prompts}")
        if self.writer not in WRITER_NAMES:
            raise InputError(f"unknown writer {self.writer!r}; known: {', '.join(WRITER_NAMES)}")
        if self.edition not in PROMPT_KINDS or (self.edition != 1 and self.writer != "grammar"):
            raise InputError(f"expected edition 1, or 2 with the writer 'grammar', got {self.edition}")
        known = PROMPT_KINDS[self.edition]
        if unknown := [kind for kind in self.kinds if kind not in known] or ([] if self.kinds else ["(none)"]):
            raise InputError(f"unknown kind of edit {unknown[0]!r}; known: {', '.join(known)}")
        if not (0 < self.near_duplicates <= 1 and 0 < self.max_noun_share <= 1):
            raise InputError("near_duplicates and max_noun_share must lie above 0 and up to 1")
        if self.is_learning and (self.captions or self.path):
            raise InputError(
                "forms choose what is written; omit --captions and --path, or --use-forms and --learn-from"
            )

    @property
    def is_learning(self) -> bool:
        """Whether forms are chosen by what was accepted."""
        return self.use_forms or bool(self.learn_from)


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """How many rounds, and what is written in each."""

    num_rounds: int = 5
    """Number of rounds; the first one knows nothing, unless `prompts.learn_from` names earlier runs."""
    prompts: PromptsConfig = PromptsConfig(num_prompts=96, use_forms=True)
    """The prompts of every round."""

    def __post_init__(self) -> None:
        if self.num_rounds < 1:
            raise InputError(f"num_rounds must be at least 1, got {self.num_rounds}")
        if not self.prompts.is_learning:
            raise InputError("rounds are for forms that learn; do not set --prompts.use-forms False")

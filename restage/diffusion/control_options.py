"""From two captions, and options in words, to the control of a pair: what people set, turned into tensors once.

The defaults are those of `restage pairs`; `PROMPT_TO_PROMPT`, `INSTRUCT_PIX2PIX` and `MASACTRL` are the settings that
were published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from restage.diffusion.alignment import (
    Alignment,
    CaptionsDiffer,
    Padding,
    align_phrases,
    align_swaps,
    find_tokens,
    token_mask,
)
from restage.diffusion.control import ANY_SIZE, INJECT, MUTUAL, NO_SELF, CrossControl, PairControl, SelfControl
from restage.diffusion.word_maps import BlendControl
from restage.records import InputError, added_later

__all__ = ["BLEND_ONLY", "IN_PLACE", "INSTRUCT_PIX2PIX", "MASACTRL", "PROMPT_TO_PROMPT", "ControlOptions", "LocalBlend"]
__all__ += ["build_control"]

Window = tuple[float, float]
"""When something is on: [from, until), in shares of the steps."""
SELF_KINDS = {"none": NO_SELF, "inject": INJECT, "mutual": MUTUAL}


@dataclass(frozen=True, kw_only=True)
class LocalBlend:
    """Settings of local blend: what no chosen word attends to is kept as in the source (Prompt-to-Prompt)."""

    threshold: float = 0.3
    """Share of its maximum above which a word map counts, in (0, 1)."""
    start: float = 0.2
    """Share of the steps after which blending begins, in [0, 1]; 1 = never."""
    kept_threshold: float = 0.3
    """The same as `threshold` for words whose place is never to change."""

    def __post_init__(self) -> None:
        for name in ("threshold", "kept_threshold"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} of local blend must be in (0, 1), got {getattr(self, name)}")
        if not 0 <= self.start <= 1:
            raise InputError(f"start of local blend must be in [0, 1], got {self.start}")


@dataclass(frozen=True, kw_only=True)
class ControlOptions:
    """How the edit branch of a pair is held to its source branch."""

    cross_window: Window = (0.0, 0.8)
    """When edit tokens with a counterpart in the source take its cross attention."""
    swapped_window: Window | None = None
    """The same for words that were swapped in for others; None = `cross_window`. With a short window, or none, the new
    thing takes a shape of its own while everything else stays in its place."""
    word_windows: Mapping[str, Window] = field(default_factory=dict)
    """The same for single words of the edit caption."""
    word_strengths: Mapping[str, float] = field(default_factory=dict)
    """Factor on the attention that words of the edit caption get (Prompt-to-Prompt's reweighting); 1 = as it is."""
    self_attention: Literal["inject", "mutual", "none"] = "inject"
    """`inject`: the source's self attention, which keeps its layout; `mutual`: its keys and values (MasaCtrl), which
    keeps its look and lets the layout move."""
    self_window: Window = (0.0, 0.5)
    """When self attention is controlled."""
    self_max_size: int | None = None
    """Control self attention at layers of at most this many pixels a side; None = all layers."""
    self_first_layer: float = 0.0
    """Share of the self-attention layers, in the order of their calls, from which on they are controlled."""
    self_unconditional: bool = True
    """Whether the unconditional half of guidance is controlled, too."""
    region_threshold: float = 0.0
    """`mutual` only: above 0, what the pair's words attend to and the rest are kept apart (MasaCtrl's masks)."""
    blend: LocalBlend = LocalBlend()
    """For pairs that name words."""
    padding: Padding = added_later("own")
    """What end and padding tokens are connected to if the captions have different numbers of tokens. `own`: to end and
    padding tokens of the source. `public`: to the tokens at the same position, as in Prompt-to-Prompt's public code."""

    def __post_init__(self) -> None:
        windows = {name: getattr(self, name) for name in ("cross_window", "self_window", "swapped_window")}
        windows |= {f"word_windows[{word!r}]": window for word, window in self.word_windows.items()}
        for name, window in windows.items():
            if window is not None and not 0 <= window[0] <= window[1] <= 1:
                raise InputError(f"{name} must be two shares of the steps in [0, 1], low before high; got {window}")
        if self.self_max_size is not None and self.self_max_size < 1:
            raise InputError(f"self_max_size must be at least 1 pixel or None, got {self.self_max_size}")
        if not (0 <= self.self_first_layer <= 1 and 0 <= self.region_threshold < 1):
            found = f"{self.self_first_layer} and {self.region_threshold}"
            raise InputError(f"self_first_layer and region_threshold must be shares in [0, 1], got {found}")


PROMPT_TO_PROMPT = ControlOptions(self_window=(0.0, 0.4), self_max_size=16, self_unconditional=False)
"""Hertz et al. 2022 (arXiv 2208.01626), settings of the public notebook."""
INSTRUCT_PIX2PIX = ControlOptions(cross_window=(0.0, 0.0), blend=LocalBlend(start=1.0))
"""The pair maker of Brooks et al. 2022 (arXiv 2211.09800): self attention at all layers; the end of its window is drawn
anew for each pair (`GenerateConfig.self_share`; there 0.1 to 0.9). Words only make the mask."""
BLEND_ONLY = ControlOptions(cross_window=(0.0, 0.0), self_attention="none")
"""Only local blend holds the edit to its source: nothing changes outside its region, and inside any shape may form."""
IN_PLACE = ControlOptions(cross_window=(0.0, 0.8), swapped_window=(0.0, 0.2), self_attention="none")
"""What is swapped keeps its place but not its shape; everything else keeps both."""
MASACTRL = ControlOptions(
    cross_window=(0.0, 0.0),
    self_attention="mutual",
    self_window=(0.08, 1.0),
    self_first_layer=0.625,
    blend=LocalBlend(start=1.0),
)
"""Cao et al. 2023 (arXiv 2304.08465): from step 4 of 50 and self-attention layer 10 of 16 on."""


def _align(
    tokenizer: Any, source: str, target: str, swaps: Sequence[tuple[str, str]], padding: Padding
) -> tuple[str, Alignment]:
    """Word replacement if the captions differ by their swaps alone, else what they have in common."""
    if swaps:
        try:
            return "replace", align_swaps(tokenizer, source, target, swaps, padding=padding)
        except CaptionsDiffer:
            pass  # "refine" says so in the pair's facts
    return "refine", align_phrases(tokenizer, source, target, padding=padding)


def _tokens_of(tokenizer: Any, caption: str, word: str) -> list[int]:
    found = [index for occurrence in find_tokens(tokenizer, caption, word) for index in occurrence]
    if not found:
        raise InputError(f"the word {word!r} does not stand in the caption {caption!r}")
    return found


def _cross(
    tokenizer: Any, target: str, alignment: Alignment, options: ControlOptions, *, swapped: Sequence[str]
) -> CrossControl:
    length = len(alignment.gate)
    window, strength = torch.tensor(options.cross_window).float().repeat(length, 1), torch.ones(length)
    windows = {} if options.swapped_window is None else dict.fromkeys(swapped, options.swapped_window)
    for word, own_window in {**windows, **options.word_windows}.items():
        window[_tokens_of(tokenizer, target, word)] = torch.tensor(own_window).float()
    for word, factor in options.word_strengths.items():
        tokens = _tokens_of(tokenizer, target, word)
        if bool((window[tokens, 0] >= window[tokens, 1]).any()):
            raise InputError(f"the strength of {word!r} has no effect in an empty window; set word_windows for it")
        strength[tokens] = float(factor)
    return CrossControl(alignment.word_map[None], alignment.gate[None], window[None], strength[None])


def _self(options: ControlOptions) -> SelfControl:
    return SelfControl(
        kind=torch.tensor([SELF_KINDS[options.self_attention]]),
        window=torch.tensor([options.self_window]).float(),
        max_size=torch.tensor([options.self_max_size or ANY_SIZE]),
        first_layer=torch.tensor([float(options.self_first_layer)]),
        has_unconditional=torch.tensor([options.self_unconditional]),
        region_threshold=torch.tensor([float(options.region_threshold)]),
    )


def build_control(
    tokenizer: Any,
    source: str,
    target: str,
    *,
    swaps: Sequence[tuple[str, str]] = (),
    words: Sequence[str] = (),
    kept_words: Sequence[str] = (),
    options: ControlOptions | None = None,
) -> tuple[str, PairControl]:
    """Build the control of one pair, to be batched with others by `PairControl.merge`.

    `swaps` holds words of the source and what stands for them in the target (empty if phrases were added), `words` what
    may change, as it stands in either caption (empty = everything), `kept_words` what may not, though `words` cover it.
    The control comes after the way in which it holds cross attention, `replace` or `refine`.

    Raises:
        InputError: a caption is too long; a word stands in neither (strengths and windows: not in the target); or a
            word's strength could never have an effect.
    """
    options = options or ControlOptions()
    name, alignment = _align(tokenizer, source, target, swaps, options.padding)
    blend = BlendControl(
        source_words=token_mask(tokenizer, source, words)[None],
        edit_words=token_mask(tokenizer, target, words)[None],
        source_kept=token_mask(tokenizer, source, kept_words)[None],
        edit_kept=token_mask(tokenizer, target, kept_words)[None],
        start=torch.tensor([float(options.blend.start)]),
        threshold=torch.tensor([float(options.blend.threshold)]),
        kept_threshold=torch.tensor([float(options.blend.kept_threshold)]),
    )
    for asked, found in ((words, blend.has_words), (kept_words, blend.has_kept)):
        if asked and not bool(found.any()):
            raise InputError(f"none of the words {list(asked)} stands in {source!r} or {target!r}")
    swapped = [new for _, new in swaps] if name == "replace" else []
    cross = _cross(tokenizer, target, alignment, options, swapped=swapped)
    return name, PairControl(cross, _self(options), blend)

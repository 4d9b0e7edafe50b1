"""From two captions, and options in words, to the control of a pair: what people set, turned into tensors once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from restage.diffusion.alignment import Alignment, CaptionsDiffer, align_phrases, align_swaps, find_tokens, token_mask
from restage.diffusion.config import ControlOptions, Padding
from restage.diffusion.control import ANY_SIZE, INJECT, MUTUAL, NO_SELF, CrossControl, PairControl, SelfControl
from restage.diffusion.word_maps import BlendControl
from restage.records import InputError

__all__ = ["build_control"]

SELF_KINDS = {"none": NO_SELF, "inject": INJECT, "mutual": MUTUAL}


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

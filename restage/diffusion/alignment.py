"""From words, as people write them, to the tokens of a prompt, and from the tokens of one prompt to those of another.

Works with any fast tokenizer of transformers (it must give offsets). Used to set up attention control.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.config import Padding
from restage.records import InputError

__all__ = ["Alignment", "CaptionsDiffer", "align_phrases", "align_swaps", "find_tokens", "token_mask"]

Span = tuple[int, int]

_ARTICLES = {"a", "an"}
_WORD = re.compile(r"\w+|[^\w\s]")


class CaptionsDiffer(InputError):
    """Two captions differ by more than the swaps given, so word replacement does not apply."""


class Alignment(NamedTuple):
    """Which source tokens the tokens of an edited prompt take their attention from; both prompts padded to the end."""

    word_map: Float[Tensor, "tokens tokens"]
    """M[source, edit]; with padding of `own` no row sums to more than 1, so attention is moved, never made."""
    gate: Float[Tensor, " tokens"]  # 1 for edit tokens that have a source, 0 for new ones


class _Tokens(NamedTuple):
    ids: list[int]
    spans: list[Span]  # start and end in the prompt; equal for special tokens


def _tokenize(tokenizer: Any, prompt: str) -> _Tokens:
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"attention control needs a fast tokenizer (tokenizer.json), got {type(tokenizer).__name__}")
    found = tokenizer(prompt, return_offsets_mapping=True, truncation=False, padding=False)
    ids, spans = found["input_ids"], [tuple(span) for span in found["offset_mapping"]]
    if len(ids) > tokenizer.model_max_length:
        raise InputError(
            f"the prompt has {len(ids)} tokens, at most {tokenizer.model_max_length} fit; shorten it: {prompt!r}"
        )
    return _Tokens(list(ids), spans)


def _tokens_in(tokens: _Tokens, span: Span) -> list[int]:
    start, end = span
    return [i for i, (left, right) in enumerate(tokens.spans) if left < end and right > start and right > left]


def _occurrences(prompt: str, words: str) -> list[Span]:
    """Find `words` in the prompt as whole words, whatever the case and the spaces between them."""
    parts = [re.escape(part) for part in _WORD.findall(words)]
    if not parts:
        raise InputError("a word to look for is empty; give one that stands in the prompt")
    pattern = parts[0]
    for before, part in zip(parts, parts[1:], strict=False):
        pattern += (r"\s+" if re.match(r"\w", before) and re.match(r"\w", part) else r"\s*") + part
    return [match.span() for match in re.finditer(rf"(?<!\w){pattern}(?!\w)", prompt, re.IGNORECASE)]


def find_tokens(tokenizer: Any, prompt: str, words: str) -> tuple[tuple[int, ...], ...]:
    """Return the token indices (special tokens counted) of each occurrence of a word, or of words in a row.

    Case, punctuation beside the words and spaces between them do not matter.
    """
    tokens = _tokenize(tokenizer, prompt)
    return tuple(tuple(_tokens_in(tokens, span)) for span in _occurrences(prompt, words))


def token_mask(tokenizer: Any, prompt: str, words: Sequence[str]) -> Float[Tensor, " tokens"]:
    """Return 1 at the tokens of every occurrence of any of `words`, 0 elsewhere, up to the tokenizer's length.

    Words that do not stand there add nothing: whoever needs them checks that the sum is not 0.
    """
    tokens, mask = _tokenize(tokenizer, prompt), torch.zeros(tokenizer.model_max_length)
    for word in words:
        for span in _occurrences(prompt, word):
            mask[_tokens_in(tokens, span)] = 1
    return mask


def _words(prompt: str) -> tuple[list[str], list[Span]]:
    matches = list(_WORD.finditer(prompt))
    return [match.group().casefold() for match in matches], [match.span() for match in matches]


def _pair_words(
    source: list[str],
    target: list[str],
    swaps: Sequence[tuple[list[str], list[str]]],
    at: tuple[int, int, int] = (0, 0, 0),
) -> list[tuple[Span, Span]] | None:
    """Walk both captions at once, from word `i`, `j` and swap `k`; None if they differ by more than the swaps."""
    # Where the first words of old and new are equal, a swap may fit in a place that is not its own; if the rest then
    # does not work out, the words are tried as unchanged ones.
    i, j, k = at
    if i == len(source) and j == len(target) and k == len(swaps):
        return []
    if k < len(swaps):
        old, new = swaps[k]
        if source[i : i + len(old)] == old and target[j : j + len(new)] == new:
            rest = _pair_words(source, target, swaps, (i + len(old), j + len(new), k + 1))
            if rest is not None:
                return [((i, i + len(old)), (j, j + len(new))), *rest]
    if i < len(source) and j < len(target) and (source[i] == target[j] or {source[i], target[j]} == _ARTICLES):
        rest = _pair_words(source, target, swaps, (i + 1, j + 1, k))
        return None if rest is None else [((i, i + 1), (j, j + 1)), *rest]
    return None


def _connect(word_map: Tensor, source: Sequence[int], target: Sequence[int]) -> None:
    """Send the attention of source tokens to target tokens: one to one, or spread evenly if their numbers differ."""
    if len(source) == len(target):
        word_map[list(source), list(target)] = 1
    else:
        word_map[torch.tensor(source)[:, None], torch.tensor(target)] = 1 / len(target)


def _connect_ends(word_map: Tensor, num_source: int, num_target: int, padding: Padding) -> None:
    """Connect begin to begin and end to end, and padding token to padding token.

    Padding gets most of the attention of a trained model, and carries what the whole caption says. So ours counts it
    from the end token on, the last one taking what is left; the public code of Prompt-to-Prompt counts from the
    start, where a padding token of the target may meet a word of the source.
    """
    length = word_map.shape[0]
    word_map[0, 0] = word_map[num_source - 1, num_target - 1] = 1
    if padding == "public":
        rest = range(num_target, length)
        word_map[rest, rest] = 1
        return
    for offset in range(1, length - num_source + 1):
        word_map[num_source - 1 + offset, min(num_target - 1 + offset, length - 1)] = 1


def _connect_by_position(word_map: Tensor, source_start: int, target_start: int) -> None:
    """Connect everything from here on to the token of the source at the same position, as in the public code."""
    length = word_map.shape[0]
    word_map[:, target_start:] = 0
    rest = range(target_start, target_start + length - max(source_start, target_start))
    word_map[rest, rest] = 1


def align_swaps(
    tokenizer: Any, source: str, target: str, swaps: Sequence[tuple[str, str]], *, padding: Padding = "own"
) -> Alignment:
    """Align two captions that differ by swapped words alone (Prompt-to-Prompt's replacement).

    `swaps` holds words of the source and what stands in their place, in order; `a` may become `an` unmentioned.
    """
    source_tokens, target_tokens = _tokenize(tokenizer, source), _tokenize(tokenizer, target)
    for caption, words in ((source, [old for old, _ in swaps]), (target, [new for _, new in swaps])):
        missing = [word for word in words if not _occurrences(caption, word)]
        if missing:
            raise InputError(f"the word {missing[0]!r} does not stand in the caption {caption!r}")
    source_words, source_spans = _words(source)
    target_words, target_spans = _words(target)
    pairs = _pair_words(source_words, target_words, [(_words(old)[0], _words(new)[0]) for old, new in swaps])
    if pairs is None:
        raise CaptionsDiffer(
            f"{source!r} and {target!r} differ by more than the swaps {list(swaps)}; use align_phrases"
        )
    length = tokenizer.model_max_length
    word_map = torch.zeros(length, length)
    _connect_ends(word_map, len(source_tokens.ids), len(target_tokens.ids), padding)
    last = (0, 0)
    for (i, i_end), (j, j_end) in pairs:
        before = _tokens_in(source_tokens, (source_spans[i][0], source_spans[i_end - 1][1]))
        after = _tokens_in(target_tokens, (target_spans[j][0], target_spans[j_end - 1][1]))
        _connect(word_map, before, after)
        if source_words[i:i_end] != target_words[j:j_end]:
            last = (before[-1] + 1, after[-1] + 1)
    if padding == "public":
        _connect_by_position(word_map, *last)
    return Alignment(word_map, torch.ones(length))


def _global_alignment(source: Sequence[int], target: Sequence[int]) -> list[tuple[int, int]]:
    """Indices of equal ids in the best global alignment (Needleman-Wunsch: gap 0, match +1, mismatch -1).

    With these costs two gaps always beat a mismatch, so only equal ids are ever aligned.
    """
    # Filled from the end, so that the walk back through it starts at the first tokens and takes the earliest matches.
    best = torch.zeros(len(source) + 1, len(target) + 1, dtype=torch.long).tolist()
    for i in range(len(source) - 1, -1, -1):
        for j in range(len(target) - 1, -1, -1):
            matched = best[i + 1][j + 1] + 1 if source[i] == target[j] else -1
            best[i][j] = max(matched, best[i + 1][j], best[i][j + 1])
    pairs, i, j = [], 0, 0
    while i < len(source) and j < len(target):
        if source[i] == target[j] and best[i][j] == best[i + 1][j + 1] + 1:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i][j + 1]:
            j += 1
        else:
            i += 1
    return pairs


def align_phrases(tokenizer: Any, source: str, target: str, *, padding: Padding = "own") -> Alignment:
    """Align two captions of which one has words that the other lacks (Prompt-to-Prompt's refinement).

    Tokens of the target that the source has too take its attention; new ones keep their own (gate 0).
    """
    source_ids, target_ids = _tokenize(tokenizer, source).ids, _tokenize(tokenizer, target).ids
    length = tokenizer.model_max_length
    word_map, gate = torch.zeros(length, length), torch.zeros(length)
    for i, j in _global_alignment(source_ids[1:-1], target_ids[1:-1]):
        word_map[i + 1, j + 1] = 1
        gate[j + 1] = 1
    _connect_ends(word_map, len(source_ids), len(target_ids), padding)
    gate[0] = 1
    gate[len(target_ids) - 1 :] = 1
    return Alignment(word_map, gate)

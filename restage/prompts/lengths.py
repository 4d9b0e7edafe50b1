"""Which prompt pairs have captions that are too long for the text encoders that will read them.

Asked when prompts are written, so that a long one becomes a reject then instead of an error while pictures are made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from restage.records import InputError, PromptPair, read_json

__all__ = ["TokenLimits"]

CONFIG = "tokenizer_config.json"
MARKS = 2
"""Number of tokens that mark the beginning and the end of a text."""


@dataclass(frozen=True)
class _TokenizerConfig:
    model_max_length: Annotated[int, msgspec.Meta(ge=1)]


class TokenLimits:
    """The limits of the text encoders of some models; their tokenizers are read when the first long text comes."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        """Name the folders of models; those without a tokenizer set no limit."""
        places = [place for folder in folders for place in (folder / "tokenizer", folder / "tokenizer_2", folder)]
        self._folders = [place for place in places if (place / CONFIG).is_file()]

    @functools.cached_property
    def _limits(self) -> list[tuple[int, Callable[[str], int]]]:
        return [(_max_length(folder), _counter(folder)) for folder in self._folders]

    @functools.cached_property
    def _least(self) -> int:
        return min(map(_max_length, self._folders), default=0)

    def find(self, pair: PromptPair) -> str:
        """Return why a pair cannot be made, in a few words; empty if its captions are short enough."""
        for text in (pair.source, pair.target, pair.behind):
            if len(text.encode()) + MARKS <= self._least:  # a token has at least one byte
                continue
            for limit, count in self._limits:
                if (found := count(text)) > limit:
                    return f"a caption has {found} tokens, of which {limit} fit"
        return ""


def _max_length(folder: Path) -> int:
    return read_json(folder / CONFIG, _TokenizerConfig).model_max_length


def _counter(folder: Path) -> Callable[[str], int]:
    """Return what counts the tokens of a text, its marks included."""
    if not (path := folder / "tokenizer.json").is_file():
        from restage.diffusion.loading import load_tokenizer

        loaded: Any = load_tokenizer(folder)
        return lambda text: len(loaded(text)["input_ids"])
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library knows no other kind
        raise InputError(f"{path} is not readable as a tokenizer: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text).ids)

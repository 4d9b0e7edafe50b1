"""Why a prompt pair is not kept: it says the same as another one, or a caption is too long for the text encoders."""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from restage.records import InputError, PromptPair, read_json

__all__ = ["Duplicates", "TokenLimits"]

_TOKEN = re.compile(r"\w+|[^\w\s]")
_OPENING = re.compile(r"\b(?:photo|photograph|picture|image) of\b")
_LINKS = frozenset(
    "a an the this that on in at by of to from with and or into onto over under near next beside behind is are was "
    "its it his her their there which who".split()
)
"""Words that link phrases and say nothing themselves."""


def _phrases(caption: str) -> list[tuple[str, ...]]:
    text = _OPENING.sub("", unicodedata.normalize("NFKC", caption).casefold())
    phrases: list[list[str]] = [[]]
    for token in _TOKEN.findall(text):
        if token in _LINKS or not re.match(r"\w", token):
            phrases.append([])
        else:
            is_plural = len(token) > 3 and token.endswith("s") and not token.endswith("ss")
            phrases[-1].append(token[:-1] if is_plural else token)
    return [tuple(phrase) for phrase in phrases if phrase]


def _digest(value: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "big")


class Duplicates:
    """Remembers the pairs that are kept so far.

    The captions of a pair differ by a word by design, and so do those of good neighbors: similar letters do not mean
    the same thing. Hence words are the units, and only pairs with the same change are compared.
    """

    def __init__(self, near: float = 0.92) -> None:
        """Start with no pair; from a share `near` of content words on, in (0, 1], two pairs are near duplicates."""
        if not 0 < near <= 1:
            raise InputError(f"near_duplicates must lie in (0, 1], got {near}")
        self.near = near
        self._texts: set[int] = set()
        self._contents: set[int] = set()
        self._alphabet: dict[str, str] = {}
        self._by_change: dict[int, list[str]] = {}

    def _write(self, words: list[str]) -> str:
        """Write each word as one character, which is what rapidfuzz compares fastest."""
        for word in words:
            # Code points from 0xD800 to 0xDFFF are surrogates, which are no characters: leave a gap there.
            self._alphabet.setdefault(word, chr(0x100 + len(self._alphabet) + (len(self._alphabet) >= 0xD700) * 0x800))
        return "".join(self._alphabet[word] for word in words)

    def find(self, pair: PromptPair) -> str:
        """Return why a pair is a duplicate, in a few words; empty if it is new, and then it is remembered."""
        text = _digest([part.casefold().split() for part in (pair.source, pair.target, pair.instruction)])
        if text in self._texts:
            return "the same text as before"
        source, target = _phrases(pair.source), _phrases(pair.target)
        content = _digest([sorted(source), sorted(target)])
        if content in self._contents:
            return "the same content as before"
        old_words, new_words = [word for phrase in source for word in phrase], [word for p in target for word in p]
        old, new = Counter(old_words), Counter(new_words)
        change = _digest([pair.kind, sorted((old - new).elements()), sorted((new - old).elements())])
        if self._is_near(change, self._write(old_words)):
            return "nearly the same as before"
        self._texts.add(text)
        self._contents.add(content)
        return ""

    def _is_near(self, change: int, words: str) -> bool:
        """Whether a source caption with this change is nearly one from before; if not, it is remembered."""
        # The common share is that of the longer caption: in a short one a single other word is too much already.
        if (1 - self.near) * len(words) < 1:
            return False
        others = self._by_change.setdefault(change, [])
        scorer = LCSseq.normalized_similarity
        if process.extractOne(words, others, scorer=scorer, processor=None, score_cutoff=self.near):
            return True
        others.append(words)
        return False


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
    def _lengths(self) -> list[int]:
        return [read_json(folder / CONFIG, _TokenizerConfig).model_max_length for folder in self._folders]

    @functools.cached_property
    def _counters(self) -> list[Callable[[str], int]]:
        return [_counter(folder) for folder in self._folders]

    def find(self, pair: PromptPair) -> str:
        """Return why a pair cannot be made, in a few words; empty if its captions are short enough."""
        for text in (pair.source, pair.target, pair.behind):
            if len(text.encode()) + MARKS <= min(self._lengths, default=0):  # a token has at least one byte
                continue
            for limit, count in zip(self._lengths, self._counters, strict=True):
                if (found := count(text)) > limit:
                    return f"a caption has {found} tokens, of which {limit} fit"
        return ""


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

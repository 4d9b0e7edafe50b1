"""Which prompt pairs say the same: in other case or spaces, in other wording, or in all but a word of a long caption.

The prompts stage asks it before it keeps a pair. Memory is some 200 bytes a pair; time per pair hardly grows.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter

from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from restage.records import InputError, PromptPair

__all__ = ["Duplicates", "content_of_caption"]

_TOKEN = re.compile(r"\w+|[^\w\s]")
_OPENING = re.compile(r"\b(?:photo|photograph|picture|image) of\b")
_LINKS = frozenset(
    "a an the this that on in at by of to from with and or into onto over under near next beside behind is are was "
    "its it his her their there which who".split()
)
"""Words that tie phrases together and say nothing themselves."""


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _phrases(caption: str) -> list[tuple[str, ...]]:
    text = _OPENING.sub("", unicodedata.normalize("NFKC", caption).casefold())
    phrases: list[list[str]] = [[]]
    for token in _TOKEN.findall(text):
        if token in _LINKS or not re.match(r"\w", token):
            phrases.append([])
        else:
            phrases[-1].append(_stem(token))
    return [tuple(phrase) for phrase in phrases if phrase]


def content_of_caption(caption: str) -> tuple[tuple[str, ...], ...]:
    """The phrases of a caption, each as its content words, in alphabetical order.

    `A red cube on the grass, at noon` and `at noon, a photo of a red cube on grass` have the same, and no other
    colour, thing or binding of both has.
    """
    return tuple(sorted(_phrases(caption)))


def _digest(value: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "big")


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


class Duplicates:
    """The pairs that are kept so far.

    Two captions of a pair differ by a word by design, and so do the captions of good neighbours: what is alike in
    letters is not the same. Hence words are the units, and only pairs with the same change are compared.
    """

    def __init__(self, near: float = 0.92) -> None:
        """Start with no pair.

        Args:
            near: share of content words, in (0, 1], from which on two pairs with the same change are near duplicates;
                1 = the same content in whatever wording. At 0.92 captions of up to 12 content words must have the
                same ones.

        Raises:
            InputError: `near` is out of range.
        """
        if not 0 < near <= 1:
            raise InputError(f"near_duplicates must lie in (0, 1], got {near}")
        self.near = near
        self._texts: set[int] = set()
        self._contents: set[int] = set()
        self._alphabet: dict[str, str] = {}
        self._by_change: dict[int, list[str]] = {}

    def _write(self, words: list[str]) -> str:
        """Words as one character each, which is what rapidfuzz compares fastest."""
        for word in words:
            self._alphabet.setdefault(word, chr(0x100 + len(self._alphabet) + (len(self._alphabet) >= 0xD700) * 0x800))
        return "".join(self._alphabet[word] for word in words)

    def find(self, pair: PromptPair) -> str:
        """Why a pair is a duplicate, in a few words; empty = it is new, and is kept from now on."""
        text = _digest([_plain(part) for part in (pair.source, pair.target, pair.instruction)])
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
        """Whether a source caption with this change is all but the same as one before; else it is kept.

        The share of words in common is that of the longer caption (longest common subsequence), so a caption in which
        one word is too many is never near: it is not compared at all.
        """
        if (1 - self.near) * len(words) < 1:
            return False
        others = self._by_change.setdefault(change, [])
        scorer = LCSseq.normalized_similarity
        if process.extractOne(words, others, scorer=scorer, processor=None, score_cutoff=self.near):
            return True
        others.append(words)
        return False

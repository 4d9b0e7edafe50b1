"""Finds prompt pairs that say the same: in other case or spacing, in other words, or but for a word of a long caption.

The prompts stage asks before it keeps a pair. A pair takes some 200 bytes of memory, and the time per pair hardly
grows.
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
"""Words that link phrases and say nothing themselves."""


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
    """Return the phrases of a caption as their content words, in alphabetical order.

    `A red cube on the grass, at noon` and `at noon, a photo of a red cube on grass` give the same; a caption with
    another color, another thing, or colors bound to other things does not.
    """
    return tuple(sorted(_phrases(caption)))


def _digest(value: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "big")


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


class Duplicates:
    """Remembers the pairs that are kept so far.

    The captions of a pair differ by a word by design, and so do those of good neighbors: similar letters do not mean
    the same thing. Hence words are the units, and only pairs with the same change are compared.
    """

    def __init__(self, near: float = 0.92) -> None:
        """Start with no pair.

        Args:
            near: share of content words, in (0, 1], at which two pairs with the same change are near duplicates; 1 =
                the same content in any wording. At 0.92, captions of up to 12 content words must have the same ones.

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
        """Write each word as one character, which is what rapidfuzz compares fastest."""
        for word in words:
            # Code points from 0xD800 to 0xDFFF are surrogates, which are no characters: leave a gap there.
            self._alphabet.setdefault(word, chr(0x100 + len(self._alphabet) + (len(self._alphabet) >= 0xD700) * 0x800))
        return "".join(self._alphabet[word] for word in words)

    def find(self, pair: PromptPair) -> str:
        """Return why a pair is a duplicate, in a few words; empty if it is new, and then it is remembered."""
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

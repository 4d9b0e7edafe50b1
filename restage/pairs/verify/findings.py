"""What can be wrong with a run's image pairs, and what a repair does about it.

`REASONS` is the menu; every check of this package yields `Finding`s under its names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["REASONS", "Finding", "Reason"]


class Reason(NamedTuple):
    """A way of being wrong."""

    meaning: str
    """What is wrong, in a sentence for people."""
    remedy: Literal["remake", "leave out", "rebuild", "move away"]
    """What a repair does: have the shard made again, hide the pair from readers, write the file anew, or move it
    out of the way."""


REASONS: Mapping[str, Reason] = {
    "missing": Reason("a file that must be there is not", "remake"),
    "torn": Reason("a file ends too early or cannot be read to its end", "remake"),
    "flipped": Reason("a file is whole in form, but not the one that was written", "remake"),
    "mismatch": Reason("mark, tar and sidecar of a shard contradict each other", "remake"),
    "repeated": Reason("a pair's id stands in the set more than once", "remake"),
    "stale": Reason("the manifest is not what the shards say", "rebuild"),
    "foreign": Reason("a file that Restage has not written", "move away"),
    "unreadable": Reason("a picture cannot be decoded, or the sizes of a pair differ", "leave out"),
    "not finite": Reason("a score is NaN or infinite in a pair that was accepted", "leave out"),
    "black": Reason("a picture is black, as decoders leave one that came out NaN", "leave out"),
    "constant": Reason("a picture shows one colour", "leave out"),
    "identical": Reason("source and edited picture are the same", "leave out"),
    "swapped": Reason("the pictures fit the captions better the other way round", "leave out"),
    "wrong caption": Reason("a picture fits its caption no better than captions of other pairs", "leave out"),
    "wrong scores": Reason("the stored scores are not those of the pictures", "leave out"),
    "duplicate": Reason("both pictures are those of an earlier pair, pixel by pixel", "leave out"),
    "near duplicate": Reason("both pictures look like those of an earlier pair", "leave out"),
}
"""Ways of being wrong by name; those of files come first, then those of pairs."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    reason: str
    """A name of `REASONS`."""
    file: str
    """Name of the file within the folder."""
    detail: str
    """What was expected and what was found."""
    shard: int | None = None
    """Number of the shard, if the finding belongs to one."""
    pair: str = ""
    """Id of the pair, if the finding is about one."""

    @property
    def remedy(self) -> str:
        """What a repair does about it."""
        return REASONS[self.reason].remedy

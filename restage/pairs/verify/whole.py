"""Checks what only the whole set can tell: repeats, and scores that belong to other pictures.

It works on short descriptions of all pairs (some 80 bytes each), not on pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt64

from restage.pairs.store import shard_name
from restage.pairs.verify.examine import Described, Seen
from restage.pairs.verify.shards import Finding, about_pair

__all__ = ["Repeat", "WholeSet", "find_near", "find_repeated"]

BAND_BITS = 32
"""Two hashes of 128 bits that differ in at most 3 bits agree in one of four bands of 32 bits: all such pairs of
pictures are found, and some that differ in more bits."""
MAX_BITS = 8
"""Number of differing bits, of 128, up to which pictures have the same layout. Among 969 different pairs of the
miniature the smallest number was 8, once (docs/log/2026-11-22-campaigns.md)."""
MAX_COLOUR_LEVELS = 6
"""Difference of mean colors, in levels of 255, up to which pictures have the same coloring, which the hashes ignore."""
MAX_RUN = 64
"""Number of pairs with a common band up to which all are compared with one another; beyond it, only neighbors."""


class Repeat(NamedTuple):
    """A row that repeats an earlier one."""

    row: int
    earlier: int
    num_bits: int  # number of bits in which the hashes differ; 0 for exact repeats


def find_repeated(keys: UInt64[np.ndarray, " n"]) -> Iterator[Repeat]:
    """Yield the rows whose key an earlier row has, in order."""
    order = np.argsort(keys, kind="stable")
    is_repeat = np.zeros(len(keys), bool)
    is_repeat[1:] = keys[order][1:] == keys[order][:-1]
    # A stable sort keeps equal keys in the order of their rows: the first of each run is the one that is repeated.
    first = order[np.maximum.accumulate(np.where(is_repeat, 0, np.arange(len(keys))))]
    rows = [Repeat(int(order[i]), int(first[i]), 0) for i in np.flatnonzero(is_repeat)]
    yield from sorted(rows)


def _runs(values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield groups of at least two rows with equal values."""
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(np.diff(values[order])) + 1
    starts, ends = np.r_[0, ends], np.r_[ends, len(order)]
    for run in np.flatnonzero(ends - starts > 1):
        yield order[starts[run] : ends[run]]


def _candidates(shapes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows (later, earlier) whose hashes have a band in common."""
    for half in range(2):
        for shift in (0, BAND_BITS):
            band = ((shapes[:, half] >> np.uint64(shift)) & np.uint64(2**BAND_BITS - 1)).astype(np.uint32)
            for run in _runs(band):
                reach = len(run) if len(run) <= MAX_RUN else 2
                for i in range(len(run)):
                    for j in range(i + 1, min(i + reach, len(run))):
                        yield int(run[j]), int(run[i])


def find_near(
    shapes: UInt64[np.ndarray, "n 2"], colours: UInt8[np.ndarray, "n 24"], known: Sequence[Repeat] = ()
) -> list[Repeat]:
    """Return the rows that look like an earlier one, in order, each with the nearest that was found."""
    skipped = {repeat.row for repeat in known}
    best: dict[int, Repeat] = {}
    for row, earlier in _candidates(shapes):
        if row in skipped or earlier in skipped:
            continue
        num_bits = sum(int(bits).bit_count() for bits in shapes[row] ^ shapes[earlier])
        furthest = int(np.abs(colours[row].astype(int) - colours[earlier].astype(int)).max())
        if num_bits <= MAX_BITS and furthest <= MAX_COLOUR_LEVELS:
            repeat = Repeat(row, earlier, num_bits)
            best[row] = min(best.get(row, repeat), repeat, key=lambda found: (found.num_bits, found.earlier))
    return [best[row] for row in sorted(best)]


SCORE_TOLERANCE = 0.05
"""Difference that a score may have when it is computed again on another machine or in another precision."""
SAME_CLIP_TOLERANCE = 0.02
"""Median difference between stored scores and those computed again above which another CLIP has scored the set."""


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


@dataclass
class WholeSet:
    """What was seen of all shards, collected in order."""

    num_shards: int = 0
    last_shard: int = -1
    num_judged: int = 0  # number of shards that a rule has judged; imported ones are not
    num_accepted: int = 0
    num_bytes: int = 0
    ids: list[np.ndarray] = field(default_factory=list)  # ids of all pairs, as numbers
    id_shards: list[np.ndarray] = field(default_factory=list)
    """Numbers of the shards that `ids` belong to."""
    described: list[Described] = field(default_factory=list)

    def add(self, seen: Seen) -> None:
        """Keep what is needed of a shard."""
        self.num_shards += 1
        self.last_shard = max(self.last_shard, seen.index)
        self.num_judged += seen.is_judged
        self.num_accepted += seen.num_accepted
        self.num_bytes += seen.num_bytes
        self.ids.append(seen.ids)
        self.id_shards.append(np.full(len(seen.ids), seen.index, np.int32))
        if seen.described is not None:
            self.described.append(seen.described)

    @property
    def num_pairs(self) -> int:
        """Number of pairs in all shards that could be read."""
        return sum(map(len, self.ids))

    def find_repeated_ids(self) -> Iterator[Finding]:
        """Find shards that hold a pair of an earlier shard; one finding for each."""
        shards, said = _join(self.id_shards), set()
        for repeat in find_repeated(_join(self.ids)):
            index, earlier = int(shards[repeat.row]), int(shards[repeat.earlier])
            if index not in said:
                said.add(index)
                detail = f"it holds pairs that {shard_name(earlier, 'tar')} holds"
                yield Finding(reason="repeated", file=shard_name(index, "tar"), detail=detail, shard=index)

    def find_repeated_pictures(self) -> Iterator[Finding]:
        """Find pairs whose pictures are those of an earlier pair, or look like them."""
        if not self.described:
            return
        names = ("pixels", "shapes", "colours")
        pixels, shapes, colours = (np.concatenate([getattr(part, name) for part in self.described]) for name in names)
        exact = list(find_repeated(pixels))
        for repeat in exact:
            yield self._repeated("duplicate", repeat, "the same as {}")
        for repeat in find_near(shapes, colours, exact):
            detail = f"both pictures look like those of {{}} ({repeat.num_bits} bits)"
            yield self._repeated("near duplicate", repeat, detail)

    def _locate(self, row: int) -> tuple[int, str]:
        """Return the number of the shard, and the id, of a row among all that were described."""
        starts = np.cumsum([0, *(len(part.ids) for part in self.described)])
        number = int(np.searchsorted(starts, row, side="right")) - 1
        return self.described[number].shard, self.described[number].ids[row - int(starts[number])].decode()

    def _repeated(self, reason: str, repeat: Repeat, detail: str) -> Finding:
        index, pair = self._locate(repeat.row)
        _, earlier = self._locate(repeat.earlier)
        return about_pair(index, pair, reason, detail.format(earlier))

    def find_wrong_scores(self) -> Iterator[Finding]:
        """Find pairs whose stored scores are not those of their pictures, in a set that this CLIP has scored."""
        if not self.is_scored_by_same_clip():
            return
        for part in self.described:
            for row in np.flatnonzero(part.score_gaps > SCORE_TOLERANCE):
                detail = f"a score computed again differs by {part.score_gaps[row]:.3f}"
                yield about_pair(part.shard, part.ids[row].decode(), "wrong scores", detail)

    def is_scored_by_same_clip(self) -> bool:
        """Whether most stored scores are those that the CLIP at hand gives."""
        gaps = _join([part.score_gaps for part in self.described])
        gaps = gaps[np.isfinite(gaps)]
        return len(gaps) > 0 and float(np.median(gaps)) <= SAME_CLIP_TOLERANCE

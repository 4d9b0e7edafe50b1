"""Checks what only the whole set can tell: repeats, and scores that belong to other pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from restage.pairs.store import shard_name
from restage.pairs.verify.examine import Described, Seen
from restage.pairs.verify.findings import Finding
from restage.pairs.verify.folder import Counts
from restage.pairs.verify.repeats import Repeat, find_near, find_repeated

__all__ = ["WholeSet"]

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
    num_judged: int = 0
    num_accepted: int = 0
    num_bytes: int = 0
    ids: list[np.ndarray] = field(default_factory=list)
    id_shards: list[np.ndarray] = field(default_factory=list)
    """Numbers of the shards that `ids` belong to."""
    described: list[Described] = field(default_factory=list)
    described_shards: list[np.ndarray] = field(default_factory=list)

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
            self.described_shards.append(np.full(len(seen.described.ids), seen.index, np.int32))

    @property
    def counts(self) -> Counts:
        """Numbers of what the shards hold."""
        return Counts(self.num_shards, self.last_shard, sum(map(len, self.ids)), self.num_judged, self.num_accepted)

    @property
    def num_too_long(self) -> int:
        """Number of pairs whose captions could not be judged."""
        return sum(part.num_too_long for part in self.described)

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
        exact = list(find_repeated(_join([part.pixels for part in self.described])))
        for repeat in exact:
            yield self._finding("duplicate", repeat, "the same as {}")
        shapes, colours = (np.concatenate([getattr(part, name) for part in self.described]) for name in _LOOKS)
        for repeat in find_near(shapes, colours, exact):
            yield self._finding(
                "near duplicate", repeat, f"both pictures look like those of {{}} ({repeat.num_bits} bits)"
            )

    def _locate(self, row: int) -> tuple[int, str]:
        """Return the number of the shard, and the id, of a row among all that were described."""
        starts = np.cumsum([0, *(len(part.ids) for part in self.described)])
        number = int(np.searchsorted(starts, row, side="right")) - 1
        place = row - int(starts[number])
        return int(self.described_shards[number][place]), self.described[number].ids[place].decode()

    def _finding(self, reason: str, repeat: Repeat, detail: str) -> Finding:
        index, pair = self._locate(repeat.row)
        _, earlier = self._locate(repeat.earlier)
        name = shard_name(index, "tar")
        return Finding(reason=reason, file=name, detail=detail.format(earlier), shard=index, pair=pair)

    def find_wrong_scores(self) -> Iterator[Finding]:
        """Find pairs whose stored scores are not those of their pictures, in a set that this CLIP has scored."""
        if not self.is_scored_by_same_clip():
            return
        for part, shards in zip(self.described, self.described_shards, strict=True):
            for row in np.flatnonzero(part.score_gaps > SCORE_TOLERANCE):
                index, pair = int(shards[row]), part.ids[row].decode()
                detail = f"a score computed again differs by {part.score_gaps[row]:.3f}"
                name = shard_name(index, "tar")
                yield Finding(reason="wrong scores", file=name, detail=detail, shard=index, pair=pair)

    def is_scored_by_same_clip(self) -> bool:
        """Whether most stored scores are those that the CLIP at hand gives."""
        gaps = _join([part.score_gaps for part in self.described])
        gaps = gaps[np.isfinite(gaps)]
        return len(gaps) > 0 and float(np.median(gaps)) <= SAME_CLIP_TOLERANCE


_LOOKS = ("shapes", "colours")

"""Checks one shard on its own, and describes its pairs briefly for comparison with those of other shards."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8, UInt64

from restage.pairs.files import Files
from restage.pairs.score import PairRule
from restage.pairs.store import Mark, shard_name
from restage.pairs.tasks import PlanRecord
from restage.pairs.verdicts import rule_id, verdict_of
from restage.pairs.verify.captions import BATCH_SIZE, CaptionBank, captions_of, judge_captions
from restage.pairs.verify.findings import Finding
from restage.pairs.verify.pictures import Look, NotDecodable, find_faults, look_at
from restage.pairs.verify.shards import BadFile, StoredPair, read_shard

__all__ = ["Described", "Examiner", "Seen", "bits_of"]


class Described(NamedTuple):
    """Short descriptions of the pairs of a shard whose pictures were looked at, some 80 bytes a pair."""

    ids: np.ndarray
    """Ids of the pairs, as ASCII."""
    pixels: UInt64[np.ndarray, " n"]
    shapes: UInt64[np.ndarray, "n 2"]
    colours: UInt8[np.ndarray, "n 24"]
    score_gaps: Float32[np.ndarray, " n"]
    """Differences between stored scores and those computed again; NaN if not compared."""
    num_too_long: int
    """Number of pairs with a caption that is too long for the CLIP to judge."""


class Seen(NamedTuple):
    """What was seen of one shard."""

    index: int
    findings: list[Finding]
    ids: UInt64[np.ndarray, " pairs"]
    """The ids of all pairs as numbers, accepted or not; empty if the shard is bad as a whole."""
    is_judged: bool
    """Whether a rule has judged the pairs."""
    num_accepted: int
    num_bytes: int
    described: Described | None = None


def bits_of(pair_id: str) -> int:
    """Return 64 bits that stand for an id: its own, if it has the form of ours, else those of a hash."""
    digits = pair_id.rpartition("-")[2]
    if len(digits) == 16 and set(digits) <= set("0123456789abcdef"):
        return int(digits, 16)
    return int.from_bytes(hashlib.blake2b(pair_id.encode(), digest_size=8).digest(), "big")


class _Row(NamedTuple):
    """A short description of one pair."""

    id: bytes
    pixels: int
    shapes: tuple[int, int]
    colours: np.ndarray
    score_gap: float
    is_too_long: bool


def _describe(rows: Sequence[_Row]) -> Described | None:
    if not rows:
        return None
    return Described(
        ids=np.array([row.id for row in rows]),
        pixels=np.array([row.pixels for row in rows], np.uint64),
        shapes=np.array([row.shapes for row in rows], np.uint64),
        colours=np.stack([row.colours for row in rows]),
        score_gaps=np.array([row.score_gap for row in rows], np.float32),
        num_too_long=sum(row.is_too_long for row in rows),
    )


@dataclass(frozen=True)
class Examiner:
    """Examines shards; several threads may use the same examiner."""

    files: Files
    left_out: Mapping[str, str]
    """Pairs whose pictures are not judged again."""
    bank: CaptionBank | None
    """Captions to compare with; None if captions are not judged."""
    has_pictures: bool
    """Whether pictures are decoded at all."""
    plan: PlanRecord = PlanRecord(id="")
    """Plan that the shards are made by."""
    rule: PairRule | None = None
    """Rule that holds now; None if verdicts stand as stored."""

    def examine(self, index: int) -> Seen:
        """Run all checks of one shard."""
        try:
            if index >= (self.plan.num_tasks or index + 1):
                detail = f"the plan has {self.plan.num_tasks} shards only"
                raise BadFile("foreign", shard_name(index, "done"), detail)
            shard = read_shard(self.files, index, maker=self.plan.maker)
            pairs = [pair for pair in shard.pairs if pair.id not in self.left_out] if self.has_pictures else []
            findings: list[Finding] = []
            described = self._judge(index, pairs, findings)
        except BadFile as bad:
            return Seen(index, [bad.finding(index)], np.zeros(0, np.uint64), False, 0, 0)
        ids = np.array([bits_of(row["id"]) for row in shard.rows], np.uint64)
        num_accepted = self._count_accepted(shard.mark, shard.rows)
        return Seen(index, findings, ids, bool(shard.mark.rule), num_accepted, shard.num_bytes, described)

    def _count_accepted(self, mark: Mark, rows: Sequence[Mapping[str, Any]]) -> int:
        """Count the pairs that are accepted by the rule that holds now."""
        rule = self.rule
        if rule is not None and mark.rule not in ("", rule_id(rule)):
            rows = [verdict_of(row, rule) for row in rows]
        return sum(bool(row.get("accepted")) for row in rows)

    def _judge(self, index: int, pairs: Sequence[StoredPair], findings: list[Finding]) -> Described | None:
        """Judge the pictures a batch at a time, and add what is wrong to `findings`."""
        rows: list[_Row] = []
        for start in range(0, len(pairs), BATCH_SIZE):
            looks = list(self._decode(index, pairs[start : start + BATCH_SIZE], findings))
            for _, group in groupby(looks, key=lambda item: item[1].source.shape):
                rows += self._judge_batch(index, list(group), findings)
        return _describe(rows)

    def _decode(
        self, index: int, pairs: Sequence[StoredPair], findings: list[Finding]
    ) -> Iterator[tuple[StoredPair, Look]]:
        for pair in pairs:
            try:
                look = look_at(pair.parts)
            except NotDecodable as error:
                findings.append(_finding(index, pair.id, "unreadable", str(error)))
                continue
            if pair.row.get("pixel_sha256", "") not in ("", look.pixel_sha256):
                detail = f"{pair.id}: its pixels are not those that the sidecar names"
                raise BadFile("mismatch", shard_name(index, "tar"), detail)
            yield pair, look

    def _judge_batch(
        self, index: int, batch: Sequence[tuple[StoredPair, Look]], findings: list[Finding]
    ) -> Iterator[_Row]:
        """Describe pairs of one size, and add what is wrong with them to `findings`."""
        faults = [list(find_faults(look, pair.row)) for pair, look in batch]
        gaps, is_too_long = [math.nan] * len(batch), [False] * len(batch)
        with_captions = [place for place, (pair, _) in enumerate(batch) if all(captions_of(pair.row))]
        if self.bank is not None and with_captions:
            looks, captioned = zip(*((batch[place][1], batch[place][0].row) for place in with_captions), strict=True)
            judged = judge_captions(looks, captioned, self.bank)
            for place, gap, too_long in zip(with_captions, judged.gaps, judged.is_too_long, strict=True):
                gaps[place], is_too_long[place] = gap, too_long
            for fault in judged.faults:
                of_pair = faults[with_captions[fault.position]]
                if not of_pair:  # what a black picture shows need not be said twice
                    of_pair.append((fault.reason, fault.detail))
        for (pair, look), of_pair, gap, too_long in zip(batch, faults, gaps, is_too_long, strict=True):
            findings.extend(_finding(index, pair.id, *fault) for fault in of_pair)
            pair_id = pair.id.encode("ascii", "replace")
            # A pair that is wrong anyway must not sway the judgment whether the same CLIP has scored the set.
            score_gap = math.nan if of_pair else gap
            yield _Row(pair_id, look.pixels, look.shapes, look.colours, score_gap, too_long)


def _finding(index: int, pair_id: str, reason: str, detail: str) -> Finding:
    return Finding(reason=reason, file=shard_name(index, "tar"), detail=detail, shard=index, pair=pair_id)

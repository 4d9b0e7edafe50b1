"""All image pairs of a run, known by their pixels, so that pairs of two runs can be compared and mixed.

A mix takes pictures, choice and captions from different runs; an edit model trained on it shows which of the three
makes the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from restage.pairs.encoding import ImagePair
from restage.pairs.files import open_files
from restage.pairs.score import PUBLISHED, PairRule
from restage.pairs.store import iter_rows, read_pairs
from restage.pairs.verdicts import current_rule, verdict_of
from restage.train.examples import ExactPair

__all__ = ["MixedPairs", "PairPool", "mix_pairs"]


class MixedPairs(NamedTuple):
    """Pairs to train on."""

    pairs: list[ExactPair]
    num_missing: int
    """Pairs that should be among them and are stored nowhere, since their run rejected them."""


@dataclass(frozen=True)
class PairPool:
    """Accepted and rejected pairs of a run; pictures are there of accepted ones only."""

    rows: Mapping[str, Mapping[str, Any]]
    """Rows by the hash of their pixels, in the order of the shards."""
    folder: Path
    rule: PairRule

    @classmethod
    def read(cls, folder: Path) -> PairPool:
        """Read the records of a run's pairs.

        Raises:
            InputError: a shard was changed since it was written.
        """
        rows = {row.get("pixel_sha256") or row["id"]: _without_preview(row) for row in iter_rows(folder)}
        return cls(rows, folder, current_rule(open_files(folder)) or PUBLISHED)

    @cached_property
    def stored(self) -> Mapping[str, ImagePair]:
        """The accepted pairs with their pictures."""
        by_id = {pair.id: pair for pair in read_pairs(self.folder)}
        keys = {row["id"]: key for key, row in self.rows.items()}
        return {keys[name]: pair for name, pair in by_id.items() if name in keys}

    def is_accepted(self, key: str) -> bool:
        """Whether a pair of this pool is trained on."""
        return bool(self.rows[key]["accepted"])

    def captions(self, key: str) -> tuple[str, ...]:
        """Returns what a pair is said to show, and the instruction between."""
        row = self.rows[key]
        return row["source_caption"], row["target_caption"], row["instruction"]

    def differences(self, other: PairPool) -> tuple[str, ...]:
        """Returns which of captions, selection and pictures differ between the pools."""
        common = self.rows.keys() & other.rows.keys()
        is_other = {
            "captions": any(self.captions(key) != other.captions(key) for key in common),
            "selection": self.rule != other.rule
            or any(self.is_accepted(key) != other.is_accepted(key) for key in common),
            "pictures": self.rows.keys() != other.rows.keys(),
        }
        return tuple(name for name, differs in is_other.items() if differs)

    def would_accept(self, key: str, row: Mapping[str, Any]) -> bool:
        """Whether this run accepts a pair: by its own verdict if it has the pair, else by its rule on the scores."""
        if key in self.rows:
            return self.is_accepted(key)
        return bool(verdict_of(row, self.rule)["accepted"])


def mix_pairs(pools: Mapping[str, PairPool], sides: Mapping[str, str]) -> MixedPairs:
    """Pairs whose pictures, selection and captions come from the runs that `sides` names, `A` or `B`."""
    pictures, selection, captions = (pools[sides[part]] for part in ("pictures", "selection", "captions"))
    pairs, num_missing = [], 0
    for key, row in pictures.rows.items():
        if not selection.would_accept(key, row):
            continue
        found = next((pool.stored[key] for pool in pools.values() if key in pool.stored), None)
        if found is None:
            num_missing += 1
            continue
        texts = captions.stored.get(key) or pictures.stored.get(key) or found
        pairs.append(ExactPair(found.source, found.edited, found.mask, texts.prompt))
    return MixedPairs(pairs, num_missing)


def _without_preview(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "preview"}

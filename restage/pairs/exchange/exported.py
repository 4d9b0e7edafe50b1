"""What an export writes from: the accepted pairs of a folder of shards, as readers see them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from restage.pairs.files import Place, open_files
from restage.pairs.store import NO_SHARD, PairReader, done_shards
from restage.records import InputError, content_id

__all__ = ["ExportedPair", "PairSet", "open_set"]


class ExportedPair(NamedTuple):
    """An accepted pair, with its files as they were stored."""

    id: str
    parts: Mapping[str, bytes]
    """`source.png`, `edited.png`, `mask.png`, `json`."""
    row: Mapping[str, Any]
    """Row of the sidecar, without preview."""

    @property
    def record(self) -> dict[str, Any]:
        """The stored record with id, prompt and facts."""
        return json.loads(self.parts["json"])


@dataclass(frozen=True)
class PairSet:
    """The accepted pairs of a folder as readers see them."""

    reader: PairReader
    marks: Mapping[int, Mapping[str, Any]]

    @property
    def id(self) -> str:
        """Content id of everything that an export depends on."""
        hashes = [mark["sha256"] for mark in self.marks.values()]
        return content_id("set", {"shards": hashes, "left_out": self.reader.left_out, "rule": self.reader.rule})

    def rows(self, index: int) -> list[dict[str, Any]]:
        """Read the rows of a shard, accepted or not."""
        return self.reader.rows(index, self.marks[index], has_previews=False).to_pylist()

    def pairs(self, index: int) -> Iterator[ExportedPair]:
        """Yield the accepted pairs of a shard, in order."""
        rows = {row["id"]: row for row in self.rows(index)}
        for pair_id, parts in self.reader.members(index, self.marks[index]):
            yield ExportedPair(pair_id, parts, rows[pair_id])


def open_set(place: Place) -> PairSet:
    """Open the pairs of a run's folder, or of a URL.

    Raises:
        InputError: there is no finished shard.
    """
    files = open_files(place)
    marks = done_shards(files)
    if not marks:
        raise InputError(f"{files.where()} {NO_SHARD}")
    return PairSet(PairReader.open(files), marks)

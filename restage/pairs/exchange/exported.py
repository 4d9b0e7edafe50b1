"""What an export writes from: the accepted pairs of a folder of shards, as readers see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from restage.pairs.encoding import MEMBERS, PairRecord
from restage.pairs.files import Place, open_files
from restage.pairs.store import NO_SHARD, TEXTS, PairReader, done_shards, shard_name
from restage.records import InputError, content_id, from_plain, parse_json

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
        """The stored record with id, prompt and facts, as JSON values."""
        record: dict[str, Any] = parse_json(self.parts["json"], dict[str, Any], where=self.id)
        from_plain(record, PairRecord, where=self.id)
        return record


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
        table = self.reader.rows(index, self.marks[index], has_previews=False)
        if missing := [name for name in TEXTS if name not in table.column_names]:
            where = self.reader.files.where(shard_name(index, "parquet"))
            raise InputError(f"{where}: expected a column {missing[0]!r}, got {', '.join(table.column_names)}")
        return table.to_pylist()

    def pairs(self, index: int) -> Iterator[ExportedPair]:
        """Yield the accepted pairs of a shard, in order."""
        rows = {row["id"]: row for row in self.rows(index)}
        for pair_id, parts in self.reader.members(index, self.marks[index]):
            if pair_id not in rows or not set(MEMBERS) <= set(parts):
                where = self.reader.files.where(shard_name(index, "tar"))
                raise InputError(f"{where}: {pair_id[:100]} has no row, or not all of {', '.join(MEMBERS)}")
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

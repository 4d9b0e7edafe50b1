"""What an export writes from, and the folder that appears whole or not at all.

An export is made beside its place, file by file, and renamed at the end; one that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from restage.pairs.files import open_files
from restage.pairs.store import PairReader, done_shards
from restage.records import InputError, Progress, content_id, read_json, write_json

__all__ = ["EXPORT_RECORD", "ExportedPair", "Exporter", "PairSet", "export_to", "open_set"]

EXPORT_RECORD = "export.json"
"""In the folder of an export: what it was made from."""


class ExportedPair(NamedTuple):
    """An accepted pair, with its files as they are."""

    id: str
    parts: Mapping[str, bytes]
    """`source.png`, `edited.png`, `mask.png`, `json`."""
    row: Mapping[str, Any]
    """Of the sidecar, without preview."""

    @property
    def record(self) -> dict[str, Any]:
        """Its JSON: id, prompt, facts."""
        return json.loads(self.parts["json"])


@dataclass(frozen=True)
class PairSet:
    """The accepted pairs of a folder as readers see them."""

    folder: Path | str
    reader: PairReader
    marks: Mapping[int, Mapping[str, Any]]

    @property
    def id(self) -> str:
        """Content id of all that an export depends on."""
        hashes = [mark["sha256"] for mark in self.marks.values()]
        return content_id("set", {"shards": hashes, "left_out": self.reader.left_out, "rule": self.reader.rule})

    def rows(self, index: int) -> list[dict[str, Any]]:
        """Rows of a shard, accepted or not."""
        return self.reader.rows(index, self.marks[index], has_previews=False).to_pylist()

    def pairs(self, index: int) -> Iterator[ExportedPair]:
        """Accepted pairs of a shard, in order."""
        rows = {row["id"]: row for row in self.rows(index)}
        for pair_id, parts in self.reader.members(index, self.marks[index]):
            yield ExportedPair(pair_id, parts, rows[pair_id])


def open_set(folder: Path | str) -> PairSet:
    """Open the pairs of a run's folder or of a URL.

    Raises:
        InputError: there is no finished shard.
    """
    marks = done_shards(folder)
    if not marks:
        raise InputError(f"{open_files(folder).where()} holds no finished shard of image pairs; run: restage pairs RUN")
    return PairSet(folder, PairReader.open(folder), marks)


Exporter = Callable[[PairSet, Path], Iterator[Progress]]
"""Writes a set into a folder; a file that is there already is whole, and stays."""


def export_to(
    pair_set: PairSet, out: Path, *, form: str, exporter: Exporter, finish: Callable[[Path], None]
) -> Iterator[Progress]:
    """Export a set so that `out` appears only when all of it is there.

    Args:
        pair_set: what to export.
        out: folder to make.
        form: name of the form.
        exporter: writes the files.
        finish: writes what describes them, such as the data card.

    Raises:
        InputError: `out` exists and is not this same export, or a stopped export of another set is in the way.
    """
    record = {"id": content_id("export", {"form": form, "set": pair_set.id}), "form": form, "set": pair_set.id}
    if out.exists():
        if (out / EXPORT_RECORD).exists() and read_json(out / EXPORT_RECORD) == record:
            yield Progress(stage="export", done=1, total=1, note="already done")
            return
        raise InputError(f"{out} exists and is not this export; name another folder with --out")
    work = out.with_name(f".{out.name}.unfinished")
    if (work / EXPORT_RECORD).exists() and read_json(work / EXPORT_RECORD) != record:
        raise InputError(f"{work} holds a stopped export of other pairs; delete it, or name another folder with --out")
    write_json(work / EXPORT_RECORD, record)
    yield from exporter(pair_set, work)
    finish(work)
    work.rename(out)
    total = len(pair_set.marks)
    yield Progress(stage="export", done=total, total=total, note=str(out))

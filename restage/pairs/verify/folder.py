"""Checks the folder as a whole: which files may lie there, manifest, rule, the stage's mark, and contact sheet."""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from restage.pairs.files import Files, LocalFiles
from restage.pairs.left_out import is_left_out_list
from restage.pairs.store import shard_number, write_manifest
from restage.pairs.tasks import PLAN_FILE, PlanRecord
from restage.pairs.verdicts import RULE_FILE, RuleRecord, rule_id
from restage.pairs.verify.findings import Finding
from restage.pairs.verify.shards import BadFile, read_canonical_json
from restage.records import InputError, content_id, file_sha256
from restage.run.reading import StageMark
from restage.scenes.io.images import UNREADABLE, open_picture

__all__ = [
    "QUARANTINE",
    "Counts",
    "check_folder",
    "check_records",
    "check_manifest",
    "check_stage",
    "find_shards",
    "read_right_plan",
]

QUARANTINE = "quarantine"
"""Folder beside the shards where a repair moves what is bad."""
RECORDS = ("rule.json", "store.json", "plan.json", "campaign.json")
"""JSON records that the store keeps beside the shards."""
VIEWS = ("manifest.parquet", "contact_sheet.png", "stage.json")
"""Files that the stage writes beside the shards when it ends."""
FOLDERS = (QUARANTINE, "failures")
OLD_MANIFEST = re.compile(r"manifest-rule-[0-9a-f]{16}\.parquet")
"""Name of the manifest of an earlier rule."""


def read_right_plan(files: Files) -> PlanRecord:
    """Read the plan of the shards; an empty one if it is missing or damaged, which `check_folder` reports."""
    try:
        return read_canonical_json(files, "plan.json", PlanRecord)
    except BadFile:
        return PlanRecord(id="")


class Counts(NamedTuple):
    """What the shards hold, as far as they could be read."""

    num_shards: int
    last_shard: int
    """The highest number of a shard; -1 if there is none."""
    num_pairs: int
    num_judged: int
    """Number of shards that a rule has judged; imported ones are not."""
    num_accepted: int
    """Number of pairs accepted by the rule that holds now; those on the list of `left_out` count as well."""


def find_shards(names: list[str], *, is_finished: bool) -> list[int]:
    """Return the numbers of the shards to check.

    A killed worker leaves files of a shard without a mark: only in a finished stage must every shard have one.
    """
    numbers = {shard_number(name) for name in names if is_finished or name.endswith(".done")}
    return sorted(number for number in numbers if number is not None)


def _is_ours(name: str) -> bool:
    known = name in (*RECORDS, *VIEWS, *FOLDERS)
    is_view = OLD_MANIFEST.fullmatch(name) is not None
    return known or is_view or shard_number(name) is not None or is_left_out_list(name)


def check_folder(files: Files, names: list[str]) -> Iterator[Finding]:
    """Find files that do not belong here, and small files that do but are damaged."""
    for name in names:
        if not _is_ours(name):
            yield Finding(reason="foreign", file=name, detail="it does not belong here")
        elif name in RECORDS or is_left_out_list(name):
            try:
                record = read_canonical_json(files, name, {"rule.json": RuleRecord, "plan.json": PlanRecord}.get(name))
            except BadFile as bad:
                yield bad.finding()
                continue
            if isinstance(record, RuleRecord) and record.id != rule_id(record.rule):
                yield Finding(reason="flipped", file=name, detail="its id is not that of its rule")
        elif name == "contact_sheet.png":
            try:
                with open_picture(files.read(name), name) as image:
                    image.verify()
            except UNREADABLE as error:
                yield Finding(reason="stale", file=name, detail=f"its checksums are wrong: {error}")


def check_records(files: Files, counts: Counts) -> Iterator[Finding]:
    """Find records that are gone, of those that the stage writes before its first shard."""
    for name in (PLAN_FILE, RULE_FILE):
        if counts.num_judged and not files.exists(name):
            yield Finding(reason="missing", file=name, detail="shards were made with it; run pairs again to write it")


def check_stage(files: Files, counts: Counts, plan: PlanRecord) -> Iterator[Finding]:
    """Check whether the mark of the stage is whole, and whether everything that it counts is there."""
    name = "stage.json"
    try:
        mark: StageMark = read_canonical_json(files, name, StageMark)
    except BadFile as bad:
        yield bad.finding()
        return
    if mark.id != content_id("pairs", mark.config):
        yield Finding(reason="flipped", file=name, detail="its id is not that of its config")
    num_expected = plan.num_tasks or counts.last_shard + 1
    if counts.num_shards != num_expected:
        detail = f"{num_expected} shards must be there, found {counts.num_shards}"
        yield Finding(reason="missing", file=name, detail=detail)
    for fact, found in (("num_pairs", counts.num_pairs), ("num_accepted", counts.num_accepted)):
        if mark.facts.get(fact, found) != found:
            yield Finding(reason="mismatch", file=name, detail=f"{fact} is {mark.facts[fact]}, the shards hold {found}")


def check_manifest(shards: Files, files: Files) -> Iterator[Finding]:
    """Check whether the manifest is, byte by byte, what is made of the shards again, all of which are right.

    Another version of pyarrow may have written other bytes; then the rows decide.
    """
    name = "manifest.parquet"
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / name
        try:
            write_manifest(shards, again)
        except InputError as error:
            yield Finding(reason="stale", file=name, detail=f"it cannot be made from the shards: {error}")
            return
        if _sha256(files, name) == file_sha256(again):
            return
        try:
            is_equal = _is_equal(pq.ParquetFile(io.BytesIO(files.read(name))), pq.ParquetFile(again))
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            is_equal = False
    if not is_equal:
        yield Finding(reason="stale", file=name, detail="it is not what the shards say")


def _sha256(files: Files, name: str) -> str:
    if isinstance(files, LocalFiles):  # a manifest of millions of pairs need not lie in memory
        return file_sha256(files.path / name)
    return hashlib.sha256(files.read(name)).hexdigest()


def _is_equal(found: pq.ParquetFile, again: pq.ParquetFile) -> bool:
    """Whether two parquet files of different versions of pyarrow hold the same rows."""
    if found.metadata.created_by == again.metadata.created_by:
        return False
    if found.schema_arrow != again.schema_arrow or found.metadata.num_rows != again.metadata.num_rows:
        return False
    batches = zip(found.iter_batches(), again.iter_batches(), strict=True)
    return all(repr(one.to_pylist()) == repr(other.to_pylist()) for one, other in batches)

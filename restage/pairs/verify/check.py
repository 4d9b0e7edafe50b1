"""Runs all checks over a folder of shards, some shards at a time, and checks the folder itself.

Which files may lie there, manifest, rule, the stage's mark, and contact sheet; `restage verify` calls it.
"""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from restage.pairs.config import VerifyConfig
from restage.pairs.files import Files, LocalFiles, is_url, open_files
from restage.pairs.score import (
    RULE_FILE,
    ImageTextModel,
    RuleRecord,
    current_rule,
    is_left_out_list,
    read_left_out,
    rule_id,
)
from restage.pairs.store import read_table, shard_name, shard_number, write_manifest
from restage.pairs.tasks import PLAN_FILE, PlanRecord
from restage.pairs.verify.examine import MIN_BANK_SIZE, CaptionBank, Examiner, Seen, captions_of, make_bank
from restage.pairs.verify.shards import BadFile, Finding, read_canonical_json
from restage.pairs.verify.whole import WholeSet
from restage.records import InputError, Progress, content_id, file_sha256
from restage.run.reading import StageMark
from restage.scenes.io.images import UNREADABLE, open_picture

__all__ = ["VerifyResult", "check_pairs"]

QUARANTINE = "quarantine"
"""Folder beside the shards where a repair moves what is bad."""
RECORDS = ("rule.json", "store.json", "plan.json", "campaign.json")
"""JSON records that the store keeps beside the shards."""
VIEWS = ("manifest.parquet", "contact_sheet.png", "stage.json")
"""Files that the stage writes beside the shards when it ends."""
FOLDERS = (QUARANTINE, "failures")
OLD_MANIFEST = re.compile(r"manifest-rule-[0-9a-f]{16}\.parquet")
"""Name of the manifest of an earlier rule."""


def _check_folder(files: Files) -> Iterator[Finding]:
    """Find files that do not belong here, and small files that do but are damaged."""
    for name in files.names():
        is_known = name in (*RECORDS, *VIEWS, *FOLDERS) or OLD_MANIFEST.fullmatch(name)
        if not is_known and shard_number(name) is None and not is_left_out_list(name):
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


def _check_stage(files: Files, whole: WholeSet, plan: PlanRecord) -> Iterator[Finding]:
    """Check whether the mark of the stage is whole, and whether everything that it counts is there."""
    name = "stage.json"
    try:
        mark: StageMark = read_canonical_json(files, name, StageMark)
    except BadFile as bad:
        yield bad.finding()
        return
    if mark.id != content_id("pairs", mark.config):
        yield Finding(reason="flipped", file=name, detail="its id is not that of its config")
    num_expected = plan.num_tasks or whole.last_shard + 1
    if whole.num_shards != num_expected:
        detail = f"{num_expected} shards must be there, found {whole.num_shards}"
        yield Finding(reason="missing", file=name, detail=detail)
    for fact, found in (("num_pairs", whole.num_pairs), ("num_accepted", whole.num_accepted)):
        if mark.facts.get(fact, found) != found:
            yield Finding(reason="mismatch", file=name, detail=f"{fact} is {mark.facts[fact]}, the shards hold {found}")


def _check_manifest(shards: Files, files: Files) -> Iterator[Finding]:
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
        if isinstance(files, LocalFiles):  # a manifest of millions of pairs need not lie in memory
            found = file_sha256(files.path / name)
        else:
            found = hashlib.sha256(files.read(name)).hexdigest()
        if found == file_sha256(again):
            return
        try:
            is_equal = _is_equal(pq.ParquetFile(io.BytesIO(files.read(name))), pq.ParquetFile(again))
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            is_equal = False
    if not is_equal:
        yield Finding(reason="stale", file=name, detail="it is not what the shards say")


def _is_equal(found: pq.ParquetFile, again: pq.ParquetFile) -> bool:
    """Whether two parquet files of different versions of pyarrow hold the same rows."""
    if found.metadata.created_by == again.metadata.created_by:
        return False
    if found.schema_arrow != again.schema_arrow or found.metadata.num_rows != again.metadata.num_rows:
        return False
    batches = zip(found.iter_batches(), again.iter_batches(), strict=True)
    return all(repr(one.to_pylist()) == repr(other.to_pylist()) for one, other in batches)


BANK_SHARDS = 64
"""Number of shards whose captions serve for comparison with all others."""
READ_AHEAD = 2
"""Number of shards that are in work for each thread."""


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What was checked, and what was found."""

    findings: tuple[Finding, ...]
    num_shards: int
    num_pairs: int
    num_accepted: int
    num_left_out: int
    """Number of pairs that readers skip already; their pictures are not judged again."""
    num_bytes: int
    seconds: float
    notes: tuple[str, ...] = ()  # what was not checked, and why

    @property
    def mb_per_s(self) -> float:
        """Rate at which tars and sidecars were read, in 10^6 bytes a second."""
        return self.num_bytes / 1e6 / max(self.seconds, 1e-9)


def _captions(files: Files, shards: Sequence[int]) -> Iterator[str]:
    """Yield captions of accepted pairs from up to `BANK_SHARDS` shards; unreadable shards are found later."""
    picks = np.linspace(0, len(shards) - 1, min(BANK_SHARDS, len(shards))).round().astype(int)
    for pick in picks:
        name = shard_name(shards[pick], "parquet")
        try:
            table = read_table(files.read(name), name)
        except (InputError, OSError):
            continue
        for row in table.to_pylist():
            if row["accepted"]:
                yield from filter(None, captions_of(row))


def _examine_all(examiner: Examiner, shards: Sequence[int], num_threads: int) -> Iterator[Seen]:
    """Examine the shards in order, some of them ahead."""
    waiting: deque[Future[Seen]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            # Only a few shards are ahead at a time, since each keeps its bytes in memory until it is examined.
            for index in shards:
                waiting.append(pool.submit(examiner.examine, index))
                if len(waiting) >= READ_AHEAD * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _check_views(
    files: Files, home: Files, whole: WholeSet, findings: Sequence[Finding], plan: PlanRecord
) -> Iterator[Finding]:
    """Check the records that go with the shards, and what is derived from these, if they are right."""
    for name in (PLAN_FILE, RULE_FILE):
        if whole.num_judged and not files.exists(name):
            yield Finding(reason="missing", file=name, detail="shards were made with it; run pairs again to write it")
    bad = [finding for finding in findings if finding.shard is not None and not finding.pair]
    is_finished = home.exists("stage.json")
    if is_finished and not bad:
        yield from _check_stage(home, whole, plan)
    if not home.exists("manifest.parquet"):
        if is_finished:
            yield Finding(reason="missing", file="manifest.parquet", detail="the file is not there")
    elif not bad:
        yield from _check_manifest(files, home)


def _notes(whole: WholeSet, bank: CaptionBank | None, *, is_fast: bool) -> Iterator[str]:
    """Say what was not checked."""
    if is_fast:
        yield "pictures were not looked at"
    elif bank is None and whole.num_shards:
        yield "captions were not judged: no CLIP was given"
    elif bank is not None and len(bank.texts) < MIN_BANK_SIZE:
        yield f"only {len(bank.texts)} captions: too few to judge whether they fit"
    if bank is not None and not whole.is_scored_by_same_clip():
        yield "stored scores are not those of this CLIP: not compared"
    if num_too_long := sum(part.num_too_long for part in whole.described):
        yield f"captions of {num_too_long} pairs are too long for this CLIP"


def check_pairs(
    folder: Path | str,
    config: VerifyConfig = VerifyConfig(),  # noqa: B008
    *,
    clip: ImageTextModel | None = None,
    store: str = "",
) -> Generator[Progress, None, VerifyResult]:
    """Check the image pairs in a folder or at a URL; the generator returns the result. Nothing is changed.

    Memory is that of a few shards, and some 100 bytes for each pair. Without a CLIP captions are not judged.
    """
    started_s = time.perf_counter()
    if not is_url(folder) and not Path(folder).is_dir():
        raise InputError(f"{folder} does not exist; name a run, or a folder of shards")
    files = open_files(folder, store=store)
    home = files if is_url(folder) else LocalFiles(Path(folder))  # where the other files of the stage are
    # A killed worker leaves files of a shard without a mark: only in a finished stage must every shard have one.
    is_finished = home.exists("stage.json")
    numbers = {shard_number(name) for name in files.names() if is_finished or name.endswith(".done")}
    shards = sorted(number for number in numbers if number is not None)
    findings = [found for place in ([files] if home == files else [home, files]) for found in _check_folder(place)]
    is_judging = shards and not config.fast
    bank = make_bank(clip, list(_captions(files, shards))) if is_judging and clip is not None else None
    # Only those records are followed that are not damaged.
    damaged = {finding.file for finding in findings}
    has_plan = files.exists(PLAN_FILE) and PLAN_FILE not in damaged
    examiner = Examiner(
        files=files,
        left_out={} if any(map(is_left_out_list, damaged)) else read_left_out(files),
        bank=bank,
        has_pictures=not config.fast,
        plan=read_canonical_json(files, PLAN_FILE, PlanRecord) if has_plan else PlanRecord(id=""),
        rule=None if RULE_FILE in damaged else current_rule(files),
    )
    whole = WholeSet()
    for seen in _examine_all(examiner, shards, config.num_threads):
        whole.add(seen)
        findings += seen.findings
        yield Progress(stage="verify", done=whole.num_shards, total=len(shards), note=f"{len(findings)} found")
    findings += [*whole.find_repeated_ids(), *whole.find_repeated_pictures(), *whole.find_wrong_scores()]
    findings += _check_views(files, home, whole, findings, examiner.plan)
    return VerifyResult(
        findings=tuple(findings),
        num_shards=whole.num_shards,
        num_pairs=whole.num_pairs,
        num_accepted=whole.num_accepted,
        num_left_out=len(examiner.left_out),
        num_bytes=whole.num_bytes,
        seconds=time.perf_counter() - started_s,
        notes=tuple(_notes(whole, bank, is_fast=config.fast)),
    )

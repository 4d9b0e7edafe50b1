"""Runs all checks over a folder of shards, some shards at a time; `restage verify` calls it."""

from __future__ import annotations

import io
import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from restage.pairs.files import Files, LocalFiles, is_url, open_files
from restage.pairs.left_out import is_left_out_list, read_left_out
from restage.pairs.score import ImageTextModel
from restage.pairs.store import shard_name
from restage.pairs.tasks import PlanRecord
from restage.pairs.verdicts import current_rule
from restage.pairs.verify.captions import MIN_BANK_SIZE, CaptionBank, captions_of, make_bank
from restage.pairs.verify.examine import Examiner, Seen
from restage.pairs.verify.findings import Finding
from restage.pairs.verify.folder import (
    check_folder,
    check_manifest,
    check_records,
    check_stage,
    find_shards,
    read_right_plan,
)
from restage.pairs.verify.whole import WholeSet
from restage.records import InputError, Progress

__all__ = ["VerifyConfig", "VerifyResult", "check_pairs", "verify_pairs"]

BANK_SHARDS = 64
"""Number of shards whose captions serve for comparison with all others."""
MAX_THREADS = 8
READ_AHEAD = 2
"""Number of shards that are in work for each thread."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What is checked, and with how many threads."""

    fast: bool = False
    """Check only hashes and what the files say of each other; no picture is decoded."""
    num_threads: int = min(os.cpu_count() or 1, MAX_THREADS)
    """Number of shards that are read at the same time; each takes the memory of a shard."""

    def __post_init__(self) -> None:
        if self.num_threads < 1:
            raise InputError(f"num_threads must be at least 1, got {self.num_threads}")


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
    notes: tuple[str, ...] = ()
    """What was not checked, and why."""

    @property
    def mb_per_s(self) -> float:
        """Rate at which tars and sidecars were read, in 10^6 bytes a second."""
        return self.num_bytes / 1e6 / max(self.seconds, 1e-9)


def _captions(files: Files, shards: Sequence[int]) -> Iterator[str]:
    """Yield captions of accepted pairs from up to `BANK_SHARDS` shards; unreadable shards are found later."""
    picks = np.linspace(0, len(shards) - 1, min(BANK_SHARDS, len(shards))).round().astype(int)
    for pick in picks:
        try:
            content = io.BytesIO(files.read(shard_name(shards[pick], "parquet")))
            rows = pq.ParquetFile(content).read(columns=["accepted", "source_caption", "target_caption"]).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            continue
        for row in rows:
            if row.get("accepted"):
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


def _open_bank(files: Files, shards: Sequence[int], clip: ImageTextModel | None) -> tuple[CaptionBank | None, str]:
    """Return the captions to compare with, and why captions cannot be judged, if they cannot."""
    if clip is None or not shards:
        return None, "captions were not judged: no CLIP was given" if shards else ""
    bank = make_bank(clip, list(_captions(files, shards)))
    few = len(bank.texts) < MIN_BANK_SIZE
    return bank, f"only {len(bank.texts)} captions: too few to judge whether they fit" if few else ""


@dataclass(frozen=True)
class _Opened:
    """A folder to check: where its shards lie, and where the other files of the stage are."""

    files: Files
    home: Files

    @classmethod
    def open(cls, place: Path | str, store: str) -> _Opened:
        if not is_url(place) and not Path(place).is_dir():
            raise InputError(f"{place} does not exist; name a run, or a folder of shards")
        files = open_files(place, store=store)
        return cls(files, files if is_url(place) else LocalFiles(Path(place)))

    @property
    def is_finished(self) -> bool:
        """Whether the stage says that all of its shards are there."""
        return self.home.exists("stage.json")

    def check_files(self) -> Iterator[Finding]:
        """Check what lies there, except for what is in the shards."""
        for files in (self.home, self.files) if self.home != self.files else (self.files,):
            yield from check_folder(files, files.names())

    def examiner(self, damaged: Sequence[Finding], bank: CaptionBank | None, *, is_fast: bool) -> Examiner:
        """Return an examiner that follows those records of the folder that are not damaged."""
        names = {finding.file for finding in damaged}
        return Examiner(
            files=self.files,
            left_out={} if any(map(is_left_out_list, names)) else read_left_out(self.files),
            bank=bank,
            has_pictures=not is_fast,
            plan=read_right_plan(self.files),
            rule=None if "rule.json" in names else current_rule(self.files),
        )

    def check_views(self, whole: WholeSet, findings: Sequence[Finding], plan: PlanRecord) -> Iterator[Finding]:
        """Check what is derived from the shards, if these are right: the mark of the stage, and the manifest."""
        bad = [finding for finding in findings if finding.shard is not None and not finding.pair]
        yield from check_records(self.files, whole.counts)
        if self.is_finished and not bad:
            yield from check_stage(self.home, whole.counts, plan)
        if not self.home.exists("manifest.parquet"):
            if self.is_finished:
                yield Finding(reason="missing", file="manifest.parquet", detail="the file is not there")
        elif not bad:
            yield from check_manifest(self.files, self.home)


def _notes(whole: WholeSet, bank: CaptionBank | None, note: str) -> Iterator[str]:
    """Say what was not checked."""
    if note:
        yield note
    if bank is not None and not whole.is_scored_by_same_clip():
        yield "stored scores are not those of this CLIP: not compared"
    if whole.num_too_long:
        yield f"captions of {whole.num_too_long} pairs are too long for this CLIP"


def check_pairs(
    folder: Path | str, config: VerifyConfig = VerifyConfig(), *, clip: ImageTextModel | None = None, store: str = ""
) -> Generator[Progress, None, VerifyResult]:
    """Check the image pairs in a folder or at a URL; the generator returns the result. Nothing is changed.

    Memory is that of a few shards, and some 100 bytes for each pair.

    Args:
        folder: `<run>/pairs`, or a folder or URL of shards.
        config: what to check.
        clip: the CLIP that judges captions; None leaves captions unjudged.
        store: URL of the store that the pairs of a run lie in, if any.

    Raises:
        InputError: the folder does not exist, or its pairs lie in another store.
    """
    started_s = time.perf_counter()
    opened = _Opened.open(folder, store)
    shards = find_shards(opened.files.names(), is_finished=opened.is_finished)
    findings = list(opened.check_files())
    bank, note = (None, "pictures were not looked at") if config.fast else _open_bank(opened.files, shards, clip)
    examiner = opened.examiner(findings, bank, is_fast=config.fast)
    whole = WholeSet()
    for seen in _examine_all(examiner, shards, config.num_threads):
        whole.add(seen)
        findings += seen.findings
        yield Progress(stage="verify", done=whole.num_shards, total=len(shards), note=f"{len(findings)} found")
    findings += [*whole.find_repeated_ids(), *whole.find_repeated_pictures(), *whole.find_wrong_scores()]
    findings += opened.check_views(whole, findings, examiner.plan)
    return VerifyResult(
        findings=tuple(findings),
        num_shards=whole.num_shards,
        num_pairs=whole.counts.num_pairs,
        num_accepted=whole.num_accepted,
        num_left_out=len(examiner.left_out),
        num_bytes=whole.num_bytes,
        seconds=time.perf_counter() - started_s,
        notes=tuple(_notes(whole, bank, note)),
    )


def verify_pairs(
    folder: Path | str,
    *,
    fast: bool = False,
    clip: ImageTextModel | None = None,
    num_threads: int | None = None,
    store: str = "",
) -> tuple[Finding, ...]:
    """Check the image pairs in a folder or at a URL, and return what is wrong; see `check_pairs`.

    Raises:
        InputError: the folder does not exist.
    """
    config = VerifyConfig(fast=fast) if num_threads is None else VerifyConfig(fast=fast, num_threads=num_threads)
    steps = check_pairs(folder, config, clip=clip, store=store)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value.findings

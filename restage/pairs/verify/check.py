"""All checks over a folder of shards, some shards at a time; what `restage verify` runs."""

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
from restage.pairs.left_out import read_left_out
from restage.pairs.score import ImageTextModel
from restage.pairs.store import shard_name
from restage.pairs.verify.captions import MIN_BANK_SIZE, CaptionBank, make_bank
from restage.pairs.verify.examine import Examiner, Seen
from restage.pairs.verify.findings import Finding
from restage.pairs.verify.folder import check_folder, check_manifest, check_stage, find_shards, read_plan
from restage.pairs.verify.whole import WholeSet
from restage.records import InputError, Progress

__all__ = ["VerifyConfig", "VerifyResult", "check_pairs", "verify_pairs"]

BANK_SHARDS = 64
"""Shards whose captions those of all are compared with."""
MAX_THREADS = 8
READ_AHEAD = 2
"""Shards in work for each thread."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What is looked at, and with how many threads."""

    fast: bool = False
    """Only hashes, and what files say of each other; no picture is decoded."""
    num_threads: int = min(os.cpu_count() or 1, MAX_THREADS)
    """Shards that are read at the same time; each takes the memory of a shard."""

    def __post_init__(self) -> None:
        if self.num_threads < 1:
            raise InputError(f"num_threads must be at least 1, got {self.num_threads}")


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What was looked at, and what was found."""

    findings: tuple[Finding, ...]
    num_shards: int
    num_pairs: int
    num_accepted: int
    num_left_out: int
    """Pairs that readers pass over already; their pictures are not judged again."""
    num_bytes: int
    seconds: float
    notes: tuple[str, ...] = ()
    """What was not checked, and why."""

    @property
    def mb_per_s(self) -> float:
        """Rate over tars and sidecars, in 10^6 bytes a second."""
        return self.num_bytes / 1e6 / max(self.seconds, 1e-9)


def _captions(files: Files, shards: Sequence[int]) -> Iterator[str]:
    """Captions of accepted pairs from up to `BANK_SHARDS` shards; those that cannot be read are found later."""
    picks = np.linspace(0, len(shards) - 1, min(BANK_SHARDS, len(shards))).round().astype(int)
    for pick in picks:
        try:
            content = io.BytesIO(files.read(shard_name(shards[pick], "parquet")))
            rows = pq.ParquetFile(content).read(columns=["accepted", "source_caption", "target_caption"]).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            continue
        for row in rows:
            if row.get("accepted"):
                yield from (row["source_caption"], row["target_caption"])


def _examine_all(examiner: Examiner, shards: Sequence[int], num_threads: int) -> Iterator[Seen]:
    """Shards in order, some of them ahead."""
    waiting: deque[Future[Seen]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
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
    if clip is None or not shards:
        return None, "captions were not judged: no CLIP was given" if shards else ""
    bank = make_bank(clip, list(_captions(files, shards)))
    few = len(bank.texts) < MIN_BANK_SIZE
    return bank, f"only {len(bank.texts)} captions: too few to judge whether they fit" if few else ""


def check_pairs(
    folder: Path | str, config: VerifyConfig = VerifyConfig(), *, clip: ImageTextModel | None = None
) -> Generator[Progress, None, VerifyResult]:
    """Check the image pairs in a folder or at a URL; the generator returns the result. Nothing is changed.

    Memory is that of a few shards, and some 100 bytes for each pair.

    Args:
        folder: `<run>/pairs`, or where shards lie.
        config: what to look at.
        clip: to judge captions with; None leaves that out.

    Raises:
        InputError: the folder does not exist.
    """
    if not is_url(folder) and not Path(folder).is_dir():
        raise InputError(f"{folder} does not exist; name a run, or a folder of shards")
    started_s = time.perf_counter()
    files = open_files(folder)
    home = files if is_url(folder) else LocalFiles(Path(folder))
    names = sorted({*files.names(), *home.names()})
    is_finished = home.exists("stage.json")
    shards = find_shards(names, is_finished=is_finished)
    findings = [*check_folder(home, home.names())]
    if files is not home and files.where() != home.where():
        findings += check_folder(files, files.names())
    bank, note = (None, "pictures were not looked at") if config.fast else _open_bank(files, shards, clip)
    left_out = {} if any(finding.file.startswith("left-out-") for finding in findings) else read_left_out(files)
    plan = read_plan(files)
    examiner = Examiner(files=files, left_out=left_out, bank=bank, has_pictures=not config.fast, plan=plan)
    whole = WholeSet()
    for seen in _examine_all(examiner, shards, config.num_threads):
        whole.add(seen)
        findings += seen.findings
        yield Progress(stage="verify", done=whole.num_shards, total=len(shards), note=f"{len(findings)} found")
    findings += [*whole.find_repeated_ids(), *whole.find_repeated_pictures(), *whole.find_wrong_scores()]
    notes = [note] if note else []
    if bank is not None and not whole.is_scored_by_same_clip():
        notes.append("stored scores are not those of this CLIP: not compared")
    if whole.num_too_long:
        notes.append(f"captions of {whole.num_too_long} pairs are too long for this CLIP")
    if is_finished:
        has_bad_shard = any(finding.remedy == "remake" for finding in findings)
        findings += [] if has_bad_shard else check_stage(home, whole.counts, plan)
    findings += _check_view(folder, home, findings, is_finished)
    return VerifyResult(
        findings=tuple(findings),
        num_shards=whole.num_shards,
        num_pairs=whole.counts.num_pairs,
        num_accepted=whole.num_accepted,
        num_left_out=len(left_out),
        num_bytes=whole.num_bytes,
        seconds=time.perf_counter() - started_s,
        notes=tuple(notes),
    )


def _check_view(folder: Path | str, home: Files, findings: Sequence[Finding], is_finished: bool) -> Iterator[Finding]:
    """The manifest, which can be derived only from shards that are right."""
    if not home.exists("manifest.parquet"):
        if is_finished:
            yield Finding(reason="missing", file="manifest.parquet", detail="the file is not there")
    elif not any(finding.shard is not None and not finding.pair for finding in findings):
        yield from check_manifest(folder, home)


def verify_pairs(
    folder: Path | str, *, fast: bool = False, clip: ImageTextModel | None = None, num_threads: int | None = None
) -> tuple[Finding, ...]:
    """Check the image pairs in a folder or at a URL and say what is wrong; empty = nothing. See `check_pairs`.

    Raises:
        InputError: the folder does not exist.
    """
    config = VerifyConfig(fast=fast) if num_threads is None else VerifyConfig(fast=fast, num_threads=num_threads)
    steps = check_pairs(folder, config, clip=clip)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value.findings

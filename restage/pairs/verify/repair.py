"""What follows from findings: repairs, contact sheets, and words for people and programs.

A repair takes out what is bad and nothing else. A bad shard loses its mark and moves to quarantine, and the next
`restage pairs` makes it again, bit for bit. A bad pair in a good shard goes on the list of pairs that are left out,
since it would be the same if it were made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from restage.pairs.encoding import MAX_CELLS, PREVIEW, make_preview, write_sheet
from restage.pairs.files import Files, LocalFiles, is_url, open_files
from restage.pairs.score import add_left_out
from restage.pairs.store import drop_shard, shard_name, write_manifest
from restage.pairs.verify.check import QUARANTINE, VerifyResult
from restage.pairs.verify.examine import look_at
from restage.pairs.verify.shards import REASONS, BadFile, Finding, StoredPair, read_shard
from restage.records import InputError
from restage.run.findings import describe_findings

__all__ = ["Repaired", "describe_repair", "describe_result", "repair_pairs", "result_to_plain", "write_sheets"]

REPORT = "findings.json"


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What a repair has done."""

    shards: tuple[int, ...]
    """Numbers of the shards that were moved to quarantine; the stage makes them again."""
    pairs: tuple[str, ...]  # ids of the pairs that readers leave out from now on
    moved: tuple[str, ...]  # names of other files that were moved to quarantine
    rebuilt: tuple[str, ...]  # names of files that were written anew
    quarantine: str  # folder of what was moved; empty if nothing was

    @property
    def needs_stage(self) -> bool:
        """Whether the stage has to be run again."""
        return bool(self.shards) or bool({"stage.json", "contact_sheet.png", "manifest.parquet"} & set(self.moved))


def _open_quarantine(files: Files, findings: Sequence[Finding]) -> str:
    """Make the next numbered folder for what is bad, which begins with a record of what was found; returns its name."""
    number = 1
    while files.exists(f"{QUARANTINE}/{number:04d}/{REPORT}"):
        number += 1
    record = {"findings": [asdict(finding) for finding in findings]}
    name = f"{QUARANTINE}/{number:04d}"
    files.write(f"{name}/{REPORT}", (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    return name


def _move(source: Files, name: str, target: Files, room: str) -> None:
    """Move a file, or a folder of a disk, into quarantine."""
    if isinstance(source, LocalFiles) and isinstance(target, LocalFiles):
        (source.path / name).rename(target.path / room / name)
    else:
        target.write(f"{room}/{name}", source.read(name))
        source.remove(name)


def repair_pairs(folder: Path | str, findings: Sequence[Finding], *, store: str = "") -> Repaired:
    """Take out what the findings of `check_pairs` on the same folder are about, which has not changed since."""
    files = open_files(folder, store=store)
    home = files if is_url(folder) else LocalFiles(Path(folder))
    shards = sorted({finding.shard for finding in findings if finding.shard is not None and not finding.pair})
    pairs = _bad_pairs(findings, shards)
    singles = sorted({finding.file for finding in findings if finding.shard is None and finding.reason != "missing"})
    # Where no shard is bad, the manifest is written anew.
    singles = [name for name in singles if name != "manifest.parquet"]
    singles += ["stage.json", "manifest.parquet"] if shards else []
    moved = [name for name in dict.fromkeys(singles) if home.exists(name) or files.exists(name)]
    quarantine = ""
    if shards or moved:
        room = _open_quarantine(files, findings)
        quarantine = files.where(room)
        # The mark of the stage goes before any shard: after a stop in between, the stage does not claim to be finished.
        for name in moved:
            _move(home if home.exists(name) else files, name, files, room)
        for index in shards:
            # A copy first: what is bad may be the only evidence of why, and is deleted only when it is safe elsewhere.
            for name in (shard_name(index, suffix) for suffix in ("done", "tar", "parquet")):
                if files.exists(name):
                    files.write(f"{room}/{name}", files.read(name))
            drop_shard(files, index)
    if pairs:
        add_left_out(files, pairs)
    rebuilt = []
    is_stale = bool(pairs) or any(finding.file == "manifest.parquet" for finding in findings)
    if is_stale and not shards and isinstance(home, LocalFiles):
        write_manifest(files, home.path / "manifest.parquet")
        rebuilt.append("manifest.parquet")
    return Repaired(
        shards=tuple(shards), pairs=tuple(pairs), moved=tuple(moved), rebuilt=tuple(rebuilt), quarantine=quarantine
    )


def _bad_pairs(findings: Sequence[Finding], bad_shards: Sequence[int]) -> dict[str, str]:
    """Return the reasons against single pairs, for pairs whose shard stays."""
    reasons: dict[str, list[str]] = {}
    for finding in findings:
        if finding.pair and finding.shard not in bad_shards:
            reasons.setdefault(finding.pair, []).append(finding.reason)
    return {pair: ", ".join(dict.fromkeys(of_pair)) for pair, of_pair in sorted(reasons.items())}


def _preview(pair: StoredPair) -> bytes:
    """Draw what the tar holds, which need not be what the sidecar's preview shows."""
    try:
        look = look_at(pair.parts)
    except InputError:
        grey = torch.full((3, 8, 8), 0.5)
        return make_preview(grey, grey, grey[0])
    source, edited = (torch.from_numpy(array.copy()).permute(2, 0, 1) / 255 for array in (look.source, look.edited))
    return make_preview(source, edited, torch.from_numpy(look.mask.copy()) / 255)


def _rows(files: Files, findings: Sequence[Finding]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the pairs that findings are about, for a sheet."""
    by_shard = groupby(sorted(findings, key=lambda finding: finding.shard or 0), key=lambda finding: finding.shard)
    for index, group in by_shard:
        try:
            pairs = {pair.id: pair for pair in read_shard(files, index or 0).pairs}
        except BadFile:
            continue
        for finding in group:
            if pair := pairs.get(finding.pair):
                yield {**pair.row, "reason": finding.detail, PREVIEW: _preview(pair)}


def write_sheets(files: Files, findings: Sequence[Finding], folder: Path) -> list[Path]:
    """Write `<folder>/<reason>.png` for each reason, with at most `MAX_CELLS` pairs evenly chosen; returns the paths.

    Sheets of an earlier check in that folder are deleted.
    """
    written = []
    for name, reason in REASONS.items():
        path = folder / f"{name.replace(' ', '_')}.png"
        path.unlink(missing_ok=True)
        group = [finding for finding in findings if finding.reason == name and finding.pair]
        if group:
            step = max(len(group) / MAX_CELLS, 1.0)
            picked = [group[int(number * step)] for number in range(min(len(group), MAX_CELLS))]
            write_sheet(path, [(f"{len(group)} {name}: {reason.meaning}", list(_rows(files, picked)))])
            written.append(path)
    return written


def describe_result(result: VerifyResult) -> Iterator[str]:
    """Yield the findings by reason, then what was checked."""
    yield from describe_findings(result.findings, {name: reason.meaning for name, reason in REASONS.items()})
    left_out = f", {result.num_left_out} left out" if result.num_left_out else ""
    counts = f"{result.num_pairs} pairs ({result.num_accepted} accepted{left_out}) in {result.num_shards} shards"
    rate = f"{result.num_bytes / 1e6:.1f} MB in {result.seconds:.1f} s"
    yield f"{len(result.findings) or 'nothing'} found in {counts}, {rate}"
    yield from (f"not checked: {note}" for note in result.notes)


def describe_repair(repaired: Repaired, command: Sequence[str]) -> Iterator[str]:
    """Yield what a repair has done, and what to do next, with the command that made the run."""
    if repaired.shards:
        yield f"taken out: {len(repaired.shards)} shards: {', '.join(map(str, repaired.shards[:20]))}"
    if repaired.moved:
        yield f"moved away: {', '.join(repaired.moved)}"
    if repaired.quarantine:
        yield f"what was moved is in {repaired.quarantine}"
    if repaired.pairs:
        yield f"left out from now on: {len(repaired.pairs)} pairs"
    if repaired.rebuilt:
        yield f"written anew: {', '.join(repaired.rebuilt)}"
    if repaired.needs_stage:
        yield f"to make again what is missing: {' '.join(command) or 'restage pairs RUN, with the settings it had'}"


def result_to_plain(folder: Path | str, result: VerifyResult, repaired: Repaired | None) -> dict[str, Any]:
    """Return the result and the repair as JSON values."""
    return {
        **asdict(result),
        "folder": str(folder),
        "findings": [{**asdict(finding), "remedy": finding.remedy} for finding in result.findings],
        "seconds": round(result.seconds, 3),
        "mb_per_s": round(result.mb_per_s, 1),
        "repaired": None if repaired is None else asdict(repaired),
    }

"""Puts the result of `restage verify` into words for people, and into JSON values for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from restage.pairs.verify.check import VerifyResult
from restage.pairs.verify.findings import REASONS
from restage.pairs.verify.repair import Repaired

__all__ = ["describe_repair", "describe_result", "result_to_plain"]

MAX_LINES = 5
"""Number of findings of a reason that are listed one by one."""


def describe_result(result: VerifyResult) -> Iterator[str]:
    """Yield the findings by reason, then what was checked."""
    for name, reason in REASONS.items():
        found = [finding for finding in result.findings if finding.reason == name]
        if found:
            yield f"{name} ({len(found)}): {reason.meaning}"
        for finding in found[:MAX_LINES]:
            yield f"  {finding.pair or finding.file}: {finding.detail}"
        if len(found) > MAX_LINES:
            yield f"  and {len(found) - MAX_LINES} more; --json lists all"
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
        "folder": str(folder),
        "findings": [{**asdict(finding), "remedy": finding.remedy} for finding in result.findings],
        "num_shards": result.num_shards,
        "num_pairs": result.num_pairs,
        "num_accepted": result.num_accepted,
        "num_left_out": result.num_left_out,
        "num_bytes": result.num_bytes,
        "seconds": round(result.seconds, 3),
        "mb_per_s": round(result.mb_per_s, 1),
        "notes": list(result.notes),
        "repaired": None if repaired is None else asdict(repaired),
    }

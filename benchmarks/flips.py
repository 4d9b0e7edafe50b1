"""Changes one byte at a random place of a run's image pairs, over and over, and counts how often verify finds it.

    python benchmarks/flips.py runs/demo --flips 200

Works on a copy. The last line is JSON: flips, found, missed, verify_mb_per_s (hashes only, median over three passes of
the whole folder without a flip), full_mb_per_s and full_pairs_per_s (pictures and captions too), clean_findings.
`benchmarks/campaign.py --flips N` calls `measure_flips`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from restage.diffusion.clip import load_clip
from restage.pairs.config import VerifyConfig
from restage.pairs.verify.check import VerifyResult, check_pairs
from restage.pairs.verify.shards import Finding
from restage.records import derive_seed
from restage.run.models import models_in

KINDS = ("shard-*.tar", "shard-*.parquet", "shard-*.done", "manifest.parquet")
"""Flips take these in turn; within a kind, each byte of all files is as likely as any other."""


def check(folder: Path, *, is_fast: bool = True, clip: Any = None) -> VerifyResult:
    steps = check_pairs(folder, VerifyConfig(fast=is_fast), clip=clip)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def pick_place(folder: Path, kind: str, draw: np.random.Generator) -> tuple[Path, int]:
    files = sorted(folder.glob(kind))
    sizes = np.array([file.stat().st_size for file in files])
    place = int(draw.integers(sizes.sum()))
    number = int(np.searchsorted(np.cumsum(sizes), place, side="right"))
    return files[number], place - int(sizes[:number].sum())


def is_named(finding: Finding, path: Path) -> bool:
    """Whether a finding is about the file, or about another one of its shard: a mark's flipped hash is not its own."""
    return Path(finding.file).stem == path.stem


def measure_flips(folder: Path, num_flips: int, *, seed: int = 0) -> dict[str, Any]:
    """Flip a byte `num_flips` times, one at a time, in a copy of a run's pairs folder, and verify each time.

    Returns:
        flips, found (verify named the file's shard, or the manifest), missed (where), verify_mb_per_s.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "pairs"
        shutil.copytree(folder, copy)
        clean = [check(copy) for _ in range(3)]
        if clean[0].findings:
            raise SystemExit(f"{folder} is not clean to begin with: {clean[0].findings[0]}")
        draw = np.random.default_rng(derive_seed(seed, "flips"))
        missed, reasons = [], Counter()
        for flip in range(num_flips):
            path, place = pick_place(copy, KINDS[flip % len(KINDS)], draw)
            content = bytearray(path.read_bytes())
            content[place] ^= int(draw.integers(1, 256))
            before = path.read_bytes()
            path.write_bytes(content)
            named = [finding for finding in check(copy).findings if is_named(finding, path)]
            path.write_bytes(before)
            reasons.update({finding.reason for finding in named})
            if not named:
                missed.append(f"{path.name} at {place}")
    return {
        "flips": num_flips,
        "found": num_flips - len(missed),
        "missed": missed,
        "reasons": dict(reasons),
        "verify_mb_per_s": round(statistics.median(result.mb_per_s for result in clean), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run, or a folder of shards")
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.run / "pairs" if (options.run / "pairs").is_dir() else options.run
    record = measure_flips(folder, options.flips, seed=options.seed)
    full = check(folder, is_fast=False, clip=load_clip(models_in(None).clip))
    record["full_mb_per_s"] = round(full.mb_per_s, 2)
    record["full_pairs_per_s"] = round(full.num_accepted / full.seconds, 1)
    record["clean_findings"] = len(full.findings)
    print(json.dumps(record))


if __name__ == "__main__":
    main()

"""Takes out what is bad and nothing else: what was right before keeps its bytes.

A bad shard loses its mark and moves to quarantine, and the next `restage pairs` makes it again, bit for bit. A bad pair
in a good shard goes on the list of `left_out`, since it would be the same if it were made again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from restage.pairs.files import Files, LocalFiles, is_url, open_files
from restage.pairs.left_out import add_left_out
from restage.pairs.store import drop_shard, shard_name, write_manifest
from restage.pairs.verify.findings import Finding
from restage.pairs.verify.folder import QUARANTINE

__all__ = ["Repaired", "repair_pairs"]

REPORT = "findings.json"


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What a repair has done."""

    shards: tuple[int, ...]
    """Numbers of the shards that were moved to quarantine; the stage makes them again."""
    pairs: tuple[str, ...]
    """Ids of the pairs that readers leave out from now on."""
    moved: tuple[str, ...]
    """Names of other files that were moved to quarantine."""
    rebuilt: tuple[str, ...]
    """Names of files that were written anew."""
    quarantine: str
    """Folder of what was moved; empty if nothing was."""

    @property
    def needs_stage(self) -> bool:
        """Whether the stage has to be run again."""
        return bool(self.shards) or bool({"stage.json", "contact_sheet.png", "manifest.parquet"} & set(self.moved))


@dataclass(frozen=True)
class _Quarantine:
    """A numbered folder beside the shards for what is bad."""

    files: Files
    name: str

    @classmethod
    def open(cls, files: Files, findings: Sequence[Finding]) -> _Quarantine:
        """Make the next one; it begins with a record of what was found."""
        number = 1
        while files.exists(f"{QUARANTINE}/{number:04d}/{REPORT}"):
            number += 1
        record = {"findings": [asdict(finding) for finding in findings]}
        name = f"{QUARANTINE}/{number:04d}"
        files.write(f"{name}/{REPORT}", (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
        return cls(files, name)

    def keep(self, files: Files, name: str) -> None:
        """Copy a file here, if it exists."""
        if files.exists(name):
            self.files.write(f"{self.name}/{name}", files.read(name))

    def move(self, files: Files, name: str) -> None:
        """Move a file, or a folder of a disk, here."""
        if isinstance(files, LocalFiles) and isinstance(self.files, LocalFiles):
            target = self.files.path / self.name / name
            (files.path / name).rename(target)
        else:
            self.keep(files, name)
            files.remove(name)


def repair_pairs(folder: Path | str, findings: Sequence[Finding], *, store: str = "") -> Repaired:
    """Take out what the findings are about.

    Args:
        folder: `<run>/pairs`, or a folder or URL of shards.
        findings: findings of `check_pairs` on the same folder, which has not changed since.
        store: URL of the store that the pairs of a run lie in, if any.
    """
    files = open_files(folder, store=store)
    home = files if is_url(folder) else LocalFiles(Path(folder))
    shards = sorted({finding.shard for finding in findings if finding.shard is not None and not finding.pair})
    pairs = _bad_pairs(findings, shards)
    singles = sorted({finding.file for finding in findings if finding.shard is None and finding.reason != "missing"})
    views = ["stage.json", "manifest.parquet"] if shards else []
    stays = {"manifest.parquet"} if not shards else set()
    moved = [name for name in dict.fromkeys([*singles, *views]) if name not in stays and _place(home, files, name)]
    quarantine = ""
    if shards or moved:
        room = _Quarantine.open(files, findings)
        quarantine = files.where(room.name)
        # The mark of the stage goes before any shard: after a stop in between, the stage does not claim to be finished.
        for name in moved:
            place = _place(home, files, name)
            if place is not None:
                room.move(place, name)
        for index in shards:
            # A copy first: what is bad may be the only evidence of why, and is deleted only when it is safe elsewhere.
            for suffix in ("done", "tar", "parquet"):
                room.keep(files, shard_name(index, suffix))
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


def _place(home: Files, files: Files, name: str) -> Files | None:
    return next((place for place in (home, files) if place.exists(name)), None)


def _bad_pairs(findings: Sequence[Finding], bad_shards: Sequence[int]) -> dict[str, str]:
    """Return the reasons against single pairs, for pairs whose shard stays."""
    reasons: dict[str, list[str]] = {}
    for finding in findings:
        if finding.pair and finding.shard not in bad_shards:
            reasons.setdefault(finding.pair, []).append(finding.reason)
    return {pair: ", ".join(dict.fromkeys(of_pair)) for pair, of_pair in sorted(reasons.items())}

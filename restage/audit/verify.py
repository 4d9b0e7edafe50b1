"""`restage verify`: checks a run (records, pictures, pairs), a bundle of one, or a folder of pairs; and repairs."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

from restage.audit.bundle import is_bundle, open_bundle
from restage.audit.records import RECORDS, RecordsResult, check_pictures, check_records, describe_records
from restage.pairs.config import VerifyConfig
from restage.pairs.files import UnnamedStore, is_url, open_files
from restage.records import InputError, Progress
from restage.run.findings import FileFinding
from restage.run.folder import hold_stages
from restage.run.layout import RUN_RECORD
from restage.run.models import models_in
from restage.run.progress import say, show_progress
from restage.run.reading import read_run_record

__all__ = ["Part", "find_parts", "verify_folder"]


class Part(NamedTuple):
    """A part of a run that can be checked."""

    stage: str  # `records`, or a stage with checks of its own
    folder: Path | str
    run: Path | None


def find_parts(path: str) -> list[Part]:
    """What there is to check at a path: records and stages of a run and its rounds, or a folder or URL of shards."""
    if is_url(path):
        return [Part("pairs", path, None)]
    folder = Path(path)
    runs = [run for run in (folder, *sorted(folder.glob("rounds/*"))) if any(map(any, map(run.glob, RECORDS)))]
    parts = [Part("records", run, run) for run in runs]
    has_store = any((folder / "pairs" / name).exists() for name in ("store.json", "plan.json"))
    if (folder / "pairs").is_dir() and (any((folder / "pairs").glob("*.done")) or not parts or has_store):
        parts.append(Part("pairs", folder / "pairs", folder))
    if not parts and any(folder.glob("shard-*")):
        is_of_run = folder.name == "pairs" and (folder.parent / RUN_RECORD).exists()
        parts.append(Part("pairs", folder, folder.parent if is_of_run else None))
    if not parts:
        raise InputError(
            f"{path} holds no image pairs and no run to check; name a run, a bundle of one, or a folder of shards"
        )
    return parts


def verify_folder(
    path: str,
    config: VerifyConfig,
    *,
    models: Path | None = None,
    repairs: bool = False,
    is_json: bool = False,
    sheets: Path | None = None,
    store: str = "",
    device: str = "cpu",
) -> bool:
    """Check, say what was found, and repair it if asked to; returns whether anything was found.

    The arguments are those of `restage verify`, which is what calls it; progress goes to stderr where JSON is printed.
    """
    how: dict[str, Any] = {"models": models, "repairs": repairs, "is_json": is_json, "sheets": sheets}
    checks = _Checks(config=config, store=store, device=device, **how)
    if is_bundle(path):
        if repairs:
            raise InputError(f"{path} is a bundle, which is not repaired; unpack it first, or repair the run")
        with open_bundle(Path(path)) as opened:
            checks.say(f"bundle sha256 {opened.sha256}")
            parts = find_parts(str(opened.run))
            is_whole = not any(name.startswith("pairs/") for name in opened.left_out)
            for part in parts:
                if part.stage == "records":
                    first = opened.findings if part.folder == opened.run else []
                    checks.records(part, left_out=opened.left_out, first=first, shown=path)
                elif is_whole:
                    checks.pairs(part)
    else:
        for part in find_parts(path):
            if part.stage == "records":
                checks.records(part, left_out={}, first=[], shown=str(part.folder))
            else:
                with hold_stages(part.run, "pairs") if repairs and part.run else contextlib.nullcontext():
                    checks.pairs(part)
    checks.finish()
    return checks.has_findings


@dataclass(kw_only=True)
class _Checks:
    config: VerifyConfig
    models: Path | None
    repairs: bool
    is_json: bool
    sheets: Path | None
    store: str
    device: str
    has_findings: bool = False
    missed: set[Path] = field(default_factory=set)  # files that records were found to miss
    plain: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {"records": [], "stages": [], "not_checked": []}
    )

    def say(self, *lines: str) -> None:
        if not self.is_json:
            say("\n".join(lines))

    def work(self, steps: Generator[Progress, None, Any]) -> Any:
        results = []

        def kept() -> Iterator[Progress]:
            results.append((yield from steps))

        with contextlib.redirect_stdout(sys.stderr if self.is_json else sys.stdout):
            show_progress(kept())
        return results[0]

    def records(self, part: Part, *, left_out: Mapping[str, str], first: list[FileFinding], shown: str) -> None:
        run = Path(part.folder)
        result: RecordsResult = self.work(check_records(run, left_out=left_out))
        known = {finding.file for finding in first}
        result.findings[:0] = first
        result.findings[len(first) :] = [found for found in result.findings[len(first) :] if found.file not in known]
        if not self.config.fast:
            self.work(check_pictures(run, result, device=self.device))
        self.has_findings = self.has_findings or bool(result.findings)
        self.missed |= {run / finding.file for finding in result.findings if finding.reason == "missing"}
        self.plain["records"].append({"run": shown, **asdict(result)})
        self.say(*describe_records(result))

    def pairs(self, part: Part) -> None:
        try:
            files = open_files(part.folder, store=self.store)
        except UnnamedStore as unnamed:
            if self.repairs:
                raise
            self.plain["not_checked"].append({"folder": str(part.folder), "reason": str(unnamed)})
            self.say(f"not checked: {unnamed}")
            return
        # All of this loads torch, which refusals and runs without pairs do not need.
        from restage.pairs.verify import repair
        from restage.pairs.verify.check import VerifyResult, check_pairs

        clip = None
        if not self.config.fast:
            from restage.diffusion.clip import load_clip

            clip = load_clip(models_in(self.models).clip, self.device)
        result: VerifyResult = self.work(check_pairs(part.folder, self.config, clip=clip, store=self.store))
        self.has_findings = self.has_findings or bool(result.findings)
        folder = self.sheets or (part.run / "verify" if part.run else None)
        written = repair.write_sheets(files, result.findings, folder) if folder else []
        is_new = [one.shard is not None or Path(part.folder, one.file) not in self.missed for one in result.findings]
        told = replace(result, findings=tuple(compress(result.findings, is_new)))
        self.say(*repair.describe_result(told), *(f"sheet: {sheet}" for sheet in written))
        is_bad = self.repairs and bool(result.findings)
        repaired = repair.repair_pairs(part.folder, result.findings, store=self.store) if is_bad else None
        if repaired is not None:
            run = part.run if part.run is not None and (part.run / RUN_RECORD).exists() else None
            self.say(*repair.describe_repair(repaired, [] if run is None else list(read_run_record(run).command)))
        self.plain["stages"].append(repair.result_to_plain(part.folder, told, repaired))

    def finish(self) -> None:
        if self.is_json:
            say(json.dumps(self.plain, indent=1))

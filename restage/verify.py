"""`restage verify`: checks every stage of a run that it knows, today `pairs`; shows, and repairs, what it found.

A further stage is one more entry of `find_parts` with a generator like `pairs.verify.check_pairs`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from restage.pairs.files import is_url, open_files
from restage.pairs.verify.check import VerifyConfig, VerifyResult, check_pairs
from restage.pairs.verify.repair import repair_pairs
from restage.pairs.verify.sheets import write_sheets
from restage.pairs.verify.words import describe_repair, describe_result, result_to_plain
from restage.records import InputError, Progress, read_json
from restage.show import show_progress

__all__ = ["Part", "VerifyConfig", "find_parts", "verify_folder"]


class Part(NamedTuple):
    """A part of a run that can be checked."""

    stage: str
    folder: Path | str
    run: Path | None
    """The run that it belongs to, if any."""


def find_parts(path: str) -> list[Part]:
    """What there is to check at a path: the stages of a run, or a folder or URL of shards.

    Raises:
        InputError: there is nothing that can be checked.
    """
    if is_url(path):
        return [Part("pairs", path, None)]
    folder = Path(path)
    if (folder / "pairs").is_dir():
        return [Part("pairs", folder / "pairs", folder)]
    if any(folder.glob("shard-*")):
        is_of_run = folder.name == "pairs" and (folder.parent / "run.json").exists()
        return [Part("pairs", folder, folder.parent if is_of_run else None)]
    raise InputError(f"{path} holds no image pairs to check; name a run after `restage pairs`, or a folder of shards")


class _Last:
    """Hands the steps of a check on, and keeps what it returns."""

    result: VerifyResult

    def __init__(self, steps: Generator[Progress, None, VerifyResult]) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[Progress]:
        self.result = yield from self.steps


def verify_folder(
    path: str,
    config: VerifyConfig,
    *,
    models: Path | None = None,
    repairs: bool = False,
    is_json: bool = False,
    sheets: Path | None = None,
) -> bool:
    """Check, say what was found, and repair it if asked to; returns whether anything was found.

    Args:
        path: a run, or a folder or URL of shards.
        config: what to look at.
        models: folder with the CLIP to judge captions with; None takes the one that comes with the package.
        repairs: take out what is bad.
        is_json: print JSON instead of lines; progress then goes to the error stream.
        sheets: folder for contact sheets; None takes `verify` in the run, and writes none for a bare folder.

    Raises:
        InputError: there is nothing to check.
    """
    has_findings = False
    records: list[dict[str, Any]] = []
    for part in find_parts(path):
        steps = _Last(check_pairs(part.folder, config, clip=None if config.fast else _load_clip(models)))
        with contextlib.redirect_stdout(sys.stderr if is_json else sys.stdout):
            show_progress(steps)
        result = steps.result
        has_findings = has_findings or bool(result.findings)
        folder = sheets or (part.run / "verify" if part.run else None)
        written = write_sheets(open_files(part.folder), result.findings, folder) if folder else []
        lines = [*describe_result(result), *(f"sheet: {sheet}" for sheet in written)]
        repaired = repair_pairs(part.folder, result.findings) if repairs and result.findings else None
        if repaired is not None:
            lines += describe_repair(repaired, _command_of(part.run))
        records.append(result_to_plain(part.folder, result, repaired))
        if not is_json:
            print("\n".join(lines))
    if is_json:
        print(json.dumps({"stages": records}, indent=1))
    return has_findings


def _load_clip(models: Path | None) -> Any:
    from restage.diffusion.clip import load_clip
    from restage.recipes import models_in

    return load_clip(models_in(models).clip)


def _command_of(run: Path | None) -> list[str]:
    """The command line that made a run."""
    return read_json(run / "run.json").get("command", []) if run and (run / "run.json").exists() else []

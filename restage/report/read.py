"""Reads a run folder into small frozen records, as far as it is there; nothing is written, nothing is computed.

`restage.report.page` calls `read_run`. File names follow docs/conventions.md; a stage that is missing is left empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from restage.records import EditCase, InputError, Score, read_json
from restage.scores.rows import read_scores

__all__ = [
    "EditEntry",
    "PairsEntry",
    "ResultEntry",
    "RunContents",
    "SceneEntry",
    "StageEntry",
    "TrainEntry",
    "read_run",
]

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True, kw_only=True)
class ResultEntry:
    """What one method with one editor and one seed made of one edit."""

    method: str
    editor: str
    seed: str
    held_out: Mapping[str, Path]
    """Renders of the edited scene, by view."""
    orbit_path: Path | None
    editor_views: Mapping[str, Path]
    """What the 2D editor made of some training views, by view."""
    editor_masks: Mapping[str, Path]
    seconds: float | None
    """From the result's own record; None when it does not say."""
    problem: str
    """Why there is no result; empty when there is one."""
    folder: str
    """Path of the result in the run."""
    record: Mapping[str, Any]
    """Its own record."""


@dataclass(frozen=True, kw_only=True)
class EditEntry:
    """One edit of one scene with all its results."""

    scene: str
    edit: str
    """Name of its folder."""
    names: frozenset[str]
    """What rows of the scores may call it: the folder's name or the case's id."""
    kind: str
    instruction: str
    source_caption: str
    target_caption: str
    results: tuple[ResultEntry, ...]
    before: Mapping[str, Path]
    """The scene before the edit, by view."""
    is_before_rendered: bool
    """Whether `before` are renders of the unedited scene, not the pictures of the capture."""
    truth: Mapping[str, Path]
    truth_masks: Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class SceneEntry:
    """A fitted scene: its pictures, and what its fit says of itself."""

    name: str
    fit: Mapping[str, Any]
    pictures: Mapping[str, Path]
    renders: Mapping[str, Path]
    """Renders of the unedited scene at held-out views, by view; empty when none are stored."""


@dataclass(frozen=True, kw_only=True)
class StageEntry:
    """What a finished stage says of itself."""

    name: str
    id: str
    config: Any
    facts: Mapping[str, Any]


class PairsEntry(NamedTuple):
    """The image pairs: how many, and why some were rejected."""

    sheet_path: Path | None
    num_accepted: int | None
    num_rejected: int | None
    reasons: Mapping[str, int]
    """How often each reason was given for a rejected pair."""


class TrainEntry(NamedTuple):
    """The edit model's training, as its `metrics.jsonl` tells it."""

    steps: tuple[float, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class RunContents:
    """All that the page shows of a run."""

    path: Path
    record: Mapping[str, Any]
    stages: tuple[StageEntry, ...]
    scenes: tuple[SceneEntry, ...]
    edits: tuple[EditEntry, ...]
    scores: tuple[Score, ...]
    pairs: PairsEntry | None
    train: TrainEntry | None
    num_prompts: int | None
    diagnosis: Mapping[str, Any] | None
    """What `restage diagnose` found out about this run and another."""


def read_run(path: Path) -> RunContents:
    """Read what there is of a run.

    Raises:
        InputError: it is not a run folder, or a file in it cannot be read.
    """
    if not (path / "run.json").is_file():
        raise InputError(f"{path} is not a run folder (it has no run.json); give the folder that --out named")
    scenes = tuple(_read_scene(path, folder) for folder in _folders(path / "scenes") if _is_scene(folder))
    scores_path = path / "compare" / "scores.parquet"
    prompts_path = path / "prompts" / "prompts.jsonl"
    diagnosis_path = path / "diagnose" / "diagnosis.json"
    return RunContents(
        path=path,
        record=read_json(path / "run.json"),
        stages=_read_stages(path),
        scenes=scenes,
        edits=tuple(edit for scene in scenes for edit in _read_edits(path, scene)),
        scores=tuple(read_scores(scores_path)) if scores_path.exists() else (),
        pairs=_read_pairs(path / "pairs"),
        train=_read_train(path / "train" / "metrics.jsonl"),
        num_prompts=len(prompts_path.read_text().splitlines()) if prompts_path.exists() else None,
        diagnosis=read_json(diagnosis_path) if diagnosis_path.exists() else None,
    )


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    found = [folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    return sorted(found, key=lambda folder: counting_order(folder.name))


def counting_order(name: str) -> list[tuple[bool, int, str]]:
    """Sort key that counts as people do: `world-7` before `world-11`."""
    parts = re.split(r"([0-9]+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _is_scene(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("capture", "truth", "fit.json", "splats.ply"))


def _pictures(folder: Path) -> dict[str, Path]:
    """Pictures of a folder by view: the file's name without its picture suffixes, in the order of names."""
    if not folder.is_dir():
        return {}
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."):
            view = path
            while view.suffix.lower() in PICTURE_SUFFIXES:
                view = view.with_suffix("")
            found[view.name] = path
    return found


def _read_stages(path: Path) -> tuple[StageEntry, ...]:
    order = ("prompts", "pairs", "train", "scenes", "edit", "compare")
    stages = []
    for mark in [*path.glob("*/stage.json"), *path.glob("*/*/stage.json")]:
        name = mark.parent.relative_to(path).as_posix()
        if name != "report":
            found = read_json(mark)
            entry = StageEntry(
                name=name, id=found.get("id", ""), config=found.get("config"), facts=found.get("facts") or {}
            )
            stages.append(entry)
    known = {stage: index for index, stage in enumerate(order)}
    return tuple(sorted(stages, key=lambda stage: (known.get(stage.name.split("/")[0], len(order)), stage.name)))


def _read_scene(run_path: Path, folder: Path) -> SceneEntry:
    fit_path = folder / "fit.json"
    return SceneEntry(
        name=folder.name,
        fit=read_json(fit_path) if fit_path.exists() else {},
        pictures=_pictures(folder / "capture" / "images"),
        renders=_unedited_renders(run_path, folder),
    )


def _unedited_renders(run_path: Path, scene_folder: Path) -> dict[str, Path]:
    """Renders of the unedited scene: the fit's own, or those of the anchor `nothing`."""
    own = _pictures(scene_folder / "held_out")
    if own:
        return own
    for edit_folder in _folders(run_path / "edit" / scene_folder.name):
        for result in _read_results(edit_folder):
            if result.method == "nothing" and result.held_out:
                return dict(result.held_out)
    return {}


def _read_edits(run_path: Path, scene: SceneEntry) -> Iterable[EditEntry]:
    truth_folders = {folder.name: folder for folder in _folders(run_path / "scenes" / scene.name / "truth")}
    edit_folders = {folder.name: folder for folder in _folders(run_path / "edit" / scene.name)}
    for name in sorted({*truth_folders, *edit_folders}, key=counting_order):
        results = _read_results(edit_folders[name]) if name in edit_folders else ()
        truth_folder = truth_folders.get(name)
        case = _read_case(truth_folder)
        first_record = _first_record(edit_folders.get(name))
        request = case.request if case else None
        yield EditEntry(
            scene=scene.name,
            edit=name,
            names=frozenset({name, case.id} if case else {name}),
            kind=case.kind if case else "",
            instruction=request.instruction if request else _find_text(first_record, "instruction") or name,
            source_caption=request.source_caption if request else _find_text(first_record, "source_caption") or "",
            target_caption=request.target_caption if request else _find_text(first_record, "target_caption") or "",
            results=results,
            before=scene.renders or scene.pictures,
            is_before_rendered=bool(scene.renders),
            truth=_pictures(truth_folder / "images") if truth_folder and case and case.has_truth else {},
            truth_masks=_pictures(truth_folder / "masks") if truth_folder and case and case.has_truth else {},
        )


def _read_case(truth_folder: Path | None) -> EditCase | None:
    if truth_folder is None or not (truth_folder / "edit.json").exists():
        return None
    plain = read_json(truth_folder / "edit.json")
    names = ("scene", "kind", "request", "has_truth")
    try:
        return EditCase.from_plain({name: plain[name] for name in names})
    except (KeyError, TypeError) as error:
        raise InputError(f"{truth_folder / 'edit.json'} is not an edit case: {error}; make the scene again") from None


def _record_paths(edit_folder: Path | None) -> list[Path]:
    return sorted(edit_folder.glob("*/*/record.json")) if edit_folder else []


def _first_record(edit_folder: Path | None) -> Any:
    paths = _record_paths(edit_folder)
    return read_json(paths[0]) if paths else {}


def _find_text(value: Any, key: str) -> str | None:
    """The first text under `key`, at any depth of a JSON value."""
    if isinstance(value, dict):
        if isinstance(value.get(key), str):
            return value[key]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            found = _find_text(item, key)
            if found is not None:
                return found
    return None


def _read_results(edit_folder: Path) -> tuple[ResultEntry, ...]:
    """Finished results only: those whose record, which is written last, is there."""
    results = []
    for record_path in _record_paths(edit_folder):
        folder = record_path.parent
        record = read_json(record_path)
        method, _, editor = folder.parent.name.partition("-")
        seconds = record.get("seconds", (record.get("cost") or {}).get("seconds"))
        orbit_path = folder / "orbit.mp4"
        results.append(
            ResultEntry(
                method=method,
                editor=editor,
                seed=folder.name,
                held_out=_pictures(folder / "held_out"),
                orbit_path=orbit_path if orbit_path.exists() else None,
                editor_views=_pictures(folder / "views"),
                editor_masks=_pictures(folder / "masks"),
                seconds=float(seconds) if isinstance(seconds, int | float) else None,
                problem=str(record.get("reason") or "failed") if record.get("status") == "failed" else "",
                folder="/".join(folder.parts[-5:]),
                record=record,
            )
        )
    return tuple(results)


def _read_pairs(folder: Path) -> PairsEntry | None:
    sheet_path = folder / "contact_sheet.png"
    manifest_path = folder / "manifest.parquet"
    if not sheet_path.exists() and not manifest_path.exists():
        return None
    sheet = sheet_path if sheet_path.exists() else None
    if not manifest_path.exists():
        return PairsEntry(sheet, None, None, {})
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(manifest_path).read()
    except (OSError, pyarrow.ArrowException):
        raise InputError(f"{manifest_path} is not readable as parquet; run the pairs stage again") from None
    accepted_name = next((name for name in ("accepted", "is_accepted") if name in table.column_names), None)
    if accepted_name is None:
        return PairsEntry(sheet, table.num_rows, None, {})
    is_accepted = [bool(value) for value in table.column(accepted_name).to_pylist()]
    reason_name = next((n for n in ("reason", "reject_reason", "reasons") if n in table.column_names), None)
    reasons: dict[str, int] = {}
    for accepted, reason in zip(
        is_accepted, table.column(reason_name).to_pylist() if reason_name else [], strict=False
    ):
        if not accepted and reason:
            text = ", ".join(map(str, reason)) if isinstance(reason, list) else str(reason)
            reasons[text] = reasons.get(text, 0) + 1
    by_count = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    return PairsEntry(sheet, sum(is_accepted), len(is_accepted) - sum(is_accepted), by_count)


def _read_train(path: Path) -> TrainEntry | None:
    """Steps and losses; a last line that a kill cut short is left out, since the next start writes it anew."""
    if not path.exists():
        return None
    lines = path.read_text().splitlines()
    steps, losses = [], []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            step, loss = float(row["step"]), float(row["loss"])
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise InputError(f'{path} line {number} is not {{"step": ..., "loss": ...}}; train again') from None
        steps.append(step)
        losses.append(loss)
    return TrainEntry(tuple(steps), tuple(losses))

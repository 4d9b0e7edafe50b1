"""Makes scenes and results of a study, one at a time, and scores them; the same code runs in every process."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from restage.compare.cases import Contender, Result
from restage.compare.judges import Judges, open_judges
from restage.compare.stage import Scorer, Scores
from restage.edit.editors import Editor, EditorSource
from restage.edit.results import edit_scene, write_failure
from restage.edit.stage import NO_EDITOR, EditUnit, load_scene
from restage.records import (
    EditCase,
    Score,
    derive_seed,
    file_sha256,
    from_plain,
    read_json,
    write_json,
)
from restage.run.reading import EditRecord
from restage.scenes.fitted import fit_capture
from restage.scenes.io import read_capture
from restage.scores.rows import ViewScore
from restage.studies.held_out import GuardedEditor, GuardedMethod
from restage.studies.per_view import PerView, edit_views
from restage.studies.study import Study, identity_of, list_units

__all__ = ["StudyWorker", "scores_of"]


def scores_of(scorer: Scorer, folder: Path, unit: EditUnit) -> Scores:
    """The rows of a result: those that were kept, if the same judges made them, or new ones, which are kept then."""
    record = _with_cap(read_json(unit.folder(folder) / "record.json"))
    path = folder / "compare" / "results" / f"{record['id']}.json"
    if path.exists():
        kept = read_json(path)
        if kept["judges"] == scorer.judges.id and kept["cost"] == record.get("cost"):
            return _from_plain(kept)
    result = Result(
        scene=unit.scene,
        edit=unit.edit,
        kind=record["kind"],
        contender=Contender(method=unit.method, editor=unit.editor, seed=unit.seed),
        folder=unit.folder(folder),
        record=from_plain(record, EditRecord, where=unit.folder(folder)),
    )
    found = scorer.score(result)
    write_json(path, {"judges": scorer.judges.id, "cost": record.get("cost"), **_to_plain(found)})
    return found


def _with_cap(record: dict[str, Any]) -> dict[str, Any]:
    """A record that says whether the time cap stopped the method."""
    cost, settings = record.get("cost", {}), record.get("settings", {})
    cap_s = settings.get("time_cap_s") if record["status"] == "done" else None
    is_capped = cap_s is not None and cost["seconds"] > cap_s
    return {**record, "cost": {**cost, "is_capped": float(is_capped)}}


def _to_plain(rows: Scores) -> dict[str, Any]:
    def plain(row: Score | ViewScore) -> dict[str, Any]:
        value = dataclasses.asdict(row)
        return {**value, "value": None if math.isnan(row.value) else row.value}

    return {"scores": [plain(row) for row in rows.scores], "views": [plain(row) for row in rows.views]}


def _from_plain(value: dict[str, Any]) -> Scores:
    def full(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "value": math.nan if row["value"] is None else row["value"]}

    return Scores([Score(**full(row)) for row in value["scores"]], [ViewScore(**full(row)) for row in value["views"]])


class StudyWorker:
    """Makes scenes and results of a study, one at a time; lives in each process and keeps what it has opened."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.units = list_units(study)
        self._editors: dict[str, Editor] = {}
        self._scorer: Scorer | None = None
        self._judges: Judges | None = None

    def work(self, kind: str, number: int) -> str:
        """Make a scene or a result by its number; gives a few words about it."""
        return self.make_scene(number) if kind == "scene" else self.make_result(self.units[number])

    def make_scene(self, number: int) -> str:
        """Write and fit a scene, unless that is done."""
        scene = self.study.scenes[number]
        folder = self.folder / "scenes" / scene.name
        for _ in scene.write(folder):
            pass
        note = ""
        for step in fit_capture(read_capture(folder / "capture"), folder, scene.fit):
            note = step.note
        return note

    def make_result(self, unit: EditUnit) -> str:
        """Make a result, and score it; what goes wrong in the method becomes its record."""
        folder = unit.folder(self.folder)
        if not (folder / "record.json").exists():
            self._edit(unit, folder)
        record = read_json(folder / "record.json")
        if self._scorer is None:
            self._scorer = Scorer(self.folder, self.study.compare, open_judges(self.study.compare))
        scores_of(self._scorer, self.folder, unit)
        return "done" if record["status"] == "done" else f"failed: {record['reason']}"

    def give_up(self, unit: EditUnit, reason: str) -> None:
        """Write the record of a result whose process ended without a word."""
        case = EditCase.from_plain(read_json(self._truth(unit) / "edit.json"))
        write_failure(unit.folder(self.folder), RuntimeError(reason), self._facts(unit, case))

    def _truth(self, unit: EditUnit) -> Path:
        return self.folder / "scenes" / unit.scene / "truth" / unit.edit

    def _facts(self, unit: EditUnit, case: EditCase) -> dict[str, Any]:
        editor = None if unit.editor == NO_EDITOR else self.study.editors[unit.editor]
        splats = self.folder / "scenes" / unit.scene / "splats.ply"
        return {
            **asdict(unit),
            "kind": case.kind,
            "device": getattr(editor, "device", "cpu"),
            "inputs": {
                "unit_id": identity_of(self.study, unit),
                "edit_id": case.id,
                "splats_sha256": file_sha256(splats),
            },
        }

    def _edit(self, unit: EditUnit, folder: Path) -> None:
        case = EditCase.from_plain(read_json(self._truth(unit) / "edit.json"))
        facts = self._facts(unit, case)
        capture, splats = load_scene(self.folder / "scenes" / unit.scene)
        # What must not be seen is not even in memory; cameras of these views are used once the method is through.
        capture.images[list(capture.held_out_indices)] = math.nan
        truth = self._truth(unit) if case.has_truth else None
        method = self.study.methods[unit.method].settings
        how: dict[str, Any] = {
            "request": case.request,
            "seed": derive_seed(self.study.seed, case.id, unit.seed),
            "folder": folder,
            "facts": facts,
        }
        try:
            inner = self._open(unit.editor, EditorSource(file_names=capture.file_names, truth=truth))
            if isinstance(method, PerView):
                edit_views(splats, capture, settings=method, editor=GuardedEditor(inner, None), **how)
                return
            editor = GuardedEditor(inner, frozenset(capture.train_indices))
            guarded = self._guard(unit, capture.file_names, capture.train_indices)
            for _ in edit_scene(splats, capture, method=guarded, editor=editor, **how):
                pass
        except Exception as error:  # one result that fails is a row with its reason, and the others go on
            write_failure(folder, error, facts)

    def _guard(self, unit: EditUnit, names: tuple[str, ...], train: tuple[int, ...]) -> GuardedMethod:
        shown = [Path(names[index]).with_suffix(".png").name for index in train]
        truth = self._truth(unit).resolve()
        return GuardedMethod(
            self.study.methods[unit.method].settings,
            self.study.time_cap_s,
            closed=tuple(self.folder / part for part in ("scenes", "edit", "compare")),
            allowed=frozenset(str(truth / part / name) for part in ("images", "masks") for name in shown),
        )

    def _open(self, name: str, source: EditorSource) -> Editor | None:
        if name == NO_EDITOR:
            return None
        editor = self.study.editors[name]
        if not editor.is_shared:
            return editor.open(source)
        if name not in self._editors:
            self._editors[name] = editor.open(EditorSource())
        return self._editors[name]

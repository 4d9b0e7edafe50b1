"""A study in its folder: fits its scenes, makes what is missing of its results, scores it, writes the tables.

Every finished piece is known by its last-written file: a scene by `fit.json`, a result by `record.json`, its scores by
`compare/results/<record id>.json`. So a study that was killed goes on, and ends with the rows of one that was not.
"""

from __future__ import annotations

import dataclasses
import math
import socket
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from restage.compare.judges import open_judges
from restage.compare.stage import JUDGED_BY, Contender, Result, Scorer, Scores, write_tables
from restage.edit.editors import NO_EDITOR, Editor, EditorSource, ViewBatch
from restage.edit.job import EditJob, EditStep
from restage.edit.pictures import write_image
from restage.edit.results import edit_scene
from restage.edit.stage import EditUnit, EditWork, OpenEdits
from restage.records import (
    EditCase,
    EditRequest,
    InputError,
    Progress,
    Score,
    content_id,
    derive_seed,
    from_plain,
    read_json,
    to_plain,
    write_atomically,
    write_json,
    write_record,
)
from restage.run.environment import PeakMemory
from restage.run.folder import RunFolder, working
from restage.run.layout import CAPTURE, EDIT_RECORD, FIT_RECORD, HELD_OUT, RUN_RECORD
from restage.run.models import edit_model_of
from restage.run.reading import Cost, EditRecord, read_run_record
from restage.run.threads import limited_threads
from restage.scenes.capture import Capture
from restage.scenes.device import made_on
from restage.scenes.fit import render_views
from restage.scenes.io import read_capture
from restage.scenes.splats import Splats
from restage.scenes.stage import fit_capture
from restage.scores.rows import ViewScore
from restage.studies.held_out import GuardedEditor, GuardedMethod
from restage.studies.study import Study, identity_of, list_units, load_study
from restage.work.engine import TasksSetAside, explain, work_through
from restage.work.task import EngineConfig, Facts, SetAside, Task, TaskQueue
from restage.work.worker import WorkerSettings

__all__ = ["OpenStudy", "PerView", "StudyTask", "StudyWork", "edit_views", "list_tasks", "run_study", "scores_of"]


@dataclass(frozen=True, kw_only=True)
class PerView:
    """Stands among the methods of a study for the anchor `per_view`; it makes pictures and no scene."""

    noise_level: float = 1.0
    """Share of the schedule that the edit of each view starts at."""

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """There is no scene to make."""
        raise InputError("per_view edits pictures and makes no scene; it runs in studies only")


def edit_views(
    splats: Splats,
    capture: Capture,
    *,
    request: EditRequest,
    settings: PerView,
    editor: Editor,
    seed: int,
    folder: Path,
    facts: Mapping[str, Any],
) -> Iterator[EditStep]:
    """Edit the held-out views one by one, a step for each, into a folder that has pictures and a record only."""
    peak, started_s = PeakMemory(), time.perf_counter()
    how: dict[str, Any] = {
        "request": request,
        "noise_level": settings.noise_level,
        "seed": derive_seed(seed, "per view"),
    }
    paths = []
    for index in capture.held_out_indices:
        view = render_views(splats, capture.cameras[index])
        edited = editor.edit(ViewBatch(view, view, view_indices=(index,), **how))
        paths.append(folder / HELD_OUT / Path(capture.file_names[index]).with_suffix(".png").name)
        write_image(paths[-1], edited.images[0])
        yield EditStep(len(paths), len(capture.held_out_indices), 0.0, splats, "held-out views, each by itself")
    asked: dict[str, Any] = {**facts, "settings": settings, "request": request}
    cost = {"seconds": time.perf_counter() - started_s, "peak_memory_mb": peak.read_mb()}
    record: dict[str, Any] = {**asked, "num_steps": len(paths), "status": "done", "reason": "", "cost": cost}
    record["id"] = content_id("edited", {"seed": seed, **asked})
    write_record(folder / EDIT_RECORD, record, files=paths)


StudyTask = Task[EditUnit | str]
"""A result to make and score, or the name of a scene to write and fit."""


def list_tasks(study: Study) -> list[StudyTask]:
    """Returns all tasks of a study: its scenes, then its results in the order of its rows."""
    tasks: list[StudyTask] = [
        Task(index=index, kind="scenes", item=scene.name) for index, scene in enumerate(study.scenes)
    ]
    for unit in list_units(study):
        tasks.append(Task(index=len(tasks), kind="edit", content=identity_of(study, unit), item=unit))
    return tasks


@dataclass(frozen=True, kw_only=True)
class StudyWork:
    """A study as every worker is told of it."""

    folder: Path
    """The study's folder, by a path that all workers see."""
    study: Study | None
    """The study itself; None if it is to be read from a file, whose classes cannot be sent."""
    file: Path | None = None
    device: str = "cpu"
    """Where scenes lie: on the CPU, or on the worker's device."""

    def open(self, device: str) -> OpenStudy:
        """Read the study; refuses a machine that does not see its folder or its file."""
        if not (self.folder / RUN_RECORD).is_file():
            raise InputError(f"{self.folder} is not there on {socket.gethostname()}; all machines have to see it")
        study = self.study
        if study is None:
            assert self.file is not None
            study = load_study(self.file)
        return OpenStudy(study, self.folder, "cpu" if self.device == "cpu" else device)


class OpenStudy(OpenEdits):
    """Makes scenes and results of a study one at a time; keeps what it has opened."""

    def __init__(self, study: Study, folder: Path, device: str = "cpu") -> None:
        self.study = study
        methods = {name: method.settings for name, method in study.methods.items()}
        how: dict[str, Any] = {"methods": methods, "editors": study.editors, "model": edit_model_of(folder)}
        super().__init__(EditWork(folder=folder, run_seed=study.seed, **how), device)

    @cached_property
    def scorer(self) -> Scorer:
        """Scores results; its judges are loaded when the first one is there."""
        judges = open_judges(self.study.compare, self.device)
        return Scorer(self.settings.folder, self.study.compare, judges, self.device)

    def found(self, task: StudyTask) -> Facts | None:
        """Facts of a result that is there with its scores; scenes are looked at each time, since edits may be new."""
        if isinstance(task.item, str):
            return None
        facts = self.result(task.item)
        return facts if facts and scores_path(self.settings.folder, facts["id"]).exists() else None

    def work(self, task: StudyTask) -> Generator[Progress, None, Facts]:
        """Write and fit a scene, or make a result and score it."""
        if isinstance(task.item, str):
            return (yield from self._make_scene(task.item))
        unit = task.item
        if identity_of(self.study, unit) != task.content:
            raise InputError(f"{unit} has other settings on {socket.gethostname()}; is the study's file another one?")
        facts = self.result(unit) or (yield from super().work(task))
        scores_of(self.scorer, self.settings.folder, unit)
        return facts

    def _make_scene(self, name: str) -> Generator[Progress, None, Facts]:
        scene = next(scene for scene in self.study.scenes if scene.name == name)
        folder = self.settings.folder / "scenes" / name
        for note in scene.write(folder):
            yield Progress(stage="scenes", done=0, total=1, note=note)
        step = None
        for step in fit_capture(read_capture(folder / CAPTURE), folder, scene.fit, device=self.device):
            yield step
        return {"note": step.note if step else ""}

    def facts_of(self, unit: EditUnit, case: EditCase) -> dict[str, Any]:
        """Returns what a record says of its unit; costs depend on the editor's device."""
        editor = None if unit.editor == NO_EDITOR else self.study.editors[unit.editor]
        return {"device": getattr(editor, "device", "cpu"), **super().facts_of(unit, case)}

    def inputs_of(self, unit: EditUnit) -> dict[str, str]:
        """Returns the id of all that the study lets a result depend on."""
        return {"unit_id": identity_of(self.study, unit)}

    def steps_of(
        self, unit: EditUnit, splats: Splats, capture: Capture, source: EditorSource, **how: Any
    ) -> Iterator[EditStep]:
        """Run the method, kept away from held-out views."""
        # What must not be seen is not even in memory; cameras of these views are used once the method is through.
        capture.images[list(capture.held_out_indices)] = math.nan
        method = self.settings.methods[unit.method]
        inner = self.open_editor(unit, source)
        if isinstance(method, PerView):
            return edit_views(splats, capture, settings=method, editor=GuardedEditor(inner, None), **how)
        editor = GuardedEditor(inner, frozenset(capture.train_indices))
        guarded = self._guard(unit, [capture.file_names[index] for index in capture.train_indices])
        return edit_scene(splats, capture, method=guarded, editor=editor, **how)

    def _guard(self, unit: EditUnit, file_names: list[str]) -> GuardedMethod:
        run = self.settings.folder
        truth = unit.truth_folder(run).resolve()
        shown = [Path(name).with_suffix(".png").name for name in file_names]
        return GuardedMethod(
            self.settings.methods[unit.method],
            self.study.time_cap_s,
            closed=tuple(run / part for part in ("scenes", "edit", "compare")),
            allowed=frozenset(str(truth / part / name) for part in ("images", "masks") for name in shown),
        )


Row = TypeVar("Row", Score, ViewScore)


@dataclass(frozen=True, kw_only=True)
class KeptScores:
    """The rows of one result as they are kept: JSON has no NaN, so that a value may be null."""

    judges: str
    cost: Cost
    scores: tuple[dict[str, Any], ...]
    views: tuple[dict[str, Any], ...]

    def rows(self, name: str, kind: type[Row], path: Path) -> list[Row]:
        """The rows of a kind."""
        plain = [row | ({"value": math.nan} if row.get("value") is None else {}) for row in getattr(self, name)]
        return [from_plain(row, kind, where=path) for row in plain]


def scores_path(folder: Path, record_id: str) -> Path:
    """Where the scores of one result are kept in a study's folder."""
    return folder / "compare" / "results" / f"{record_id}.json"


def scores_of(scorer: Scorer, folder: Path, unit: EditUnit) -> Scores:
    """The rows of a result: those that were kept, if the same judges made them, or new ones, which are kept then."""
    record = _with_cap(read_json(unit.folder(folder) / EDIT_RECORD, EditRecord))
    path = scores_path(folder, record.id)
    if path.exists():
        kept = read_json(path, KeptScores)
        if kept.judges == scorer.judges.id and kept.cost == record.cost:
            return Scores(kept.rows("scores", Score, path), kept.rows("views", ViewScore, path))
    contender = Contender(method=unit.method, editor=unit.editor, seed=unit.seed)
    what = {"scene": unit.scene, "edit": unit.edit, "kind": record.kind}
    found = scorer.score(Result(**what, contender=contender, folder=unit.folder(folder), record=record))
    write_json(path, {"judges": scorer.judges.id, "cost": record.cost, **_to_plain(found)})
    return found


def _with_cap(record: EditRecord) -> EditRecord:
    """A record that says whether the time cap stopped the method."""
    cap_s = record.settings.get("time_cap_s") if record.status == "done" else None
    is_capped = isinstance(cap_s, int | float) and record.cost.get("seconds", 0.0) > cap_s
    return dataclasses.replace(record, cost={**record.cost, "is_capped": float(is_capped)})


def _to_plain(rows: Scores) -> dict[str, Any]:
    """The rows as JSON values, which know no NaN."""
    return {
        name: [{**dataclasses.asdict(row), "value": None if math.isnan(row.value) else row.value} for row in found]
        for name, found in rows._asdict().items()
    }


def run_study(
    study: Study,
    folder: Path,
    *,
    engine: EngineConfig | None = None,
    file: Path | None = None,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Run what is missing of a study in its folder, and write its tables.

    Each worker computes with one thread unless the engine's config says otherwise, in this process as well, so that
    rows do not depend on where they are made. A `file` that the study was read from is copied into the folder, and read
    again by workers (on a cluster the copy); a study whose classes can be imported needs none. Scenes are fitted,
    edited and drawn on `device`: `cuda` is every GPU, one for each worker.

    Raises:
        InputError: the folder holds something else, or results of this study under another setting.
        TasksSetAside: a scene could not be made; everything else is.
    """
    engine = engine or EngineConfig()
    config = {"kind": "study", "name": study.name}
    if (folder / RUN_RECORD).exists() and read_run_record(folder).config != config:
        raise InputError(f"{folder} holds something other than study {study.name!r}; choose another folder with --out")
    with working(RunFolder.open(folder, config, seed=study.seed), "scenes", "edit", "compare") as run:
        _describe(study, folder, file)
        tasks = list_tasks(study)
        _check_found(study, run, tasks)
        yield from _make_missing(study, run, tasks, engine, file=file, device=device)
        with limited_threads(engine.threads or 1):
            yield from _score(study, run, [task.item for task in tasks if isinstance(task.item, EditUnit)], device)


def _make_missing(
    study: Study, run: RunFolder, tasks: Sequence[StudyTask], engine: EngineConfig, *, file: Path | None, device: str
) -> Iterator[Progress]:
    folder = run.path.resolve()
    opened, unmade = OpenStudy(study, folder, device), list[SetAside]()
    if engine.engine == "ray" and file is not None:
        file = folder / "study.py"  # the one place of it that all machines see
    is_sent = file is None or engine.engine == "inline"
    work = StudyWork(folder=folder, study=study if is_sent else None, file=file, device=device)
    has_models_elsewhere = any(getattr(editor, "device", "cpu") != "cpu" for editor in study.editors.values())
    settings = WorkerSettings(
        work=work,
        threads=engine.threads or 1,
        is_polite=engine.when_idle,
        device="cuda" if device == "cpu" and has_models_elsewhere else device,
    )
    scenes = {task.item: task.index for task in tasks if isinstance(task.item, str)}
    needs = {task.index: [scenes[task.item.scene]] for task in tasks if isinstance(task.item, EditUnit)}

    def give_up(failure: SetAside) -> None:
        unit = tasks[failure.index].item
        if isinstance(unit, EditUnit) and (folder / "scenes" / unit.scene / FIT_RECORD).exists():
            opened.give_up(unit, failure)
        else:
            unmade.append(failure)

    missing = [task.index for task in tasks if opened.found(task) is None]
    while missing:
        queue = TaskQueue(tasks, missing, max_attempts=engine.max_attempts, needs=needs)
        yield from work_through(queue, settings, engine, give_up=give_up)
        if unmade:
            raise TasksSetAside(explain(queue))
        missing = [index for index in missing if tasks[index].kind == "edit" and opened.found(tasks[index]) is None]


def _describe(study: Study, folder: Path, file: Path | None) -> None:
    """Write what the study is made of, and the file that it was read from."""
    if file is not None and file.resolve() != (folder / "study.py").resolve():
        with write_atomically(folder / "study.py") as temporary:
            temporary.write_bytes(file.read_bytes())
    plain = {name: to_plain(getattr(study, name)) for name in ("methods", "editors", "seeds", "time_cap_s", "compare")}
    scenes = [{"name": scene.name, "edits": scene.edits} for scene in study.scenes]
    write_json(folder / "study.json", {"name": study.name, "seed": study.seed, "scenes": scenes, **plain})


def _check_found(study: Study, run: RunFolder, tasks: Sequence[StudyTask]) -> None:
    """Check that what is there is what the study says, before anything is made."""
    for task in tasks:
        if isinstance(task.item, str):
            continue
        path = task.item.folder(run.path) / EDIT_RECORD
        if path.exists() and read_json(path, EditRecord).inputs.get("unit_id") != task.content:
            raise InputError(
                f"{path.parent} was made with other settings than study {study.name!r} has for it now; "
                "give what changed another name, or choose another folder with --out"
            )


def _score(study: Study, run: RunFolder, units: Sequence[EditUnit], device: str) -> Iterator[Progress]:
    judges = open_judges(study.compare, device)
    scorer, rows = Scorer(run.path, study.compare, judges, device), Scores([], [])
    for done, unit in enumerate(units):
        found = scores_of(scorer, run.path, unit)
        rows.scores.extend(found.scores)
        rows.views.extend(found.views)
        yield Progress(stage="compare", done=done + 1, total=len(units), note=str(unit))
    write_tables(run, rows)
    counts = {"num_results": len(units), "num_scores": len(rows.scores)}
    run.mark_done("compare", study.compare, also=JUDGED_BY, **counts, **made_on(device))

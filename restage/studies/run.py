"""Runs a study in a folder: fits its scenes, makes what is missing, scores it, writes the tables.

Every finished piece is known by its last-written file: a scene by `fit.json`, a result by `record.json`, its scores by
`compare/results/<record id>.json`. So a study that was killed goes on, and ends with the rows of one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from restage.compare.judges import open_judges
from restage.compare.stage import JUDGED_BY, Scorer, Scores, write_tables
from restage.edit.stage import EditUnit
from restage.records import InputError, Progress, read_json, to_plain, write_atomically, write_json
from restage.run.folder import RunFolder, working
from restage.run.layout import EDIT_RECORD, FIT_RECORD, RUN_RECORD
from restage.run.reading import EditRecord, read_run_record
from restage.studies.study import Study
from restage.studies.work import OpenStudy, StudyTask, StudyWork, list_tasks, scores_of
from restage.work.engine import TasksSetAside, explain, work_through
from restage.work.task import EngineConfig, SetAside, TaskQueue
from restage.work.worker import WorkerSettings, restored_threads

__all__ = ["run_study"]


def run_study(
    study: Study, folder: Path, *, engine: EngineConfig | None = None, file: Path | None = None
) -> Iterator[Progress]:
    """Run what is missing of a study in its folder, and write its tables.

    Each worker computes with one thread unless the engine's config says otherwise, in this process as well, so that
    rows do not depend on where they are made. A `file` that the study was read from is copied into the folder, and read
    again by workers (on a cluster the copy); a study whose classes can be imported needs none.

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
        yield from _make_missing(study, run, tasks, engine, file)
        with restored_threads(engine.threads or 1):
            yield from _score(study, run, [task.item for task in tasks if isinstance(task.item, EditUnit)])


def _make_missing(
    study: Study, run: RunFolder, tasks: Sequence[StudyTask], engine: EngineConfig, file: Path | None
) -> Iterator[Progress]:
    folder = run.path.resolve()
    opened, unmade = OpenStudy(study, folder), list[SetAside]()
    if engine.engine == "ray" and file is not None:
        file = folder / "study.py"  # the one place of it that all machines see
    work = StudyWork(folder=folder, study=study if file is None or engine.engine == "inline" else None, file=file)
    settings = WorkerSettings(
        work=work,
        threads=engine.threads or 1,
        is_polite=engine.when_idle,
        uses_gpu=any(getattr(editor, "device", "cpu") != "cpu" for editor in study.editors.values()),
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


def _score(study: Study, run: RunFolder, units: Sequence[EditUnit]) -> Iterator[Progress]:
    judges = open_judges(study.compare)
    scorer, rows = Scorer(run.path, study.compare, judges), Scores([], [])
    for done, unit in enumerate(units):
        found = scores_of(scorer, run.path, unit)
        rows.scores.extend(found.scores)
        rows.views.extend(found.views)
        yield Progress(stage="compare", done=done + 1, total=len(units), note=str(unit))
    write_tables(run, rows)
    run.mark_done("compare", study.compare, also=JUDGED_BY, num_results=len(units), num_scores=len(rows.scores))

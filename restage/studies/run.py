"""Runs a study in a folder: fits its scenes, makes what is missing, scores it, writes the tables.

Every finished piece is known by its last-written file: a scene by `fit.json`, a result by `record.json`, its scores by
`compare/results/<record id>.json`. So a study that was killed goes on, and ends with the rows of one that was not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from restage.compare.judges import open_judges
from restage.compare.stage import JUDGED_BY, Scorer, Scores, write_tables
from restage.edit.stage import EditUnit
from restage.records import (
    InputError,
    Progress,
    read_json,
    to_plain,
    write_json,
)
from restage.run.folder import RunFolder
from restage.studies.study import Study, identity_of, list_units
from restage.studies.worker import scores_of
from restage.studies.workers import Crew, run_tasks

__all__ = ["run_study"]


def run_study(study: Study, folder: Path, *, workers: int = 1, file: Path | None = None) -> Iterator[Progress]:
    """Run what is missing of a study, and write its tables.

    Args:
        study: What to compare.
        folder: Where it lies; made if it is missing.
        workers: Processes; 1 works in this one. Each computes with one thread, so rows do not depend on the number.
        file: The file that the study was read from; workers read it there, and it is copied into the folder. None for a
            study whose classes can be imported.

    Yields:
        A step for each scene, result and table.

    Raises:
        InputError: the folder holds something else, or results of this study under another setting.
    """
    if workers < 1:
        raise InputError(f"expected at least one worker, got {workers}")
    run = _open(study, folder, file)
    crew, status = Crew(study=study, folder=folder, file=file, workers=workers), "failed"
    try:
        yield from _run(study, run, crew)
        status = "done"
    except (KeyboardInterrupt, GeneratorExit):
        status = "stopped"
        raise
    finally:
        crew.close(at_once=status != "done")
        run.close(status)


def _run(study: Study, run: RunFolder, crew: Crew) -> Iterator[Progress]:
    units = list_units(study)
    _check_found(study, run, units)
    yield from _fit_scenes(study, run, crew)
    missing = [number for number, unit in enumerate(units) if not (unit.folder(run.path) / "record.json").exists()]
    done = len(units) - len(missing)
    yield Progress(stage="edit", done=done, total=len(units), note=f"{done} of {len(units)} were there")
    for number, note in run_tasks(crew, "edit", missing):
        done += 1
        yield Progress(stage="edit", done=done, total=len(units), note=f"{_name(units[number])}: {note}")
    yield from _score(study, run, units)


def _open(study: Study, folder: Path, file: Path | None) -> RunFolder:
    record = folder / "run.json"
    config = {"kind": "study", "name": study.name}
    if record.exists() and read_json(record).get("config") != config:
        raise InputError(f"{folder} holds something other than study {study.name!r}; choose another folder with --out")
    run = RunFolder.open(folder, config, seed=study.seed)
    if file is not None and file.resolve() != (folder / "study.py").resolve():
        shutil.copyfile(file, folder / "study.py")
    plain = {name: to_plain(getattr(study, name)) for name in ("methods", "editors", "seeds", "time_cap_s", "compare")}
    scenes = [{"name": scene.name, "edits": scene.edits} for scene in study.scenes]
    write_json(folder / "study.json", {"name": study.name, "seed": study.seed, "scenes": scenes, **plain})
    return run


def _check_found(study: Study, run: RunFolder, units: Sequence[EditUnit]) -> None:
    """See that what is there is what the study says, before anything is made."""
    for unit in units:
        path = unit.folder(run.path) / "record.json"
        if path.exists() and read_json(path).get("inputs", {}).get("unit_id") != identity_of(study, unit):
            raise InputError(
                f"{path.parent} was made with other settings than study {study.name!r} has for it now; "
                "give what changed another name, or choose another folder with --out"
            )


def _fit_scenes(study: Study, run: RunFolder, crew: Crew) -> Iterator[Progress]:
    total, done = len(study.scenes), 0
    for number, note in run_tasks(crew, "scene", range(total)):
        done += 1
        yield Progress(stage="scenes", done=done, total=total, note=f"{study.scenes[number].name}: {note}")


def _score(study: Study, run: RunFolder, units: Sequence[EditUnit]) -> Iterator[Progress]:
    """Gather the scores of all results, scoring those that were not yet; then the tables."""
    judges = open_judges(study.compare)
    scorer, rows = Scorer(run.path, study.compare, judges), Scores([], [])
    for done, unit in enumerate(units):
        found = scores_of(scorer, run.path, unit)
        rows.scores.extend(found.scores)
        rows.views.extend(found.views)
        yield Progress(stage="compare", done=done + 1, total=len(units), note=_name(unit))
    write_tables(run, rows)
    run.mark_done("compare", study.compare, also=JUDGED_BY, num_results=len(units), num_scores=len(rows.scores))


def _name(unit: EditUnit) -> str:
    return f"{unit.scene} {unit.edit} {unit.method}-{unit.editor} {unit.seed}"

"""The edit stage: every scene x edit of a run with every method, editor and seed that is asked for.

Reads `<run>/scenes`, writes `<run>/edit`; an edit with a record is skipped, a failed one is a record with its reason.
`EditWork` is a kind of work for the queue, which studies use as well.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from restage.edit.config import EditConfig
from restage.edit.editors import (
    NO_EDITOR,
    Editor,
    EditorSource,
    MenuEditor,
    NoEditor,
    OpenEditors,
    SceneEditor,
)
from restage.edit.editors.referenced import show_references
from restage.edit.job import EditStep, Method, needs_editor
from restage.edit.methods import METHODS
from restage.edit.results import edit_scene, write_failure
from restage.records import DIRECT, EditCase, InputError, Progress, derive_seed, file_sha256, is_disk_full, read_json
from restage.run.folder import RunFolder
from restage.run.layout import ANSWERS, CAPTURE, EDIT_CASE, EDIT_RECORD, SPLATS, TRUTH
from restage.run.models import edit_model_of
from restage.run.progress import is_stop_requested
from restage.run.reading import EditRecord
from restage.scenes.capture import Capture
from restage.scenes.device import made_on
from restage.scenes.io import read_capture
from restage.scenes.io.splat_files import read_splats
from restage.scenes.references import read_references
from restage.scenes.splats import Splats
from restage.work.engine import settings_for, work_through
from restage.work.task import EngineConfig, Facts, SetAside, Task, TaskQueue

__all__ = ["EditUnit", "EditWork", "OpenEdits", "editors_of", "list_units", "load_scene", "read_case"]
__all__ += ["run_edit"]


@dataclass(frozen=True, kw_only=True)
class EditUnit:
    """One result: what is edited, how, with which editor and noise."""

    scene: str
    edit: str
    method: str
    editor: str
    seed: int

    def __str__(self) -> str:
        return f"{self.scene} {self.edit} {self.method}-{self.editor} {self.seed}"

    def folder(self, run: Path) -> Path:
        """Returns where its result lies in a run."""
        return run / "edit" / self.scene / self.edit / f"{self.method}-{self.editor}" / str(self.seed)

    def scene_folder(self, run: Path) -> Path:
        """Returns where its scene lies in a run."""
        return run / "scenes" / self.scene

    def truth_folder(self, run: Path) -> Path:
        """Returns where its edit case lies, with the truth if there is any."""
        return self.scene_folder(run) / TRUTH / self.edit


def read_case(truth: Path) -> EditCase:
    """Read what is asked for from a truth folder, `<scene>/truth/<edit>`."""
    return read_json(truth / EDIT_CASE, EditCase)


def editors_of(method: Method | type[Method], editors: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the editors that a method runs with: those, or `none` if it asks none."""
    return editors if needs_editor(method) else (NO_EDITOR,)


def load_scene(folder: Path, device: str = "cpu") -> tuple[Capture, Splats]:
    """Read a fitted scene to a device."""
    return read_capture(folder / CAPTURE).to(device), read_splats(folder / SPLATS).to(device)


@dataclass(frozen=True, kw_only=True)
class EditWork:
    """Edits of a run as a kind of work."""

    folder: Path  # the run, by a path that all workers see
    run_seed: int
    methods: Mapping[str, Method]
    """Methods with their settings, by the names that units have for them."""
    editors: Mapping[str, SceneEditor]  # editors by the names that units have for them
    model: Path  # the run's edit model, for editors that name none

    def open(self, device: str) -> OpenEdits:
        """Get ready."""
        for folder, what in ((self.folder, "run"), (self.model, "trained edit model")):
            if not folder.is_dir() and (what == "run" or "edit_model" in self.editors):
                raise InputError(
                    f"{folder} does not exist on {socket.gethostname()}; expected the folder of a {what}, under the "
                    "same path on every machine"
                )
        return OpenEdits(self, device)


class OpenEdits:
    """Makes edits one at a time, on one device; keeps the models that it has opened."""

    def __init__(self, work: EditWork, device: str = "cpu") -> None:
        self.settings, self.device, self.editors = work, device, OpenEditors()

    def found(self, task: Task[Any]) -> Facts | None:
        """Facts of a result that is there; see `result`."""
        return self.result(task.item)

    def result(self, unit: EditUnit) -> Facts | None:
        """Status of a unit's result, which may have failed, and what to say of it; None if it is not there."""
        path = unit.folder(self.settings.folder) / EDIT_RECORD
        if not path.exists():
            return None
        record = read_json(path, EditRecord)
        return {"id": record.id, "status": record.status, "note": record.problem or "done"}

    def work(self, task: Task[Any]) -> Generator[Progress, None, Facts]:
        """Make a result; yields the steps of its method."""
        for step in self.edit(task.item):
            note = f"{step.note} ({step.step}/{step.num_steps})"
            yield Progress(stage="edit", done=step.step, total=step.num_steps, note=note)
        return self.result(task.item) or {}

    def give_up(self, unit: EditUnit, failure: SetAside) -> None:
        """Write the record of a result that no worker could make, so that it is a row with its reason."""
        error = RuntimeError(f"no worker could make it: {failure.reason}")
        facts = self.facts_of(unit, read_case(unit.truth_folder(self.settings.folder)))
        write_failure(unit.folder(self.settings.folder), error, facts)

    def edit(self, unit: EditUnit) -> Iterator[EditStep]:
        """Make the result of a unit; what goes wrong in it becomes its record, and the others go on."""
        run, folder = self.settings.folder, unit.folder(self.settings.folder)
        case = read_case(unit.truth_folder(run))
        facts = self.facts_of(unit, case)
        capture, splats = load_scene(unit.scene_folder(run), self.device)
        truth = unit.truth_folder(run) if case.has_truth else None
        given = {"truth": truth, "model": self.settings.model, "device": self.device, "answers": run / ANSWERS}
        source = EditorSource(file_names=capture.file_names, **given)
        how = {"request": case.request, "seed": derive_seed(self.settings.run_seed, case.id, unit.seed)}
        try:
            yield from self.steps_of(unit, splats, capture, source, **how, folder=folder, facts=facts)
        except Exception as error:
            # What compiled code makes of an interrupt, and a full disk, say nothing about this edit.
            if is_stop_requested():
                raise KeyboardInterrupt from error
            if is_disk_full(error):
                raise
            write_failure(folder, error, facts)

    def steps_of(
        self, unit: EditUnit, splats: Splats, capture: Capture, source: EditorSource, **how: Any
    ) -> Iterator[EditStep]:
        """Run the method; what a study adds to it goes here."""
        editor = self.open_editor(unit, source) or NoEditor()
        return edit_scene(splats, capture, method=self.settings.methods[unit.method], editor=editor, **how)

    def open_editor(self, unit: EditUnit, source: EditorSource) -> Editor | None:
        """Open the editor of a unit; None for a method that asks none."""
        if unit.editor == NO_EDITOR:
            return None
        editor = self.editors.open(self.settings.editors[unit.editor], source)
        run = self.settings.folder
        references = read_references(unit.scene_folder(run), read_case(unit.truth_folder(run)).request)
        return show_references(editor, references)

    def facts_of(self, unit: EditUnit, case: EditCase) -> dict[str, Any]:
        """Returns what a record says of its unit beside the result."""
        splats_sha256 = file_sha256(unit.scene_folder(self.settings.folder) / SPLATS)
        inputs = {"edit_id": case.id, "splats_sha256": splats_sha256, **self.inputs_of(unit)}
        return {**asdict(unit), "kind": case.kind, "inputs": inputs, **made_on(self.device)}

    def inputs_of(self, unit: EditUnit) -> dict[str, str]:
        """Returns ids of what else a result was made from."""
        is_trained = unit.editor == "edit_model"
        return {"model_sha256": self.editors.weights_id(self.settings.model) if is_trained else ""}


def list_units(run_path: Path, config: EditConfig) -> list[EditUnit]:
    """Returns all units of the stage, scene by scene."""
    found = [path.parent for path in sorted((run_path / "scenes").glob("*/truth/*/edit.json"))]
    found = [folder for folder in found if read_case(folder).kind != DIRECT]
    pairs = [(folder.parent.parent.name, folder.name) for folder in found]
    for kind, wanted, known in (
        ("scene", config.scenes, {scene for scene, _ in pairs}),
        ("edit", config.edits, {edit for _, edit in pairs}),
    ):
        missing = sorted(set(wanted) - known)
        if missing:
            raise InputError(f"no {kind} {', '.join(missing)} in {run_path / 'scenes'}; there are: {sorted(known)}")
    pairs = [
        (scene, edit)
        for scene, edit in pairs
        if (not config.scenes or scene in config.scenes) and (not config.edits or edit in config.edits)
    ]
    if not pairs:
        raise InputError(f"{run_path / 'scenes'} holds no scene with edits (truth/<edit>/edit.json)")
    return [
        EditUnit(scene=scene, edit=edit, method=method, editor=editor, seed=seed)
        for scene, edit in pairs
        for method in config.methods
        for editor in editors_of(METHODS[method], config.editors)
        for seed in config.seeds
    ]


def run_edit(
    run: RunFolder,
    config: EditConfig,
    *,
    model: Path | None = None,
    engine: EngineConfig | None = None,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Make every edit that is not there yet.

    Scenes have to be fitted. `model` is the folder of the edit model; by default that of the run's own `train` stage if
    it is done, else the one that comes with the package. Edits are made on `device`: `cuda` is every GPU, one for each
    worker.

    Raises:
        InputError: the config asks for what is not there. What goes wrong within one edit becomes its record instead.
        WorkStopped: the disk is full.
    """
    if run.is_done("edit", config):
        yield Progress(stage="edit", done=1, total=1, note="done before")
        return
    engine = engine or EngineConfig()
    units = list_units(run.path, config)
    model = None if model is None else model.resolve()
    work = EditWork(
        folder=run.path.resolve(),
        run_seed=run.seed,
        methods=config.settings,
        editors={name: MenuEditor(name=name, model=model) for name in config.editors},
        model=(model or edit_model_of(run.path)).resolve(),
    )
    opened = work.open(device)  # what is missing is missing here, too: say so before any work

    def give_up(failure: SetAside) -> None:
        opened.give_up(units[failure.index], failure)

    tasks = [Task(index=index, kind="edit", item=unit) for index, unit in enumerate(units)]
    while missing := [task.index for task in tasks if opened.found(task) is None]:
        queue = TaskQueue(tasks, missing, max_attempts=engine.max_attempts)
        settings = settings_for(work, engine, device=device)
        yield from work_through(queue, settings, engine, give_up=give_up)
    outcomes = [opened.found(task) or {} for task in tasks]
    num_failed = sum(outcome["status"] == "failed" for outcome in outcomes)
    run.mark_done("edit", config, num_edits=len(units), num_failed=num_failed)

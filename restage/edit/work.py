"""One edit of one scene by method, editor and seed: the unit of the edit stage and of studies, and how it is made."""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from restage.edit.editors import Editor, EditorSource
from restage.edit.job import EditStep, Method, needs_editor
from restage.edit.open_editors import NO_EDITOR, NoEditor, OpenEditors, SceneEditor
from restage.edit.results import edit_scene, write_failure
from restage.records import EditCase, InputError, Progress, derive_seed, file_sha256, is_disk_full, read_json
from restage.run.layout import CAPTURE, EDIT_CASE, EDIT_RECORD, SPLATS, TRUTH
from restage.run.progress import is_stop_requested
from restage.run.reading import EditRecord
from restage.scenes.capture import Capture
from restage.scenes.io import read_capture
from restage.scenes.io.ply import read_splats
from restage.scenes.splats import Splats
from restage.work.task import Facts, SetAside, Task

__all__ = ["EditUnit", "EditWork", "OpenEdits", "editors_of", "load_scene", "read_case"]


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
    """Read what is asked for from a truth folder, `<scene>/truth/<edit>`.

    Raises:
        InputError: the scene has no such edit.
    """
    return read_json(truth / EDIT_CASE, EditCase)


def editors_of(method: Method | type[Method], editors: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the editors that a method runs with: those, or `none` if it asks none."""
    return editors if needs_editor(method) else (NO_EDITOR,)


def load_scene(folder: Path) -> tuple[Capture, Splats]:
    """Read a fitted scene.

    Raises:
        InputError: capture or splats are missing or broken.
    """
    return read_capture(folder / CAPTURE), read_splats(folder / SPLATS)


@dataclass(frozen=True, kw_only=True)
class EditWork:
    """Edits of a run as a kind of work."""

    folder: Path
    """The run, by a path that all workers see."""
    run_seed: int
    methods: Mapping[str, Method]
    """Methods with their settings, by the names that units have for them."""
    editors: Mapping[str, SceneEditor]
    """Editors by the names that units have for them."""
    model: Path
    """The run's edit model, for editors that name none."""

    def open(self, device: str) -> OpenEdits:
        """Get ready.

        Raises:
            InputError: the run's folder or its edit model is not on this machine.
        """
        for folder, what in ((self.folder, "run"), (self.model, "trained edit model")):
            if not folder.is_dir() and (what == "run" or "edit_model" in self.editors):
                raise InputError(
                    f"{folder} does not exist on {socket.gethostname()}; expected the folder of a {what}, under the "
                    "same path on every machine"
                )
        return OpenEdits(self)


class OpenEdits:
    """Makes edits one at a time; keeps the models that it has opened."""

    def __init__(self, work: EditWork) -> None:
        self.settings, self.editors = work, OpenEditors()

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
        capture, splats = load_scene(unit.scene_folder(run))
        truth = unit.truth_folder(run) if case.has_truth else None
        source = EditorSource(file_names=capture.file_names, truth=truth, model=self.settings.model)
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
        """Open the editor of a unit; None for a method that asks none.

        Raises:
            InputError: what it needs is not there.
        """
        return None if unit.editor == NO_EDITOR else self.editors.open(self.settings.editors[unit.editor], source)

    def facts_of(self, unit: EditUnit, case: EditCase) -> dict[str, Any]:
        """Returns what a record says of its unit beside the result."""
        splats_sha256 = file_sha256(unit.scene_folder(self.settings.folder) / SPLATS)
        inputs = {"edit_id": case.id, "splats_sha256": splats_sha256, **self.inputs_of(unit)}
        return {**asdict(unit), "kind": case.kind, "inputs": inputs}

    def inputs_of(self, unit: EditUnit) -> dict[str, str]:
        """Returns ids of what else a result was made from."""
        is_trained = unit.editor == "edit_model"
        return {"model_sha256": self.editors.weights_id(self.settings.model) if is_trained else ""}

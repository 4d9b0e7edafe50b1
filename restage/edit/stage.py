"""The edit stage: every scene x edit of a run with every method, editor and seed that is asked for.

Reads `<run>/scenes`, writes `<run>/edit`; an edit with a record is skipped, a failed one is a record with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restage.diffusion.editor_folder import edit_weights_sha256
from restage.edit.editors import Edited, Editor, EditorSource, ViewBatch, check_editor, open_editor
from restage.edit.job import Method, needs_editor
from restage.edit.methods import METHODS
from restage.edit.results import edit_scene, write_failure
from restage.records import EditCase, InputError, Progress, derive_seed, file_sha256, read_json
from restage.run.folder import RunFolder
from restage.run.models import edit_model_of
from restage.scenes.capture import Capture
from restage.scenes.io import read_capture
from restage.scenes.io.ply import read_splats
from restage.scenes.splats import Splats

__all__ = ["EditConfig", "EditUnit", "list_units", "run_edit"]

NO_EDITOR = "none"
"""Name that stands for the editor of a method that asks none."""


@dataclass(frozen=True, kw_only=True)
class EditConfig:
    """What to run; the resolved settings of every method are part of it and so of its id."""

    methods: tuple[str, ...] = ("nothing", "replace_once", "idu", "restage")
    """Names on the menu `METHODS`."""
    editors: tuple[str, ...] = ("edit_model", "exact")
    """As `check_editor` knows them; every method that needs an editor runs with each."""
    scenes: tuple[str, ...] = ()
    """Names of scenes; empty for all that have edits."""
    edits: tuple[str, ...] = ()
    """Names of edits; empty for all."""
    seeds: tuple[int, ...] = (0,)
    """Each edit is made once with each."""
    settings: Mapping[str, Method] = field(default_factory=dict)
    """Settings of a method by its name, where they are not the defaults."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.methods) - set(METHODS))
        if unknown:
            raise InputError(f"unknown method {', '.join(unknown)}; choose from {', '.join(METHODS)}")
        for editor in self.editors:
            check_editor(editor)
        if not self.methods or not self.editors or not self.seeds:
            raise InputError("expected at least one method, one editor and one seed")
        unused = sorted(set(self.settings) - set(self.methods))
        if unused:
            raise InputError(f"there are settings for {', '.join(unused)}, which is not among the methods to run")
        resolved = {name: self.settings.get(name, METHODS[name]()) for name in self.methods}
        object.__setattr__(self, "settings", resolved)


@dataclass(frozen=True, kw_only=True)
class EditUnit:
    """One piece of work of the stage."""

    scene: str
    edit: str
    method: str
    editor: str
    seed: int

    def folder(self, run_path: Path) -> Path:
        """Where its result lies."""
        return run_path / "edit" / self.scene / self.edit / f"{self.method}-{self.editor}" / str(self.seed)


def list_units(run_path: Path, config: EditConfig) -> list[EditUnit]:
    """All pieces of work, scene by scene.

    Raises:
        InputError: a scene or an edit that is asked for does not exist, or there is none at all.
    """
    found = [path.parent for path in sorted((run_path / "scenes").glob("*/truth/*/edit.json"))]
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
        for editor in (config.editors if needs_editor(METHODS[method]) else (NO_EDITOR,))
        for seed in config.seeds
    ]


def run_edit(run: RunFolder, config: EditConfig, *, model: Path | None = None) -> Iterator[Progress]:
    """Make every edit that is not there yet.

    Args:
        run: The run; its scenes have to be fitted.
        config: What to run.
        model: Folder of the edit model; default: the run's own `train` folder if that stage is done, else the one
            that comes with the package.

    Raises:
        InputError: the config asks for what is not there. What goes wrong within one edit becomes its record instead.
    """
    if run.is_done("edit", config):
        yield Progress(stage="edit", done=1, total=1, note="done before")
        return
    units = list_units(run.path, config)
    editors = _Editors(model or edit_model_of(run.path))
    if any(unit.editor == "edit_model" for unit in units):
        editors.open("edit_model", EditorSource(model=editors.model))
    num_failed = 0
    for done, unit in enumerate(units):
        name = f"{unit.scene} {unit.edit} {unit.method}-{unit.editor} {unit.seed}"
        folder = unit.folder(run.path)
        if not (folder / "record.json").exists():
            for note in _run_unit(run, unit, config.settings[unit.method], editors):
                yield Progress(stage="edit", done=done, total=len(units), note=f"{name}: {note}")
        record = read_json(folder / "record.json")
        num_failed += record["status"] == "failed"
        yield Progress(stage="edit", done=done + 1, total=len(units), note=f"{name}: {_outcome(record)}")
    run.mark_done("edit", config, num_edits=len(units), num_failed=num_failed)


def _outcome(record: dict[str, Any]) -> str:
    return f"failed: {record['reason']}" if record["status"] == "failed" else "done"


def _run_unit(run: RunFolder, unit: EditUnit, method: Method, editors: _Editors) -> Iterator[str]:
    scene_folder = run.path / "scenes" / unit.scene
    truth = scene_folder / "truth" / unit.edit
    case = EditCase.from_plain(read_json(truth / "edit.json"))
    capture, splats = load_scene(scene_folder)
    facts = {
        "scene": unit.scene,
        "edit": unit.edit,
        "kind": case.kind,
        "method": unit.method,
        "editor": unit.editor,
        "seed": unit.seed,
        "inputs": {
            "edit_id": case.id,
            "splats_sha256": file_sha256(scene_folder / "splats.ply"),
            "model_sha256": editors.model_sha256() if unit.editor == "edit_model" else "",
        },
    }
    source = EditorSource(file_names=capture.file_names, truth=truth if case.has_truth else None, model=editors.model)
    try:
        steps = edit_scene(
            splats,
            capture,
            request=case.request,
            method=method,
            editor=editors.open(unit.editor, source),
            seed=derive_seed(run.seed, case.id, unit.seed),
            folder=unit.folder(run.path),
            facts=facts,
        )
        for step in steps:
            yield f"{step.note} ({step.step}/{step.num_steps})"
    except Exception as error:  # one edit that fails is a row with its reason, and the others go on
        write_failure(unit.folder(run.path), error, facts)


def load_scene(folder: Path) -> tuple[Capture, Splats]:
    """Read a fitted scene.

    Raises:
        InputError: capture or splats are missing or broken.
    """
    return read_capture(folder / "capture"), read_splats(folder / "splats.ply")


class _NoEditor:
    """Stands where a method that asks no editor gets one."""

    def edit(self, batch: ViewBatch) -> Edited:
        raise InputError("this method was run without an editor, but asks for one; choose an editor")


class _Editors:
    """Opens editors; the model, which is the same for all edits of the stage, only once."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self._shared: Editor | None = None
        self._sha256 = ""

    def model_sha256(self) -> str:
        """Hash of the edit model's weights."""
        if not self._sha256:
            self._sha256 = edit_weights_sha256(self.model)
        return self._sha256

    def open(self, name: str, source: EditorSource) -> Editor:
        if name == NO_EDITOR:
            return _NoEditor()
        if name != "edit_model":
            return open_editor(name, source)
        if self._shared is None:
            self._shared = open_editor(name, source)
        return self._shared

"""The edit stage: every scene x edit of a run with every method, editor and seed that is asked for.

Reads `<run>/scenes`, writes `<run>/edit`; an edit with a record is skipped, a failed one is a record with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from restage.edit.editors import check_editor
from restage.edit.job import Method
from restage.edit.methods import METHODS
from restage.edit.open_editors import MenuEditor
from restage.edit.work import EditUnit, EditWork, editors_of
from restage.records import InputError, Progress
from restage.run.folder import RunFolder
from restage.run.models import edit_model_of
from restage.work.engine import settings_for, work_through
from restage.work.task import EngineConfig, SetAside, Task, TaskQueue

__all__ = ["EditConfig", "list_units", "run_edit"]


@dataclass(frozen=True, kw_only=True)
class EditConfig:
    """The edits to make; the resolved settings of every method are part of it, and so of its id."""

    methods: tuple[str, ...] = ("nothing", "replace_once", "idu", "restage")
    """Names on the menu `METHODS`."""
    editors: tuple[str, ...] = ("edit_model", "exact")
    """Names that `check_editor` knows; every method that needs an editor runs with each."""
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


def list_units(run_path: Path, config: EditConfig) -> list[EditUnit]:
    """Returns all units of the stage, scene by scene.

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
        for editor in editors_of(METHODS[method], config.editors)
        for seed in config.seeds
    ]


def run_edit(
    run: RunFolder, config: EditConfig, *, model: Path | None = None, engine: EngineConfig | None = None
) -> Iterator[Progress]:
    """Make every edit that is not there yet.

    Args:
        run: The run; its scenes have to be fitted.
        config: What to run.
        model: Folder of the edit model; default: the run's own `train` folder if that stage is done, else the one
            that comes with the package.
        engine: Where edits are made; in this process by default.

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
    opened = work.open("cpu")  # what is missing is missing here, too: say so before any work

    def give_up(failure: SetAside) -> None:
        opened.give_up(units[failure.index], failure)

    tasks = [Task(index=index, kind="edit", item=unit) for index, unit in enumerate(units)]
    while missing := [task.index for task in tasks if opened.found(task) is None]:
        queue = TaskQueue(tasks, missing, max_attempts=engine.max_attempts)
        settings = settings_for(work, engine, uses_gpu=False)
        yield from work_through(queue, settings, engine, give_up=give_up)
    outcomes = [opened.found(task) or {} for task in tasks]
    num_failed = sum(outcome["status"] == "failed" for outcome in outcomes)
    run.mark_done("edit", config, num_edits=len(units), num_failed=num_failed)

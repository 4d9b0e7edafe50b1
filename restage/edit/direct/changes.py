"""Direct edits in a run: recorded like any other edit, each on top of the last, with a history to undo.

`restage change` and the viewer call this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar

from restage.edit.direct.operations import OPERATIONS, Operation
from restage.edit.editors import NO_EDITOR, NoEditor
from restage.edit.job import EditJob, EditStep, Method
from restage.edit.methods import METHODS
from restage.edit.origins import find_result, weights_on
from restage.edit.results import edit_scene
from restage.edit.single import OpenedEdit, StartingPoint, name_case
from restage.edit.stage import EditUnit, load_scene, read_case
from restage.records import DIRECT, EditCase, EditRequest, InputError, content_id, file_sha256, read_json, write_json
from restage.regions.region import Region
from restage.run.folder import RunFolder
from restage.run.layout import CHANGES, EDIT_CASE, EDIT_RECORD, SPLATS, TRUTH
from restage.run.reading import EditRecord
from restage.scenes.device import made_on
from restage.scenes.fit import render_views

__all__ = ["DirectEdit", "History", "current_change", "describe_operation", "name_result", "open_change"]
__all__ += ["read_history", "redo_change", "undo_change"]

MAX_NAME = 80


@dataclass(frozen=True, kw_only=True)
class DirectEdit:
    """A direct edit as a method, which needs the weights of a region and no editor.

    Memory: that of the splats, twice.
    """

    operation: str
    """Name on the menu `OPERATIONS`."""
    parameters: Operation
    needs_editor: ClassVar[bool] = False

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Apply the operation, in one step."""
        if job.weights is None:
            raise InputError(f"{self.operation} needs a region; name one")
        changed = self.parameters.apply(job.splats, job.weights)
        if not len(changed.splats):
            raise InputError("the region holds the whole scene; nothing would be left of it")
        yield EditStep(1, 1, 0.0, changed.splats, f"{self.operation} done", changed.origins)


@dataclass(frozen=True, kw_only=True)
class History:
    """The direct edits of a scene, by the folders of their results relative to the run; names for any of its edits."""

    made: tuple[str, ...] = ()  # all, in the order in which they were made
    current: tuple[str, ...] = ()  # those that count, each on top of the one before; the last is how the scene stands
    undone: tuple[str, ...] = ()  # what can be brought back, the last of them first
    names: Mapping[str, str] = field(default_factory=dict)  # what the user calls results, by their folders


def describe_operation(name: str, operation: Operation | Method, region_name: str) -> str:
    """Say in words what is done, such as "recolor bear towards gold"."""
    words = [name, region_name]
    for parameter in fields(operation):  # pyright: ignore[reportArgumentType]
        value = getattr(operation, parameter.name)
        if value == parameter.default or parameter.name == "matrix":
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        words += [parameter.name, *(f"{number:g}" if isinstance(number, float) else str(number) for number in numbers)]
    return " ".join(words)


def open_change(
    run: RunFolder,
    scene_folder: Path,
    operation: Operation | Method,
    *,
    region: Region,
    region_name: str,
    start: StartingPoint | None = None,
    case: str = "",
    device: str = "cpu",
) -> OpenedEdit:
    """Find out where the result of a direct edit belongs, and prepare it; see `restage.edit.single.open_edit`.

    Once its steps are through, or if it was made before, it is the last change in the scene's history.

    Args:
        run: The run, whose stage `edit` the caller holds.
        scene_folder: The fitted scene.
        operation: What to do; a method that a region is enough for, such as `Remove`, counts as one, too.
        region: To which splats: of the fitted scene, or of the one that is started from.
        region_name: What to call the region in names and words.
        start: An edited scene to start from; None for the fitted scene.
        case: Name of an edit of the scene, with the truth that the result is to be compared with; empty for none.
        device: Where the scene is drawn.

    Raises:
        InputError: The region belongs to other splats or is empty, there is no such case, or its place is taken.
    """
    name = next(name for name, kind in {**METHODS, **OPERATIONS}.items() if type(operation) is kind)
    method = operation if isinstance(operation, Method) else DirectEdit(operation=name, parameters=operation)
    scene = scene_folder.name
    capture, fitted = load_scene(scene_folder, device)
    if start is not None:
        start = replace(start, splats=start.splats.to(device))
    origin = None if start is None else (start.record_id, start.splats)
    weights = weights_on(region, fitted, run=run.path, scene=scene, start=origin)
    if case:
        if not (scene_folder / TRUTH / case / EDIT_CASE).is_file():
            known = ", ".join(sorted(path.parent.name for path in (scene_folder / TRUTH).glob(f"*/{EDIT_CASE}")))
            raise InputError(f"{scene} has no edit {case!r}; there are: {known or 'none'}")
        edit, asked = case, read_case(scene_folder / TRUTH / case)
    else:
        request = EditRequest(
            instruction=describe_operation(name, operation, region_name), source_caption="", target_caption=""
        )
        suffix = f"-{content_id('direct', [method, region.id])[-8:]}"
        suffix += "" if start is None else f"-on-{start.record_id[-8:]}"
        edit, asked = name_case(scene_folder, request, known=None, suffix=suffix, kind=DIRECT)
    unit = EditUnit(scene=scene, edit=edit, method=name, editor=NO_EDITOR, seed=0)
    folder = unit.folder(run.path)
    inputs = {"edit_id": asked.id, "splats_sha256": file_sha256(scene_folder / SPLATS), "region_id": region.id}
    inputs |= {"region": region_name} | ({} if start is None else {"starts_from": start.record_id})
    facts = {**asdict(unit), "kind": asked.kind, "inputs": inputs, **made_on(device)}
    if (folder / EDIT_RECORD).exists():
        record = read_json(folder / EDIT_RECORD, EditRecord)
        if record.status != "failed":
            if {**record.inputs} != inputs:
                raise InputError(f"{folder} holds the result of another region or start; remove it, or omit --case")
            return OpenedEdit(folder, _kept(iter(()), run.path, folder, start))
    case_file = scene_folder / TRUTH / edit / EDIT_CASE
    steps = edit_scene(
        fitted if start is None else start.splats,
        capture if start is None else replace(capture, images=render_views(start.splats, capture.cameras)),
        request=asked.request,
        method=method,
        editor=NoEditor(),
        seed=0,
        folder=folder,
        facts=facts,
        weights=weights,
    )
    steps = _with_case(steps, case_file, None if case else asked)
    return OpenedEdit(folder, _kept(steps, run.path, folder, start))


def _with_case(steps: Iterator[EditStep], path: Path, case: EditCase | None) -> Iterator[EditStep]:
    """Write the case of a change once there is something of it, so that one that is refused leaves nothing behind."""
    for step in steps:
        if case is not None and step.step > 0:
            write_json(path, case)
        yield step


def _kept(steps: Iterator[EditStep], run: Path, folder: Path, start: StartingPoint | None) -> Iterator[EditStep]:
    """Add a change to the history once its steps are through."""
    yield from steps
    scene, place = folder.parents[2].name, folder.relative_to(run).as_posix()
    history = read_history(run, scene)
    before: tuple[str, ...] = ()
    if start is not None:
        begun = find_result(run, scene, start.record_id).relative_to(run).as_posix()
        before = history.current if history.current[-1:] == (begun,) else _way_to(run, scene, start.record_id)
    made = history.made if place in history.made else (*history.made, place)
    _write(run, scene, replace(history, made=made, current=(*before, place), undone=()))


def _way_to(run: Path, scene: str, record_id: str) -> tuple[str, ...]:
    """Folders of the edits that lead from the fitted scene to the one with this record id, itself included."""
    folder = find_result(run, scene, record_id)
    before = read_json(folder / EDIT_RECORD, EditRecord).inputs.get("starts_from")
    return (*(_way_to(run, scene, before) if before else ()), folder.relative_to(run).as_posix())


def read_history(run: Path, scene: str) -> History:
    """Read the history of a scene's direct edits; empty where there is none."""
    path = run / "edit" / scene / CHANGES
    return read_json(path, History) if path.is_file() else History()


def current_change(run: Path, scene: str) -> Path | None:
    """The folder of the edit that the scene stands at; None for the fitted scene."""
    current = read_history(run, scene).current
    return run / current[-1] if current else None


def undo_change(run: Path, scene: str) -> Path:
    """Take back the last change; its result stays where it is. Returns the folder of that result."""
    history = read_history(run, scene)
    if not history.current:
        raise InputError(f"{scene}: there is nothing to undo")
    *before, last = history.current
    _write(run, scene, replace(history, current=tuple(before), undone=(*history.undone, last)))
    return run / last


def redo_change(run: Path, scene: str) -> Path:
    """Bring back the change that was undone last, if none was made since. Returns the folder of its result."""
    history = read_history(run, scene)
    if not history.undone:
        raise InputError(f"{scene}: there is nothing to redo")
    *before, last = history.undone
    _write(run, scene, replace(history, current=(*history.current, last), undone=tuple(before)))
    return run / last


def name_result(run: Path, folder: Path, name: str) -> None:
    """Give the result of an edit a name in the scene's history; an empty one takes it away."""
    if "\n" in name or len(name) > MAX_NAME:
        raise InputError(f"expected a name of at most {MAX_NAME} letters on one line, got {len(name)}")
    place = folder.resolve().relative_to(run.resolve()).as_posix()
    scene = place.split("/")[1]
    history = read_history(run, scene)
    names = {**history.names, place: name.strip()}
    _write(run, scene, replace(history, names={place: name for place, name in names.items() if name}))


def _write(run: Path, scene: str, history: History) -> None:
    write_json(run / "edit" / scene / CHANGES, history)

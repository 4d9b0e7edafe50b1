"""The sub-command `change`: direct edits of a scene's splats.

Annotations are evaluated when a command is built: hence no `from __future__ import annotations` here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from restage.commands.stages import DeviceArgument
from restage.records import InputError, Progress
from restage.run.folder import open_run, working
from restage.run.layout import check_is_run
from restage.run.progress import say, show_progress

__all__ = ["build_change"]

SceneArgument = Annotated[Path, arg(metavar="RUN")]
What = Literal["recolor", "delete", "duplicate", "move", "rotate", "scale", "remove", "clean"]
WhatArgument = Annotated[What | None, arg(metavar="WHAT")]
Vector = tuple[float, float, float]


def build_change() -> Callable[..., None]:
    """Build `restage change`."""

    def change(
        run: Positional[SceneArgument],
        what: Positional[WhatArgument] = None,
        *,
        region: Path | None = None,
        towards: str | None = None,
        tint: str | None = None,
        hue: float | None = None,
        saturation: float | None = None,
        brightness: float | None = None,
        amount: float | None = None,
        by: Vector | None = None,
        axis: Literal["x", "y", "z"] | None = None,
        degrees: float | None = None,
        factor: float | None = None,
        about: Vector | None = None,
        on: str = "",
        case: str = "",
        preview: bool = False,
        undo: bool = False,
        redo: bool = False,
        name: str | None = None,
        device: DeviceArgument = "auto",
    ) -> None:
        """Change the splats of a region at once and exactly, without an editor: color, place, size, or gone.

        Example: restage change runs/mine recolor --region bear --towards gold

        Each change goes on from the last one and has a folder of its own, like any edit. Without WHAT the history is
        listed.

        Args:
            run: The run of a fitted scene, or `<run>/scenes/<scene>`.
            what: recolor, delete, duplicate, move, rotate or scale; `remove` deletes a thing and fills the place where
                it was, and `clean` finds floaters and haze by itself, saves them as the region `floaters`, and deletes
                them.
            region: Which splats: the name of a region of the scene, or what `restage edit --region` takes.
            towards: recolor: color that the region gets, with its shading kept, such as gold or #ffd700.
            tint: recolor: color to multiply by, as a colored glass does.
            hue: recolor: degrees to turn hues by; 120 makes red green.
            saturation: recolor: factor of the saturation; 0 is grey.
            brightness: recolor: factor of all colors.
            amount: recolor: share of the way, from 0 to 1.
            by: move, duplicate: how far along x, y and z (up), in world units.
            axis: rotate: axis of the world.
            degrees: rotate: how far, counterclockwise as seen from the tip of the axis.
            factor: scale: factor of all sizes.
            about: rotate, scale: point that stays in place; default: the center of the region.
            on: What to start from: folder of a finished edit, or `scene` for the fitted scene; default: where the
                history stands.
            case: Name of an edit of the scene whose truth the result is to be compared with.
            preview: clean: only say and show what would be deleted.
            undo: Take back the last change; its result is kept.
            redo: Bring back what was undone last.
            name: What to call the change that the history stands at, or the one that WHAT makes; empty takes it away.
            device: Where the scene is drawn.
        """
        from restage.scenes.stage import find_scene

        scene_folder = find_scene(run)
        run_path = (scene_folder if len(scene_folder.parents) > 1 else scene_folder.resolve()).parents[1]
        check_is_run(run_path)
        given = {"towards": towards, "tint": tint, "hue": hue, "saturation": saturation, "brightness": brightness}
        given |= {"amount": amount, "by": by, "axis": axis, "degrees": degrees, "factor": factor, "about": about}
        given = {name: value for name, value in given.items() if value is not None}
        of_change = [*given, *(["region"] if region else []), *(["on"] if on else []), *(["case"] if case else [])]
        if undo or redo:
            if what or of_change or preview or name is not None or (undo and redo):
                raise InputError("give --undo or --redo alone")
            _step_back(run_path, scene_folder.name, is_undo=undo)
            return
        if what is None and (of_change or preview):
            raise InputError(f"--{(of_change or ['preview'])[0]}: say what to change, such as recolor or clean")
        if what is None and name is not None:
            _name_change(run_path, scene_folder.name, name)
            return
        if what is None:
            _list_changes(run_path, scene_folder.name)
            return
        operation = _read_operation(what, given)
        if what == "clean":
            if region is not None:
                raise InputError("clean finds its region itself; omit --region, or delete a region")
            region = _find_floaters(run_path, scene_folder, on=on, device=device)
            if preview:
                return
        if region is None or preview:
            raise InputError(
                "--preview goes with clean"
                if preview
                else f"{what} needs a region: --region NAME (restage region --help makes one)"
            )
        _change(run_path, scene_folder, operation, region=region, on=on, case=case, device=device)
        if name is not None:
            _name_change(run_path, scene_folder.name, name)

    return change


def _read_operation(what: str, given: dict[str, Any]) -> Any:
    from dataclasses import MISSING, fields

    from restage.edit.direct.operations import OPERATIONS, Delete
    from restage.edit.methods.remove import Remove

    kind: Any = {**OPERATIONS, "clean": Delete, "remove": Remove}[what]
    known = {field.name: field.default is MISSING for field in fields(kind) if what != "remove"}
    wrong, missing = (
        sorted(set(given) - set(known)),
        [name for name, need in known.items() if need and name not in given],
    )
    if wrong or missing:
        takes = ", ".join(f"--{name}" for name in known) or "no options of its own"
        problem = f"needs --{missing[0]}" if missing else f"has no --{wrong[0]}"
        raise InputError(f"{what} {problem}; it takes {takes}")
    return Remove(fill="plain") if what == "remove" else kind(**given)


def _start(run_path: Path, scene: str, on: str) -> Any:
    from restage.edit.direct.changes import current_change
    from restage.edit.single import StartingPoint

    folder = None if on == "scene" else Path(on) if on else current_change(run_path, scene)
    return None if folder is None else StartingPoint.of(folder)


def _find_floaters(run_path: Path, scene_folder: Path, *, on: str, device: str) -> Path:
    from restage.edit.direct.cleaning import draw_found, find_floaters
    from restage.edit.pictures import write_image
    from restage.edit.stage import load_scene
    from restage.regions.files import write_region
    from restage.regions.region import Region
    from restage.scenes.device import choose_device

    capture, splats = load_scene(scene_folder, choose_device(device))
    start = _start(run_path, scene_folder.name, on)
    splats = splats if start is None else start.splats.to(splats.means.device)
    found = find_floaters(splats, capture)
    reasons = ", ".join(f"{count} {name}" for name, count in found.counts.items() if count and name != "kept")
    say(
        f"{int(found.is_found.sum())} of {len(splats)} splats are floaters or haze ({reasons or 'none'}); "
        f"{found.counts['kept']} more look so, but the photographs need them"
    )
    region = Region.of(splats, found.is_found.float(), by="clean", counts=found.counts)
    path = write_region(run_path, scene_folder.name, "floaters", region)
    write_image(path.with_suffix(".png"), draw_found(splats, found, capture))
    say(f"as it is, what was found in red, and without: {path.with_suffix('.png')}")
    return path


def _change(
    run_path: Path, scene_folder: Path, operation: Any, *, region: Path, on: str, case: str, device: str
) -> None:
    from restage.edit.direct.changes import open_change
    from restage.edit.results import describe_change
    from restage.edit.stage import load_scene
    from restage.regions.given import find_region, read_given
    from restage.scenes.device import choose_device

    device = choose_device(device)
    start = _start(run_path, scene_folder.name, on)
    file = find_region(region, scene_folder)
    found = read_given(file, *load_scene(scene_folder, device))
    how: dict[str, Any] = {"region": found, "region_name": file.stem, "start": start, "case": case, "device": device}
    with working(open_run(run_path), "edit") as opened:
        made = open_change(opened, scene_folder, operation, **how)
        show_progress(Progress(stage="edit", done=one.step, total=one.num_steps, note=one.note) for one in made.steps)
    say(describe_change(made.folder))
    say(f"changed: {made.folder}")


def _step_back(run_path: Path, scene: str, *, is_undo: bool) -> None:
    from restage.edit.direct.changes import current_change, redo_change, undo_change

    with working(open_run(run_path), "edit") as opened:
        folder = (undo_change if is_undo else redo_change)(opened.path, scene)
    say(f"{'undone, and kept' if is_undo else 'done again'}: {folder}")
    say(f"the scene stands at: {current_change(run_path, scene) or 'the fitted scene'}")


def _name_change(run_path: Path, scene: str, name: str) -> None:
    from restage.edit.direct.changes import current_change, name_result

    folder = current_change(run_path, scene)
    if folder is None:
        raise InputError(f"{scene} stands at the fitted scene, which takes no name")
    with working(open_run(run_path), "edit"):
        name_result(run_path, folder, name)
    say(f"named: {folder}")


def _list_changes(run_path: Path, scene: str) -> None:
    from restage.edit.direct.changes import read_history
    from restage.records import read_json
    from restage.run.layout import EDIT_RECORD
    from restage.run.reading import EditRecord

    history = read_history(run_path, scene)
    if not history.made:
        say(f"{scene}: no changes yet; for example: restage change {run_path} recolor --region NAME --towards gold")
    for place in history.made:
        if not (run_path / place / EDIT_RECORD).is_file():
            say(f"  {place}: its folder was removed")
            continue
        record = read_json(run_path / place / EDIT_RECORD, EditRecord)
        mark = "*" if history.current[-1:] == (place,) else " "
        state = "" if place in history.current else " (undone)"
        called = f"{history.names[place]}: " if place in history.names else ""
        say(f"{mark} {called}{record.request.instruction if record.request else place}{state}: {run_path / place}")

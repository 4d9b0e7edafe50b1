"""What the viewer shows: scenes of a run, of a capture with a fit, or of a file of splats, and their finished edits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from restage.edit.direct.changes import read_history
from restage.records import EditCase, InputError, read_json
from restage.run.layout import CAPTURE, EDIT_RECORD, FIT_RECORD, RUN_RECORD, SPLATS, TRANSFORMS
from restage.run.reading import EditRecord, FitRecord
from restage.scenes.cameras import Cameras
from restage.scenes.capture import Capture
from restage.scenes.io import capture_name, is_capture, read_capture
from restage.scenes.io.splat_files import read_splats, splats_in
from restage.scenes.splats import Splats
from restage.scenes.taken import Placed, Placement, place_cameras, splats_name

__all__ = ["KeptEdit", "ViewScene", "list_kept", "load_scene", "open_scenes", "read_kept"]


@dataclass(frozen=True)
class KeptEdit:
    """A finished edit that lies in a run folder."""

    folder: Path  # its result folder
    edit: str  # name of the edit case
    instruction: str
    method: str
    editor: str
    seed: int
    record_id: str
    is_done: bool = True  # whether it came to its end; a failed edit has nothing to show
    name: str = ""  # what the user calls it

    @property
    def label(self) -> str:
        """What the user reads in lists; tells edits of one scene apart."""
        if self.name:
            return f"{self.name}: {self.instruction}"
        text = f"{self.instruction} | {self.method}, {self.editor}, seed {self.seed}"
        mark = self.edit.rpartition("-on-")[1:]
        return f"{text} | {''.join(mark).lstrip('-')}" if mark[0] else text


@dataclass(frozen=True)
class ViewScene:
    """A scene as it was before any edit."""

    name: str
    splats: Splats
    capture: Capture | None = None  # None for splats alone
    folder: Path | None = None
    """`<run>/scenes/<scene>`; None for a scene that is in no run."""
    file: Path | None = None
    """The file of splats that a run is made of with the first edit; None for a scene with a folder."""
    placed: Placed | None = None
    """Cameras around splats that came without any, and how these were turned upright."""
    fit: FitRecord | None = None
    cases: Mapping[str, EditCase] = field(default_factory=dict)  # edit cases with truth by name

    @property
    def run_folder(self) -> Path | None:
        """The run that the scene is part of."""
        return None if self.folder is None else self.folder.parent.parent

    @property
    def cameras(self) -> Cameras:
        """Where the scene is looked at from: the capture's cameras, or those placed around it."""
        if self.capture is not None:
            return self.capture.cameras
        assert self.placed is not None, "a scene without a capture has cameras placed around it"
        return self.placed.cameras


def open_scenes(path: Path) -> dict[str, Path]:
    """Return what to load each scene from, by name, of a run, a fitted scene, a fitted capture or a file of splats."""
    if splats_in(path):
        return {splats_name(path): path}
    if not path.exists():
        raise InputError(f"{path} does not exist; give a run folder, a fitted scene, a capture with a fit, or splats")
    if (path / SPLATS).is_file():
        return {path.resolve().name: path}
    if (path / "clip.json").is_file():
        raise InputError(f"{path} is a clip of pictures, not a scene; look at {path / 'clip.webp'}")
    scenes = {found.parent.name: found.parent for found in sorted(path.glob("scenes/*/splats.ply"))}
    if not scenes and is_capture(path):
        return _scenes_of_capture(path)
    if not scenes:
        what = (
            "a run without a fitted scene" if (path / RUN_RECORD).exists() else "neither a run nor a scene nor splats"
        )
        raise InputError(f"{path} is {what}; run: restage fit CAPTURE, then: restage view RUN")
    return scenes


def _scenes_of_capture(path: Path) -> dict[str, Path]:
    """The fit of a capture: around it in a run, or where `restage fit` puts it by default."""
    name = capture_name(path)
    for folder in (path.resolve().parent, Path("runs") / name / "scenes" / name):
        if (folder / SPLATS).is_file():
            return {name: folder}
    raise InputError(f"{path} is a capture without a fit; run: restage fit {path}")


def load_scene(name: str, path: Path, device: str = "cpu") -> ViewScene:
    """Load one of the scenes that `open_scenes` found to a device."""
    if path.is_file():
        placed = place_cameras(read_splats(path), Placement(), path)
        return ViewScene(name, placed.splats.to(device), file=path, placed=placed)
    splats = read_splats(path / SPLATS).to(device)
    capture = read_capture(path / CAPTURE).to(device) if (path / CAPTURE / TRANSFORMS).is_file() else None
    fit = read_json(path / FIT_RECORD, FitRecord) if (path / FIT_RECORD).is_file() else None
    folder = path.resolve()
    is_in_run = capture is not None and folder.parent.name == "scenes" and (folder.parents[1] / RUN_RECORD).is_file()
    cases = {found.parent.name: read_json(found, EditCase) for found in path.glob("truth/*/edit.json")}
    return ViewScene(
        name,
        splats,
        capture,
        folder=path if is_in_run else None,
        placed=None if capture is not None else place_cameras(splats, Placement(), path),
        fit=fit,
        cases={edit: case for edit, case in sorted(cases.items()) if case.has_truth},
    )


def list_kept(scene: ViewScene) -> list[KeptEdit]:
    """Finished edits of a scene in its run, by name."""
    if scene.folder is None or scene.run_folder is None:
        return []
    folder = scene.run_folder / "edit" / scene.folder.name
    kept = [read_kept(path.parent) for path in sorted(folder.glob(f"*/*/*/{EDIT_RECORD}"))]
    return [edit for edit in kept if edit.is_done and edit.method != "nothing"]


def read_kept(folder: Path) -> KeptEdit:
    """Read the record of an edit, and its name in the scene's history."""
    record = read_json(folder / EDIT_RECORD, EditRecord)
    run = folder.parents[4]
    return KeptEdit(
        folder=folder,
        edit=record.edit,
        instruction=record.request.instruction if record.request else record.edit,
        method=record.method,
        editor=record.editor,
        seed=record.seed,
        record_id=record.id,
        is_done=record.status == "done",
        name=read_history(run, record.scene).names.get(folder.relative_to(run).as_posix(), ""),
    )

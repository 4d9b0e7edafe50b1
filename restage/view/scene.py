"""What a path stands for in the viewer: the scenes of a run, one fitted scene, a capture with a fit, or a PLY."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from restage.records import EditCase, InputError, read_json
from restage.run.layout import CAPTURE, EDIT_RECORD, FIT_RECORD, RUN_RECORD, SPLATS, TRANSFORMS
from restage.run.reading import EditRecord, FitRecord
from restage.scenes.capture import Capture
from restage.scenes.io import capture_name, is_capture, read_capture
from restage.scenes.io.ply import read_splats
from restage.scenes.splats import Splats

__all__ = ["KeptEdit", "ViewScene", "list_kept", "open_scenes"]


@dataclass(frozen=True)
class KeptEdit:
    """A finished edit that lies in a run folder."""

    folder: Path
    """Its result folder."""
    edit: str
    """Name of the edit case."""
    instruction: str
    method: str
    editor: str
    seed: int
    record_id: str
    is_done: bool = True
    """Whether it came to its end; a failed edit has nothing to show."""

    @property
    def label(self) -> str:
        """What the user reads in lists; tells edits of one scene apart."""
        text = f"{self.instruction} | {self.method}, {self.editor}, seed {self.seed}"
        mark = self.edit.rpartition("-on-")[1:]
        return f"{text} | {''.join(mark).lstrip('-')}" if mark[0] else text


@dataclass(frozen=True)
class ViewScene:
    """A scene as it was before any edit."""

    name: str
    splats: Splats
    capture: Capture | None = None
    """None for a PLY alone."""
    folder: Path | None = None
    """`<run>/scenes/<scene>`; None for a scene that is in no run, which cannot be edited."""
    fit: FitRecord | None = None
    cases: Mapping[str, EditCase] = field(default_factory=dict)
    """Edit cases with truth by name."""

    @property
    def run_folder(self) -> Path | None:
        """The run that the scene is part of."""
        return None if self.folder is None else self.folder.parent.parent


def open_scenes(path: Path) -> dict[str, Path]:
    """Find the scenes that a path stands for: the file or folder to load each from, by name.

    Args:
        path: A run folder, a fitted scene's folder, the folder of a capture that has a fit, or a 3DGS PLY.

    Raises:
        InputError: there is nothing to show; says what to do.
    """
    if path.is_file() and path.suffix.lower() == ".ply":
        return {path.stem: path}
    if not path.exists():
        raise InputError(f"{path} does not exist; give a run folder, a fitted scene, a capture with a fit, or a PLY")
    if (path / SPLATS).is_file():
        return {path.resolve().name: path}
    scenes = {found.parent.name: found.parent for found in sorted(path.glob("scenes/*/splats.ply"))}
    if not scenes and is_capture(path):
        return _scenes_of_capture(path)
    if not scenes:
        what = "a run without a fitted scene" if (path / RUN_RECORD).exists() else "neither a run nor a scene nor a PLY"
        raise InputError(f"{path} is {what}; run: restage fit CAPTURE, then: restage view RUN")
    return scenes


def _scenes_of_capture(path: Path) -> dict[str, Path]:
    """The fit of a capture: around it in a run, or where `restage fit` puts it by default."""
    name = capture_name(path)
    for folder in (path.resolve().parent, Path("runs") / name / "scenes" / name):
        if (folder / SPLATS).is_file():
            return {name: folder}
    raise InputError(f"{path} is a capture without a fit; run: restage fit {path}")


def load_scene(name: str, path: Path) -> ViewScene:
    """Load one of the scenes that `open_scenes` found.

    Raises:
        InputError: splats, capture or a record of it are broken.
    """
    if path.is_file():
        return ViewScene(name, read_splats(path))
    splats = read_splats(path / SPLATS)
    capture = read_capture(path / CAPTURE) if (path / CAPTURE / TRANSFORMS).is_file() else None
    fit = read_json(path / FIT_RECORD, FitRecord) if (path / FIT_RECORD).is_file() else None
    folder = path.resolve()
    is_in_run = capture is not None and folder.parent.name == "scenes" and (folder.parents[1] / RUN_RECORD).is_file()
    cases = {found.parent.name: read_json(found, EditCase) for found in path.glob("truth/*/edit.json")}
    with_truth = {edit: case for edit, case in sorted(cases.items()) if case.has_truth}
    return ViewScene(name, splats, capture, path if is_in_run else None, fit, with_truth)


def list_kept(scene: ViewScene) -> list[KeptEdit]:
    """Finished edits of a scene in its run, by name.

    Raises:
        InputError: a record is not readable.
    """
    if scene.folder is None or scene.run_folder is None:
        return []
    folder = scene.run_folder / "edit" / scene.folder.name
    kept = [read_kept(path.parent) for path in sorted(folder.glob(f"*/*/*/{EDIT_RECORD}"))]
    return [edit for edit in kept if edit.is_done and edit.method != "nothing"]


def read_kept(folder: Path) -> KeptEdit:
    """Read the record of an edit.

    Raises:
        InputError: there is none, or it lacks something.
    """
    record = read_json(folder / EDIT_RECORD, EditRecord)
    return KeptEdit(
        folder=folder,
        edit=record.edit,
        instruction=record.request.instruction if record.request else record.edit,
        method=record.method,
        editor=record.editor,
        seed=record.seed,
        record_id=record.id,
        is_done=record.status == "done",
    )

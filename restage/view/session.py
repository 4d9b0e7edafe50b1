"""The viewer's state without a browser: scenes, versions with undo and redo, and the one edit that may run.

`page.py` shows it; anything else, such as a test or a notebook, can drive it the same way.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from restage.edit.editors import OpenEditors
from restage.edit.job import EditStep
from restage.edit.single import EditChoice, StartingPoint, find_case, open_edit
from restage.records import EditCase, EditRequest, InputError, read_json
from restage.run.folder import open_run, working
from restage.run.layout import CAPTURE, EDIT_RECORD, FIT_RECORD, RUN_RECORD, SPLATS, TRANSFORMS
from restage.run.reading import EditRecord, FitRecord
from restage.scenes.capture import Capture
from restage.scenes.io import capture_name, is_capture, read_capture
from restage.scenes.io.splat_files import read_splats, splats_in, write_splats
from restage.scenes.splats import Splats

__all__ = ["EditStopped", "KeptEdit", "Version", "ViewScene", "ViewSession", "list_kept", "open_scenes"]


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
    capture: Capture | None = None  # None for splats alone
    folder: Path | None = None
    """`<run>/scenes/<scene>`; None for a scene that is in no run, which cannot be edited."""
    fit: FitRecord | None = None
    cases: Mapping[str, EditCase] = field(default_factory=dict)  # edit cases with truth by name

    @property
    def run_folder(self) -> Path | None:
        """The run that the scene is part of."""
        return None if self.folder is None else self.folder.parent.parent


def open_scenes(path: Path) -> dict[str, Path]:
    """Return what to load each scene from, by name, of a run, a fitted scene, a fitted capture or a file of splats."""
    if splats_in(path):
        return {path.stem: path}
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
        return ViewScene(name, read_splats(path).to(device))
    splats = read_splats(path / SPLATS).to(device)
    capture = read_capture(path / CAPTURE).to(device) if (path / CAPTURE / TRANSFORMS).is_file() else None
    fit = read_json(path / FIT_RECORD, FitRecord) if (path / FIT_RECORD).is_file() else None
    folder = path.resolve()
    is_in_run = capture is not None and folder.parent.name == "scenes" and (folder.parents[1] / RUN_RECORD).is_file()
    cases = {found.parent.name: read_json(found, EditCase) for found in path.glob("truth/*/edit.json")}
    with_truth = {edit: case for edit, case in sorted(cases.items()) if case.has_truth}
    return ViewScene(name, splats, capture, path if is_in_run else None, fit, with_truth)


def list_kept(scene: ViewScene) -> list[KeptEdit]:
    """Finished edits of a scene in its run, by name."""
    if scene.folder is None or scene.run_folder is None:
        return []
    folder = scene.run_folder / "edit" / scene.folder.name
    kept = [read_kept(path.parent) for path in sorted(folder.glob(f"*/*/*/{EDIT_RECORD}"))]
    return [edit for edit in kept if edit.is_done and edit.method != "nothing"]


def read_kept(folder: Path) -> KeptEdit:
    """Read the record of an edit."""
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


BEFORE = "before"


class EditStopped(KeyboardInterrupt):
    """The user stopped the edit; a run records it like Ctrl-C, and no handler of errors takes it for one."""


@dataclass(frozen=True)
class Version:
    """One state of the scene in the history; never changed once it is there."""

    label: str
    splats: Splats
    kept: KeptEdit | None = None
    """The edit that made it; None for the scene before any edit."""

    @property
    def start(self) -> StartingPoint | None:
        """What an edit of this version starts from."""
        return None if self.kept is None else StartingPoint(self.splats, self.kept.record_id)


class ViewSession:
    """What one `restage view` holds.

    Reading and rendering may happen in any thread; `computing` is held while the rasterizer or a step of an edit
    runs, so that two threads never share its pool.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Open a path (see `open_scenes`), to be shown and edited on a device."""
        self.scenes, self.device = open_scenes(path), device
        self.computing = threading.RLock()
        self._editors = OpenEditors(max_open=1)
        self._running = threading.Lock()
        self._stop = threading.Event()
        self.choose_scene(next(iter(self.scenes)))

    def choose_scene(self, name: str) -> None:
        """Show another scene of the run; the history starts anew."""
        self._refuse_while_running("choose a scene")
        if name not in self.scenes:
            raise InputError(f"no scene {name!r}; there are: {', '.join(self.scenes)}")
        self.scene: ViewScene = load_scene(name, self.scenes[name], self.device)
        self.versions = [Version(BEFORE, self.scene.splats)]
        self.position = 0
        self._asked_case: str | None = None

    @property
    def before(self) -> Splats:
        """The scene before any edit."""
        return self.scene.splats

    @property
    def shown(self) -> Version:
        """The version that is shown."""
        return self.versions[self.position]

    @property
    def case(self) -> str | None:
        """Name of the edit whose truth goes with what is shown: what was made or asked for, or else the first."""
        kept = self.shown.kept
        for name in (kept.edit if kept else None, self._asked_case, *self.scene.cases):
            if name in self.scene.cases:
                return name
        return None

    @property
    def is_running(self) -> bool:
        """Whether an edit is running."""
        return self._running.locked()

    @property
    def can_undo(self) -> bool:
        """Whether there is an earlier version."""
        return self.position > 0

    @property
    def can_redo(self) -> bool:
        """Whether there is a later version."""
        return self.position + 1 < len(self.versions)

    @property
    def why_not_edit(self) -> str:
        """Why this scene cannot be edited; empty if it can."""
        if self.scene.capture is None:
            return "These splats have no training views, which an edit needs: restage fit CAPTURE makes a scene."
        if self.scene.folder is None:
            return "This scene is in no run folder, which edits are kept in: restage fit CAPTURE makes one."
        return ""

    def undo(self) -> Version:
        """Go back to the version before this one."""
        return self._move(-1, "undo")

    def redo(self) -> Version:
        """Go forward again."""
        return self._move(1, "redo")

    def _move(self, by: int, what: str) -> Version:
        self._refuse_while_running(what)
        if not 0 <= self.position + by < len(self.versions):
            raise InputError(f"there is nothing to {what}")
        self.position += by
        return self.shown

    def kept_edits(self) -> list[KeptEdit]:
        """Finished edits of the scene in its run folder, also those that `restage edit` or a demo made."""
        return list_kept(self.scene)

    def open_kept(self, folder: Path) -> Version:
        """Show a finished edit of the run folder; it becomes the next version."""
        self._refuse_while_running("open another edit")
        kept = read_kept(folder)
        return self._add(Version(kept.label, read_splats(folder / SPLATS).to(self.device), kept))

    def edit(self, request: EditRequest, choice: EditChoice, *, is_chained: bool = False) -> Iterator[EditStep]:
        """Edit the scene and keep the result in the run folder, as `restage edit` does; it becomes the next version.

        It is made on the session's device, whatever the choice says of one.

        An edit that was made before is opened instead, without a step.

        A chained edit starts from the version that is shown instead of the scene before any edit.

        Yields:
            Every step of the method; its splats can be shown.
        """
        if self.why_not_edit:
            raise InputError(self.why_not_edit)
        if not self._running.acquire(blocking=False):
            raise InputError("an edit is running; wait for its end or stop it")
        try:
            self._stop.clear()
            start = self.shown.start if is_chained else None
            kept = read_kept((yield from self._run(request, choice, start)))
            self._add(Version(kept.label, read_splats(kept.folder / SPLATS).to(self.device), kept))
        finally:
            self._running.release()

    def _run(
        self, request: EditRequest, choice: EditChoice, start: StartingPoint | None
    ) -> Generator[EditStep, None, Path]:
        assert self.scene.folder is not None and self.scene.run_folder is not None
        self._asked_case = find_case(self.scene.folder, request)
        choice = replace(choice, device=self.device)
        with working(open_run(self.scene.run_folder), "edit") as run, stop_between_layers(self._stop):
            with self.computing:
                opened = open_edit(
                    run, self.scene.folder, request=request, choice=choice, start=start, editors=self._editors
                )
            while True:
                with self.computing:
                    step = next(opened.steps, None)
                if step is None:
                    return opened.folder
                if self._stop.is_set():
                    raise EditStopped("stopped by the user")
                yield step

    def stop(self) -> None:
        """Ask the running edit to stop; it does so at its next step, or between two layers of its model."""
        self._stop.set()

    def save_splats(self, path: Path) -> None:
        """Write the version that is shown in the format of the file's name, in the frame that is shown."""
        write_splats(self.shown.splats, path)

    def _add(self, version: Version) -> Version:
        """Put a version after the one that is shown; what could have been redone is dropped from the history."""
        del self.versions[self.position + 1 :]
        self.versions.append(version)
        self.position += 1
        return version

    def _refuse_while_running(self, what: str) -> None:
        if self.is_running:
            raise InputError(f"cannot {what} while an edit is running; wait for its end or stop it")


@contextlib.contextmanager
def stop_between_layers(stop: threading.Event) -> Iterator[None]:
    """Raise `EditStopped` in this thread before the next layer of any torch module once `stop` is set.

    An editor works for up to a minute in one call on a small machine, which is longer than a user waits.
    """
    thread = threading.get_ident()

    def check(module: torch.nn.Module, inputs: object) -> None:
        if stop.is_set() and threading.get_ident() == thread:
            raise EditStopped("stopped by the user")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()

"""The versions of the scene that the viewer shows, with undo and redo; the run that they lie in."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from restage.edit.direct.changes import current_change, name_result, read_history, redo_change, undo_change
from restage.edit.job import EditStep
from restage.edit.origins import origins_of
from restage.records import InputError
from restage.regions.region import Region
from restage.run.layout import EDIT_RECORD, SPLATS
from restage.scenes.io.splat_files import read_splats, write_splats
from restage.scenes.splats import Splats
from restage.scenes.taken import take_splats
from restage.scenes.turning import move_splats
from restage.view.scene import KeptEdit, ViewScene, list_kept, load_scene, open_scenes, read_kept
from restage.view.versions import BEFORE, Version

__all__ = ["SceneHistory"]


class SceneHistory:
    """Scenes, one of which is shown, and the versions of it.

    Reading and rendering may happen in any thread; `computing` is held while the rasterizer or a step of an edit
    runs, so that two threads never share its pool.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Open a path (see `open_scenes`), to be shown and edited on a device."""
        self.scenes, self.device = open_scenes(path), device
        self.computing = threading.RLock()
        self._running = threading.Lock()
        self.choose_scene(next(iter(self.scenes)))

    def choose_scene(self, name: str) -> None:
        """Show another scene of the run; the history starts anew."""
        self._refuse_while_running("choose a scene")
        if name not in self.scenes:
            raise InputError(f"no scene {name!r}; there are: {', '.join(self.scenes)}")
        self.scene: ViewScene = load_scene(name, self.scenes[name], self.device)
        self.versions = [Version(BEFORE, self.scene.splats), *self._changes_of_run()]
        self.position = len(self.versions) - 1
        self.selected: Region | None = None
        self._asked_case: str | None = None

    def _changes_of_run(self) -> Iterator[Version]:
        """The direct edits that the scene stands at, up to the first whose result is no longer there."""
        run = self.scene.run_folder
        for place in () if run is None else read_history(run, self.scene.name).current:
            assert run is not None
            if not ((run / place / EDIT_RECORD).is_file() and (run / place / SPLATS).is_file()):
                warnings.warn(
                    f"{run / place} is gone; what is shown is the scene before that change, and the next change goes "
                    "on from there",
                    stacklevel=2,
                )
                return
            kept = read_kept(run / place)
            yield Version(kept.label, read_splats(kept.folder / SPLATS).to(self.device), kept)

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
        if self.scene.folder is None and self.scene.file is None:
            return "This scene is in no run folder, which edits are kept in: restage fit CAPTURE makes one."
        return ""

    def undo(self) -> Version:
        """Go back to the version before this one."""
        return self._move(-1, "undo")

    def redo(self) -> Version:
        """Go forward again."""
        return self._move(1, "redo")

    def name_version(self, name: str) -> None:
        """Give the version that is shown a name, which its run keeps; an empty one takes it away."""
        version, run = self.shown, self.scene.run_folder
        if version.kept is None or run is None:
            reason = "it is not written into the run yet" if version.change else "it is the scene before any edit"
            raise InputError(f"what is shown cannot be named: {reason}")
        name_result(run, version.kept.folder, name)
        kept = read_kept(version.kept.folder)
        self.versions[self.position] = replace(version, label=kept.label, kept=kept)

    def _move(self, by: int, what: str) -> Version:
        self._refuse_while_running(what)
        if not 0 <= self.position + by < len(self.versions):
            raise InputError(f"there is nothing to {what}")
        undone, done = (self.shown, None) if by < 0 else (None, self.versions[self.position + by])
        self.position += by
        if undone is not None:
            self.selected = undone.change.region if undone.change else None
            self._undo_in_run(undone)
        if done is not None:
            self.selected = done.change.carried if done.change else None
            self._redo_in_run(done)
        return self.shown

    def _undo_in_run(self, version: Version) -> None:
        run, scene = self.scene.run_folder, self.scene.name
        if run is not None and version.kept is not None and current_change(run, scene) == version.kept.folder:
            undo_change(run, scene)

    def _redo_in_run(self, version: Version) -> None:
        run, scene = self.scene.run_folder, self.scene.name
        if run is not None and version.kept is not None:
            undone = read_history(run, scene).undone
            if undone and run / undone[-1] == version.kept.folder:
                redo_change(run, scene)

    def kept_edits(self) -> list[KeptEdit]:
        """Finished edits of the scene in its run folder, also those that `restage edit` or a demo made."""
        return list_kept(self.scene)

    def open_kept(self, folder: Path) -> Version:
        """Show a finished edit of the run folder; it becomes the next version."""
        self._refuse_while_running("open another edit")
        return self._add_kept(folder)

    def origins(self) -> Int[Tensor, " n"]:
        """Index that each splat that is shown has in the scene before any edit; -1 for what edits added."""
        found = torch.arange(len(self.before))
        for version in self.versions[1 : self.position + 1]:
            if version.change is not None:
                own = version.change.origins.cpu()
                found = torch.where(own >= 0, found[own.clamp_min(0)], -1)
            else:
                assert version.kept is not None and self.scene.run_folder is not None
                found = origins_of(self.scene.run_folder, self.scene.name, version.kept.record_id, len(self.before))
        return found

    def _make_run(self) -> Iterator[EditStep]:
        """Make the run of a scene that came as a file of splats, as `restage edit FILE` does."""
        if self.scene.folder is not None or self.scene.file is None:
            return
        file, out = self.scene.file, Path("runs") / self.scene.name
        yield EditStep(0, 1, 0.0, self.shown.splats, f"making the run {out}")
        with self.computing:
            for _ in take_splats(file, out):
                pass
        made = load_scene(self.scene.name, out / "scenes" / self.scene.name, self.device)
        self.scene = replace(made, splats=self.before, file=file, placed=self.scene.placed)

    def _add_kept(self, folder: Path) -> Version:
        kept = read_kept(folder)
        return self._add(Version(kept.label, read_splats(folder / SPLATS).to(self.device), kept))

    def save_splats(self, path: Path) -> None:
        """Write the version that is shown in the format of the file's name.

        It is in the frame that is shown; splats that were read from a file are turned back to its own.
        """
        splats, placed = self.shown.splats, self.scene.placed if self.scene.file is not None else None
        write_splats(splats if placed is None else move_splats(splats, torch.linalg.inv(placed.change)), path)

    def _add(self, version: Version) -> Version:
        """Put a version after the one that is shown; what could have been redone is dropped from the history."""
        del self.versions[self.position + 1 :]
        self.versions.append(version)
        self.position += 1
        return version

    def _refuse_while_running(self, what: str) -> None:
        if self.is_running:
            raise InputError(f"cannot {what} while an edit is running; wait for its end or stop it")

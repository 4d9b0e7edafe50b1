"""The viewer's state without a browser: scenes, versions with undo and redo, and the one edit that may run.

`page.py` shows it; anything else, such as a test or a notebook, can drive it the same way.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from restage.edit.direct.changes import (
    current_change,
    describe_operation,
    open_change,
    read_history,
    redo_change,
    undo_change,
)
from restage.edit.direct.cleaning import find_floaters
from restage.edit.direct.operations import OPERATIONS, Operation, carry_weights
from restage.edit.editors import OpenEditors
from restage.edit.job import EditStep
from restage.edit.methods.remove import Remove
from restage.edit.origins import origins_of
from restage.edit.single import EditChoice, OpenedEdit, StartingPoint, find_case, open_edit
from restage.records import EditRequest, InputError
from restage.regions.files import list_regions, read_region, write_region
from restage.regions.growing import grow_from, seeds_at
from restage.regions.making import RegionMaker
from restage.regions.masks import INSIDE
from restage.regions.region import Region, combine, splats_sha256
from restage.run.folder import open_run, working
from restage.run.layout import SPLATS
from restage.scenes.cameras import Cameras
from restage.scenes.io.splat_files import read_splats, write_splats
from restage.scenes.splats import Splats
from restage.scenes.taken import take_splats
from restage.scenes.turning import move_splats
from restage.view.scene import KeptEdit, ViewScene, list_kept, load_scene, open_scenes, read_kept
from restage.view.versions import BEFORE, SELECTION, Change, Clicked, EditStopped, Version, stop_between_layers

__all__ = ["ViewSession"]


class ViewSession:
    """What one `restage view` holds.

    Reading and rendering may happen in any thread; `computing` is held while the rasterizer or a step of an edit
    runs, so that two threads never share its pool. Direct edits are shown at once; `keep` writes them into the run.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Open a path (see `open_scenes`), to be shown and edited on a device."""
        self.scenes, self.device = open_scenes(path), device
        self.computing = threading.RLock()
        self._editors = OpenEditors(max_open=1)
        self._running = threading.Lock()
        self._keeping = threading.Lock()
        self._stop = threading.Event()
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
        self.selected_name = SELECTION
        self._clicked: Clicked | None = None
        self._maker: RegionMaker | None = None
        self._asked_case: str | None = None

    def _changes_of_run(self) -> Iterator[Version]:
        """The direct edits that the scene stands at."""
        if self.scene.run_folder is not None:
            for place in read_history(self.scene.run_folder, self.scene.name).current:
                kept = read_kept(self.scene.run_folder / place)
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

    def select(self, region: Region | None, how: Literal["new", "add", "take"] = "new", *, name: str = "") -> None:
        """Choose splats: instead of those that are chosen, beside them, or taken away from them.

        `region` belongs to the splats that are shown; None chooses none. The name is that of a region of the run.
        """
        old = self.selected
        if region is not None and old is not None and how == "add":
            region = combine("or", old, region)
        elif region is not None and how == "take":
            region = None if old is None else combine("and", old, combine("not", region))
        self.selected = region if region is not None and bool(region.inside.any()) else None
        self.selected_name, self._clicked = name or SELECTION, None

    def maker(self) -> RegionMaker:
        """The ways to make regions of the scene before any edit; a file of splats gets its run for them."""
        if self.why_not_edit:
            raise InputError(self.why_not_edit)
        for _ in self._make_run():
            pass
        assert self.scene.folder is not None
        if self._maker is None:
            self._maker = RegionMaker(self.scene.folder, splats=self.before, capture=self.scene.capture)
        return self._maker

    def choose_object(self, camera: Cameras, place: tuple[float, float], how: Literal["new", "add", "take"]) -> None:
        """Choose the thing that a camera (n = 1) sees at a place, in shares of its picture's width and height.

        Beside what was chosen by clicks before, the click says what else belongs to the thing, or what does not.
        """
        graph = self.maker().graph
        seeds = self.origins()[seeds_at(self.shown.splats, camera, *place)]
        seeds = seeds[seeds >= 0]
        if not len(seeds):
            raise InputError("an edit added what is there; choose it with the brush, a box or the lasso")
        clicked = self._clicked if self._clicked is not None and how != "new" else None
        positive, negative = clicked or (seeds.new_empty(0), seeds.new_empty(0))
        if clicked is not None and how == "take":
            negative = torch.cat([negative, seeds]).unique()
        else:
            positive = torch.cat([positive, seeds]).unique()
        weights = grow_from(graph, positive, negative)
        points = [[round(value, 6) for value in self.before.means[seed].tolist()] for seed in positive[:8].tolist()]
        region = Region.of(self.before, weights, by="clicks", points=points)
        self.select(self.carry(region), "new" if clicked is not None else how)
        self._clicked = Clicked(positive, negative) if clicked is not None or how == "new" else None

    def choose_by_words(self, words: str) -> None:
        """Choose what words say, such as "the bear"."""
        if not words.strip():
            raise InputError('expected words, such as "the bear"')
        self.select(self.carry(self.maker().by_words(words.strip())), name=words.split()[-1].lower())

    def choose_floaters(self) -> None:
        """Choose floaters and haze, to be looked at and deleted."""
        found = find_floaters(self.before, self.maker().capture).is_found
        if not bool(found.any()):
            raise InputError("no floaters were found")
        self.select(self.carry(Region.of(self.before, found.float(), by="floaters")), name="floaters")

    def chosen(self) -> Region:
        """The splats that are chosen; refuses none."""
        if self.selected is None:
            raise InputError("no splats are chosen; choose a tool under Region and click at something")
        return self.selected

    def regions(self) -> list[str]:
        """Names of the regions in the run that belong to the scene before any edit, or to what is shown."""
        if self.scene.run_folder is None:
            return []
        hashes = {splats_sha256(self.before), splats_sha256(self.shown.splats)}
        found = list_regions(self.scene.run_folder, self.scene.name)
        return [name for name, record in found.items() if record.splats_sha256 in hashes]

    def open_region(self, name: str) -> None:
        """Choose the splats of a region of the run; one of the scene before any edit is carried along."""
        run, shown = self.scene.run_folder, self.shown.splats
        if run is None:
            raise InputError("this scene is in no run, which regions are kept in")
        region = read_region(run, self.scene.name, name)
        if region.splats_sha256 != splats_sha256(shown):
            region.check_fits(self.before, name)
            region = self.carry(region)
        self.select(region, name=name)

    def carry(self, region: Region) -> Region:
        """Return a region of the scene before any edit as one of what is shown; what edits added is not in it."""
        if self.shown.splats is self.before:
            return region
        weights = carry_weights(region.weights, self.origins())
        return Region.of(self.shown.splats, weights, by="carried", of=[region.id])

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

    def save_region(self, name: str) -> None:
        """Write the chosen splats into the run as a region."""
        region = self.chosen()
        for _ in self._make_run():
            pass
        assert self.scene.run_folder is not None
        write_region(self.scene.run_folder, self.scene.name, name, region)
        self.selected_name = name

    def change(self, operation: Operation) -> Version:
        """Make a direct edit of the chosen splats, which becomes the next version at once; `keep` writes it."""
        if self.why_not_edit:
            raise InputError(self.why_not_edit)
        self._refuse_while_running("change splats")
        region, splats = self.chosen(), self.shown.splats
        weights = region.weights.to(splats.means.device)
        changed = operation.apply(splats, weights)
        left = carry_weights(weights, changed.origins)
        carried = (
            Region.of(changed.splats, left, by="carried", of=[region.id]) if bool((left >= INSIDE).any()) else None
        )
        name = next(name for name, kind in OPERATIONS.items() if type(operation) is kind)
        label = describe_operation(name, operation, self.selected_name)
        change = Change(operation, region, self.selected_name, changed.origins, carried)
        version = self._add(Version(label, changed.splats, change=change))
        self.selected = carried
        return version

    @property
    def has_unkept(self) -> bool:
        """Whether a direct edit that leads to what is shown is not in the run yet."""
        return self._first_unkept() is not None

    def _first_unkept(self) -> int | None:
        path = self.versions[: self.position + 1]
        return next((index for index, one in enumerate(path) if one.change and not one.kept), None)

    def keep(self) -> Iterator[EditStep]:
        """Write the direct edits that lead to what is shown into the run, as `restage change` does.

        What is undone before its turn comes is not written; what is undone while it is written counts as undone.
        """
        with self._keeping:
            while (index := self._first_unkept()) is not None:
                version, before = self.versions[index], self.versions[index - 1]
                yield from self._make_run()
                kept = read_kept((yield from self._write(version, before)))
                if index < len(self.versions) and self.versions[index] is version:
                    self.versions[index] = version = replace(version, kept=kept)
                if version not in self.versions[: self.position + 1]:
                    self._undo_in_run(replace(version, kept=kept))

    def _write(self, version: Version, before: Version) -> Generator[EditStep, None, Path]:
        assert self.scene.folder is not None and self.scene.run_folder is not None and version.change is not None
        change = version.change
        with working(open_run(self.scene.run_folder), "edit") as run:
            with self.computing:
                opened = open_change(
                    run,
                    self.scene.folder,
                    change.operation,
                    region=change.region,
                    region_name=change.region_name,
                    start=before.start,
                    device=self.device,
                )
            yield from self._steps(opened)
        return opened.folder

    def _steps(self, opened: OpenedEdit) -> Iterator[EditStep]:
        while True:
            with self.computing:
                step = next(opened.steps, None)
            if step is None:
                return
            yield step

    def _stoppable(self, opened: OpenedEdit) -> Iterator[EditStep]:
        for step in self._steps(opened):
            if self._stop.is_set():
                raise EditStopped("stopped by the user")
            yield step

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

    def remove(self) -> Iterator[EditStep]:
        """Take what is chosen away and fill its place, as `restage change remove` does; it becomes the next version."""
        region, name = self.chosen(), self.selected_name
        with self._alone():
            for step in self.keep():
                yield step._replace(splats=self.shown.splats)
            yield from self._make_run()
            assert self.scene.folder is not None and self.scene.run_folder is not None
            with working(open_run(self.scene.run_folder), "edit") as run, stop_between_layers(self._stop):
                with self.computing:
                    opened = open_change(
                        run,
                        self.scene.folder,
                        Remove(fill="plain"),
                        region=region,
                        region_name=name,
                        start=self.shown.start,
                        device=self.device,
                    )
                yield from self._stoppable(opened)
            self._add_kept(opened.folder)
        self.select(None)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse while another edit is running; else nothing else runs meanwhile, until it is stopped."""
        if not self._running.acquire(blocking=False):
            raise InputError("an edit is running; wait for its end or stop it")
        try:
            self._stop.clear()
            yield
        finally:
            self._running.release()

    def _add_kept(self, folder: Path) -> Version:
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
        with self._alone():
            for step in self.keep():  # what is edited further has to be in the run, which only one may write to
                yield step._replace(splats=self.shown.splats)
            yield from self._make_run()
            start = self.shown.start if is_chained else None
            self._add_kept((yield from self._run(request, choice, start)))

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
            yield from self._stoppable(opened)
            return opened.folder

    def stop(self) -> None:
        """Ask the running edit to stop; it does so at its next step, or between two layers of its model."""
        self._stop.set()

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

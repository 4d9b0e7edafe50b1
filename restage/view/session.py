"""The viewer's state without a browser: scenes, versions with undo and redo, and the one edit that may run.

`page.py` shows it; anything else, such as a test or a notebook, can drive it the same way.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from restage.edit.direct.changes import describe_operation, open_change
from restage.edit.direct.operations import OPERATIONS, Operation, carry_weights
from restage.edit.editors import OpenEditors
from restage.edit.job import EditStep
from restage.edit.methods.remove import Remove
from restage.edit.single import EditChoice, StartingPoint, find_case, open_edit
from restage.generate.scene import SceneOrder, grow_scenes
from restage.records import EditRequest, InputError
from restage.regions.masks import INSIDE
from restage.regions.region import Region
from restage.run.folder import open_run, working
from restage.view.choice import SceneChoice
from restage.view.scene import open_scenes, read_kept
from restage.view.versions import Change, EditStopped, Version, stop_between_layers

__all__ = ["ViewSession"]

_Step = TypeVar("_Step")


class ViewSession(SceneChoice):
    """What one `restage view` holds. Direct edits are shown at once; `keep` writes them into the run."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Open a path (see `open_scenes`), to be shown and edited on a device."""
        super().__init__(path, device)
        self._editors = OpenEditors(max_open=1)
        self._keeping = threading.Lock()
        self._stop = threading.Event()

    def change(self, operation: Operation) -> Version:
        """Make a direct edit of the chosen splats, which becomes the next version at once; `keep` writes it."""
        if self.why_not_edit:
            raise InputError(self.why_not_edit)
        self._refuse_while_running("change splats")
        region, splats = self.chosen(), self.shown.splats
        weights = region.weights.to(splats.means.device)
        changed = operation.apply(splats, weights)
        if not len(changed.splats):
            raise InputError("the whole scene is chosen; nothing would be left of it")
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
            yield from self._steps(opened.steps)
        return opened.folder

    def _steps(self, steps: Iterator[_Step]) -> Iterator[_Step]:
        while True:
            with self.computing:
                step = next(steps, None)
            if step is None:
                return
            yield step

    def _stoppable(self, steps: Iterator[_Step]) -> Iterator[_Step]:
        for step in self._steps(steps):
            if self._stop.is_set():
                raise EditStopped
            yield step

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
                yield from self._stoppable(opened.steps)
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
            yield from self._stoppable(opened.steps)
            return opened.folder

    def generate(self, order: SceneOrder) -> Iterator[EditStep]:
        """Make scenes from captions in the run, as `restage generate` does; the last one is then shown.

        They are made on the session's device. What is stopped goes on when it is asked for again.

        Yields:
            Every step; its splats can be shown.
        """
        if self.why_not_edit:
            raise InputError(self.why_not_edit)
        with self._alone():
            for step in self.keep():
                yield step._replace(splats=self.shown.splats)
            yield from self._make_run()
            assert self.scene.run_folder is not None
            name, run = "", self.scene.run_folder
            scenes = grow_scenes(run, replace(order, device=self.device))
            try:
                with contextlib.closing(scenes), stop_between_layers(self._stop):
                    for name, number, count, step in self._stoppable(scenes):
                        done = number * step.num_steps + step.step
                        yield EditStep(done, count * step.num_steps, step.loss, step.splats, f"{name}: {step.note}")
            except EditStopped:
                raise EditStopped("Stopped; the same caption, generator and seed go on from here.") from None
            self.scenes = open_scenes(run)
        self.choose_scene(name)

    def stop(self) -> None:
        """Ask the running edit to stop; it does so at its next step, or between two layers of its model."""
        self._stop.set()

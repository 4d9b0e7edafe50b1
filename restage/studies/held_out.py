"""Keeps methods away from held-out views: while one runs, the study's scenes and results are closed to its process.

Three things keep them apart: a method is given training views only (`EditJob`), the editor refuses to edit others, and
files that are opened all the same are seen by an audit hook. A method that reaches past any of these has failed, even
if it caught the error. What no hook of Python sees, such as a compiled reader with a path of its own, is not caught.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from restage.edit.editors.interface import Edited, Editor, ScoreModel, ViewBatch, can_share_attention, score_model_of
from restage.edit.job import EditJob, EditStep, Method
from restage.records import InputError

__all__ = ["GuardedEditor", "GuardedMethod", "HeldOutRead", "closed_folders"]


class HeldOutRead(Exception):  # noqa: N818 - what happened, as it stands in the row's reason
    """A method reached for what it must not see."""


@dataclass
class _Watch:
    """Paths that are closed while a method runs, and those that were opened anyway."""

    closed: tuple[str, ...]
    allowed: frozenset[str]
    reads: list[str] = field(default_factory=list)


_watches: list[_Watch] = []
_installed: list[bool] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watches or event not in ("open", "os.listdir", "os.scandir", "shutil.copyfile", "os.rename", "os.link"):
        return
    if not arguments or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = os.path.realpath(os.fsdecode(arguments[0]))
    for watch in _watches:
        if path not in watch.allowed and (path + os.sep).startswith(watch.closed):
            watch.reads.append(path)
            raise HeldOutRead(f"opened {path}, which is closed while a method runs")


@contextlib.contextmanager
def closed_folders(*folders: Path, allowed: frozenset[str] = frozenset()) -> Iterator[list[str]]:
    """Within it, opening anything in these folders raises `HeldOutRead` in this process, in any of its threads.

    Files that are `allowed`, as real paths, may be opened. Yields what was opened even if the error was caught.
    """
    if not _installed:
        sys.addaudithook(_audit)  # a hook cannot be taken away again; without a watch it does nothing
        _installed.append(True)
    watch = _Watch(tuple(os.path.realpath(folder) + os.sep for folder in folders), allowed)
    _watches.append(watch)
    try:
        yield watch.reads
    finally:
        _watches.remove(watch)


@dataclass(frozen=True)
class GuardedEditor:
    """An editor that edits training views and no others: the exact editor would hand out held-out truth."""

    editor: Editor | None
    """The editor that does the work; None for methods that ask none."""
    view_indices: frozenset[int] | None
    """Indices of the training views in the whole capture; None for anchors, which may edit any view."""

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit a batch of training views; see `Editor.edit`."""
        others = [] if self.view_indices is None else sorted(set(batch.view_indices) - self.view_indices)
        if others:
            for watch in _watches:
                watch.reads.append(f"view {others[0]}")
            raise HeldOutRead(f"asked the editor for views {others}, which are held out")
        return self._inner().edit(batch)

    @property
    def shares_attention(self) -> bool:
        """Whether the editor lets views attend to each other."""
        return self.editor is not None and can_share_attention(self.editor)

    def scores(self) -> ScoreModel:
        """The score model of the editor; what it reads is watched as well."""
        return score_model_of(self._inner())

    def _inner(self) -> Editor:
        if self.editor is None:
            raise InputError("this method was run without an editor, but asks for one; name its editors in the study")
        return self.editor


@dataclass(frozen=True)
class GuardedMethod:
    """A method that is kept away from held-out views, and stopped when its time is up.

    What is closed is no field of it, since fields stand in records, and paths are no part of a result.
    """

    settings: Method
    time_cap_s: float | None = None
    closed: InitVar[tuple[Path, ...]] = ()
    """Folders that it must not open anything in."""
    allowed: InitVar[frozenset[str]] = frozenset()
    """Files in there that it may, as real paths: the truth of training views, which the exact editor hands out."""

    def __post_init__(self, closed: tuple[Path, ...], allowed: frozenset[str]) -> None:
        object.__setattr__(self, "_guard", (closed, allowed))

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Run the method step by step."""
        closed, allowed = getattr(self, "_guard")  # noqa: B009 - set above, and no field
        started_s = time.perf_counter()
        steps = None
        while True:
            with closed_folders(*closed, allowed=allowed) as reads:
                steps = iter(self.settings.run(job)) if steps is None else steps
                step = next(steps, None)
            if reads:
                raise HeldOutRead(f"the method read held-out data: {reads[0]}")
            if step is None:
                return
            yield step
            if self.time_cap_s is not None and time.perf_counter() - started_s > self.time_cap_s:
                return

"""States that a scene goes through in the viewer: what made each, and how the making of one is stopped."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from restage.edit.direct.operations import Operation
from restage.edit.single import StartingPoint
from restage.regions.region import Region
from restage.scenes.splats import Splats
from restage.view.scene import KeptEdit

__all__ = ["BEFORE", "Change", "Clicked", "EditStopped", "SELECTION", "Version", "stop_between_layers"]

BEFORE = "before"
SELECTION = "selection"
"""What splats that were chosen in the viewer are called until the user gives them a name."""


class EditStopped(KeyboardInterrupt):
    """The user stopped the edit; a run records it like Ctrl-C, and no handler of errors takes it for one."""

    def __init__(self, what_is_left: str = "Stopped; nothing was kept.") -> None:
        super().__init__(what_is_left)


class Clicked(NamedTuple):
    """Splats of the scene before any edit that clicks said to belong to a thing, and not to belong to it."""

    positive: Int[Tensor, " seeds"]
    negative: Int[Tensor, " others"]


@dataclass(frozen=True)
class Change:
    """A direct edit that was made in the viewer."""

    operation: Operation
    region: Region  # of the splats before it
    region_name: str
    origins: Int[Tensor, " n"]  # index that each splat had before it, -1 for copies
    carried: Region | None  # the same region of the splats after it; None where nothing is left of it


@dataclass(frozen=True)
class Version:
    """One state of the scene in the history."""

    label: str
    splats: Splats
    kept: KeptEdit | None = None
    """The edit that made it, in the run; None for the scene before any edit, and for changes not written yet."""
    change: Change | None = None
    """The direct edit that made it; None for what an editor or another session made."""

    @property
    def start(self) -> StartingPoint | None:
        """What an edit of this version starts from."""
        return None if self.kept is None else StartingPoint(self.splats, self.kept.record_id)


@contextlib.contextmanager
def stop_between_layers(stop: threading.Event) -> Iterator[None]:
    """Raise `EditStopped` in this thread before the next layer of any torch module once `stop` is set.

    An editor works for up to a minute in one call on a small machine, which is longer than a user waits.
    """
    thread = threading.get_ident()

    def check(module: torch.nn.Module, inputs: object) -> None:
        if stop.is_set() and threading.get_ident() == thread:
            raise EditStopped

    handle = torch.nn.modules.module.register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()

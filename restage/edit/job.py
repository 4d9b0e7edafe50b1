"""What an edit method gets and what it yields; `stage.py` makes the one and writes the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from restage.edit.editors.interface import Editor
from restage.records import EditRequest, InputError
from restage.scenes.capture import Capture
from restage.scenes.splats import Splats

__all__ = ["EditJob", "EditStep", "Method"]


@dataclass(frozen=True)
class EditJob:
    """One edit of one scene with one editor and seed.

    Raises:
        InputError: the capture holds a held-out view, has no view at all, or the indices do not fit it.
    """

    splats: Splats
    """The fitted scene before the edit; a method works on a copy."""
    capture: Capture
    """Training views only: a method never gets held-out images or cameras."""
    view_indices: tuple[int, ...]
    """Index of each of those views in the whole capture, which editors know them by."""
    request: EditRequest
    editor: Editor
    seed: int

    def __post_init__(self) -> None:
        if self.capture.held_out_indices:
            raise InputError(
                f"{self.capture.name}: expected training views only, got held-out views "
                f"{self.capture.held_out_indices}; pass capture.select(capture.train_indices)"
            )
        if not self.view_indices or len(self.view_indices) != len(self.capture.cameras):
            raise InputError(
                f"{self.capture.name}: expected an index for each of at least one training view, "
                f"got {len(self.view_indices)} for {len(self.capture.cameras)}"
            )


class EditStep(NamedTuple):
    """Where a method stands; its splats can be used at any moment."""

    step: int
    """Steps done so far."""
    num_steps: int
    loss: float
    """Of the last fit step; 0 where a method has none."""
    splats: Splats
    """Without gradients; the last step of a method holds the result."""
    note: str
    """What is being done, for the user to read."""


@runtime_checkable
class Method(Protocol):
    """A method is a frozen dataclass of its settings."""

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Edit the scene; yields at least one step."""
        ...

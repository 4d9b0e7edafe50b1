"""What an edit method gets and what it yields; `results.py` makes the one and writes the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from restage.edit.editors.interface import Editor, NoiseKeys, ViewBatch, can_share_attention
from restage.edit.sharing.views import ViewSharing
from restage.records import EditRequest, InputError
from restage.scenes.capture import Capture
from restage.scenes.splats import Splats

__all__ = ["EditJob", "EditStep", "Method", "needs_editor"]


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

    def batch(
        self,
        chosen: Sequence[int],
        views: Float[Tensor, "batch 3 height width"] | None = None,
        *,
        noise_level: float,
        seed: int,
        noise_keys: NoiseKeys = None,
        sharing: ViewSharing | None = None,
    ) -> ViewBatch:
        """Training views for the editor to edit.

        Args:
            chosen: Which of the training views.
            views: Their current renders; None to start from the unedited views.
            noise_level: See `ViewBatch`, as for all that follow.
            seed: Seed of the noise.
            noise_keys: Which noise each view starts from.
            sharing: How the views attend to each other; ignored where the editor cannot share attention.
        """
        originals = self.capture.images[list(chosen)]
        return ViewBatch(
            originals if views is None else views,
            originals,
            request=self.request,
            view_indices=tuple(self.view_indices[view] for view in chosen),
            noise_level=noise_level,
            seed=seed,
            noise_keys=noise_keys,
            sharing=sharing if can_share_attention(self.editor) else None,
        )

    @classmethod
    def of(cls, splats: Splats, capture: Capture, request: EditRequest, editor: Editor, seed: int) -> EditJob:
        """Returns a job on the training views of a whole capture.

        Raises:
            InputError: there are none.
        """
        views = tuple(capture.train_indices)
        return cls(splats, capture.select(views), views, request, editor, seed)


class EditStep(NamedTuple):
    """A step of a method; its splats can be used at any moment."""

    step: int
    """Steps done so far."""
    num_steps: int
    loss: float
    """Loss of the last fit step; 0 where a method has none."""
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


def needs_editor(method: Method | type[Method]) -> bool:
    """Whether a method asks an editor; all do but those whose class says `needs_editor: ClassVar[bool] = False`."""
    return getattr(method, "needs_editor", True)

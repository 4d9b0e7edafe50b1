"""The border between 2D editors and 3D methods: a batch of views in, edited views and soft masks out.

Methods that distil ask for noise predictions instead: a `ScoreModel`, which an editor may offer beside its edits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from restage.diffusion.edited import Edited
from restage.diffusion.sampler import initial_noise
from restage.diffusion.schedule import Schedule
from restage.edit.sharing.anchored_noise import AnchoredNoise
from restage.edit.sharing.views import ViewSharing
from restage.records import EditRequest, InputError, derive_seed

__all__ = [
    "Branches",
    "Edited",
    "Editor",
    "EditorFactory",
    "EditorSource",
    "EditsTogether",
    "NoiseKeys",
    "OffersScores",
    "PredictNoise",
    "ScoreModel",
    "draw_noise",
    "edit_together",
    "noise_seeds",
    "score_model_of",
]


NoiseKeys = tuple[int, ...] | AnchoredNoise | None
"""What, with a seed, says which noise each view of a batch starts from; see `Editor.edit`."""


@runtime_checkable
class Editor(Protocol):
    """Edits views by text."""

    def edit(
        self,
        views: Float[Tensor, "b 3 h w"],
        originals: Float[Tensor, "b 3 h w"],
        request: EditRequest,
        *,
        view_indices: tuple[int, ...],
        noise_level: float,
        seed: int,
        noise_keys: NoiseKeys = None,
    ) -> Edited:
        """Edit a batch of views of one scene.

        Args:
            views: Current renders, which the partial noise starts from.
            originals: The condition, always the unedited views.
            request: What to do.
            view_indices: Which view of the whole capture each one is.
            noise_level: In (0, 1], the share of the noise schedule that the edit starts at; 1 forgets `views`.
            seed: Seed of the noise.
            noise_keys: With `seed`, all that the noise of each view depends on; views of equal keys share their
                noise. Default: `view_indices`, so that the noise of a view does not depend on the batch. Or noise that
                belongs to the scene's surfaces, which is drawn with `seed` for these views.
        """
        ...


@runtime_checkable
class PredictNoise(Protocol):
    """Predicts the noise in latents of one view, under one condition."""

    def __call__(self, latents: Float[Tensor, "1 c h w"], timestep: int, guidance: float | None) -> Tensor:
        """Predict, without gradients.

        Args:
            latents: Noisy latents at `timestep`.
            timestep: Step of the schedule, 0 for nearly clean.
            guidance: Strength of the text; None for what the model is best used with.
        """
        ...


class Branches(NamedTuple):
    """The two predictions that distillation compares, of one view."""

    edited: PredictNoise
    """Told what to do, or shown the caption of the edited scene."""
    source: PredictNoise
    """Told nothing (an edit model keeps its guidance on the original), or shown the caption of the scene as it is."""


@runtime_checkable
class ScoreModel(Protocol):
    """A diffusion model as distillation uses it."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that timesteps count in."""
        ...

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Latents of pictures in [0, 1]; gradients reach the pictures."""
        ...

    def branches(
        self, original: Float[Tensor, "1 3 h w"], request: EditRequest, *, view_index: int, seed: int
    ) -> Branches:
        """Prepare the predictions of one view.

        Args:
            original: The unedited view.
            request: What to do.
            view_index: Which view of the whole capture it is.
            seed: Of whatever is drawn here; models draw nothing.
        """
        ...


@runtime_checkable
class OffersScores(Protocol):
    """An editor that distillation can use: all of the menu but `pipeline`, which hides its predictions."""

    def scores(self) -> ScoreModel:
        """The model behind the editor."""
        ...


def score_model_of(editor: Editor) -> ScoreModel:
    """The score model that an editor offers.

    Raises:
        InputError: it offers none.
    """
    if not isinstance(editor, OffersScores):
        raise InputError(
            f"this method distils noise predictions, which {type(editor).__name__} does not offer; "
            "choose another editor, such as edit_model"
        )
    return editor.scores()


@runtime_checkable
class EditsTogether(Protocol):
    """An editor whose views can share their attention: an edit model with the layers of Stable Diffusion."""

    def edit_together(
        self,
        views: Float[Tensor, "b 3 h w"],
        originals: Float[Tensor, "b 3 h w"],
        request: EditRequest,
        *,
        view_indices: tuple[int, ...],
        noise_level: float,
        seed: int,
        sharing: ViewSharing,
    ) -> Edited:
        """As `Editor.edit`, all views in one batch, with attention between them as `sharing` says."""
        ...


def edit_together(
    editor: Editor,
    views: Float[Tensor, "b 3 h w"],
    originals: Float[Tensor, "b 3 h w"],
    request: EditRequest,
    *,
    view_indices: tuple[int, ...],
    noise_level: float,
    seed: int,
    sharing: ViewSharing,
) -> Edited:
    """Edit views as one where the editor can; else, since there is nothing to share, each by itself."""
    options: dict[str, Any] = {"view_indices": view_indices, "noise_level": noise_level, "seed": seed}
    if isinstance(editor, EditsTogether):
        return editor.edit_together(views, originals, request, **options, sharing=sharing)
    return editor.edit(views, originals, request, **options, noise_keys=sharing.noise)


@dataclass(frozen=True)
class EditorSource:
    """What an editor may be made from; each takes what it needs and says what is missing."""

    file_names: tuple[str, ...] = ()
    """Of every view of the whole capture, in order."""
    truth: Path | None = None
    """Truth folder of the edit, where it exists."""
    model: Path | None = None
    """Folder of the model."""
    device: str = "cpu"
    """Where the model computes, such as `cuda`; views go in and come out on the CPU."""


EditorFactory = Callable[[EditorSource], Editor]


def noise_seeds(seed: int, view_indices: tuple[int, ...], noise_keys: tuple[int, ...] | None) -> Sequence[int]:
    """Seed of the noise of each view, from the seed and the view's noise key alone."""
    return [derive_seed(seed, "view noise", key) for key in (view_indices if noise_keys is None else noise_keys)]


def draw_noise(
    shape: Sequence[int], *, seed: int, view_indices: tuple[int, ...], noise_keys: NoiseKeys
) -> Float[Tensor, "b c h w"]:
    """Unit noise of each view of a batch, of `shape` (c, h, w); see `Editor.edit`."""
    if isinstance(noise_keys, AnchoredNoise):
        return noise_keys.draw(shape, seed)
    return initial_noise(shape, noise_seeds(seed, view_indices, noise_keys))

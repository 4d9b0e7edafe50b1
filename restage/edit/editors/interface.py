"""The border between 2D editors and 3D methods: a `ViewBatch` in, edited views and soft masks out.

Methods that distill ask for noise predictions instead: a `ScoreModel`, which an editor may offer beside its edits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.sampling import Edited, initial_noise
from restage.diffusion.schedule import Schedule
from restage.edit.sharing import AnchoredNoise, CarriedNoise, Sharing, ViewLayout
from restage.records import EditRequest, InputError, derive_seed
from restage.run.endpoint_config import EndpointConfig
from restage.scenes.references import ShownPicture

__all__ = ["MAX_DRIFT", "AnchorForm", "AskedPictures", "Branches", "Edited", "Editor", "EditorFactory", "EditorSource"]
__all__ += ["ClipScores", "KnownScores", "NoiseKeys", "PredictNoise", "ReadKeys", "ScoreModel", "SeededNoise"]
__all__ += ["ViewBatch", "can_share_attention", "hold_outside", "score_model_of"]


@dataclass(frozen=True)
class SeededNoise:
    """Noise of each view from a seed of its own, as a server is told it."""

    seeds: tuple[int, ...]


NoiseKeys = tuple[int, ...] | AnchoredNoise | CarriedNoise | SeededNoise | None
"""Says, together with a seed, which noise each view of a batch starts from; see `ViewBatch.noise_keys`."""


@dataclass(frozen=True)
class ViewBatch:
    """Views of one scene, with all that an editor is told about editing them."""

    views: Float[Tensor, "batch 3 height width"]  # current renders, which the partial noise starts from
    originals: Float[Tensor, "batch 3 height width"]  # the unedited views, which the edit is conditioned on
    _: KW_ONLY
    request: EditRequest  # what to do
    view_indices: tuple[int, ...]  # index of each view in the whole capture
    noise_level: float  # share of the noise schedule that the edit starts at, in (0, 1]; 1 forgets `views`
    seed: int  # seed of the noise
    noise_keys: NoiseKeys = None
    """With `seed`, all that the noise of each view depends on: views with equal keys share their noise. None stands for
    `view_indices`, so that the noise of a view does not depend on the batch. `AnchoredNoise` belongs to the surfaces
    that these views show, `CarriedNoise` to the points of a clip."""
    sharing: Sharing | None = None
    """How the views attend to each other; None to edit each by itself, as an editor does that cannot share attention
    (`can_share_attention`)."""
    layout: ViewLayout | None = None
    """What holds the views where they are painted anew, for editors that can (`text_to_image`); None for nothing."""
    references: tuple[ShownPicture, ...] = ()
    """Pictures that the instruction may name, for editors that take several (`takes_references`)."""
    regions: Float[Tensor, "batch height width"] | None = None
    """Where each view may change, 1 inside, for editors that take masks; None for everywhere."""
    join_masks: Callable[[Sequence[int], Tensor], Tensor] | None = None
    """Makes masks of some of these views, by their places, agree through the splats of their scene; for editors without
    masks of their own."""
    may_leave_out: bool = False
    """Whether the method can do without some views (`Edited.left_out`); otherwise an editor that cannot edit one
    raises."""

    def __post_init__(self) -> None:
        keys = len(self.noise_keys) if isinstance(self.noise_keys, tuple) else len(self.view_indices)
        if self.views.shape != self.originals.shape or not len(self.views) == len(self.view_indices) == keys:
            raise InputError(
                "expected as many originals (of the same size), view indices and noise keys as views, got views "
                f"{tuple(self.views.shape)}, originals {tuple(self.originals.shape)}, {len(self.view_indices)} "
                f"indices and {keys} keys"
            )
        if not 0 < self.noise_level <= 1:
            raise InputError(f"expected a noise level in (0, 1], got {self.noise_level}")

    def select(self, places: Sequence[int]) -> ViewBatch:
        """Some views of the batch, each by itself: they share neither attention nor layout, nor have masks joined."""
        chosen, keys = list(places), self.noise_keys
        if isinstance(keys, AnchoredNoise | CarriedNoise):
            keys = keys.select(chosen)
        elif isinstance(keys, SeededNoise):
            keys = SeededNoise(tuple(keys.seeds[place] for place in chosen))
        elif keys is not None:
            keys = tuple(keys[place] for place in chosen)
        return replace(
            self,
            views=self.views[chosen],
            originals=self.originals[chosen],
            view_indices=tuple(self.view_indices[place] for place in chosen),
            noise_keys=keys,
            sharing=None,
            layout=None,
            regions=None if self.regions is None else self.regions[chosen],
            join_masks=None,
        )

    def draw_noise(self, shape: Sequence[int]) -> Float[Tensor, "batch channels rows columns"]:
        """Unit noise for each view, on latents of this shape (channels, rows, columns)."""
        if isinstance(self.noise_keys, AnchoredNoise | CarriedNoise):
            return self.noise_keys.draw(shape, self.seed)
        return initial_noise(shape, self.noise_seeds())

    def noise_seeds(self) -> tuple[int, ...]:
        """The seed that the noise of each view is drawn from, unless it is anchored, which is an InputError."""
        if isinstance(self.noise_keys, SeededNoise):
            return self.noise_keys.seeds
        if isinstance(self.noise_keys, AnchoredNoise):
            raise InputError("noise that belongs to the surfaces of a scene is drawn from no seed of a single view")
        keys = self.view_indices if self.noise_keys is None else self.noise_keys
        if isinstance(keys, CarriedNoise):  # frames of a clip differ by little, and so does the same noise for all
            keys = (0,) * len(self.view_indices)
        return tuple(derive_seed(self.seed, "view noise", key) for key in keys)


class AnchorForm(NamedTuple):
    """How an editor is shown an edited view that the others are to follow."""

    is_grid: bool  # as part of one picture, since the editor takes no second one
    words: str  # what is added to the instruction
    takes_mask: bool = False  # whether a grid comes with a mask of the part that is to change


class AskedPictures(NamedTuple):
    """What a method asks its editor for, as far as that is known beforehand."""

    count: int  # views that it has edited
    from_renders: bool  # whether some edits start from renders, with less than full noise


@runtime_checkable
class Editor(Protocol):
    """Edits views by text; what it returns lies on the device of the views."""

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit a batch of views of one scene."""
        ...


def hold_outside(batch: ViewBatch, edited: Edited) -> Edited:
    """Undo what an editor changed outside of the regions of a batch, which few editors look at."""
    if batch.regions is None:
        return edited
    inside = batch.regions > 0
    return edited._replace(
        images=torch.where(inside[:, None], edited.images, batch.originals), masks=edited.masks * inside
    )


PredictNoise = Callable[[Tensor, int, float | None], Tensor]
"""Predicts the noise in latents "1 c h w" of one view, without gradients: (latents, timestep, guidance) -> noise. The
timestep counts steps of the schedule, 0 for nearly clean; guidance is the text's strength, None for the model's own."""


class Branches(NamedTuple):
    """The two predictions that distillation compares, of one view."""

    edited: PredictNoise  # told what to do, or shown the caption of the edited scene
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
        """Prepare the predictions of one view, by its index in the whole capture; models draw nothing by the seed."""
        ...


ReadKeys = Callable[[Tensor, int, bool], list[Tensor]]
"""Reads the keys of a UNet's self-attention layers, "n tokens c" each, with gradients to the latents "n c h w":
(latents, timestep, is_edited) -> keys; `is_edited` tells which branch's text the model is shown."""


@runtime_checkable
class ClipScores(ScoreModel, Protocol):
    """A score model that clips can be distilled with: `branches` takes several originals, and latents become pictures.

    `read_keys(originals, request) -> ReadKeys` may be there too, where there is a UNet to read in.
    """

    def decode(self, latents: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [0, 1], as large as those that were encoded or a little larger."""
        ...


def score_model_of(editor: Editor) -> ScoreModel:
    """Return the score model that an editor offers by `scores()`: all of the menu but `pipeline`."""
    scores = getattr(editor, "scores", None)
    if scores is None:
        raise InputError(
            f"this method distills noise predictions, which {type(editor).__name__} does not offer; "
            "choose another editor, such as edit_model"
        )
    return scores()


def can_share_attention(editor: Editor) -> bool:
    """Whether an editor heeds `ViewBatch.sharing`, as it says by `shares_attention`."""
    return getattr(editor, "shares_attention", False)


@dataclass(frozen=True)
class KnownScores:
    """The best denoiser there is if all pictures in the world were the edited view (or, of the source, the original).

    With clean picture x the noise in `z = sqrt(abar) x + sqrt(1 - abar) noise` is known without a network. Latents are
    pixels in [-1, 1]; guidance has no meaning here and is ignored, since nothing is left to be made clearer.
    """

    editor: Editor  # its edit from full noise is the picture

    @cached_property
    def schedule(self) -> Schedule:
        """The cosine schedule of 1,000 steps, as the miniature has it."""
        return Schedule.from_config({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000})

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Pixels in [-1, 1]."""
        return images * 2 - 1

    def decode(self, latents: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """See `ClipScores.decode`."""
        return (latents / 2 + 0.5).clamp(0, 1)

    def branches(
        self, original: Float[Tensor, "n 3 h w"], request: EditRequest, *, view_index: int, seed: int
    ) -> Branches:
        """Ask the editor for the view, once; several originals are views that follow each other."""
        indices = tuple(range(view_index, view_index + len(original)))
        batch = ViewBatch(original, original, request=request, view_indices=indices, noise_level=1.0, seed=seed)
        edited = self.editor.edit(batch)
        return Branches(self._predictor(edited.images), self._predictor(original))

    def _predictor(self, image: Tensor) -> PredictNoise:
        clean = self.encode(image)

        def predict(latents: Tensor, timestep: int, guidance: float | None) -> Tensor:
            signal, sigma = self.schedule.coefficients(torch.full((len(latents),), timestep), latents)
            return (latents - signal * clean) / sigma

        return predict


MAX_DRIFT = 0.1
"""A view that moved farther than this share of its width is left out: too much of it is missing, and registering it is
no longer certain."""


@dataclass(frozen=True)
class EditorSource:
    """What an editor may be made from; each takes what it needs and says what is missing."""

    file_names: tuple[str, ...] = ()  # of every view of the whole capture, in order
    truth: Path | None = None  # truth folder of the edit, where it exists
    model: Path | None = None  # folder of the model
    device: str = "cpu"  # where the scene lies and the model computes, such as `cuda`
    options: tuple[str, ...] = ()  # `key=value`, for editors that have options
    endpoint: EndpointConfig = EndpointConfig()  # where the editor `endpoint` asks, and what that may cost
    answers: Path | None = None  # folder for answers that cost something
    max_drift: float = MAX_DRIFT  # share of the width; views that an editor moves farther are left out


EditorFactory = Callable[[EditorSource], Editor]

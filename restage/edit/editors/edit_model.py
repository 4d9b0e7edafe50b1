"""Edit models as editors: the one that this project trains, or a published InstructPix2Pix folder."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.edit_models import load_edit_model
from restage.diffusion.editor import EditCondition, EditModel, EditSettings, Guidance, edit_images
from restage.diffusion.schedule import Schedule
from restage.edit.editors.interface import Branches, Edited, EditorSource, PredictNoise, ViewBatch
from restage.edit.joint_attention import share_attention
from restage.records import EditRequest, InputError

__all__ = ["ModelEditor", "ModelScores", "open_edit_model", "open_instruct_pix2pix"]

PUBLISHED = EditSettings(steps=20, guidance=Guidance(text=7.5, image=1.5))
"""For published InstructPix2Pix models. Guidance and number of steps are from Instruct-NeRF2NeRF (arXiv 2303.12789),
but where the steps lie (`Schedule.timesteps` begins at the last one) and the solver are this package's."""


@dataclass(frozen=True)
class ModelEditor:
    """Edits views with an edit model; guidance as in InstructPix2Pix (arXiv 2211.09800, equation 3)."""

    model: EditModel
    settings: EditSettings | None = None  # steps and guidance; the edit model's own defaults if None
    shares_attention: ClassVar[bool] = True

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit a batch of views; see `Editor.edit`."""
        settings, sharing = self.settings or EditSettings(), contextlib.nullcontext()
        if batch.sharing is not None:
            # Views can attend to each other only while they are in the model together.
            settings = replace(settings, batch_size=len(batch.views))
            sharing = share_attention(self.model.unet, batch.sharing)
        with sharing:
            edited = edit_images(
                self.model,
                batch.views,
                batch.originals,
                batch.request.instruction,
                noise_level=batch.noise_level,
                seeds=batch.draw_noise,
                settings=settings,
            )
        return Edited(edited.images.cpu(), edited.masks.cpu())

    def scores(self) -> ModelScores:
        """The edit model as distillation uses it."""
        return ModelScores(self.model, (self.settings or EditSettings()).guidance or self.model.guidance)


@dataclass(frozen=True)
class ModelScores:
    """Noise predictions of an edit model: with the instruction, and with guidance on the original alone."""

    model: EditModel
    guidance: Guidance

    @property
    def schedule(self) -> Schedule:
        """The model's noise schedule."""
        return self.model.schedule

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Latents of unit variance; gradients reach the pictures."""
        return self.model.backbone.encode_with_gradient(images)

    def branches(
        self, original: Float[Tensor, "1 3 h w"], request: EditRequest, *, view_index: int, seed: int
    ) -> Branches:
        """Both branches see the original view; only one the instruction."""
        condition = self.model.encode_condition(original, [request.instruction])
        untold = condition._replace(text=condition.no_text)
        return Branches(self._predictor(condition), self._predictor(untold))

    def _predictor(self, condition: EditCondition) -> PredictNoise:
        def predict(latents: Tensor, timestep: int, guidance: float | None) -> Tensor:
            used = self.guidance if guidance is None else replace(self.guidance, text=guidance)
            t = torch.full((len(latents),), timestep, device=latents.device)
            with torch.no_grad(), self.model.backbone.precision():
                return self.model.predict_guided(latents, t, condition, used).epsilon.float()

        return predict


def _open(source: EditorSource, what: str, settings: EditSettings | None = None) -> ModelEditor:
    if source.model is None or not source.model.is_dir():
        raise InputError(
            f"expected the folder of {what}, got {source.model}; name one with --model, or run: restage train"
        )
    return ModelEditor(load_edit_model(source.model, source.device), settings)


def open_edit_model(source: EditorSource) -> ModelEditor:
    """Open a trained edit model."""
    return _open(source, "a trained edit model")


def open_instruct_pix2pix(source: EditorSource) -> ModelEditor:
    """Open a published InstructPix2Pix, as `StableDiffusionInstructPix2PixPipeline.save_pretrained` writes it.

    The original view goes in as the mode of the VAE's posterior, without the VAE's scaling factor, as it was trained
    (`EditModel.condition_scale`); steps and guidance are those of Instruct-NeRF2NeRF.
    """
    return _open(source, "an InstructPix2Pix model in diffusers layout", PUBLISHED)

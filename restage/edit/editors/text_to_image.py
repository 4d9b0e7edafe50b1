"""A text-to-image model as an editor: the view is noised and denoised again under the caption of the edited scene.

SDEdit (Meng et al. 2022, arXiv 2108.01073). What it is for is distillation: SDS, DDS and PDS were published with such a
model; and the method `controlled`, which has it paint views from their own noise. It needs the request's captions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from restage.diffusion.attention import watched_keys
from restage.diffusion.backbone import Backbone, TextCondition, load_backbone
from restage.diffusion.config import BranchSource
from restage.diffusion.sampling import denoise, guided, sample_images
from restage.diffusion.schedule import Schedule
from restage.edit.editors.interface import Branches, Edited, EditorSource, PredictNoise, ReadKeys, ViewBatch
from restage.edit.editors.regenerated import VIEWS_AT_ONCE, regenerate
from restage.records import EditRequest, InputError
from restage.run.models import add_on_of, models_in

__all__ = ["TextToImageEditor", "TextToImageScores", "open_text_to_image"]


def _captions(request: EditRequest) -> tuple[str, str]:
    if not request.source_caption or not request.target_caption:
        raise InputError(
            "a text-to-image model edits by captions, and the request has none; give --source-caption and "
            "--target-caption"
        )
    return request.source_caption, request.target_caption


@dataclass(frozen=True)
class TextToImageEditor:
    """SDEdit with a mask from where the captions' predictions differ (DiffEdit, arXiv 2210.11427, section 3.2)."""

    backbone: Backbone
    guidance: float = 7.5
    steps: int = 20  # from full noise; from less noise in proportion fewer
    highest_noise: float = 0.8
    """From more noise than this share of the schedule nothing of the view would be left, so no more is added."""
    branch: Path | None = None
    """Control branch for the method `controlled` where the backbone has none."""

    @cached_property
    def painter(self) -> Backbone:
        """The model as it paints views under their depth: with a control branch if there is one, loaded when needed."""
        backbone = self.backbone
        if backbone.branches or self.branch is None or backbone.folder is None:
            return backbone
        return load_backbone(backbone.folder, str(backbone.device), branches=[BranchSource(folder=self.branch)])

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit a batch of views; see `Editor.edit`."""
        backbone, views, level = self.backbone, batch.views, min(batch.noise_level, self.highest_noise)
        before, after = (backbone.encode_prompts([text]) for text in _captions(batch.request))
        # With a layout all training views of a scene come at once.
        size = len(views) if batch.layout is None else VIEWS_AT_ONCE
        chunks = [slice(start, start + size) for start in range(0, len(views), size)]
        clean = torch.cat([backbone.encode_images(views[chunk]) for chunk in chunks])
        table = backbone.schedule.timesteps(math.ceil(self.steps * level - 1e-9), start=level)
        noise = batch.draw_noise(clean.shape[1:]).to(clean)
        first = torch.full((len(views),), table[0], device=clean.device)
        latents = backbone.schedule.add_noise(clean, noise, first)
        masks = torch.cat([self._difference(latents[chunk], first[chunk], before, after) for chunk in chunks])
        if batch.layout is not None:
            told = {"before": before, "after": after, "guidance": self.guidance}
            latents = regenerate(self.painter, batch, batch.layout, **told, num_steps=self.steps)
        else:
            scales = torch.full((len(views),), self.guidance)
            towards = guided(backbone, after.expand(len(views)), backbone.encode_prompts([""]), scales)
            for state in denoise(backbone.schedule, latents, predict=towards, timesteps=table):
                latents = state.latents
        # Predictions have no unit of their own, so the place that differs most counts as sure.
        masks = masks / masks.amax(dim=(1, 2), keepdim=True).clamp_min(1e-8)
        height, width = views.shape[-2:]
        images = torch.cat([backbone.decode_latents(latents[chunk]) for chunk in chunks])
        masks = functional.interpolate(masks[:, None], images.shape[-2:], mode="bilinear")[:, 0].clamp(0, 1)
        return Edited(images[..., :height, :width], masks[..., :height, :width]).to(views.device)

    def _difference(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, " b"],
        before: TextCondition,
        after: TextCondition,
    ) -> Float[Tensor, "b h w"]:
        """How much the noise that is seen under two captions differs, mean over channels."""
        told, untold = (
            self.backbone.predict_noise(latents, timesteps, text.expand(len(latents))) for text in (after, before)
        )
        return (told - untold).abs().mean(dim=1)

    def paint(self, captions: Sequence[str], seeds: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
        """Make a picture from each caption, each from noise of its own seed."""
        images = sample_images(self.backbone, captions, seeds=seeds, steps=self.steps, guidance=self.guidance)
        return images.cpu()

    def scores(self) -> TextToImageScores:
        """The model as distillation uses it."""
        return TextToImageScores(self.backbone, self.guidance)


@dataclass(frozen=True)
class TextToImageScores:
    """Noise predictions under the captions of the scene after and before the edit."""

    backbone: Backbone
    guidance: float

    @property
    def schedule(self) -> Schedule:
        """The model's noise schedule."""
        return self.backbone.schedule

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Latents of unit variance; gradients reach the pictures."""
        return self.backbone.encode_with_gradient(images)

    def decode(self, latents: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b 3 h w"]:
        """See `ClipScores.decode`."""
        return self.backbone.decode_latents(latents)

    def read_keys(self, originals: Float[Tensor, "n 3 h w"], request: EditRequest) -> ReadKeys:
        """See `ClipScores`."""
        before, after = (self.backbone.encode_prompts([text]).expand(len(originals)) for text in _captions(request))

        def read(latents: Tensor, timestep: int, is_edited: bool) -> list[Tensor]:
            t = torch.full((len(latents),), timestep, device=latents.device)
            tokens = (after if is_edited else before).tokens
            with watched_keys(self.backbone.unet) as keys:
                self.backbone.unet(latents, t, encoder_hidden_states=tokens)
            return keys

        return read

    def branches(
        self, original: Float[Tensor, "n 3 h w"], request: EditRequest, *, view_index: int, seed: int
    ) -> Branches:
        """One branch for each caption, with classifier-free guidance."""
        before, after = _captions(request)
        empty = self.backbone.encode_prompts([""])
        edited, source = (self._predictor(self.backbone.encode_prompts([text]), empty) for text in (after, before))
        return Branches(edited, source)

    def _predictor(self, text: TextCondition, empty: TextCondition) -> PredictNoise:
        def predict(latents: Tensor, timestep: int, guidance: float | None) -> Tensor:
            count = len(latents)
            scale = torch.full((count,), self.guidance if guidance is None else guidance)
            t = torch.full((count,), timestep, device=latents.device)
            return guided(self.backbone, text.expand(count), empty, scale)(latents, t, 0)

        return predict


def open_text_to_image(source: EditorSource) -> TextToImageEditor:
    """Open a diffusers text-to-image folder; the miniature's if none is named.

    Options are control branches, `branch=FOLDER` or `branch=NAME=FOLDER,weight=0.5`, which the method `controlled`
    gives the splats' depth to; default: the one that lies beside the model.
    """
    folder = source.model or models_in().text_to_image
    branches = []
    for option in source.options:
        name, _, text = option.partition("=")
        if name != "branch":
            raise InputError(f"text_to_image has the option branch=FOLDER alone, got {option!r}")
        branches.append(BranchSource.parse(text))
    return TextToImageEditor(
        load_backbone(folder, source.device, branches=branches), branch=add_on_of(folder, "control")
    )

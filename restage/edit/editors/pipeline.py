"""Newer instruction editors as they come: a FLUX.1 Kontext folder of diffusers, called through its own pipeline.

Such models are trained by flow matching: `x_s = (1 - s) x + s noise`. Their pipelines hide their predictions, so they
edit views but cannot be distilled.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxKontextPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, T5EncoderModel

from restage.diffusion.loading import load_model, load_pipeline
from restage.edit.editors.interface import Edited, EditorSource, ViewBatch
from restage.records import InputError, read_json

__all__ = ["KontextEditor", "open_pipeline"]

PARTS: dict[str, Any] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
    "transformer": FluxTransformer2DModel,
    "vae": AutoencoderKL,
}
"""Folders of weights, by their classes."""
CHANGE_LOW, CHANGE_HIGH = 0.04, 0.16
"""Mean difference over channels at which the mask is 0 and 1: these models have no mask output."""


class _Start(NamedTuple):
    """The part of the noise schedule that an edit goes through."""

    sigmas: np.ndarray  # as the pipeline takes them, before the shift for the size of the picture
    first: float  # noise of the latents at the start, after that shift, in (0, 1]


@dataclass(frozen=True)
class KontextEditor:
    """FLUX.1 Kontext (Black Forest Labs 2025, arXiv 2506.15742).

    The pipeline shows the original view to the model as more tokens, the mode of its VAE's posterior. Partial noise is
    added to the current render here and handed over with the matching rest of the schedule; the pipeline's own
    scheduler is left as it is. One view is edited at a time.
    """

    pipeline: Any
    steps: int = 28  # from full noise; from less noise in proportion fewer. Default of the pipeline.
    guidance: float = 2.5  # of the distilled guidance; what the model's card recommends

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit a batch of views, one after another; see `Editor.edit`.

        The mask is where the edited view differs from the original by more than encoding it does.
        """
        size = tuple(batch.originals.shape[2:])
        multiple = 2 * self.pipeline.vae_scale_factor
        height, width = (max(multiple, round(side / multiple) * multiple) for side in size)
        inside = [functional.interpolate(x, (height, width), mode="area") for x in (batch.views, batch.originals)]
        noises = batch.draw_noise(self._latent_shape(height, width))
        instruction, level = batch.request.instruction, batch.noise_level
        edited = [
            self._edit(view[None], original[None], instruction, noise_level=level, noise=noise[None])
            for view, original, noise in zip(*inside, noises, strict=True)
        ]
        images = functional.interpolate(torch.cat(edited), size, mode="bilinear").clamp(0, 1)
        change = (images - batch.originals).abs().mean(dim=1)
        return Edited(images, ((change - CHANGE_LOW) / (CHANGE_HIGH - CHANGE_LOW)).clamp(0, 1))

    def _edit(self, view: Tensor, original: Tensor, instruction: str, *, noise_level: float, noise: Tensor) -> Tensor:
        pipe = self.pipeline
        height, width = view.shape[2:]
        clean = self._pack(self._encode(view))
        start = self._start(noise_level, clean.shape[1])
        called = pipe(
            image=original,
            prompt=instruction,
            height=height,
            width=width,
            max_area=height * width,
            sigmas=start.sigmas,
            num_inference_steps=len(start.sigmas),
            guidance_scale=self.guidance,
            latents=(1 - start.first) * clean + start.first * self._pack(noise.to(clean.device)).to(clean),
            output_type="pt",
            _auto_resize=False,
        )
        return called.images.float().to(view.device)

    def _start(self, noise_level: float, num_tokens: int) -> _Start:
        """The last part of the table of sigmas, and what its first one becomes in the scheduler (in a copy of it)."""
        count = max(1, math.ceil(self.steps * noise_level - 1e-9))
        sigmas = np.linspace(1.0, 1 / self.steps, self.steps)[-count:]
        # A copy, since `set_timesteps` leaves its table in the scheduler that the pipeline is about to use.
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        settings = {name: scheduler.config[name] for name in names if name in scheduler.config}
        settings = {name.replace("image_seq_len", "seq_len"): value for name, value in settings.items()}
        scheduler.set_timesteps(sigmas=sigmas, mu=calculate_shift(num_tokens, **settings))
        return _Start(sigmas, float(scheduler.sigmas[0]))

    def _latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        scale = self.pipeline.vae_scale_factor
        return self.pipeline.latent_channels, height // scale, width // scale

    def _encode(self, view: Tensor) -> Tensor:
        vae = self.pipeline.vae
        with torch.no_grad():
            latents = vae.encode((view * 2 - 1).to(vae.device, vae.dtype)).latent_dist.mode()
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    def _pack(self, latents: Tensor) -> Tensor:
        """2x2 latent pixels to a token, as the transformer takes them."""
        return functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def open_pipeline(source: EditorSource) -> KontextEditor:
    """Open a FLUX.1 Kontext folder, as its pipeline's `save_pretrained` writes it; on CUDA in bfloat16."""
    folder = source.model
    if folder is None or not (folder / "model_index.json").is_file():
        raise InputError(f"expected a folder with a model_index.json of diffusers, got {folder}; name one with --model")
    index = read_json(folder / "model_index.json", dict[str, Any])
    name = index.get("_class_name")
    if name != "FluxKontextPipeline":
        raise InputError(f"{folder} holds a {name!r}, expected a FluxKontextPipeline")
    dtype = torch.bfloat16 if source.device.startswith("cuda") else torch.float32
    parts = {part: load_model(cls, folder / part, dtype=dtype) for part, cls in PARTS.items()}
    pipeline: Any = load_pipeline(FluxKontextPipeline, folder, parts)
    pipeline.set_progress_bar_config(disable=True)
    return KontextEditor(pipeline.to(source.device))

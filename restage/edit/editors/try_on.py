"""Virtual try-on with models shaped like CatVTON's (Chong et al. 2024, arXiv 2407.15886).

A folder of Stable Diffusion inpainting (`unet` of 9 inputs, `vae`, `scheduler`) with self-attention weights beside it,
in `attention/model.safetensors` or one folder below. The garment is the request's reference; the region says what of
each view may change. Person and garment lie one above the other in the latents, and cross attention is left out.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from restage.diffusion.attention import attention_layers
from restage.diffusion.loading import load_model
from restage.diffusion.references import with_processors
from restage.diffusion.sampling import denoise
from restage.diffusion.schedule import Schedule
from restage.edit.editors.interface import Edited, EditorSource, ViewBatch
from restage.edit.editors.pipeline import PipelineOptions, fit_picture, resize_views
from restage.records import InputError

__all__ = ["TryOnEditor", "load_attention", "open_try_on"]

MULTIPLE = 64
"""Sides of the pictures that the model sees are multiples of this many pixels: the autoencoder and the UNet each shrink
them to an eighth."""
WHITE = 1.0
"""Around the garment."""


class _Skip:
    """Cross attention that gives back what it gets, as the model was trained."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        return hidden_states


@dataclass(frozen=True, eq=False)
class TryOnEditor:
    """Paints the garment of a reference into the region of each view, one view at a time."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    schedule: Schedule
    options: PipelineOptions
    takes_references: ClassVar[bool] = True

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit a batch of views; see `Editor.edit`.

        Raises:
            InputError: there is not one reference, or no region.
        """
        if len(batch.references) != 1 or batch.regions is None:
            raise InputError(
                "try-on needs one picture of a garment (--reference) and where it goes (--region), such as the region "
                f"'the jacket'; got {len(batch.references)} references and {'no ' * (batch.regions is None)}region"
            )
        height, width = int(batch.views.shape[2]), int(batch.views.shape[3])
        scale = (self.options.size or max(height, width)) / max(height, width) / MULTIPLE
        shown = (max(1, round(scale * height)) * MULTIPLE, max(1, round(scale * width)) * MULTIPLE)
        garment, subject = batch.references[0]
        if subject is not None:
            garment = torch.lerp(torch.full_like(garment, WHITE), garment, subject)
        garment = self._encode(fit_picture(garment, shown, ground=WHITE)[None])
        views, originals = (resize_views(x.cpu(), shown) for x in (batch.views, batch.originals))
        # Models of inpainting know masks of 0 and 1 alone.
        regions = (resize_views(batch.regions[:, None].cpu(), shown) > 0.5).float()
        noise = batch.draw_noise(garment.shape[1:])
        layers = [layer for layer in attention_layers(self.unet) if layer.is_cross_attention]
        images = []
        with with_processors(layers, [_Skip() for _ in layers]):
            for place in range(len(views)):
                part = slice(place, place + 1)
                about = (views[part], originals[part], regions[part], noise[part], garment)
                painted = self._paint(*about, noise_level=batch.noise_level)
                images.append(resize_views(painted, (height, width)))
        return Edited(torch.cat(images).to(batch.views.device), batch.regions.to(batch.views.device))

    def _encode(self, images: Float[Tensor, "b 3 h w"]) -> Tensor:
        device = next(self.vae.parameters())
        with torch.no_grad():
            encoded: Any = self.vae.encode((images * 2 - 1).to(device))
        return encoded.latent_dist.mode().float() * self.vae.config["scaling_factor"]

    def _paint(
        self, view: Tensor, original: Tensor, region: Tensor, noise: Tensor, garment: Tensor, *, noise_level: float
    ) -> Float[Tensor, "1 3 h w"]:
        """Denoise a view above the garment, from `noise_level` of the schedule, and return the view."""
        person = self._encode(torch.where(region > 0, 0.5, original))
        inside = functional.interpolate(region, person.shape[2:], mode="nearest").to(person)
        masks = torch.cat([inside, torch.zeros_like(inside)], dim=2)
        shown = torch.cat([person, garment], dim=2)
        untold = torch.cat([person, torch.zeros_like(garment)], dim=2)
        num_steps = math.ceil((self.options.steps or 50) * noise_level - 1e-9)
        table = self.schedule.timesteps(num_steps, start=noise_level)
        # The lower half starts from noise of its own, the same for all views.
        below = torch.randn(garment.shape, generator=torch.Generator().manual_seed(0))
        latents = torch.cat([noise, below], dim=2).to(person)
        if noise_level < 1:
            first = torch.full((1,), table[0], device=person.device)
            clean = torch.cat([self._encode(view), garment], dim=2)
            latents = self.schedule.add_noise(clean, latents, first)
        guidance = 2.5 if self.options.guidance is None else self.options.guidance
        dtype = next(self.unet.parameters()).dtype

        def predict(noisy: Tensor, t: Tensor, step: int) -> Tensor:
            joined = torch.cat([torch.cat([noisy, masks, about], dim=1) for about in (untold, shown)])
            found: Any = self.unet(joined.to(dtype), t.repeat(2), encoder_hidden_states=None)
            both = self.schedule.to_epsilon(found.sample.float(), noisy.repeat(2, 1, 1, 1), t.repeat(2))
            without, told = both.chunk(2)
            return without + guidance * (told - without)

        *_, last = denoise(self.schedule, latents, predict=predict, timesteps=table)
        upper = last.latents.chunk(2, dim=2)[0] / self.vae.config["scaling_factor"]
        with torch.no_grad():
            decoded: Any = self.vae.decode(upper.to(next(self.vae.parameters()).dtype))
        return (decoded.sample.float() / 2 + 0.5).clamp(0, 1).cpu()


PARTS = ("", "to_q.", "to_k.", "to_v.", "to_out.", "to_out.0.")
"""What of a layer the numbered modules of CatVTON's files are, in order; those that follow have no weights."""


def load_attention(unet: nn.Module, path: Path) -> None:
    """Load self-attention weights that were saved as one list of all modules in and under `attn1`, by their numbers.

    A layer takes as many numbers as it has modules: 7, or 8 where its processor was one. The same tensor may be named
    by the number of the layer or by that of its part.

    Raises:
        InputError: the file is missing or broken, or belongs to another UNet.
    """
    try:
        state = load_file(path)
    except Exception as error:  # noqa: BLE001 - of a type that safetensors does not document
        raise InputError(f"{path} cannot be read: {(str(error).splitlines() or ['?'])[0]}") from None
    layers = [module for name, module in unet.named_modules() if name.endswith("attn1")]
    for count in (8, 7):
        if (found := _by_layer(state, len(layers), count)) is None:
            continue
        wanted = [{name: value.shape for name, value in layer.state_dict().items()} for layer in layers]
        if [{name: value.shape for name, value in part.items()} for part in found] == wanted:
            for layer, part in zip(layers, found, strict=True):
                layer.load_state_dict(part)
            return
    raise InputError(f"{path} does not hold the self-attention of this UNet: expected {len(layers)} layers in order")


def _by_layer(state: dict[str, Tensor], num_layers: int, count: int) -> list[dict[str, Tensor]] | None:
    """Sort tensors by layer and name, if each layer has so many numbers; None if some tensor then belongs nowhere."""
    found: list[dict[str, Tensor]] = [{} for _ in range(num_layers)]
    for name, value in state.items():
        match = re.fullmatch(r"(\d+)\.(.+)", name)
        number, part = divmod(int(match[1]), count) if match else (num_layers, 0)
        if match is None or number >= num_layers or part >= len(PARTS):
            return None
        found[number][PARTS[part] + match[2]] = value
    return found


def open_try_on(source: EditorSource) -> TryOnEditor:
    """Open a folder of inpainting with CatVTON's self-attention weights, such as `mix-48k-1024/attention/`."""
    options, folder = PipelineOptions.of(source.options), source.model
    if folder is None or not (folder / "unet" / "config.json").is_file():
        raise InputError(f"expected the folder of an inpainting model with --model, got {folder}")
    weights = sorted([*folder.glob("attention/model.safetensors"), *folder.glob("*/attention/model.safetensors")])
    if len(weights) != 1:
        listed = ", ".join(str(path) for path in weights) or "none"
        raise InputError(f"expected attention/model.safetensors once in or one below {folder}, found {listed}")
    default = "bfloat16" if source.device.startswith("cuda") else "float32"
    dtype = getattr(torch, options.dtype or default)
    unet = load_model(UNet2DConditionModel, folder / "unet", dtype=dtype)
    if unet.config["in_channels"] != 9 or unet.config["out_channels"] != 4:
        raise InputError(f"{folder / 'unet'} has {unet.config['in_channels']} inputs; expected 9, as inpainting has")
    load_attention(unet, weights[0])
    vae = load_model(AutoencoderKL, folder / "vae", dtype=dtype)
    schedule, _ = Schedule.read(folder / "scheduler" / "scheduler_config.json")
    for part in (unet, vae):
        part.to(source.device).eval().requires_grad_(False)
    return TryOnEditor(unet, vae, schedule, options)

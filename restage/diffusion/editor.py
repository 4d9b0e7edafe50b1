"""The edit model: a diffusion UNet that sees the original picture and says what changes, and where.

InstructPix2Pix (Brooks et al. 2023, arXiv 2211.09800) with one more output, the logit that a latent pixel is to
change. Made by widening a text-to-image UNet, trained by `restage.train`, used by the trained editor and by the
distillation methods.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from restage.diffusion.backbone import Backbone
from restage.diffusion.hardware import bfloat16_autocast
from restage.diffusion.references import Reader, Words
from restage.diffusion.sampling import Edited, denoise, initial_noise
from restage.diffusion.schedule import Schedule
from restage.records import InputError
from restage.run.profile import timed

__all__ = ["EditCondition", "EditModel", "EditSettings", "Edited", "Guidance", "edit_images"]

Latents = Float[Tensor, "batch channels height width"]
Text = Float[Tensor, "batch tokens width_of_text"]
Pictures = Float[Tensor, "batch 3 height width"]

KEEP_LOW, KEEP_HIGH = 0.15, 0.5
"""`keep_outside`: below the first mask value nothing changes, above the second everything may."""


class EditPrediction(NamedTuple):
    """What the edit UNet says about noisy latents."""

    epsilon: Latents  # the noise, whatever the UNet was trained to predict
    mask_logits: Float[Tensor, "batch height width"] | None
    """Logit that a latent pixel is to change; None for a UNet without mask output."""


class GuidedPrediction(NamedTuple):
    """A guided prediction, and where the instruction acts."""

    epsilon: Latents
    mask: Float[Tensor, "batch height width"] | None
    """Probability of change in [0, 1]; for a UNet without mask output the not yet normalised size of the
    instruction's part of the prediction, or None where no guidance was computed."""


class EditCondition(NamedTuple):
    """What an edit is conditioned on."""

    original_latents: Latents
    text: Text  # embedded instruction
    no_text: Text  # embedded empty text
    reference: Float[Tensor, "batch channels_and_subject _ _"] | None = None
    """What the instruction refers to, for models that look at it (`restage.diffusion.references`)."""

    @property
    def untold(self) -> EditCondition:
        """The same without instruction and reference."""
        return self._replace(text=self.no_text, reference=None)


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Strength of instruction and original (InstructPix2Pix, equation 3), and at which noise levels they are used.

    A step costs three UNet evaluations, two when `image` is 1, and one when both are 1 or the step lies outside the
    interval (limited interval guidance: Kynkaanniemi et al. 2024, arXiv 2404.07724).
    """

    text: float = 7.5
    """s_T; 1 is the plain prediction. Default of the paper, for photographs; a model may name its own."""
    image: float = 1.5
    """s_I; 1 is the plain prediction. Default of the paper."""
    lowest_noise: float = 0.0
    """Below this share of the schedule, the prediction is not guided."""
    highest_noise: float = 1.0
    """Above this share of the schedule, the prediction is not guided."""

    def __post_init__(self) -> None:
        if not 0 <= self.lowest_noise < self.highest_noise <= 1:
            raise InputError(
                f"guidance needs 0 <= lowest_noise < highest_noise <= 1, got {self.lowest_noise}, {self.highest_noise}"
            )


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """How `edit_images` samples."""

    steps: int = 10
    """Sampling steps from pure noise (DPM-Solver++ 2M); from less noise in proportion fewer, rounded up."""
    guidance: Guidance | None = None
    """None for what the model names as its own."""
    keep_outside: bool = False
    """Hold latents and pixels outside the predicted mask to the original's."""
    batch_size: int = 16
    """Pictures per UNet call (times up to three evaluations); the pictures do not depend on it beyond rounding."""
    use_bfloat16: bool | None = None
    """Run the UNet in bfloat16 autocast; None for where the device computes in it by itself."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise InputError(f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}")


@dataclass(eq=False)
class EditModel:
    """An edit UNet with the other parts of the text-to-image model that it grew from."""

    backbone: Backbone  # its tokenizer, text encoder, VAE and schedule are used; its own UNet is not
    unet: UNet2DConditionModel
    """2c inputs (noisy | original), c or c + 1 outputs (prediction | mask logit), c the VAE's latent channels."""
    condition_scale: float = 1.0
    """Factor on the original's unit-variance latents at the input; published models expect them unscaled."""
    guidance: Guidance = dataclasses.field(default_factory=Guidance)
    """What it is best used with where the caller names no other."""
    has_own_text_encoder: bool = False
    """Whether the text encoder was trained with it, so that it is not the text-to-image model's."""
    reader: Reader = Words()
    """How it looks at references."""

    def __post_init__(self) -> None:
        c = self.latent_channels
        found = (self.unet.config["in_channels"], self.unet.config["out_channels"])
        if found not in ((2 * c, c), (2 * c, c + 1)):
            raise InputError(
                f"an edit UNet on {c} latent channels has {2 * c} inputs and {c} or {c + 1} outputs, got "
                f"{found[0]} and {found[1]}; widen a text-to-image UNet first, or choose the VAE that belongs to it"
            )
        expected, width = self.unet.config["cross_attention_dim"], self.backbone.text_encoder.config.hidden_size
        if expected != width:
            raise InputError(
                f"the edit UNet expects text of width {expected}, the text encoder gives {width}; "
                "choose the text-to-image model that it was trained with"
            )

    @property
    def latent_channels(self) -> int:
        """Channels of the VAE's latents."""
        return self.backbone.vae.config["latent_channels"]

    @property
    def has_mask_output(self) -> bool:
        """Whether the UNet says itself where it changes the picture."""
        return self.unet.config["out_channels"] == self.latent_channels + 1

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        return self.backbone.schedule

    @property
    def takes_references(self) -> bool:
        """Whether it looks at a picture beside the original."""
        return self.reader.name != "words"

    def encode_reference(self, prepared: Float[Tensor, "batch 4 _ _"]) -> Float[Tensor, "batch channels _ _"]:
        """Encode references that `prepare_reference` has cut out: their latents, and where their subjects are."""
        latents = self.backbone.encode_images(prepared[:, :3])
        subject = functional.adaptive_avg_pool2d(prepared[:, 3:], (latents.shape[2], latents.shape[3]))
        return torch.cat([latents, subject.to(latents)], dim=1)

    def encode_condition(
        self,
        originals: Pictures,
        instructions: Sequence[str],
        reference: Float[Tensor, "4 side side"] | None = None,
    ) -> EditCondition:
        """Encode original pictures and one instruction each, and a reference that all of them share."""
        original_latents = self.backbone.encode_images(originals)
        texts = sorted(set(instructions))  # views of one scene share an instruction: it is embedded once
        embedded = self.backbone.encode_text(["", *texts])
        rows = [1 + texts.index(instruction) for instruction in instructions]
        shown = None if reference is None else self.encode_reference(reference[None]).expand(len(rows), -1, -1, -1)
        return EditCondition(original_latents, embedded[rows], embedded[[0] * len(rows)], shown)

    def predict(
        self,
        latents: Latents,
        timesteps: Int[Tensor, " batch"],
        original_latents: Latents,
        text: Text,
        reference: Float[Tensor, "batch channels_and_subject _ _"] | None = None,
    ) -> EditPrediction:
        """Predict the noise in `latents` and the mask of the edit, without guidance; no original is all zeros."""
        inputs = torch.cat([latents, original_latents * self.condition_scale], dim=1)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with timed("model"):
            output = self.reader.read(self.unet, inputs, timesteps, text, reference).float()
        prediction = output[:, : self.latent_channels]
        mask_logits = output[:, self.latent_channels] if self.has_mask_output else None
        return EditPrediction(self.schedule.to_epsilon(prediction, latents, timesteps), mask_logits)

    def predict_guided(
        self, latents: Latents, timesteps: Int[Tensor, " batch"], condition: EditCondition, guidance: Guidance
    ) -> GuidedPrediction:
        """Predict with guidance on text and original, all evaluations in one batched call.

        `e(0,0) + s_T (e(T,I) - e(0,I)) + s_I (e(0,I) - e(0,0))`, InstructPix2Pix equation 3. The mask is the mask
        output of e(T,I); without one it is the mean over channels of |e(T,I) - e(0,I)|, as in DiffEdit (Couairon et
        al. 2022, arXiv 2210.11427, section 3.2). A condition whose `text` is its own `no_text` takes one evaluation
        fewer. All items of the batch count as inside the interval of `guidance` when the first one is.
        """
        noise_level = (int(timesteps[0]) + 1) / self.schedule.num_train_timesteps
        is_inside = guidance.lowest_noise <= noise_level <= guidance.highest_noise
        needed = 3 if guidance.image != 1 else 1 + int(guidance.text != 1)
        variants = needed if is_inside else 1
        original, text, no_text, reference = condition
        # The variants are [with both | without text | without both], so that fewer of them is a prefix. A reference is
        # part of what is asked for: it comes and goes with the text.
        rows = [(original, text), (original, no_text), (torch.zeros_like(original), no_text)][:variants]
        if text is no_text:
            # Told nothing, the predictions with and without the instruction are one, which is computed once.
            rows = rows[min(1, variants - 1) :]
        several = latents.repeat(len(rows), 1, 1, 1)
        originals, texts = (torch.cat(parts) for parts in zip(*rows, strict=True))
        if reference is not None:
            reference = torch.cat([reference, *[torch.zeros_like(reference)] * (len(rows) - 1)])
        epsilon, mask_logits = self.predict(several, timesteps.repeat(len(rows)), originals, texts, reference)
        parts = epsilon.chunk(len(rows))
        full, *rest = (parts[0],) * (variants - len(rows)) + parts
        mask = None
        if mask_logits is not None:
            mask = mask_logits[: len(latents)].sigmoid()
        elif rest:
            mask = (full - rest[0]).abs().mean(dim=1)
        if not rest:
            return GuidedPrediction(full, mask)
        without_text = rest[0]
        guided = without_text + guidance.text * (full - without_text)
        if len(rest) == 2:
            guided = guided + (guidance.image - 1) * (without_text - rest[1])
        return GuidedPrediction(guided, mask)


def _mask_to_keep(mask: Tensor) -> Tensor:
    """Sharpen a soft mask so that sure pixels are wholly kept or wholly free."""
    return ((mask - KEEP_LOW) / (KEEP_HIGH - KEEP_LOW)).clamp(0, 1)


def _mean_mask(masks: Sequence[Tensor], has_mask_output: bool) -> Tensor:
    if not masks:
        raise InputError("a UNet without mask output needs text guidance in its first step to tell where it edits")
    total = functools.reduce(torch.add, masks)
    return total / (len(masks) if has_mask_output else total.amax(dim=(1, 2), keepdim=True).clamp(min=1e-8))


def _edit_batch(
    model: EditModel, views: Tensor, condition: EditCondition, noise_level: float, noise: Tensor, settings: EditSettings
) -> tuple[Tensor, Tensor]:
    """Edit one batch: latents, and masks on the latent grid."""
    schedule, original = model.schedule, condition.original_latents
    latents = noise.to(original)
    # Fewer steps from less noise, so that a step is as long wherever sampling starts; rounding must not add one.
    table = schedule.timesteps(math.ceil(settings.steps * noise_level - 1e-9), start=noise_level)
    if noise_level < 1:
        first = torch.full((len(views),), table[0], device=original.device)
        latents = schedule.add_noise(model.backbone.encode_images(views), latents, first)
    masks: list[Tensor] = []

    def predict(noisy: Tensor, t: Tensor, step: int) -> Tensor:
        with bfloat16_autocast(noisy.device, is_wanted=settings.use_bfloat16):
            predicted = model.predict_guided(noisy, t, condition, settings.guidance or model.guidance)
        masks.extend([] if predicted.mask is None else [predicted.mask])
        # Outside of the mask the prediction is that the original is clean; the solver then goes there by itself, at the
        # noise of every step.
        if not settings.keep_outside:
            return predicted.epsilon
        signal, sigma = schedule.coefficients(t, noisy)
        x0 = schedule.to_x0(predicted.epsilon, noisy, t)
        x0 = torch.lerp(original, x0, _mask_to_keep(_mean_mask(masks, model.has_mask_output))[:, None])
        return (noisy - signal * x0) / sigma

    for state in denoise(schedule, latents, predict=predict, timesteps=table):
        latents = state.latents
    return latents, _mean_mask(masks, model.has_mask_output)


@torch.no_grad()
def edit_images(
    model: EditModel,
    views: Pictures,
    originals: Pictures,
    instruction: str | Sequence[str],
    *,
    noise_level: float,
    seeds: Sequence[int] | Callable[[Sequence[int]], Tensor],
    settings: EditSettings | None = None,
    reference: Float[Tensor, "4 side side"] | None = None,
) -> Edited:
    """Edit pictures by one instruction for all, or one for each.

    Sampling starts from `views`, noised to a share of the schedule in (0, 1] (at 1 it forgets them), and is conditioned
    on the unedited `originals`. `seeds` holds one for each picture, or draws the unit noise of all pictures for latents
    of a shape (c, h, w). `reference` is what all instructions refer to, cut out by `prepare_reference`.

    Returns:
        Images in [0, 1], and the masks of what was meant to change, soft in [0, 1], the mean over the sampling steps,
        resized from the latent grid to the pictures. Without mask output the mask is the size of the instruction's part
        of the guided prediction, divided by its maximum: it has a 1 somewhere even when there was nothing to do.

    Raises:
        InputError: views, originals, instructions or seeds do not fit each other, or `noise_level` is out of range.
    """
    settings = settings or EditSettings()
    if not 0 < noise_level <= 1:
        raise InputError(f"the noise level must be in (0, 1], got {noise_level}")
    instructions = [instruction] * len(views) if isinstance(instruction, str) else list(instruction)
    num_seeds = len(views) if callable(seeds) else len(seeds)
    if views.shape != originals.shape or not len(views) == len(instructions) == num_seeds:
        raise InputError(
            f"expected as many originals (of the same size), instructions and seeds as views, got views "
            f"{tuple(views.shape)}, originals {tuple(originals.shape)}, {len(instructions)} instructions, "
            f"{num_seeds} seeds"
        )
    views, originals = views.to(model.backbone.device), originals.to(model.backbone.device)
    parts, noise, (height, width) = [], None, views.shape[-2:]
    for start in range(0, len(views), settings.batch_size):
        part = slice(start, start + settings.batch_size)
        condition = model.encode_condition(originals[part], instructions[part], reference)
        if noise is None:
            shape = condition.original_latents.shape[1:]
            noise = seeds(shape) if callable(seeds) else initial_noise(shape, seeds)
        latents, masks = _edit_batch(model, views[part], condition, noise_level, noise[part], settings)
        images = model.backbone.decode_latents(latents).clamp(0, 1)
        masks = functional.interpolate(masks[:, None], images.shape[-2:], mode="bilinear")[:, 0].clamp(0, 1)
        images, masks = images[..., :height, :width], masks[..., :height, :width]  # latents stand for whole squares
        if settings.keep_outside:  # what the VAE loses on the way is not to change pixels either
            images = torch.lerp(originals[part], images, _mask_to_keep(masks)[:, None])
        parts.append(Edited(images, masks))
    return Edited(torch.cat([part.images for part in parts]), torch.cat([part.masks for part in parts]))

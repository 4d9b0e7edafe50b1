"""Tune-A-Video: a text-to-image model is tuned on the one clip, and samples it anew under the caption of the edit."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from restage.edit.clips.job import ClipJob, ClipStep, Windowed
from restage.records import InputError, derive_seed

__all__ = ["TuneAVideo"]


@dataclass(frozen=True, kw_only=True)
class TuneAVideo(Windowed):
    """Tunes queries and temporal attention on the window, inverts it, and denoises under the target caption.

    Wu et al. 2022 (arXiv 2212.11565, and the public code): self attention becomes sparse-causal, keys and values being
    those of the first frame and the one before; a temporal attention with an output of zeros is added; it and the
    queries of both attentions are trained on the clip with its caption, 500 steps at 3e-5; the clip's latents, inverted
    without text, are then sampled with guidance. Here the temporal attention is that of AnimateDiff. Each window is
    tuned by itself, and keeps what the model makes of all of the frame.

    Memory: the UNet twice, its optimizer, and a window's activations.
    """

    num_steps: int = 500
    learning_rate: float = 3e-5
    sampling_steps: int = 20
    guidance: float | None = None
    """Guidance on the text; None for the editor's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.num_steps, self.sampling_steps) < 1 or not self.learning_rate > 0:
            raise InputError(f"expected steps of at least 1 and a learning rate above 0, got {self}")

    def run(self, job: ClipJob) -> Iterator[ClipStep]:
        """Tune, invert, sample."""
        # They load diffusers, which the menu of methods must not.
        from restage.diffusion.motion import build_motion, moving
        from restage.diffusion.sampling import denoise, guided, invert_latents
        from restage.edit.editors.text_to_image import TextToImageEditor

        editor = job.editor
        if not isinstance(editor, TextToImageEditor):
            raise InputError(
                f"tune_a_video tunes a text-to-image model, which {type(editor).__name__} is not; choose --editor "
                "text_to_image, and give --source-caption and --target-caption"
            )
        request, count, total = job.request, len(job.frames), self.num_steps + self.sampling_steps
        if not (request.source_caption and request.target_caption):
            raise InputError("tune_a_video works by captions; give --source-caption and --target-caption")
        backbone = replace(editor.backbone, unet=copy.deepcopy(editor.backbone.unet))
        motion = build_motion(backbone.unet, num_frames=max(count, 2), seed=derive_seed(job.seed, "motion") % 2**31)
        motion.to(device=backbone.device)  # pyright: ignore[reportCallIssue]
        before, after = (
            backbone.encode_prompts([text]).expand(count) for text in (request.source_caption, request.target_caption)
        )
        clean = backbone.encode_images(job.frames)
        trained = [*motion.parameters(), *_queries(backbone.unet)]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate)
        with moving(backbone.unet, motion, count), sparse_causal(backbone.unet, count):
            for step in range(self.num_steps):
                generator = torch.Generator().manual_seed(derive_seed(job.seed, "tune", job.indices[0], step))
                t = torch.randint(backbone.schedule.num_train_timesteps, (1,), generator=generator).expand(count)
                noise = torch.randn(clean.shape, generator=generator).to(clean)
                t = t.to(clean.device)
                with torch.enable_grad():
                    noisy = backbone.schedule.add_noise(clean, noise, t)
                    predicted = backbone.unet(noisy, t, encoder_hidden_states=before.tokens).sample
                    loss = functional.mse_loss(predicted.float(), backbone.schedule.target(clean, noise, t))
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if (step + 1) % REPORT_EVERY == 0:
                    yield ClipStep(step + 1, total, f"tuning on the clip, loss {float(loss.detach()):.3f}")
            empty = backbone.encode_prompts([""])
            latents = invert_latents(backbone, clean, empty.expand(count), num_steps=self.sampling_steps)[0]
            scale = torch.full((count,), editor.guidance if self.guidance is None else self.guidance)
            predict = guided(backbone, after, empty, scale)
            table = backbone.schedule.timesteps(self.sampling_steps)
            for state in denoise(backbone.schedule, latents, predict=predict, timesteps=table, solver="ddim"):
                latents = state.latents
                yield ClipStep(self.num_steps + state.step - 1, total, "sampling the edited clip")
        height, width = job.frames.shape[2:]
        images = backbone.decode_latents(latents)[..., :height, :width].to(job.frames)
        yield ClipStep(total, total, "sampled", images, torch.ones_like(job.frames[:, 0]))


REPORT_EVERY = 10


def _queries(unet: Any) -> list[nn.Parameter]:
    """The queries of all attention layers, which are made trainable."""
    from restage.diffusion.attention import attention_layers

    found = [parameter for layer in attention_layers(unet) for parameter in layer.to_q.parameters()]
    for parameter in found:
        parameter.requires_grad_(True)
    return found


@contextlib.contextmanager
def sparse_causal(unet: nn.Module, num_frames: int) -> Iterator[None]:
    """Let self attention take keys and values from the first frame and the one before; a batch is variants x frames."""
    from restage.diffusion.attention import attention_layers

    layers = [layer for layer in attention_layers(unet) if not layer.is_cross_attention]
    before: list[Any] = [layer.processor for layer in layers]
    processor = _SparseCausal(num_frames)
    try:
        for layer in layers:
            layer.processor = processor  # pyright: ignore[reportAttributeAccessIssue]  (it is called, no more)
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.processor = own


class _SparseCausal:
    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames

    def __call__(self, attn: Any, hidden_states: Float[Tensor, "b n c"], *args: Any, **options: Any) -> Tensor:
        to_out, dropout = cast(nn.ModuleList, attn.to_out)
        frames = hidden_states.unflatten(0, (-1, self.num_frames))
        previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
        shown = torch.cat([frames[:, :1].expand_as(frames), previous], dim=2).flatten(0, 1)
        query, key, value = (
            layer(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, states in ((attn.to_q, hidden_states), (attn.to_k, shown), (attn.to_v, shown))
        )
        found = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return dropout(to_out(found)) / attn.rescale_output_factor

"""The miniature's text-to-image model: a Stable-Diffusion-shaped UNet on 16x16 latents, and its CLIP text encoder."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.models import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

from miniature.grounding import AttentionShares, WordTargets, grounding_loss, watched, word_targets
from miniature.pictures import Pictures
from miniature.tokenizer import shared_tokenizer
from restage.diffusion.backbone import Backbone, load_backbone, load_vae, save_backbone
from restage.diffusion.config import TrainingConfig
from restage.diffusion.loading import padded_ids
from restage.diffusion.schedule import Schedule
from restage.diffusion.training import train
from restage.records import InputError, Progress, derive_seed, write_atomically
from restage.run.models import folder_sha256

__all__ = ["RECIPE", "SCHEDULER_CONFIG", "build_text_encoder", "build_unet", "copy_text_encoder", "copy_weights"]
__all__ += ["cache_of", "encode_pictures", "loss_of_groups", "train_text_to_image"]

RECIPE = TrainingConfig(num_steps=20000, batch_size=32, learning_rate=5e-4, num_warmup_steps=80, ema_decay=0.996)
TEXT_WIDTH = 192
DROP_TEXT = 0.1
"""Share of captions left out in training, for classifier-free guidance."""
ENCODED_AT_ONCE, SAVED_AT_ONCE = 100, 5000
SHARES = (0.1, 0.35, 0.55)
"""Shares of pictures with one, two and three objects in a batch: a single object is soon learned, a third is not."""
GROUNDING_WEIGHT = 0.1
"""Weight of the grounding loss beside the mean squared error of the velocity."""
HALF_SIZE_SHARE = 1 / 3
"""Share of the steps, from the first, on latents of half the size; none where training goes on from other weights."""

SCHEDULER_CONFIG = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "clip_sample": False,
}


def build_unet(channels: int) -> UNet2DConditionModel:
    """Build it untrained: two resolutions (16 and 8), cross attention at both and in the middle."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(96, 160),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(3, 5),  # pyright: ignore[reportArgumentType]  (diffusers takes one a block)
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: Any) -> CLIPTextModel:
    """Build it untrained: a CLIP text transformer of four layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=6,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def cache_of(folder: Path, name: str, base: Path, seed: int = 0) -> Path:
    """Return where latents that a part trains on lie: those of another autoencoder, or seed, lie elsewhere."""
    return folder / "state" / f"{name}-{folder_sha256(base / 'vae')[:8]}{f'-{seed}' if seed else ''}"


def encode_pictures(
    folder: Path, pictures: Pictures, backbone: Backbone, base: Path
) -> Generator[Progress, None, Float[Tensor, "n c h w"]]:
    """Return the latents of all pictures by the autoencoder of the model in `base`, in half precision.

    They are computed once for each autoencoder, to `<folder>/state/latents-<its hash>.npy`.
    """
    path = cache_of(folder, "latents", base).with_suffix(".npy")
    parts = [np.load(path)] if path.exists() else []
    done = saved = sum(map(len, parts))
    while done < len(pictures):
        indices = list(range(done, min(done + ENCODED_AT_ONCE, len(pictures))))
        parts.append(backbone.encode_images(pictures.images(indices)).half().cpu().numpy())
        done += len(indices)
        if done == len(pictures) or done - saved >= SAVED_AT_ONCE:
            parts, saved = [np.concatenate(parts)], done
            with write_atomically(path) as temporary:
                np.save(temporary, parts[0])
        yield Progress(stage="latents", done=done, total=len(pictures))
    return torch.from_numpy(np.concatenate(parts)[: len(pictures)])


def loss_of_groups(
    backbone: Backbone,
    clean: Float[Tensor, "n c h w"],
    captions: Sequence[str],
    within: AbstractContextManager[Any],
    generator: torch.Generator,
) -> Tensor:
    """The loss of the model's own target on pictures of which several show one scene, such as frames or views.

    Each scene has one noise level, each picture noise of its own; the levels of a batch are spread evenly.

    Args:
        backbone: The model, which computes on its device.
        clean: Latents, scene after scene.
        captions: One for each scene.
        within: What joins the pictures of a scene while the UNet is called.
        generator: Where levels and noise are drawn from.
    """
    count, size = len(captions), len(clean) // len(captions)
    num_levels = backbone.schedule.num_train_timesteps
    spaced = (torch.randperm(count, generator=generator) + torch.rand(1, generator=generator)) / count
    t = (spaced * num_levels).long().clamp(max=num_levels - 1).repeat_interleave(size)
    noise = torch.randn(clean.shape, generator=generator)
    clean, noise, t = (part.to(backbone.device) for part in (clean, noise, t))
    text = backbone.encode_text(captions).repeat_interleave(size, dim=0)
    noisy = backbone.schedule.add_noise(clean, noise, t).to(memory_format=torch.channels_last)
    with within:
        predicted = backbone.unet(noisy, t, encoder_hidden_states=text).sample.float()
    return functional.mse_loss(predicted, backbone.schedule.target(clean, noise, t))


class _UnetAndText(nn.Module):
    """Both trained parts as one module, whose cross attention is watched."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, shares: AttentionShares) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.shares = unet, text_encoder, shares

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Predict the velocity, and return how each layer divides its attention among the words."""
        self.shares.maps = []
        text = self.text_encoder(input_ids=ids).last_hidden_state
        latents = latents.to(memory_format=torch.channels_last)
        velocity = self.unet(latents, timesteps, encoder_hidden_states=text).sample
        return velocity, self.shares.maps


def train_text_to_image(
    folder: Path,
    pictures: Pictures,
    config: TrainingConfig = RECIPE,
    *,
    start: Path | None = None,
    start_share: float = 0.0,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train UNet and text encoder on the autoencoder's latents, and save `<folder>/text_to_image`.

    v-prediction on a cosine schedule, captions worded afresh at each use, one in ten left out. The first third of the
    steps sees latents of half the size, at two fifths of a whole step's cost: most of which words belong where is
    learned there, shapes come after it.
    Command: `restage miniature train text-to-image --num-pictures 36000 --compile`. A whole step takes .65 s on one
    quiet core of a Xeon of 2023 with bfloat16, 2.8 s on an old one without. What came of it: docs/miniature.md.

    Args:
        folder: Of the models; its `text_to_image/vae` is there already.
        pictures: The training set.
        config: How long and how fast.
        start: A text-to-image model of these shapes whose weights training goes on from; None for none.
        start_share: Share of the start's weights in those that are saved, 0 to 1. Their mean keeps more of what the
            start knew than training on leaves of it (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903).
        device: Where to train, such as `cuda`.

    Raises:
        InputError: there is a share and no start, or the start's shapes are others.
    """
    if not 0 <= start_share <= 1 or (start_share and start is None):
        raise InputError(f"expected a share of the start in [0, 1], and a start to share, got {start_share}")
    torch.manual_seed(config.seed)  # initial weights only
    tokenizer = shared_tokenizer(folder)
    schedule = Schedule.from_config(SCHEDULER_CONFIG)
    vae = load_vae(folder / "text_to_image" / "vae").eval().requires_grad_(False)
    unet, text_encoder = build_unet(vae.config["latent_channels"]), build_text_encoder(tokenizer)
    if start is not None:
        copy_weights(load_backbone(start), tokenizer, unet, text_encoder)
    unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for part in (unet, text_encoder, vae):
        part.to(device)  # pyright: ignore[reportArgumentType]
    backbone = Backbone(tokenizer, text_encoder, unet, vae, schedule, SCHEDULER_CONFIG)
    latents = yield from encode_pictures(folder, pictures, backbone, folder / "text_to_image")
    chances = pictures.chances(SHARES)
    num_halved = int(HALF_SIZE_SHARE * config.num_steps) if start is None else 0

    with watched(unet, latents.shape[-1]) as shares:
        model = _UnetAndText(unet, text_encoder, shares)

        def loss_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
            batch = _sample_batch(latents, pictures, chances, tokenizer, config, step=step, generator=generator)
            batch = batch.to(device)
            noisy = schedule.add_noise(batch.clean, batch.noise, batch.timesteps)
            target = schedule.velocity(batch.clean, batch.noise, batch.timesteps)
            words = batch.words
            if step < num_halved:
                noisy, target, words = _halve(noisy), _halve(target), _halve_words(words)
            prediction, maps = model(noisy, batch.timesteps, batch.ids)
            # Where nearly all is noise no word can know its place yet.
            visible = schedule.coefficients(batch.timesteps, batch.clean)[0].flatten()
            return {
                "velocity": nn.functional.mse_loss(prediction.float(), target),
                "grounding": GROUNDING_WEIGHT * grounding_loss(maps, *words, visible),
            }

        for step in train(model, loss_of, folder=folder / "state" / "text_to_image", config=config):
            note = ", ".join(f"{name} {value:.4f}" for name, value in step.losses.items())
            yield Progress(stage="text-to-image", done=step.step, total=step.num_steps, note=note)
    if start is not None:
        _mix_in(load_backbone(start, device), tokenizer, backbone, start_share)
    save_backbone(backbone, folder / "text_to_image")


def _halve(latents: Float[Tensor, "b c height width"]) -> Float[Tensor, "b c height/2 width/2"]:
    """Average them in fours. Noise averages as the picture does, so the noise level's mix stays what it was."""
    return nn.functional.avg_pool2d(latents, 2)


def _halve_words(words: WordTargets) -> WordTargets:
    size = math.isqrt(words.pixels.shape[1])
    return words._replace(pixels=_halve(words.pixels.unflatten(1, (1, size, size))).flatten(1))


@torch.no_grad()
def _mix_in(start: Backbone, tokenizer: Any, trained: Backbone, share: float) -> None:
    """Make the trained weights a mean with those that training went on from."""
    unet, text_encoder = copy.deepcopy(trained.unet), copy.deepcopy(trained.text_encoder)
    copy_weights(start, tokenizer, unet, text_encoder)
    for mine, first in ((trained.unet, unet), (trained.text_encoder, text_encoder)):
        for target, source in zip(mine.parameters(), first.parameters(), strict=True):
            target.lerp_(source, share)


def copy_weights(start: Backbone, tokenizer: Any, unet: nn.Module, text_encoder: CLIPTextModel) -> None:
    """Take over the weights of another model, whose tokenizer may be another: see `copy_text_encoder`.

    Raises:
        InputError: its shapes are others.
    """
    try:
        unet.load_state_dict(start.unet.state_dict())
        copy_text_encoder(start, tokenizer, text_encoder)
    except RuntimeError as error:
        raise InputError(f"the model to start from has other shapes: {str(error).splitlines()[0]}") from None


def copy_text_encoder(start: Backbone, tokenizer: Any, text_encoder: CLIPTextModel) -> None:
    """Take over the weights of a text encoder; with another tokenizer, words that both know keep their vectors.

    A token that the old tokenizer does not have starts as the mean of those that it has for its text. Places beyond the
    end of its longest text stay as they are.
    """
    weights = start.text_encoder.state_dict()
    if start.tokenizer.get_vocab() != tokenizer.get_vocab():
        found, name = start.text_encoder.embeddings, "embeddings.{}_embedding.weight"
        weights[name.format("token")] = _token_vectors(start.tokenizer, found.token_embedding.weight, tokenizer)
        places = text_encoder.embeddings.position_embedding.weight.detach().clone()
        count = min(len(places), len(found.position_embedding.weight))
        places[:count] = found.position_embedding.weight[:count]
        weights[name.format("position")] = places
    text_encoder.load_state_dict(weights)


def _token_vectors(old: Any, vectors: Float[Tensor, "old_tokens width"], new: Any) -> Float[Tensor, "new_tokens width"]:
    known, made = old.get_vocab(), []
    for token, _ in sorted(new.get_vocab().items(), key=lambda item: item[1]):
        text = token.removesuffix("</w>")
        parts = [known[token]] if token in known else old(text, add_special_tokens=False).input_ids
        made.append(vectors[parts].mean(dim=0))
    return torch.stack(made).detach()


class _Batch(NamedTuple):
    """What one step trains on."""

    clean: Float[Tensor, "b c 16 16"]
    noise: Float[Tensor, "b c 16 16"]
    timesteps: Int[Tensor, " b"]
    ids: Int[Tensor, "b tokens"]
    words: WordTargets

    def to(self, device: str) -> _Batch:
        """Copy it to a device."""
        words = WordTargets(*(item.to(device) for item in self.words))
        return _Batch(
            self.clean.to(device), self.noise.to(device), self.timesteps.to(device), self.ids.to(device), words
        )


def _sample_batch(
    latents: Float[Tensor, "n c 16 16"],
    pictures: Pictures,
    chances: Float[Tensor, " n"],
    tokenizer: Any,
    config: TrainingConfig,
    *,
    step: int,
    generator: torch.Generator,
) -> _Batch:
    indices = torch.multinomial(chances, config.batch_size, replacement=True, generator=generator)
    # In an order that means something, so that which words belong together shows in where they stand.
    captions = pictures.captions_from_the_left(indices.tolist(), derive_seed(config.seed, "captions", step))
    dropped = torch.rand(config.batch_size, generator=generator) < DROP_TEXT
    captions = ["" if drop else text for drop, text in zip(dropped.tolist(), captions, strict=True)]
    ids = padded_ids(tokenizer, captions, tokenizer.model_max_length)
    clean = latents[indices].float()
    # One uniform draw a batch and even spacing in it: every batch sees all noise levels.
    num_levels = SCHEDULER_CONFIG["num_train_timesteps"]
    spaced = (torch.arange(config.batch_size) + torch.rand(1, generator=generator)) / config.batch_size
    timesteps = (spaced * num_levels).long().clamp(max=num_levels - 1)
    timesteps = timesteps[torch.randperm(config.batch_size, generator=generator)]
    noise = torch.randn(clean.shape, generator=generator)
    chosen = [pictures.descriptions[i] for i in indices.tolist()]
    words = word_targets(tokenizer, captions, chosen, torch.from_numpy(pictures.object_ids[indices.numpy()]))
    return _Batch(clean, noise, timesteps, ids, words)

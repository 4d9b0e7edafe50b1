"""Trains an edit model on image pairs, generated or rendered, from a text-to-image model or from an edit model.

The `train` stage and the recipe of the shipped model both call `train_edit_model`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.edit_unet import add_mask_output, widen_unet
from restage.diffusion.editor import EditModel
from restage.diffusion.editor_folder import load_edit_model, save_edit_model
from restage.diffusion.loading import read_config
from restage.diffusion.training import TrainingConfig, train
from restage.records import InputError, Progress, content_id
from restage.train.batches import ExampleMix, LossWeights, edit_loss, sample_edit_batch
from restage.train.curve import draw_losses
from restage.train.examples import Examples, TrainingPair, encode_examples, hash_tensors

__all__ = ["TrainConfig", "load_start", "train_edit_model"]


def _default_training() -> TrainingConfig:
    return TrainingConfig(num_steps=600, batch_size=32, learning_rate=2e-4)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train an edit model."""

    training: TrainingConfig = field(default_factory=_default_training)
    """Length, learning rates and precision."""
    mix: ExampleMix = field(default_factory=ExampleMix)
    """The forms in which examples are shown."""
    weights: LossWeights = field(default_factory=LossWeights)
    """The weights of the parts of the loss."""
    noise_shift: float = 1.0
    """Shift s of the noise levels in training, which are higher above 1: t = s u / (1 + (s - 1) u) for uniform u (Esser
    et al. 2024, arXiv 2403.03206, equation 23). 1 is InstructPix2Pix's uniform draw."""
    train_text_encoder: bool = False
    """Whether the text encoder is trained, too, and saved with the model. InstructPix2Pix keeps it as it is, since CLIP
    has read all of English; an encoder that has only read captions does not know the words of instructions."""

    def __post_init__(self) -> None:
        if not self.noise_shift > 0:
            raise InputError(f"the shift of noise levels must be above 0, got {self.noise_shift}")


def load_start(folder: Path, device: str = "cpu") -> Backbone | EditModel:
    """Load what training starts from: a text-to-image model, or an edit model.

    Raises:
        InputError: the folder holds neither.
    """
    config_path = folder / "unet" / "config.json"
    if not config_path.is_file():
        raise InputError(f"{folder} holds no model to start from: unet/config.json is missing")
    config = read_config(folder / "unet")
    # An edit UNet takes the original's latents beside the noisy ones; a text-to-image UNet maps latents to latents.
    if config.get("in_channels") == config.get("out_channels"):
        return load_backbone(folder, device)
    return load_edit_model(folder, device)


def _edit_model_from(start: Backbone | EditModel) -> EditModel:
    """Make the edit model to train; the one that it starts from is left as it is."""
    if isinstance(start, Backbone):
        return EditModel(start, widen_unet(start.unet))
    unet = copy.deepcopy(start.unet) if start.has_mask_output else add_mask_output(start.unet)
    return dataclasses.replace(start, unet=unet)


class _UnetAndText(nn.Module):
    """UNet and text encoder as one module that is called like the UNet, with tokens in place of embedded text."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, inputs: Tensor, timesteps: Tensor, *, encoder_hidden_states: Int[Tensor, "b tokens"]) -> Any:
        text = self.text_encoder(input_ids=encoder_hidden_states).last_hidden_state
        return self.unet(inputs, timesteps, encoder_hidden_states=text)


class _Losses:
    """Computes the loss of a step, as the training loop asks for it."""

    def __init__(self, trained: nn.Module, model: EditModel, examples: Examples, config: TrainConfig) -> None:
        self.trained, self.model, self.examples, self.config = trained, model, examples, config

    def __call__(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        training = self.config.training
        batch = sample_edit_batch(
            self.examples,
            self.config.mix,
            batch_size=training.batch_size,
            seed=training.seed,
            step=step,
            device=str(self.model.unet.device),
        )
        loss = edit_loss(
            self.trained,
            batch,
            generator,
            schedule=self.model.schedule,
            condition_scale=self.model.condition_scale,
            weights=self.config.weights,
            noise_shift=self.config.noise_shift,
        )
        return {"noise": loss.noise, "mask": loss.mask}


def train_edit_model(
    pairs: Iterable[TrainingPair],
    start: Backbone | EditModel,
    folder: Path,
    config: TrainConfig,
    *,
    text_to_image: Path | None = None,
) -> Generator[Progress, None, None]:
    """Train an edit model; a call on a folder where training was stopped goes on from there, to the same weights.

    Writes into `folder`: `cache/` (encoded pairs), `state.pt`, `metrics.jsonl` (a line for each step: the weighted
    loss, noise and mask), `loss.png`, and last the model with averaged weights.

    Args:
        pairs: image pairs; the same ones in the same order when training goes on.
        start: a text-to-image model, whose UNet is widened, or an edit model, which is trained further.
        folder: folder for everything that is written.
        config: how to train.
        text_to_image: folder of a text-to-image model that the saved model names instead of holding the shared parts
            again; None saves a model that stands alone.

    Raises:
        InputError: there are no pairs, or they do not fit the model.
    """
    model = _edit_model_from(start)
    mirror = config.mix.mirror_share > 0
    examples = yield from encode_examples(
        pairs, model.backbone, folder / "cache", mirror=mirror, embed_texts=not config.train_text_encoder
    )
    trained: nn.Module = model.unet
    if config.train_text_encoder:
        text_encoder = copy.deepcopy(model.backbone.text_encoder)
        backbone = dataclasses.replace(model.backbone, text_encoder=text_encoder)
        model = dataclasses.replace(model, backbone=backbone, has_own_text_encoder=True)
        trained = _UnetAndText(model.unet, text_encoder)
    trained.requires_grad_(True)
    same = dataclasses.replace(config, training=_default_training())  # the loop compares that part itself
    made_from = content_id("train", [same, model.condition_scale, hash_tensors(trained.state_dict()), examples.id])
    losses = _Losses(trained, model, examples, config)
    for step in train(trained, losses, folder=folder, config=config.training, made_from=made_from):
        note = ", ".join(f"{name} {value:.4f}" for name, value in step.losses.items())
        yield Progress(stage="train", done=step.step, total=step.num_steps, note=note)
    trained.requires_grad_(False)
    draw_losses(folder)
    save_edit_model(model, folder, text_to_image)

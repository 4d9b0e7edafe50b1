"""The stage `train`: trains an edit model on image pairs, from a text-to-image model or from an edit model.

The recipe of the shipped model calls `train_edit_model` as well.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.config import ReferenceArm
from restage.diffusion.edit_models import add_mask_output, load_edit_model, save_edit_model, widen_unet
from restage.diffusion.editor import EditModel
from restage.diffusion.loading import read_config
from restage.diffusion.references import Beside, PictureTokens, Reader, Words
from restage.diffusion.training import LossParts, draw_losses, train
from restage.records import InputError, Progress, content_id, derive_seed
from restage.run.folder import RunFolder
from restage.train.batches import edit_loss, sample_edit_batch
from restage.train.chunks import hash_tensors
from restage.train.config import TrainConfig, default_training
from restage.train.examples import TrainingPair, encode_examples

__all__ = ["load_start", "run_train", "train_edit_model"]


def load_start(folder: Path, device: str = "cpu") -> Backbone | EditModel:
    """Load what training starts from: a text-to-image model, or an edit model."""
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


NUM_PARTS = 2
"""Parts of a batch on a CPU, which as many threads can compute side by side; the weights depend on it in their last
bits. A compiled model would be compiled for each size of part."""


class _Trained(nn.Module):
    """All that is trained as one module that is called like the UNet, which may be given references as well.

    With a text encoder it takes tokens in place of embedded text.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module | None, reader: Reader) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.reader = unet, text_encoder, reader

    def forward(
        self, inputs: Tensor, timesteps: Tensor, *, encoder_hidden_states: Tensor, reference: Tensor | None = None
    ) -> UNet2DConditionOutput:
        text = encoder_hidden_states
        if self.text_encoder is not None:
            text = self.text_encoder(input_ids=text).last_hidden_state
        return UNet2DConditionOutput(sample=self.reader.read(self.unet, inputs, timesteps, text, reference))


def _reader_for(model: EditModel, arm: ReferenceArm) -> Reader:
    """Make what looks at references in training; what the model has of it is trained on."""
    if arm == model.reader.name:
        return copy.deepcopy(model.reader)
    if arm == "tokens":
        width = model.unet.config["cross_attention_dim"]
        return PictureTokens(model.unet, model.latent_channels, width).to(model.unet.device)
    return Beside() if arm == "beside" else Words()


def train_edit_model(
    pairs: Iterable[TrainingPair],
    start: Backbone | EditModel,
    folder: Path,
    config: TrainConfig,
    *,
    text_to_image: Path | None = None,
) -> Generator[Progress, None, None]:
    """Train an edit model; a call on a folder where training was stopped goes on from there, to the same weights.

    Writes into `folder`: `cache/` (encoded pairs, which steps read), `state.pt`, `metrics.jsonl` (a line for each step:
    the weighted loss, noise and mask), `loss.png`, and last the model with averaged weights.

    A text-to-image model is given new channels, an edit model is trained further; both stay as they are. With
    `text_to_image` the saved model names that folder instead of holding the shared parts again.

    Raises:
        InputError: there are no pairs, they do not fit the model, or the folder holds another training.
    """
    model = _edit_model_from(start)
    mirror = config.mix.mirror_share > 0
    examples = yield from encode_examples(
        pairs,
        model.backbone,
        folder / "cache",
        mirror=mirror,
        embed_texts=not config.train_text_encoder,
        with_references=config.references != "words",
    )
    reader = _reader_for(model, config.references)
    if isinstance(model.reader, PictureTokens) and not isinstance(reader, PictureTokens):
        model.reader.fold(model.unet)
    model = dataclasses.replace(model, reader=reader)
    trained: nn.Module = model.unet
    text_encoder = None
    if config.train_text_encoder:
        text_encoder = copy.deepcopy(model.backbone.text_encoder)
        backbone = dataclasses.replace(model.backbone, text_encoder=text_encoder)
        model = dataclasses.replace(model, backbone=backbone, has_own_text_encoder=True)
    if text_encoder is not None or model.takes_references:
        trained = _Trained(model.unet, text_encoder, model.reader)
    trained.requires_grad_(True)
    same = dataclasses.replace(config, training=default_training())  # the loop compares that part itself
    made_from = content_id("train", [same, model.condition_scale, hash_tensors(trained.state_dict()), examples.id])

    def loss_of(step: int, generator: torch.Generator) -> LossParts:
        training, device = config.training, str(model.unet.device)
        batch = sample_edit_batch(
            examples, config.mix, batch_size=training.batch_size, seed=training.seed, step=step, device=device
        )
        is_whole = config.training.is_compiled or model.unet.device.type != "cpu"
        return edit_loss(
            trained,
            batch,
            generator,
            schedule=model.schedule,
            condition_scale=model.condition_scale,
            weights=config.weights,
            noise_shift=config.noise_shift,
            num_parts=1 if is_whole else NUM_PARTS,
        )

    with contextlib.ExitStack() as stack:
        if isinstance(model.reader, PictureTokens):  # once, since parts of a batch are computed side by side
            stack.enter_context(model.reader.attached(model.unet))
        for step in train(trained, loss_of, folder=folder, config=config.training, made_from=made_from):
            note = ", ".join(f"{name} {value:.4f}" for name, value in step.losses.items())
            yield Progress(stage="train", done=step.step, total=step.num_steps, note=note)
    trained.requires_grad_(False)
    draw_losses(folder)
    save_edit_model(model, folder, text_to_image)


def run_train(
    run: RunFolder,
    config: TrainConfig,
    *,
    start: Path,
    pairs: Iterable[TrainingPair] | None = None,
    store: str = "",
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train the run's edit model into `<run>/train`; see `train_edit_model` for what lies there.

    The config's seed is combined with the run's. `start` is the folder of a text-to-image model or edit model; `pairs`
    are others to train on, such as rendered ones, and None takes those that the run accepted, from
    `store` if they lie in one.

    Raises:
        InputError: there are no pairs, `start` holds no model, or the stage was finished with another config.
    """
    if run.is_done("train", config):
        yield Progress(stage="train", done=1, total=1, note="already done")
        return
    seed = derive_seed(run.seed, "train", config.training.seed)
    seeded = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))
    model = load_start(start, device)
    if pairs is None:
        from restage.pairs.files import open_files
        from restage.pairs.store import read_pairs  # needs pyarrow, which training on other pairs does not

        pairs = read_pairs(open_files(run.path / "pairs", store=store))
    yield from train_edit_model(pairs, model, run.folder("train"), seeded)
    run.mark_done("train", config, num_steps=config.training.num_steps)

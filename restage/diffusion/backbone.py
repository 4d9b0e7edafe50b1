"""A text-to-image model as parts: tokenizer, text encoder, UNet, VAE, noise schedule; read from a diffusers folder.

The miniature and Stable Diffusion load through the same code. Everything that generates or trains uses this module.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch._dynamo.config
from diffusers.models import AutoencoderDC, AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from restage.diffusion.attention import controlled
from restage.diffusion.branches import Branch, ControlBranch, Residuals, add_to_out, injected, load_branch
from restage.diffusion.conditions import Conditions
from restage.diffusion.config import BranchSource
from restage.diffusion.control import StepControl
from restage.diffusion.hardware import bfloat16_autocast
from restage.diffusion.loading import check_tokens, load_model, load_tokenizer, padded_ids, read_config
from restage.diffusion.schedule import Schedule
from restage.records import InputError, write_json
from restage.run.profile import timed

__all__ = ["Backbone", "TextCondition", "load_backbone", "save_backbone"]

MAX_COMPILED = 64
"""Number of combinations of batch size and kinds of attention control that a UNet may be compiled for."""
VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderDC": AutoencoderDC}


@dataclass(frozen=True, eq=False)
class TextCondition:
    """Embedded prompts in the form that a UNet takes."""

    tokens: Float[Tensor, "b tokens d"]
    pooled: Float[Tensor, "b p"] | None = None  # one vector for each prompt; only Stable Diffusion XL takes it

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.tokens)

    def _map(self, change: Callable[[Tensor], Tensor]) -> TextCondition:
        return TextCondition(change(self.tokens), None if self.pooled is None else change(self.pooled))

    def expand(self, number: int) -> TextCondition:
        """Repeat a single prompt so many times."""
        return self._map(lambda x: x.expand(number, *x.shape[1:]))

    def select(self, prompts: Integer[Tensor, " chosen"]) -> TextCondition:
        """Return these prompts, in this order."""
        return self._map(lambda x: x[prompts.to(x.device)])

    def cat(self, other: TextCondition) -> TextCondition:
        """Return these prompts, followed by those of another."""
        pooled = None
        if self.pooled is not None and other.pooled is not None:
            pooled = torch.cat([self.pooled, other.pooled])
        return TextCondition(torch.cat([self.tokens, other.tokens]), pooled)


@dataclass
class Backbone:
    """The parts of a latent diffusion model, all on one device, in evaluation mode."""

    tokenizer: Any
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderDC
    schedule: Schedule
    scheduler_config: dict[str, Any]
    """The diffusers scheduler config that the schedule was read from; saved with the model."""
    folder: Path | None = None  # where it was loaded from
    tokenizer_2: Any = None
    """Second tokenizer of Stable Diffusion XL, which has two text encoders; None for other models."""
    text_encoder_2: CLIPTextModelWithProjection | None = None
    has_autocast: bool | None = None
    """Whether UNet and VAE compute under bfloat16 autocast; None = if the device computes in bfloat16 natively."""
    branches: tuple[Branch, ...] = ()
    """Control branches that it was loaded with; they act on what `steered` returns."""
    inputs: tuple[Float[Tensor, "pictures _ _ _"], ...] = ()
    """Input of each branch, for the pictures of a batch in order; empty where nothing is steered."""
    _compiled: Backbone | None = dataclasses.field(default=None, init=False, repr=False, compare=False)

    @property
    def device(self) -> torch.device:
        """Device of the UNet."""
        return next(self.unet.parameters()).device

    @property
    def pixels_per_latent(self) -> int:
        """Pixels of a picture along a side of one latent."""
        config: Any = self.vae.config
        widths = config.get("block_out_channels") or config["encoder_block_out_channels"]
        return 2 ** (len(widths) - 1)

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width, in pixels, of the pictures that the UNet was trained on."""
        size: Any = self.unet.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.pixels_per_latent, width * self.pixels_per_latent

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """Compute in bfloat16 autocast where asked for, or where it is fast; weights stay as they are."""
        with bfloat16_autocast(self.device, is_wanted=self.has_autocast):
            yield

    def compiled(self) -> Backbone:
        """Return this backbone with its UNet compiled: minutes at the first call with each size of batch, then faster.

        Every call returns the same object, so that nothing is compiled twice. With control branches of our own, whose
        place is within the UNet, nothing is compiled.
        """
        # A compiled UNet does not notice that hooks come and go.
        if any(isinstance(branch.model, ControlBranch) for branch in self.branches):
            return self
        if self._compiled is None:
            dynamo: Any = torch._dynamo.config
            # Beyond its limit, dynamo quietly goes back to eager code.
            dynamo.recompile_limit = max(dynamo.recompile_limit, MAX_COMPILED)
            unet: Any = torch.compile(self.unet, dynamic=False)
            self._compiled = dataclasses.replace(self, unet=unet)
        return self._compiled

    def steered(self, given: Sequence[Conditions], size: tuple[int, int] | None = None) -> Backbone:
        """Return a backbone that paints so many pictures under these conditions, one for each row of its batches.

        Batches may hold all rows several times, as guidance does. It shares all parts with this one. `size` is the
        height and width of the pictures in pixels; default: that of the UNet's training.

        Raises:
            InputError: there is no control branch, or a picture lacks what one takes.
        """
        if not self.branches:
            raise InputError("conditions need a control branch; name one with --branch")
        inputs = []
        for branch in self.branches:
            condition = branch.prepare(given, size or self.picture_size).to(self.device)
            if isinstance(branch.model, ControlBranch):
                with torch.no_grad(), self.precision():
                    condition = branch.model.encode(condition)
            inputs.append(condition)
        return dataclasses.replace(self, inputs=tuple(inputs))

    def with_rows(self, rows: Integer[Tensor, " chosen"]) -> Backbone:
        """Return a backbone that paints these of the pictures that it is steered for, in this order."""
        return dataclasses.replace(self, inputs=tuple(condition[rows.to(self.device)] for condition in self.inputs))

    def token_ids(self, texts: Sequence[str]) -> Int[Tensor, "b tokens"]:
        """Return the tokens of texts for the (first) text encoder, padded to the tokenizer's length."""
        return padded_ids(self.tokenizer, texts, self.tokenizer.model_max_length).to(self.device)

    def encode_prompts(self, texts: Sequence[str]) -> TextCondition:
        """Embed prompts for the UNet, padded to the tokenizer's length.

        With two text encoders (Stable Diffusion XL; Podell et al. 2023, arXiv 2307.01952): their last but one hidden
        states side by side, and the second one's projected end token.
        """
        with torch.no_grad():
            ids = self.token_ids(texts)
            if self.text_encoder_2 is None:
                return TextCondition(self.text_encoder(input_ids=ids).last_hidden_state.float())
            first = self.text_encoder(input_ids=ids, output_hidden_states=True)
            ids_2 = padded_ids(self.tokenizer_2, texts, self.tokenizer_2.model_max_length).to(self.device)
            second = self.text_encoder_2(input_ids=ids_2, output_hidden_states=True)
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return TextCondition(tokens.float(), second.text_embeds.float())

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "b tokens d"]:
        """Embed texts token by token, padded to the tokenizer's length."""
        return self.encode_prompts(texts).tokens

    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h8 w8"]:
        """Encode pictures in [0, 1], of any size, deterministically, to latents of unit variance.

        Where a side is no multiple of `pixels_per_latent`, decoding gives a picture that is larger at the right and
        below.
        """
        with torch.no_grad():
            return self.encode_with_gradient(images)

    def encode_with_gradient(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h8 w8"]:
        """Do what `encode_images` does and let gradients reach the pictures, which distillation needs."""
        # Latents stand for whole squares of pixels: what is missing at the right and below repeats the border.
        missing = [-side % self.pixels_per_latent for side in images.shape[-2:]]
        if any(missing):
            images = functional.pad(images, (0, missing[1], 0, missing[0]), mode="replicate")
        with timed("encode"), self.precision():
            encoded: Any = self.vae.encode((images.to(self.device) * 2 - 1).to(memory_format=torch.channels_last))
        latents = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
        return latents.float() * self.vae.config["scaling_factor"]

    def decode_latents(self, latents: Float[Tensor, "b c h8 w8"]) -> Float[Tensor, "b 3 h w"]:
        """Decode latents to pictures in [0, 1]."""
        scaled = (latents / self.vae.config["scaling_factor"]).to(memory_format=torch.channels_last)
        with timed("decode"), torch.no_grad(), self.precision():
            decoded: Any = self.vae.decode(scaled)
        return (decoded.sample.float() / 2 + 0.5).clamp(0, 1)

    def added_conditions(self, text: TextCondition, latents: Tensor) -> dict[str, Tensor] | None:
        """Return what Stable Diffusion XL's UNet takes beside tokens: pooled text, and sizes in pixels, uncropped."""
        config: Any = self.unet.config
        if config.get("addition_embed_type") != "text_time":
            return None
        if text.pooled is None:
            raise InputError("this UNet wants pooled text, too; encode with encode_prompts")
        size = (8 * latents.shape[2], 8 * latents.shape[3])
        sizes = torch.tensor([[*size, 0, 0, *size]], dtype=latents.dtype, device=latents.device)
        return {"text_embeds": text.pooled.to(latents.dtype), "time_ids": sizes.expand(len(latents), -1)}

    def predict_noise(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, " b"],
        text: Float[Tensor, "b tokens d"] | TextCondition,
        *,
        control: StepControl | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Predict the noise in the latents, whatever the UNet was trained to predict, under an attention control."""
        text = TextCondition(text) if isinstance(text, Tensor) else text
        dtype = next(self.unet.parameters()).dtype
        inputs = latents.to(dtype=dtype, memory_format=torch.channels_last)
        options: dict[str, Any] = {"added_cond_kwargs": self.added_conditions(text, inputs)}
        if control is not None:
            options["cross_attention_kwargs"] = {"control": control}
        with contextlib.ExitStack() as within:
            for context in (timed("model"), torch.no_grad(), self.precision()):
                within.enter_context(context)
            options |= self._steer(within, inputs, timesteps, text.tokens.to(dtype), options["added_cond_kwargs"])
            if control is not None:
                within.enter_context(controlled(self.unet))
            prediction = self.unet(inputs, timesteps, encoder_hidden_states=text.tokens.to(dtype), **options).sample
        return self.schedule.to_epsilon(prediction.float(), latents, timesteps)

    def _steer(
        self,
        within: contextlib.ExitStack,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        added: dict[str, Tensor] | None,
    ) -> dict[str, Any]:
        """Have the branches act on one call of the UNet; returns what ControlNets hand over as its arguments."""
        total: Residuals | None = None
        for branch, condition in zip(self.branches, self.inputs, strict=False):
            if not branch.is_on(int(timesteps[0]), self.schedule.num_train_timesteps):
                continue
            if isinstance(branch.model, ControlBranch):
                features = branch.model.finish(condition, timesteps[: len(condition)])
                change = partial(branch.model.inject, features=features, weight=branch.weight)
                within.enter_context(injected(self.unet, branch.model.config["placement"], change))
                continue
            found = branch.residuals(latents, timesteps, condition, text=text, added=added)
            pairs = zip(total.down, found.down, strict=True) if total else ()
            total = Residuals(tuple(a + b for a, b in pairs), total.mid + found.mid) if total else found
        if total is None:
            return {}
        return {"down_block_additional_residuals": total.down, "mid_block_additional_residual": total.mid}


def load_vae(folder: Path) -> AutoencoderKL | AutoencoderDC:
    """Load an autoencoder of either family, by the class that its config names."""
    name = read_config(folder).get("_class_name")
    if name not in VAE_CLASSES:
        raise InputError(f"{folder} holds a '{name}', expected one of {', '.join(VAE_CLASSES)}")
    return load_model(VAE_CLASSES[name], folder)


def _tokenizer_of(text_encoder: Any, folder: Path) -> Any:
    """Load a tokenizer that fits a text encoder."""
    tokenizer, longest = load_tokenizer(folder), text_encoder.config.max_position_embeddings
    check_tokens(tokenizer, text_encoder.config, folder)
    length: Any = tokenizer.model_max_length
    if not isinstance(length, int) or not 1 <= length <= longest:
        raise InputError(
            f"{folder}: expected a model_max_length of 1 to {longest}, as the text encoder has, got {length}"
        )
    return tokenizer


def load_backbone(folder: Path, device: str = "cpu", *, branches: Sequence[BranchSource] = ()) -> Backbone:
    """Load a diffusers folder of `tokenizer`, `text_encoder`, `unet`, `vae` and `scheduler` that fit each other.

    Control branches are attached; what one changed in the UNet's own weights is added to these.
    """
    unet = load_model(UNet2DConditionModel, folder / "unet")
    text_encoder = load_model(CLIPTextModel, folder / "text_encoder")
    has_second = (folder / "text_encoder_2").is_dir()
    text_encoder_2 = load_model(CLIPTextModelWithProjection, folder / "text_encoder_2") if has_second else None
    vae = load_vae(folder / "vae")
    width, expected = text_encoder.config.hidden_size, unet.config["cross_attention_dim"]
    if text_encoder_2 is not None:
        width += text_encoder_2.config.hidden_size
    if width != expected:
        raise InputError(
            f"{folder}: the text encoder's width {width} is not the UNet's cross attention width {expected}"
        )
    if vae.config["latent_channels"] not in (unet.config["in_channels"], unet.config["in_channels"] // 2):
        found = f"the VAE has {vae.config['latent_channels']} channels, the UNet takes {unet.config['in_channels']}"
        raise InputError(f"{folder}: {found}")
    for part in (unet, text_encoder, text_encoder_2, vae):
        if part is not None:
            part.to(device).eval().requires_grad_(False)  # pyright: ignore[reportArgumentType]
    for part in (unet, vae):
        part.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    attached = tuple(load_branch(source, unet, folder / "unet") for source in branches)
    for branch in attached:
        add_to_out(unet, branch.to_out)
    schedule, scheduler_config = Schedule.read(folder / "scheduler" / "scheduler_config.json")
    return Backbone(
        tokenizer=_tokenizer_of(text_encoder, folder / "tokenizer"),
        text_encoder=text_encoder,
        unet=unet,
        vae=vae,
        schedule=schedule,
        scheduler_config=scheduler_config,
        folder=folder,
        tokenizer_2=None if text_encoder_2 is None else _tokenizer_of(text_encoder_2, folder / "tokenizer_2"),
        text_encoder_2=text_encoder_2,
        branches=attached,
    )


def save_half(model: Any, folder: Path) -> None:
    """Save a diffusers or transformers model in half precision; the model itself stays as it is."""
    saved = copy.deepcopy(model).half()
    # Both libraries write the path that a model was loaded from; it would make ids depend on where the package lies.
    if hasattr(saved, "register_to_config"):
        saved.register_to_config(_name_or_path="")
    else:
        saved.config._name_or_path = ""
    saved.save_pretrained(folder)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer, without the padding that its last call happened to ask for."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Save all parts as a diffusers folder, weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    save_half(backbone.unet, folder / "unet")
    save_half(backbone.text_encoder, folder / "text_encoder")
    save_half(backbone.vae, folder / "vae")
    save_tokenizer(backbone.tokenizer, folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", backbone.scheduler_config)
    parts = {
        "tokenizer": ["transformers", type(backbone.tokenizer).__name__],
        "text_encoder": ["transformers", type(backbone.text_encoder).__name__],
        "unet": ["diffusers", type(backbone.unet).__name__],
        "vae": ["diffusers", type(backbone.vae).__name__],
        "scheduler": ["diffusers", backbone.scheduler_config.get("_class_name", "DDIMScheduler")],
    }
    write_json(
        folder / "model_index.json",
        {"_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__, **parts},
    )

"""Where edit models come from: a text-to-image UNet that is widened, or a folder, ours or of InstructPix2Pix."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

from restage.diffusion.backbone import Backbone, load_backbone, save_backbone, save_half
from restage.diffusion.editor import EditModel, Guidance
from restage.diffusion.loading import load_model
from restage.diffusion.references import Beside, PictureTokens, Reader, Words, load_tokens, save_tokens
from restage.records import InputError, canonical_json, file_sha256, read_json, write_json

__all__ = ["add_mask_output", "edit_weights_sha256", "load_edit_model", "save_edit_model", "widen_unet"]

PICTURE_TOKENS = "picture_tokens.safetensors"
START_MASK_PROBABILITY = 0.05
"""What an untrained mask output says everywhere: most pixels of most edits stay as they are."""


def _resized(layer: torch.nn.Conv2d, inputs: int, outputs: int, new_bias: float) -> torch.nn.Conv2d:
    """Copy a convolution with more channels: new weights are zero, new outputs have the given bias."""
    padding = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
    size, stride = layer.kernel_size, layer.stride
    resized = torch.nn.Conv2d(inputs, outputs, size, stride, padding)  # pyright: ignore[reportArgumentType]
    old_bias = layer.bias
    assert old_bias is not None and resized.bias is not None
    with torch.no_grad():
        resized.weight.zero_()
        resized.weight[: layer.out_channels, : layer.in_channels] = layer.weight
        resized.bias.fill_(new_bias)
        resized.bias[: layer.out_channels] = old_bias
    return resized.to(layer.weight)


def _with_channels(unet: UNet2DConditionModel, inputs: int, outputs: int) -> UNet2DConditionModel:
    config = {**unet.config, "in_channels": inputs, "out_channels": outputs}
    result = copy.deepcopy(unet)
    logit = math.log(START_MASK_PROBABILITY / (1 - START_MASK_PROBABILITY))
    result.conv_in = _resized(result.conv_in, inputs, result.conv_in.out_channels, 0.0)
    result.conv_out = _resized(result.conv_out, result.conv_out.in_channels, outputs, logit)
    result.register_to_config(**config)
    return result.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def widen_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Turn a text-to-image UNet into an edit UNet that at first predicts exactly what the old one did.

    The new input channels start at zero; the mask output starts at zero weights and a bias that says
    `START_MASK_PROBABILITY`. The old UNet is left as it was.
    """
    inputs, outputs = unet.config["in_channels"], unet.config["out_channels"]
    if inputs != outputs:
        raise InputError(
            f"only a text-to-image UNet (as many inputs as outputs) can be widened, got {inputs} inputs and "
            f"{outputs} outputs; a UNet that already sees the original is trained on as it is"
        )
    return _with_channels(unet, 2 * inputs, outputs + 1)


def add_mask_output(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Give an InstructPix2Pix UNet (2c inputs, c outputs) a mask output that starts as in `widen_unet`."""
    inputs, outputs = unet.config["in_channels"], unet.config["out_channels"]
    if inputs != 2 * outputs:
        raise InputError(f"expected a UNet with twice as many inputs as outputs, got {inputs} and {outputs}")
    return _with_channels(unet, inputs, outputs + 1)


@dataclass(frozen=True)
class _Record:
    """What is read of `edit_model.json`."""

    text_to_image: Path | None = None
    condition_scale: float | None = None
    guidance: Guidance = field(default_factory=Guidance)
    references: Literal["words", "beside", "tokens"] = "words"


def _reader_of(record: _Record, folder: Path, backbone: Backbone, unet: UNet2DConditionModel) -> Reader:
    if record.references == "tokens":
        channels, width = backbone.vae.config["latent_channels"], unet.config["cross_attention_dim"]
        return load_tokens(folder / PICTURE_TOKENS, unet, channels, width)
    return Beside() if record.references == "beside" else Words()


def load_edit_model(folder: Path, device: str = "cpu") -> EditModel:
    """Load an edit model that `save_edit_model` has written, or an InstructPix2Pix folder in diffusers layout."""
    if not (folder / "unet" / "config.json").is_file():
        raise InputError(f"{folder} holds no edit model: unet/config.json is missing")
    record_path = folder / "edit_model.json"
    record = read_json(record_path, _Record) if record_path.exists() else _Record()
    if record.text_to_image is None:
        backbone = load_backbone(folder, device)
        published = 1.0 / backbone.vae.config.get("scaling_factor", 1.0)
        scale = published if record.condition_scale is None else record.condition_scale
        reader = _reader_of(record, folder, backbone, backbone.unet)
        return EditModel(backbone, backbone.unet, scale, record.guidance, reader=reader)
    backbone = load_backbone(folder / record.text_to_image, device)
    has_own_text_encoder = (folder / "text_encoder").is_dir()
    if has_own_text_encoder:
        text_encoder = load_model(CLIPTextModel, folder / "text_encoder").to(device).eval().requires_grad_(False)
        backbone = dataclasses.replace(backbone, text_encoder=text_encoder)
    unet = load_model(UNet2DConditionModel, folder / "unet").to(device, memory_format=torch.channels_last)
    unet.eval().requires_grad_(False)
    scale = 1.0 if record.condition_scale is None else record.condition_scale
    reader = _reader_of(record, folder, backbone, unet)
    return EditModel(backbone, unet, scale, record.guidance, has_own_text_encoder, reader)


def save_edit_model(model: EditModel, folder: Path, text_to_image: Path | None = None) -> None:
    """Save as a folder with `unet/` in half precision, its own `text_encoder/` if any, and, last, `edit_model.json`.

    The shared parts are those of the folder `text_to_image`, named by its path relative to `folder`: both have to move
    together. Without one everything is saved, and the folder stands alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Copies, since saving rounds weights in place: a caller that goes on must not go on with other weights.
    if text_to_image is None:
        save_backbone(copy.deepcopy(dataclasses.replace(model.backbone, unet=model.unet)), folder)
    else:
        save_half(copy.deepcopy(model.unet), folder / "unet")
        if model.has_own_text_encoder:
            save_half(model.backbone.text_encoder, folder / "text_encoder")
    shared = None if text_to_image is None else Path(os.path.relpath(text_to_image.resolve(), folder.resolve()))
    record: dict[str, Any] = {
        "text_to_image": shared,
        "condition_scale": model.condition_scale,
        "guidance": dataclasses.asdict(model.guidance),
        "latent_channels": model.latent_channels,
        "has_mask_output": model.has_mask_output,
    }
    if model.takes_references:
        record["references"] = model.reader.name
    if isinstance(model.reader, PictureTokens):
        save_tokens(model.reader, folder / PICTURE_TOKENS)
    write_json(folder / "edit_model.json", record)


def edit_weights_sha256(folder: Path) -> str:
    """One hash over the files of an edit model that are its own: of its UNet, its text encoder, its picture tokens."""
    if not (folder / "unet").is_dir():
        raise InputError(f"{folder} holds no edit model; expected a folder unet in it")
    files = [path for part in ("text_encoder", "unet") for path in sorted((folder / part).glob("*"))]
    files += sorted(folder.glob(PICTURE_TOKENS))
    hashes = [[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files]
    return hashlib.sha256(canonical_json(hashes).encode()).hexdigest()

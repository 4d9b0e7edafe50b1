"""Loads and saves edit models: our own folders, and whole InstructPix2Pix folders in diffusers layout."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

from restage.diffusion.backbone import load_backbone, save_backbone, save_half
from restage.diffusion.editor import EditModel, Guidance
from restage.diffusion.loading import load_model
from restage.records import InputError, canonical_json, file_sha256, read_json, write_json

__all__ = ["edit_weights_sha256", "load_edit_model", "save_edit_model"]


@dataclass(frozen=True)
class _Record:
    """What is read of `edit_model.json`."""

    text_to_image: Path | None = None
    condition_scale: float | None = None
    guidance: Guidance = field(default_factory=Guidance)


def load_edit_model(folder: Path, device: str = "cpu") -> EditModel:
    """Load an edit model saved by `save_edit_model`, or a whole InstructPix2Pix folder in diffusers layout.

    Raises:
        InputError: files are missing, or the UNet does not fit the other parts.
    """
    if not (folder / "unet" / "config.json").is_file():
        raise InputError(f"{folder} holds no edit model: unet/config.json is missing")
    record_path = folder / "edit_model.json"
    record = read_json(record_path, _Record) if record_path.exists() else _Record()
    if record.text_to_image is None:
        backbone = load_backbone(folder, device)
        published = 1.0 / backbone.vae.config.get("scaling_factor", 1.0)
        scale = published if record.condition_scale is None else record.condition_scale
        return EditModel(backbone, backbone.unet, scale, record.guidance)
    backbone = load_backbone(folder / record.text_to_image, device)
    has_own_text_encoder = (folder / "text_encoder").is_dir()
    if has_own_text_encoder:
        text_encoder = load_model(CLIPTextModel, folder / "text_encoder").to(device).eval().requires_grad_(False)
        backbone = dataclasses.replace(backbone, text_encoder=text_encoder)
    unet = load_model(UNet2DConditionModel, folder / "unet").to(device, memory_format=torch.channels_last)
    unet.eval().requires_grad_(False)
    scale = 1.0 if record.condition_scale is None else record.condition_scale
    return EditModel(backbone, unet, scale, record.guidance, has_own_text_encoder)


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
    record = {
        "text_to_image": shared,
        "condition_scale": model.condition_scale,
        "guidance": dataclasses.asdict(model.guidance),
        "latent_channels": model.latent_channels,
        "has_mask_output": model.has_mask_output,
    }
    write_json(folder / "edit_model.json", record)


def edit_weights_sha256(folder: Path) -> str:
    """One hash over the files of an edit model that are its own: of its UNet, and of its text encoder if it has one.

    Raises:
        InputError: it holds no UNet.
    """
    if not (folder / "unet").is_dir():
        raise InputError(f"{folder} holds no edit model; expected a folder unet in it")
    files = [path for part in ("text_encoder", "unet") for path in sorted((folder / part).glob("*"))]
    hashes = [[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files]
    return hashlib.sha256(canonical_json(hashes).encode()).hexdigest()

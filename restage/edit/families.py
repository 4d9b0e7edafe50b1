"""How each instruction pipeline of diffusers is called, as data, and which of them lie in the hub's cache.

`restage.edit.editors.pipeline` calls them; `restage doctor` lists them. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from restage.records import InputError

__all__ = ["FAMILIES", "IN_GRID", "SECOND_PICTURE", "CachedPipeline", "Family", "cached_pipelines", "find_model"]
__all__ += ["has_try_on_weights", "pipeline_class"]


SECOND_PICTURE = "Apply the same change as in the second picture."
IN_GRID = (
    "Change the lower right picture as the upper right one was changed from the upper left one, and leave the other "
    "three as they are."
)
"""What is added to the instruction where an edited view and its original lie above the view and its original."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a pipeline is called; strings in lower case are names of its arguments, empty ones it does not have."""

    steps: int
    """Denoising steps, by the model's card or the pipeline's default."""
    by: str = "guidance_scale"
    guidance: float = 0.0
    """Strength of the instruction; 0 leaves it to the pipeline."""
    image_by: str = ""
    image_guidance: float = 0.0
    """Strength of the original view, where it has a guidance of its own."""
    image: str = "image"
    form: Literal["tensor", "picture", "list", "nested"] = "picture"
    """The view goes in as a tensor, as a picture, in a list before the references, or in such a list for each prompt,
    which then names all its pictures."""
    reference: str = ""
    """Takes pictures besides the view; `list` puts them into the list of the view."""
    mask: str = ""
    """Takes the region that may change, 1 inside; such a pipeline starts from the current render, with `strength`."""
    size: Literal["asked", "shown", "own", "buckets"] = "asked"
    """The result has the size that is asked for, that of the view that is shown, about a megapixel in its own choice of
    size, or one of a table of sizes."""
    multiple: int = 2
    """Sides are multiples of this many times the scale of the autoencoder."""
    side: int = 1024
    """Smaller views are enlarged until their longer side has this many pixels, about what the model was trained on."""
    is_batched: bool = False
    """Whether one call takes several views."""
    can_start: bool = False
    """Whether partial noise is added to the current render; else every edit starts from full noise."""
    dtype: str = ""
    """The only one that the pipeline computes in; empty for any."""
    prompt: str = "{}"
    anchor: str = SECOND_PICTURE
    """What is added to the instruction where an edited view is among the references."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More arguments, always the same."""


_REFERENCE = "Apply the same change as in the reference picture."
_FLUX2: dict[str, Any] = {"form": "list", "reference": "list", "anchor": "Apply the same change as in image 2."}
_QWEN: dict[str, Any] = {"by": "true_cfg_scale", "size": "own", "extra": {"negative_prompt": " "}}
_KONTEXT: dict[str, Any] = {"steps": 28, "form": "tensor", "extra": {"_auto_resize": False}}

FAMILIES: dict[str, Family] = {
    "StableDiffusionInstructPix2PixPipeline": Family(
        steps=100,
        guidance=7.5,
        image_by="image_guidance_scale",
        image_guidance=1.5,
        form="tensor",
        size="shown",
        side=512,
        is_batched=True,
    ),
    "StableDiffusionXLInstructPix2PixPipeline": Family(
        steps=100,
        guidance=5.0,
        image_by="image_guidance_scale",
        image_guidance=1.5,
        form="tensor",
        side=768,
        is_batched=True,
    ),
    "FluxKontextPipeline": Family(**_KONTEXT, guidance=2.5, can_start=True),
    "FluxKontextInpaintPipeline": Family(
        **_KONTEXT, guidance=2.5, mask="mask_image", reference="image_reference", anchor=_REFERENCE
    ),
    "Flux2Pipeline": Family(**_FLUX2, steps=50, guidance=4.0),
    "Flux2KleinPipeline": Family(**_FLUX2, steps=50, guidance=4.0),
    "Flux2KleinKVPipeline": Family(**_FLUX2, steps=4, by=""),
    "Flux2KleinInpaintPipeline": Family(
        steps=50, guidance=4.0, size="shown", mask="mask_image", reference="image_reference", anchor=_REFERENCE
    ),
    "QwenImageEditPipeline": Family(**_QWEN, steps=50, guidance=4.0),
    "QwenImageEditPlusPipeline": Family(
        **_QWEN, steps=40, guidance=4.0, form="list", reference="list", anchor="Apply the same change as in Picture 2."
    ),
    "QwenImageEditInpaintPipeline": Family(**_QWEN, steps=50, guidance=4.0, mask="mask_image"),
    "QwenImage21Pipeline": Family(steps=40, by="true_cfg_scale", size="own", form="list", reference="list"),
    "LongCatImageEditPipeline": Family(steps=50, guidance=4.5, size="own"),
    "JoyImageEditPipeline": Family(steps=40, guidance=4.0, size="buckets"),
    "JoyImageEditPlusPipeline": Family(
        steps=30, guidance=4.0, image="images", form="list", reference="list", size="buckets"
    ),
    "GlmImagePipeline": Family(steps=50, guidance=1.5, form="list", reference="list", multiple=4),
    "ZImageOmniPipeline": Family(steps=50, guidance=5.0, form="list", reference="list", dtype="bfloat16"),
    "OmniGenPipeline": Family(
        steps=50,
        guidance=2.5,
        image_by="img_guidance_scale",
        image_guidance=1.6,
        image="input_images",
        form="nested",
        reference="list",
        is_batched=True,
        prompt="<img><|image_1|></img> {}",
    ),
    "DreamLitePipeline": Family(steps=30, guidance=3.5, image_by="image_guidance_scale", image_guidance=1.5),
    "DreamLiteMobilePipeline": Family(steps=4, by=""),
    "Kandinsky5I2IPipeline": Family(steps=50, guidance=3.5, size="own"),
}
"""By the class that `model_index.json` names; steps and guidance are those of the pipeline or the model's card."""


def has_try_on_weights(folder: Path) -> bool:
    """Whether a folder holds an inpainting model with CatVTON's self-attention beside it; see the editor `try_on`."""
    names = ("attention/model.safetensors", "*/attention/model.safetensors")
    return (folder / "unet" / "config.json").is_file() and any(any(folder.glob(name)) for name in names)


def pipeline_class(folder: Path) -> str:
    """Return the class of the pipeline that lies in a folder; empty if it holds none that can be read."""
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
    except (OSError, ValueError):
        return ""
    name = index.get("_class_name") if isinstance(index, dict) else None
    return name if isinstance(name, str) else ""


@dataclass(frozen=True, kw_only=True)
class CachedPipeline:
    """An instruction pipeline in the hub's cache."""

    name: str  # such as `black-forest-labs/FLUX.2-klein-4B`
    folder: Path
    class_name: str
    weights_gb: float  # size of its weights, which is about the memory that they need


def _hub_cache() -> Path:
    """Find the hub's cache as huggingface_hub does, which takes a while to import."""
    home = os.environ.get("HF_HOME", Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", Path(home) / "hub")).expanduser()


def _snapshot(repository: Path) -> Path | None:
    """Return the folder of the newest version that was fetched: the one that `main` was then, or any other."""
    main = repository / "refs" / "main"
    if main.is_file() and (named := repository / "snapshots" / main.read_text().strip()).is_dir():
        return named
    return max(repository.glob("snapshots/*/"), key=lambda path: path.stat().st_mtime, default=None)


def cached_pipelines() -> list[CachedPipeline]:
    """Return the pipelines of the hub's cache that the table knows, by name."""
    found = []
    for repository in sorted(_hub_cache().glob("models--*")):
        folder = _snapshot(repository)
        if folder is not None and (class_name := pipeline_class(folder)) in FAMILIES:
            size = sum(path.stat().st_size for path in folder.rglob("*.safetensors") if path.is_file())
            name = repository.name.removeprefix("models--").replace("--", "/")
            found.append(CachedPipeline(name=name, folder=folder, class_name=class_name, weights_gb=size / 1e9))
    return found


def find_model(model: Path) -> Path:
    """Return the folder of a model: the one that is named, or that of a repository in the hub's cache.

    Raises:
        InputError: there is neither. Nothing is downloaded.
    """
    if model.is_dir():
        return model
    if len(model.parts) == 2 and not model.is_absolute():
        snapshot = _snapshot(_hub_cache() / f"models--{'--'.join(model.parts)}")
        if snapshot is not None:
            return snapshot
        raise InputError(
            f"{model} is neither a folder nor in the hub's cache, {_hub_cache()}; fetch it first: hf download {model}"
        )
    raise InputError(f"{model} does not exist; expected a folder of diffusers, or a name such as owner/model")

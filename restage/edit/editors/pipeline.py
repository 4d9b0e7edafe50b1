"""Instruction editors of diffusers as they come: folders that its own pipelines run, called by `edit.families`.

Their pipelines hide their predictions, so they edit views but cannot be distilled. The menu opens them as
`SettledEditor`, since they move pixels and have no mask output.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import diffusers
import numpy as np
import torch
import transformers
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from restage.diffusion.loading import load_model, load_pipeline
from restage.edit.editors.interface import AnchorForm, Edited, EditorSource, ViewBatch
from restage.edit.families import FAMILIES, IN_GRID, Family, cached_pipelines, find_model, pipeline_class
from restage.edit.sharing import AnchoredNoise
from restage.records import InputError, from_plain, read_json
from restage.scenes.io.images import to_uint8

__all__ = ["PipelineEditor", "PipelineOptions", "fit_picture", "open_pipeline", "resize_views"]

Views = Float[Tensor, "batch 3 height width"]

SMALLEST = 64
"""Some pipelines refuse pictures with fewer pixels a side."""


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """What `--model-options` may set; None leaves it to the family's row in `FAMILIES`."""

    steps: int | None = None
    guidance: float | None = None
    image_guidance: float | None = None
    size: int | None = None
    """Longer side, in pixels, of the views that the model is shown; larger and smaller views are resized."""
    batch_size: int = 4
    """Views a call, where the pipeline takes several."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """None for bfloat16 on a GPU and float32 elsewhere."""
    weights: Literal["whole", "float8", "int8", "nf4"] = "whole"
    """How the denoiser's weights are held: float8 by diffusers itself; int8 and nf4 need bitsandbytes and a GPU."""
    offload: Literal["no", "model", "layers"] = "no"
    """What waits in the processor's memory until the GPU needs it: nothing, whole parts, or layers."""

    def __post_init__(self) -> None:
        for name in ("steps", "size", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"expected {name} of at least 1, got {value}")

    @classmethod
    def of(cls, options: Sequence[str]) -> PipelineOptions:
        """Read `key=value` words."""
        known = [field.name for field in dataclasses.fields(cls)]
        values = {}
        for option in options:
            name, _, text = option.partition("=")
            if name not in known or not text:
                raise InputError(f"expected --model-options as key=value, a key of {', '.join(known)}; got {option!r}")
            try:
                values[name] = json.loads(text)
            except ValueError:
                values[name] = text
        return from_plain(values, cls, where="--model-options")


class _Start(NamedTuple):
    """The part of the noise schedule that an edit goes through."""

    sigmas: np.ndarray  # as the pipeline takes them, before the shift for the size of the picture
    first: float  # noise of the latents at the start, after that shift, in (0, 1]


class _Prepared(NamedTuple):
    """A batch at the size that the model works at."""

    views: Views
    originals: Views
    references: list[Tensor]
    regions: Tensor | None
    seeds: list[int]
    noises: Tensor | None
    instruction: str
    noise_level: float


@dataclass(frozen=True)
class PipelineEditor:
    """A pipeline of diffusers that takes a view and an instruction; its mask is 1 everywhere, since it has none."""

    pipeline: Any
    family: Family
    options: PipelineOptions = PipelineOptions()

    @property
    def steps(self) -> int:
        """Denoising steps from full noise."""
        return self.options.steps or self.family.steps

    @property
    def takes_references(self) -> bool:
        """Whether the pipeline looks at more pictures than the view."""
        return bool(self.family.reference)

    @property
    def anchor_form(self) -> AnchorForm:
        """How it is shown an edited view: as a reference, or in a grid."""
        words = self.family.anchor if self.takes_references else IN_GRID
        return AnchorForm(not self.takes_references, words, takes_mask=bool(self.family.mask))

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit a batch of views; see `Editor.edit`.

        Where the family cannot start from partial noise, every edit starts from full noise, whatever is asked for.
        """
        # Pipelines put pictures onto their own device, wherever the scene lies.
        device = batch.views.device
        batch = dataclasses.replace(batch, views=batch.views.cpu(), originals=batch.originals.cpu())
        size = (int(batch.originals.shape[2]), int(batch.originals.shape[3]))
        shown = self._shown_size(*size)
        prepared = self._prepare(batch, shown)
        count = self.options.batch_size if self.family.is_batched else 1
        edited = []
        for start in range(0, len(batch.views), count):
            arguments = self._arguments(prepared, slice(start, start + count))
            # Some pipelines seed the global generator; whoever calls this one is not to notice.
            with torch.random.fork_rng():
                called = self.pipeline(**arguments)
            images = torch.as_tensor(called[0])[:, :3].float().cpu()  # some answer with transparency
            edited.append(resize_views(images, size).clamp(0, 1))
        images = torch.cat(edited)
        return Edited(images.to(device), torch.ones_like(images[:, 0]).to(device))

    def _shown_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which the model sees a view, height before width."""
        if self.family.size == "buckets":
            # Its processor crops what has another shape than one of its sizes: an edited view would show less.
            processor = getattr(self.pipeline, "vae_image_processor", self.pipeline.image_processor)
            return processor.get_default_height_width(Image.new("RGB", (width, height)))
        side = self.options.size or max(self.family.side, height, width)
        multiple = self.family.multiple * getattr(self.pipeline, "vae_scale_factor", 8)
        scale = side / max(height, width)
        shown_height, shown_width = (
            max(-(-SMALLEST // multiple), round(scale * edge / multiple)) * multiple for edge in (height, width)
        )
        return shown_height, shown_width

    def _prepare(self, batch: ViewBatch, size: tuple[int, int]) -> _Prepared:
        noises = None
        if self.family.can_start:
            scale = self.pipeline.vae_scale_factor
            noises = batch.draw_noise((self.pipeline.latent_channels, size[0] // scale, size[1] // scale))
        # A generator cannot draw noise of surfaces; each view then has its own.
        is_anchored = isinstance(batch.noise_keys, AnchoredNoise)
        seeds = (dataclasses.replace(batch, noise_keys=None) if is_anchored else batch).noise_seeds()
        regions = None if batch.regions is None else resize_views(batch.regions[:, None].cpu(), size)
        return _Prepared(
            resize_views(batch.views, size),
            resize_views(batch.originals, size),
            [fit_picture(reference.picture.cpu(), size) for reference in batch.references],
            regions,
            [*seeds],
            noises,
            batch.request.instruction,
            batch.noise_level,
        )

    def _arguments(self, prepared: _Prepared, part: slice) -> dict[str, Any]:
        """All that the pipeline is called with for some views of a batch."""
        family, options = self.family, self.options
        views, originals = prepared.views[part], prepared.originals[part]
        generators = [torch.Generator().manual_seed(seed) for seed in prepared.seeds[part]]
        is_many = family.is_batched
        prompt = family.prompt.format(prepared.instruction)
        if family.form == "nested":
            prompt += "".join(f" <img><|image_{number + 2}|></img>" for number in range(len(prepared.references)))
        shown = views if family.mask else originals
        arguments: dict[str, Any] = {
            **family.extra,
            "prompt": [prompt] * len(views) if is_many else prompt,
            family.image: _in_form(shown, family, prepared.references),
            "num_inference_steps": self.steps,
            "generator": generators if is_many else generators[0],
            "output_type": "pt",
        }
        for name, value, default in (
            (family.by, options.guidance, family.guidance),
            (family.image_by, options.image_guidance, family.image_guidance),
        ):
            if name and (value if value is not None else default):
                arguments[name] = value if value is not None else default
        if family.size == "asked":
            arguments |= {"height": views.shape[2], "width": views.shape[3]}
        if "max_area" in inspect.signature(self.pipeline.__call__).parameters:
            arguments["max_area"] = views.shape[2] * views.shape[3]  # else it chooses a size of a megapixel
        if family.mask:
            regions = torch.ones_like(views[:, :1]) if prepared.regions is None else prepared.regions[part]
            arguments |= {family.mask: regions, "strength": prepared.noise_level}
            seen = prepared.references[:1] or ([] if torch.equal(views, originals) else [originals[0]])
            if family.reference and seen:
                arguments[family.reference] = _in_form(seen[0][None], family, [])
        if family.can_start:
            assert prepared.noises is not None
            arguments |= self._start_arguments(views, prepared.noises[part], prepared.noise_level)
        return arguments

    def _start_arguments(self, view: Tensor, noise: Tensor, noise_level: float) -> dict[str, Any]:
        """Partial noise on the current render, and the matching rest of the schedule.

        The models are trained by flow matching: `x_s = (1 - s) x + s noise`.
        """
        clean = self._pack(self._encode(view))
        start = self._start(noise_level, clean.shape[1])
        latents = (1 - start.first) * clean + start.first * self._pack(noise.to(clean.device)).to(clean)
        return {"sigmas": start.sigmas, "num_inference_steps": len(start.sigmas), "latents": latents}

    def _start(self, noise_level: float, num_tokens: int) -> _Start:
        """The last part of the table of sigmas, and what its first one becomes in the scheduler (in a copy of it)."""
        count = max(1, math.ceil(self.steps * noise_level - 1e-9))
        sigmas = np.linspace(1.0, 1 / self.steps, self.steps)[-count:]
        # A copy, since `set_timesteps` leaves its table in the scheduler that the pipeline is about to use.
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        settings = {name: scheduler.config[name] for name in names if name in scheduler.config}
        settings = {name.replace("image_seq_len", "seq_len"): value for name, value in settings.items()}
        scheduler.set_timesteps(sigmas=sigmas, mu=calculate_shift(num_tokens, **settings))
        return _Start(sigmas, float(scheduler.sigmas[0]))

    def _encode(self, view: Tensor) -> Tensor:
        vae = self.pipeline.vae
        with torch.no_grad():
            latents = vae.encode((view * 2 - 1).to(self.pipeline._execution_device, vae.dtype)).latent_dist.mode()
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    def _pack(self, latents: Tensor) -> Tensor:
        """2x2 latent pixels to a token, as the transformer takes them."""
        return functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def resize_views(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return pictures at a size, height before width."""
    if tuple(images.shape[2:]) == size:
        return images
    return functional.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)


def fit_picture(
    image: Float[Tensor, "3 h w"], size: tuple[int, int], *, ground: float = 0.5
) -> Float[Tensor, "3 h2 w2"]:
    """Return a picture at a size, its proportions kept, with gray beside it: some pipelines ask for equal shapes."""
    scale = min(size[0] / image.shape[1], size[1] / image.shape[2])
    inside = (max(1, round(scale * image.shape[1])), max(1, round(scale * image.shape[2])))
    top, left = (size[0] - inside[0]) // 2, (size[1] - inside[1]) // 2
    margins = (left, size[1] - inside[1] - left, top, size[0] - inside[0] - top)
    return functional.pad(resize_views(image[None], inside), margins, value=ground)[0]


def _in_form(views: Tensor, family: Family, references: Sequence[Tensor]) -> Any:
    if family.form == "tensor":
        return views
    pictures = [Image.fromarray(to_uint8(view)) for view in views]
    if family.form == "picture":
        return pictures[0]
    shown = [Image.fromarray(to_uint8(reference)) for reference in references]
    return [pictures[0], *shown] if family.form == "list" else [[picture, *shown] for picture in pictures]


def open_pipeline(source: EditorSource) -> PipelineEditor:
    """Open a folder of diffusers, or a repository of the hub's cache; on CUDA in bfloat16 unless told otherwise."""
    options = PipelineOptions.of(source.options)
    if source.model is None:
        cached = ", ".join(pipeline.name for pipeline in cached_pipelines())
        raise InputError(f"name the pipeline's folder with --model; in the hub's cache: {cached or 'none'}")
    folder = find_model(source.model)
    if not (folder / "model_index.json").is_file():
        raise InputError(f"expected a folder with a model_index.json of diffusers, got {folder}")
    name = pipeline_class(folder)
    if name not in FAMILIES:
        raise InputError(f"{folder} holds a {name!r}, which is none of the pipelines known: {', '.join(FAMILIES)}")
    cls = getattr(diffusers, name, None)
    if cls is None:
        raise InputError(f"{folder} holds a {name}, which diffusers {diffusers.__version__} does not have; upgrade it")
    family = FAMILIES[name]
    default = family.dtype or ("bfloat16" if source.device.startswith("cuda") else "float32")
    pipeline: Any = load_pipeline(cls, folder, _load_parts(folder, getattr(torch, options.dtype or default), options))
    pipeline.set_progress_bar_config(disable=True)
    return PipelineEditor(_place(pipeline, source.device, options), family, options)


def _load_parts(folder: Path, dtype: torch.dtype, options: PipelineOptions) -> dict[str, Any]:
    """Load the parts that have weights, each through the checks of `load_model`."""
    parts: dict[str, Any] = {}
    for part, entry in read_json(folder / "model_index.json", dict[str, Any]).items():
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(word, str) for word in entry):
            continue
        if part == "safety_checker":  # it blacks out pictures, and needs a further model for that
            parts |= {part: None, "requires_safety_checker": False}
            continue
        library, class_name = entry
        if hasattr(diffusers.pipelines, library):  # a class of the pipeline's own, which holds no weights
            continue
        cls = getattr(importlib.import_module(library), class_name, None) if library in _LIBRARIES else None
        if cls is None:
            raise InputError(f"{folder}: its {part} is a {class_name} of {library}, which is not installed")
        if issubclass(cls, diffusers.ModelMixin | transformers.PreTrainedModel):
            parts[part] = load_model(cls, folder / part, dtype=dtype, options=_quantized(part, library, dtype, options))
    return parts


_LIBRARIES = ("diffusers", "transformers")


def _quantized(part: str, library: str, dtype: torch.dtype, options: PipelineOptions) -> Mapping[str, Any]:
    if options.weights not in ("int8", "nf4") or part not in _DENOISERS:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"weights={options.weights} needs bitsandbytes; run: pip install bitsandbytes")
    config = importlib.import_module(library).BitsAndBytesConfig
    if options.weights == "int8":
        return {"quantization_config": config(load_in_8bit=True)}
    chosen = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": config(**chosen)}


_DENOISERS = ("transformer", "unet")


def _place(pipeline: Any, device: str, options: PipelineOptions) -> Any:
    """Put a pipeline onto its device, as far as it is to lie there."""
    if options.weights == "float8":
        for part in _DENOISERS:
            if (model := getattr(pipeline, part, None)) is not None:
                model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=model.dtype)
    if options.offload == "no":
        return pipeline.to(device)
    if not device.startswith("cuda"):
        raise InputError(f"offload={options.offload} moves weights to a GPU and back; choose one with --device")
    if options.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_sequential_cpu_offload(device=device)
    return pipeline

"""Edit models as editors: the one that this project trains, or a published InstructPix2Pix folder.

Views may share self-attention: key views attend to each other, other views take over what the key views found.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from restage.diffusion.attention import attention_layers, watched_keys
from restage.diffusion.edit_models import load_edit_model
from restage.diffusion.editor import EditCondition, EditModel, EditSettings, Guidance, edit_images
from restage.diffusion.references import Mutual, prepare_reference
from restage.diffusion.schedule import Schedule
from restage.edit.editors.interface import AnchorForm, Branches, Edited, EditorSource, PredictNoise, ReadKeys, ViewBatch
from restage.edit.sharing import FrameSharing, Sharing, ViewSharing, near_epipolar_lines
from restage.records import EditRequest, InputError
from restage.scenes.references import ShownPicture

__all__ = ["ModelEditor", "ModelScores", "open_edit_model", "open_instruct_pix2pix", "share_attention"]

PUBLISHED = EditSettings(steps=20, guidance=Guidance(text=7.5, image=1.5))
"""For published InstructPix2Pix models. Guidance and number of steps are from Instruct-NeRF2NeRF (arXiv 2303.12789),
but where the steps lie (`Schedule.timesteps` begins at the last one) and the solver are this package's."""


@dataclass(frozen=True)
class ModelEditor:
    """Edits views with an edit model; guidance as in InstructPix2Pix (arXiv 2211.09800, equation 3)."""

    model: EditModel
    settings: EditSettings | None = None  # steps and guidance; the edit model's own defaults if None

    @property
    def shares_attention(self) -> bool:
        """Whether views can attend to each other; not where they attend to the reference by the same layers."""
        return self.model.reader.name != "mutual"

    @property
    def takes_references(self) -> bool:
        """Whether the model looks at a picture beside the view."""
        return self.model.takes_references

    @property
    def anchor_form(self) -> AnchorForm | None:
        """How it is shown an edited view: as the reference, by the instruction alone; None if it looks at none."""
        return AnchorForm(is_grid=False, words="") if self.takes_references else None

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit a batch of views; see `Editor.edit`."""
        settings, sharing = self.settings or EditSettings(), contextlib.nullcontext()
        if batch.sharing is not None:
            # Views can attend to each other only while they are in the model together.
            settings = replace(settings, batch_size=len(batch.views))
            source = _SourceInputs(self.model, batch) if isinstance(batch.sharing, FrameSharing) else None
            is_beside = self.model.reader.name == "beside"
            sharing = share_attention(self.model.unet, batch.sharing, source=source, is_beside=is_beside)
        with sharing:
            edited = edit_images(
                self.model,
                batch.views,
                batch.originals,
                batch.request.instruction,
                noise_level=batch.noise_level,
                seeds=batch.draw_noise,
                settings=settings,
                reference=_prepare(batch.references, batch.views),
            )
        return edited.to(batch.views.device)

    def scores(self) -> ModelScores:
        """The edit model as distillation uses it."""
        return ModelScores(self.model, (self.settings or EditSettings()).guidance or self.model.guidance)


def _prepare(references: Sequence[ShownPicture], views: Tensor) -> Float[Tensor, "4 side side"] | None:
    if len(references) > 1:
        raise InputError(f"the edit model looks at one reference, got {len(references)}, an anchor's view included")
    # As high as the views, which it may be put beside.
    if not references:
        return None
    picture, mask = references[0]
    return prepare_reference(picture, mask, views.shape[2]).to(views)


@dataclass(frozen=True)
class ModelScores:
    """Noise predictions of an edit model: with the instruction, and with guidance on the original alone."""

    model: EditModel
    guidance: Guidance
    references: tuple[ShownPicture, ...] = ()

    @property
    def schedule(self) -> Schedule:
        """The model's noise schedule."""
        return self.model.schedule

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Latents of unit variance; gradients reach the pictures."""
        return self.model.backbone.encode_with_gradient(images)

    def decode(self, latents: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b 3 h w"]:
        """See `ClipScores.decode`."""
        return self.model.backbone.decode_latents(latents)

    def branches(
        self, original: Float[Tensor, "n 3 h w"], request: EditRequest, *, view_index: int, seed: int
    ) -> Branches:
        """Both branches see the original view, or views; only one the instruction."""
        condition = self._condition(original, request)
        return Branches(self._predictor(condition), self._predictor(condition.untold))

    def _condition(self, originals: Tensor, request: EditRequest) -> EditCondition:
        reference = _prepare(self.references, originals)
        return self.model.encode_condition(originals, [request.instruction] * len(originals), reference)

    def read_keys(self, originals: Float[Tensor, "n 3 h w"], request: EditRequest) -> ReadKeys:
        """See `ClipScores`."""
        told = self._condition(originals, request)

        def read(latents: Tensor, timestep: int, is_edited: bool) -> list[Tensor]:
            condition = told if is_edited else told.untold
            t = torch.full((len(latents),), timestep, device=latents.device)
            with watched_keys(self.model.unet) as keys:
                self.model.predict(latents, t, condition.original_latents, condition.text, condition.reference)
            return keys

        return read

    def _predictor(self, condition: EditCondition) -> PredictNoise:
        def predict(latents: Tensor, timestep: int, guidance: float | None) -> Tensor:
            used = self.guidance if guidance is None else replace(self.guidance, text=guidance)
            t = torch.full((len(latents),), timestep, device=latents.device)
            with torch.no_grad(), self.model.backbone.precision():
                return self.model.predict_guided(latents, t, condition, used).epsilon.float()

        return predict


def _open(source: EditorSource, what: str, settings: EditSettings | None = None) -> ModelEditor:
    if source.model is None or not source.model.is_dir():
        raise InputError(
            f"expected the folder of {what}, got {source.model}; name one with --model, or run: restage train"
        )
    return ModelEditor(load_edit_model(source.model, source.device), settings)


MUTUAL = "references=mutual"
"""Option that lets an edit model look at a reference without having been trained for it."""


def open_edit_model(source: EditorSource) -> ModelEditor:
    """Open a trained edit model."""
    if set(source.options) - {MUTUAL}:
        raise InputError(f"the editor edit_model has one option, {MUTUAL}; got {' '.join(source.options)}")
    editor = _open(source, "a trained edit model")
    if not source.options:
        return editor
    model = editor.model
    return replace(editor, model=replace(model, reader=Mutual(model.schedule, model.backbone.encode_text([""]))))


def open_instruct_pix2pix(source: EditorSource) -> ModelEditor:
    """Open a published InstructPix2Pix, as `StableDiffusionInstructPix2PixPipeline.save_pretrained` writes it.

    The original view goes in as the mode of the VAE's posterior, without the VAE's scaling factor, as it was trained
    (`EditModel.condition_scale`); steps and guidance are those of Instruct-NeRF2NeRF.
    """
    return _open(source, "an InstructPix2Pix model in diffusers layout", PUBLISHED)


@dataclass(frozen=True)
class _SourceInputs:
    """Turns the inputs of a call of the UNet into those of the unedited views at the same noise, told nothing."""

    model: EditModel
    batch: ViewBatch

    def __call__(self, inputs: Tensor, timesteps: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num_views, channels = len(self.batch.views), self.model.latent_channels
        original, t = inputs[:num_views, channels:], timesteps[:num_views]
        noisy = inputs[:num_views, :channels].clone()
        # What may lie to the right of a view stays as it is.
        width = inputs.shape[3] - (inputs.shape[2] if self.model.reader.name == "beside" else 0)
        clean = original[..., :width] / self.model.condition_scale
        noise = self.batch.draw_noise(clean.shape[1:]).to(clean)
        noisy[..., :width] = self.model.schedule.add_noise(clean, noise, t)
        untold = text[-num_views:]  # the last variant of a guided call has no text
        return torch.cat([noisy, original], dim=1), t, untold


@dataclass
class _Plan:
    """What a call of the UNet shares: the roles of the views at this denoising step."""

    sharing: Sharing
    is_beside: bool = False
    """Whether a square picture lies to the right of each view, the same one at each."""
    step: int = -1
    keys: list[int] = field(default_factory=list)
    is_source: bool = False
    """Whether this call is of the unedited views, whose features are kept for matching."""
    _near: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    def begin_step(self) -> None:
        self.step += 1
        self.keys = self.sharing.keys_at(self.step)

    def near(self, view: int, key: int, num_tokens: int) -> Bool[Tensor, "tokens tokens"]:
        """Which tokens of a key view lie near the epipolar line of each token of another view."""
        if (view, key, num_tokens) not in self._near:
            assert isinstance(self.sharing, ViewSharing)
            cameras = self.sharing.cameras
            height = round(math.sqrt(num_tokens / (cameras.width / cameras.height + self.is_beside)))
            width = num_tokens // height - self.is_beside * height
            near = near_epipolar_lines(cameras[[view, key]].to_size(width, height), reach=self.sharing.epipolar_reach)
            if self.is_beside:
                # What lies beside the views is one picture, whose tokens match one by one.
                own = torch.arange(num_tokens).reshape(height, -1)[:, :width].flatten()
                whole = torch.eye(num_tokens, dtype=torch.bool)
                whole[own[:, None], own] = near
                near = whole
            self._near[view, key, num_tokens] = near
        return self._near[view, key, num_tokens]


class _SharingProcessor:
    """Takes the place of a self-attention layer's processor; a batch is variants of the guidance x views."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.num_calls = 0
        self.source: Tensor | None = None

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        self.num_calls += 1
        to_out, dropout = cast(nn.ModuleList, attn.to_out)
        if self.plan.is_source:
            self.source = hidden_states
            return dropout(to_out(_attend(attn, hidden_states))) / attn.rescale_output_factor
        num_views = self.plan.sharing.num_views
        states = hidden_states.unflatten(0, (-1, num_views))
        keys = self.plan.keys
        # All tokens of all key views are one sequence.
        found = _attend(attn, states[:, keys].flatten(1, 2)).unflatten(1, (len(keys), -1))
        # Other views take over outputs rather than attend: it is what makes them agree, and it costs no attention.
        out = found.new_empty(*states.shape[:-1], found.shape[-1])
        out[:, keys] = found
        for view in range(num_views):
            if view not in keys:
                out[:, view] = self._transfer(states, found, view)
        return dropout(to_out(out.flatten(0, 1))) / attn.rescale_output_factor

    def _transfer(self, states: Tensor, found: Tensor, view: int) -> Tensor:
        """Blend, for each token of a view, the outputs of its best matches in the two nearest key views."""
        plan, total = self.plan, 0.0
        for weight, number in plan.sharing.nearest_keys(view, plan.keys):
            key = plan.keys[number]
            if self.source is None:
                near = plan.near(view, key, states.shape[2]).to(states.device)
                match = best_matches(states[:, view], states[:, key], near)
            else:
                match = best_matches(self.source[[view]], self.source[[key]]).expand(len(states), -1)
            taken = found[:, number].gather(1, match[:, :, None].expand(-1, -1, found.shape[-1]))
            total = total + weight * taken
        assert isinstance(total, Tensor)
        return total


def _attend(attn: Attention, states: Float[Tensor, "b n c"]) -> Float[Tensor, "b n inner"]:
    """Plain self-attention, before the projection of what it gives."""
    to_q, to_k, to_v = attn.to_q, attn.to_k, attn.to_v
    assert to_k is not None and to_v is not None
    query, key, value = (layer(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in (to_q, to_k, to_v))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def best_matches(
    features: Float[Tensor, "b n c"], others: Float[Tensor, "b m c"], allowed: Bool[Tensor, "n m"] | None = None
) -> Tensor:
    """Index of the most similar (by cosine) of the others for each feature, among the allowed; of all if none is."""
    similarity = functional.normalize(features.float(), dim=2) @ functional.normalize(others.float(), dim=2).mT
    if allowed is None:
        return similarity.argmax(dim=2)
    # A token whose line misses the other view would have nothing to take; the best match anywhere is better than that.
    is_free = allowed | ~allowed.any(dim=1, keepdim=True)
    return similarity.masked_fill(~is_free, -math.inf).argmax(dim=2)


@contextlib.contextmanager
def share_attention(
    unet: nn.Module, sharing: Sharing, *, source: _SourceInputs | None = None, is_beside: bool = False
) -> Iterator[None]:
    """Within it, each call of the UNet is one denoising step of all views together, in their order, times variants.

    With `is_beside` the same square picture lies to the right of each. With `source`, matches are looked for in the
    features of the unedited views, at the cost of one more variant.
    """
    layers = [layer for layer in attention_layers(unet) if not layer.is_cross_attention]
    plan = _Plan(sharing, is_beside)
    processors = [_SharingProcessor(plan) for _ in layers]
    before: list[Any] = [layer.processor for layer in layers]

    def begin(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        if plan.is_source:
            return
        plan.begin_step()
        if source is not None and len(plan.keys) < sharing.num_views:
            latents, t, text = source(inputs[0], inputs[1], options["encoder_hidden_states"])
            plan.is_source = True
            module(latents, t, **{**options, "encoder_hidden_states": text})
            plan.is_source = False

    # Counted by calls of the UNet: a layer cannot know which denoising step it is in.
    hook = unet.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        for layer, processor in zip(layers, processors, strict=True):
            layer.processor = processor  # pyright: ignore[reportAttributeAccessIssue]  (it is called, no more)
        yield
    finally:
        hook.remove()
        for layer, processor in zip(layers, before, strict=True):
            layer.processor = processor
    if len({processor.num_calls for processor in processors}) != 1:
        raise RuntimeError("sharing reached only some self-attention layers; were processors replaced inside?")

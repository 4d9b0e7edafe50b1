"""How an edit model looks at a reference: not at all, by mutual attention, side by side, or as picture tokens.

A reference is its latents and, as one more channel, the share of each latent pixel that its subject covers; where that
is 0 everywhere there is none. Each arm is a `Reader`, which calls the edit UNet; training and editing use the same.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from restage.diffusion.attention import attention_layers
from restage.diffusion.config import ReferenceArm
from restage.diffusion.schedule import Schedule
from restage.records import InputError, write_atomically

__all__ = ["Beside", "Mutual", "PictureTokens", "Reader", "Words", "load_tokens"]
__all__ += ["has_reference", "prepare_reference", "save_tokens", "with_processors"]

Inputs = Float[Tensor, "batch inputs height width"]
Outputs = Float[Tensor, "batch outputs height width"]
Text = Float[Tensor, "batch tokens width_of_text"]
Reference = Float[Tensor, "batch channels_and_subject _ _"]

MAX_EDGE = 4096
"""Pixels along a side of a picture that are looked at."""
GRAY = 0.5
MARGIN = 1.15
"""Side of the square around a subject, in its larger side."""


def prepare_reference(
    picture: Float[Tensor, "3 h w"],
    mask: Float[Tensor, "h w"] | None,
    side: int,
    *,
    zoom: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Float[Tensor, "4 side side"]:
    """Cut the subject out of a picture: in a square, on gray, with where it is as a fourth channel.

    Nothing of the ground around it is left, nor of where in the picture it was. `zoom` enlarges the square and `shift`
    moves it, in shares of its side, for training.

    Raises:
        InputError: the mask is empty.
    """
    if (longest := max(picture.shape[1:])) > MAX_EDGE:  # a square around it would take gigabytes
        size = tuple(max(1, round(edge * MAX_EDGE / longest)) for edge in picture.shape[1:])
        picture = functional.interpolate(picture[None], size, mode="area")[0]
        mask = None if mask is None else functional.interpolate(mask[None, None], size, mode="area")[0, 0]
    subject = torch.ones_like(picture[0]) if mask is None else mask
    rows, columns = (subject > 0.5).nonzero(as_tuple=True)
    if not len(rows):
        raise InputError("the mask of the reference marks nothing; expected its subject in white")
    top, left, bottom, right = (int(x) for x in (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1))
    edge = max(1, round(max(bottom - top, right - left) * (MARGIN if mask is not None else 1.0) * zoom))
    first = [
        round((start + end - edge) / 2 + offset * edge)
        for start, end, offset in ((top, bottom, shift[0]), (left, right, shift[1]))
    ]
    height, width = subject.shape
    layers = torch.cat([(picture - GRAY) * subject, subject[None]])
    # Negative margins cut; beyond the picture there is gray.
    margins = (-first[1], first[1] + edge - width, -first[0], first[0] + edge - height)
    square = functional.pad(layers, margins)[None]
    square = functional.interpolate(square, (side, side), mode="bilinear", antialias=True)[0]
    return torch.cat([(square[:3] + GRAY).clamp(0, 1), square[3:].clamp(0, 1)])


def has_reference(reference: Reference) -> Bool[Tensor, " batch"]:
    """Return which rows have a reference: those whose subject is anywhere."""
    return reference[:, -1].flatten(1).amax(dim=1) > 0


@runtime_checkable
class Reader(Protocol):
    """Calls an edit UNet so that it sees a reference, each arm in its own way."""

    @property
    def name(self) -> ReferenceArm:
        """What an edit model's folder calls it."""
        ...

    def read(
        self, unet: nn.Module, inputs: Inputs, timesteps: Int[Tensor, " batch"], text: Text, reference: Reference | None
    ) -> Outputs:
        """Return the UNet's outputs for `inputs`, noisy latents and originals; None for no reference in any row."""
        ...


def _call(unet: nn.Module, inputs: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    return unet(inputs, timesteps, encoder_hidden_states=text).sample


@dataclass(frozen=True)
class Words:
    """Looks at no reference."""

    name: ReferenceArm = "words"

    def read(
        self, unet: nn.Module, inputs: Inputs, timesteps: Int[Tensor, " batch"], text: Text, reference: Reference | None
    ) -> Outputs:
        """Call the UNet; see `Reader.read`."""
        return _call(unet, inputs, timesteps, text)


@dataclass(frozen=True)
class Beside:
    """Puts the clean reference to the right of the noisy view, at every step.

    Self-attention reaches it there, as in CatVTON (arXiv 2407.15886). It stays clean and out of the loss, so that it is
    never itself denoised, as DeCo-VTON (arXiv 2511.18775) found to matter.
    """

    name: ReferenceArm = "beside"

    def read(
        self, unet: nn.Module, inputs: Inputs, timesteps: Int[Tensor, " batch"], text: Text, reference: Reference | None
    ) -> Outputs:
        """Call the UNet on both halves and return the left one; see `Reader.read`."""
        height, width = inputs.shape[2:]
        if reference is None:
            beside = inputs.new_zeros(*inputs.shape[:2], height, height)
        else:
            # Where there is none, gray latents would say something; zeros are what the model is shown in training.
            latents = reference[:, :-1] * has_reference(reference)[:, None, None, None]
            beside = torch.cat([latents, latents], dim=1).to(inputs)
        joined = torch.cat([inputs, beside], dim=3).contiguous(memory_format=torch.channels_last)
        return _call(unet, joined, timesteps, text)[..., :width]


def _heads(x: Float[Tensor, "b n inner"], count: int) -> Float[Tensor, "b heads n d"]:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    if value.device.type == "cpu" and torch.is_grad_enabled():
        # The backward pass of fused attention takes several times as long on a CPU; see `explicit_attention`.
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return (scores if bias is None else scores + bias).softmax(dim=-1) @ value
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _put_out(attn: Attention, out: Float[Tensor, "b heads n d"]) -> Tensor:
    to_out, dropout = cast(nn.ModuleList, attn.to_out)
    return dropout(to_out(out.transpose(1, 2).flatten(2))) / attn.rescale_output_factor


@contextlib.contextmanager
def with_processors(layers: list[Attention], processors: list[Any]) -> Iterator[None]:
    """Give attention layers other processors within the context."""
    before: list[Any] = [layer.processor for layer in layers]
    try:
        for layer, processor in zip(layers, processors, strict=True):
            layer.processor = processor
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.processor = processor


PATCH = 2
"""Latent pixels along a side of a token."""
NUM_SIZES = 3
"""The reference is cut into tokens as it is, at half and at a quarter of its size."""


class PictureTokens(nn.Module):
    """Gives each cross-attention layer a second source, `a1 Attn(Q, K1, V1) + a2 Attn(Q, K2, V2)`.

    The first source is the text and the second the picture; queries are shared and both weights are learned, as in
    MagDiff (arXiv 2311.17338). Tokens are patches of the segmented subject's latents at several sizes, with their
    places. Keys and values of the picture start as those of the text and a2 at 0, so that it changes nothing at first.
    """

    name: ReferenceArm = "tokens"

    def __init__(self, unet: nn.Module, channels: int, width: int) -> None:
        """Make the parts for a UNet whose latents have so many channels, and whose text has this width."""
        super().__init__()
        layers = self._layers(unet)
        with torch.random.fork_rng():
            torch.manual_seed(0)  # a training that was stopped begins with the same weights again
            self.embed = nn.Linear((channels + 1) * PATCH**2 + 3, width)
        self.norm = nn.LayerNorm(width)
        self.keys = nn.ModuleList(copy.deepcopy(cast(nn.Module, layer.to_k)) for layer in layers)
        self.values = nn.ModuleList(copy.deepcopy(cast(nn.Module, layer.to_v)) for layer in layers)
        self.text_weights = nn.Parameter(torch.ones(len(layers)))
        self.picture_weights = nn.Parameter(torch.zeros(len(layers)))
        self.num_tokens = 0  # of the picture, in the call that is under way
        self._is_attached = False

    @staticmethod
    def _layers(unet: nn.Module) -> list[Attention]:
        return [layer for layer in attention_layers(unet) if layer.is_cross_attention]

    def tokens(self, reference: Reference) -> Float[Tensor, "batch tokens width"]:
        """Turn references into tokens; those of a row without one are zeros, which attention gets nothing from."""
        found = []
        for size in range(NUM_SIZES):
            if min(reference.shape[2:]) < PATCH * 2**size:
                break  # a small one has fewer sizes
            scaled = functional.avg_pool2d(reference, 2**size)
            patches = functional.unfold(scaled, PATCH, stride=PATCH).transpose(1, 2)
            rows, columns = (edge // PATCH for edge in scaled.shape[2:])
            y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
            places = torch.stack([y, x, torch.full_like(x, size - 1.0)], dim=-1).reshape(1, -1, 3).to(patches)
            found.append(torch.cat([patches, places.expand(len(patches), -1, -1)], dim=2))
        tokens = self.norm(self.embed(torch.cat(found, dim=1)))
        return tokens * has_reference(reference)[:, None, None]

    @contextlib.contextmanager
    def attached(self, unet: nn.Module) -> Iterator[None]:
        """Let the UNet's cross attention take picture tokens after those of the text, within the context."""
        layers = self._layers(unet)
        if self._is_attached:
            yield
            return
        processors = [_TwoSources(self, number) for number in range(len(layers))]
        self._is_attached = True
        try:
            with with_processors(layers, processors):
                yield
        finally:
            self._is_attached = False

    @torch.no_grad()
    def fold(self, unet: nn.Module) -> None:
        """Multiply the UNet's weights so that alone it does what it did with these parts where there is no picture."""
        for layer, weight in zip(self._layers(unet), self.text_weights, strict=True):
            cast(nn.Linear, cast(nn.ModuleList, layer.to_out)[0]).weight.mul_(weight)  # the bias is not weighted

    def read(
        self, unet: nn.Module, inputs: Inputs, timesteps: Int[Tensor, " batch"], text: Text, reference: Reference | None
    ) -> Outputs:
        """Call the UNet with picture tokens beside the text; see `Reader.read`."""
        tokens = text[:, :0] if reference is None else self.tokens(reference.to(text))
        self.num_tokens = tokens.shape[1]
        with self.attached(unet):
            return _call(unet, inputs, timesteps, torch.cat([text, tokens], dim=1))


class _TwoSources:
    """Cross attention to the text and to the picture, which lies behind it."""

    def __init__(self, pictures: PictureTokens, number: int) -> None:
        self.pictures, self.number = pictures, number

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        pictures, number, count = self.pictures, self.number, self.pictures.num_tokens
        text, picture = encoder_hidden_states.split([encoder_hidden_states.shape[1] - count, count], dim=1)
        assert attn.to_k is not None and attn.to_v is not None
        query = _heads(attn.to_q(hidden_states), attn.heads)
        out = _attend(query, _heads(attn.to_k(text), attn.heads), _heads(attn.to_v(text), attn.heads))
        out = out * pictures.text_weights[number]
        if count:
            key, value = (_heads(layers[number](picture), attn.heads) for layers in (pictures.keys, pictures.values))
            out = out + pictures.picture_weights[number] * _attend(query, key, value)
        return _put_out(attn, out)


def save_tokens(pictures: PictureTokens, path: Path) -> None:
    """Write the parts of picture tokens in half precision."""
    state = {name: value.detach().cpu().half().contiguous() for name, value in pictures.state_dict().items()}
    with write_atomically(path) as temporary:
        save_file(state, temporary)


def load_tokens(path: Path, unet: nn.Module, channels: int, width: int) -> PictureTokens:
    """Read the parts of picture tokens for a UNet.

    Raises:
        InputError: the file is missing, or belongs to another UNet.
    """
    pictures = PictureTokens(unet, channels, width)
    try:
        pictures.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except Exception as error:  # noqa: BLE001 - of types that safetensors and PyTorch do not document
        raise InputError(f"{path} cannot be loaded: {(str(error).splitlines() or ['?'])[0]}") from None
    return pictures.to(next(unet.parameters()).device).eval().requires_grad_(False)


@dataclass(frozen=True)
class Mutual:
    """Lets views attend to the reference's own denoising as well, without training; after MasaCtrl (arXiv 2304.08465).

    There the keys and values of the source take the place of the own ones. Here those of the reference's subject come
    beside them, since a view has to find what it keeps in itself.
    """

    schedule: Schedule
    no_text: Float[Tensor, "1 tokens width_of_text"]
    """The embedded empty text, under which the reference is denoised."""
    name: ReferenceArm = "mutual"

    def read(
        self, unet: nn.Module, inputs: Inputs, timesteps: Int[Tensor, " batch"], text: Text, reference: Reference | None
    ) -> Outputs:
        """Call the UNet on views and references together; see `Reader.read`."""
        if reference is None:
            return _call(unet, inputs, timesteps, text)
        rows = has_reference(reference).nonzero()[:, 0]
        latents, subject = reference[rows, :-1].to(inputs), reference[rows, -1:].to(inputs)
        # One noise at every step and for every view, so that the reference looks alike to all.
        noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(0)).to(latents)
        noisy = self.schedule.add_noise(latents, noise.expand_as(latents), timesteps[rows])
        shown = functional.interpolate(torch.cat([noisy, latents], dim=1), inputs.shape[2:], mode="bilinear")
        layers = [layer for layer in attention_layers(unet) if not layer.is_cross_attention]
        processors = [_ToReference(rows, functional.interpolate(subject, inputs.shape[2:])) for _ in layers]
        with with_processors(layers, processors):
            output = _call(
                unet,
                torch.cat([inputs, shown]).contiguous(memory_format=torch.channels_last),
                torch.cat([timesteps, timesteps[rows]]),
                torch.cat([text, self.no_text.to(text).expand(len(rows), *text.shape[1:])]),
            )
        return output[: len(inputs)]


class _ToReference:
    """Self-attention in which some rows also see the subjects of the references, which are the last rows."""

    def __init__(self, rows: Tensor, subject: Float[Tensor, "some 1 height width"]) -> None:
        self.rows, self.subject = rows, subject

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        assert attn.to_k is not None and attn.to_v is not None
        query, key, value = (_heads(layer(hidden_states), attn.heads) for layer in (attn.to_q, attn.to_k, attn.to_v))
        out = _attend(query, key, value)
        rows, count = self.rows, len(self.rows)
        height, width = self.subject.shape[2:]
        scale = math.sqrt(height * width / hidden_states.shape[1])
        size = (round(height / scale), round(width / scale))
        is_subject = functional.adaptive_max_pool2d(self.subject, size).flatten(2) > 0.5
        seen = torch.cat([torch.ones_like(is_subject), is_subject], dim=2)[:, None]
        bias = torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, torch.finfo(query.dtype).min)
        keys, values = (torch.cat([x[rows], x[-count:]], dim=2) for x in (key, value))
        out = out.index_copy(0, rows, _attend(query[rows], keys, values, bias))
        return _put_out(attn, out)

"""Draws training batches from encoded examples, and computes the loss of the edit UNet on them.

A batch is a function of (seed, step) alone, so that training can go on anywhere. Called by `restage.train.stage`.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from restage.diffusion.schedule import Schedule
from restage.diffusion.training import LossParts
from restage.records import derive_seed
from restage.train.config import ExampleMix, LossWeights
from restage.train.examples import Examples

__all__ = ["EditBatch", "draw_timesteps", "edit_loss", "sample_edit_batch"]


class EditBatch(NamedTuple):
    """A training batch."""

    original: Float[Tensor, "batch channels height width"]
    """Unit-variance latents of the condition; zeros where it is dropped."""
    target: Float[Tensor, "batch channels height width"]  # clean latents of the edited picture
    mask: Float[Tensor, "batch height width"]
    text: Float[Tensor, "batch tokens width_of_text"] | Int[Tensor, "batch tokens"]
    """Embedded texts, or tokens, as the model in training takes them."""
    has_condition: Bool[Tensor, " batch"]
    """Whether text and original are both given: only then can a mask be told, and is it trained."""
    reference: Float[Tensor, "batch channels_and_subject _ _"] | None = None
    """What the text refers to, zeros where it is dropped or there is none; None where none is looked at."""


# Two, because a batch across the border of two epochs takes from the orders of both; kept, because shuffling a million
# pairs at every step would cost 50 ms.
@lru_cache(maxsize=2)
def _order_of(num_pairs: int, seed: int, epoch: int) -> NDArray[np.int32]:
    return np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(num_pairs).astype(np.int32)


def _rows_at(examples: Examples, batch_size: int, *, seed: int, step: int) -> NDArray[np.int64]:
    """Return the pairs of a step; each epoch is the whole set in a new order."""
    n = examples.num_pairs
    positions = range(step * batch_size, (step + 1) * batch_size)
    return np.array([_order_of(n, seed, position // n)[position % n] for position in positions], dtype=np.int64)


class _Shown(NamedTuple):
    """Pairs in the direction in which they are shown."""

    source: Tensor
    edited: Tensor
    text: Int[Tensor, " batch"]
    settled_text: Int[Tensor, " batch"]
    is_swapped: Bool[Tensor, " batch"]


def _in_direction(examples: Examples, rows: Tensor, is_backwards: Tensor) -> _Shown:
    """Return pairs as they came, or in reverse if that is asked for and has an instruction.

    A side that was a real picture then becomes the target, as in Paint by Inpaint (Wasserman et al. 2024, arXiv
    2404.18212).
    """
    source, edited = examples.source[rows].float(), examples.edited[rows].float()
    undo = examples.undo_text[rows]
    swapped = is_backwards & (undo >= 0)
    pictures = swapped[:, None, None, None]
    return _Shown(
        source=torch.where(pictures, edited, source),
        edited=torch.where(pictures, source, edited),
        text=torch.where(swapped, undo, examples.text[rows]),
        settled_text=torch.where(swapped, examples.settled_undo[rows], examples.settled_text[rows]),
        is_swapped=swapped,
    )


def sample_edit_batch(
    examples: Examples, mix: ExampleMix, *, batch_size: int, seed: int, step: int, device: str = "cpu"
) -> EditBatch:
    """Draw the batch of a step; the same (seed, step) gives the same batch."""
    rng = np.random.default_rng(derive_seed(seed, "batch", step))
    rows = torch.from_numpy(_rows_at(examples, batch_size, seed=seed, step=step))
    # All four draws are made for every row, so that a change of one share leaves the other draws as they are.
    is_mirrored, is_identity, dropped, is_backwards = (torch.from_numpy(rng.random(batch_size)) for _ in range(4))
    rows = torch.where(is_mirrored < mix.mirror_share, examples.mirrored[rows], rows)
    source, edited, text, settled_text, is_swapped = _in_direction(examples, rows, is_backwards < mix.backwards_share)
    mask = examples.masks[rows].float()
    # Where nothing is to change, an edit is asked for again on the edited picture, or none on the one before.
    others = torch.from_numpy(rng.choice(np.array(examples.leave_alone), size=batch_size))
    is_settled, unchanged = settled_text >= 0, is_identity < mix.identity_share
    identity_text = torch.where(is_settled, settled_text, others)
    picture = torch.where(is_settled[:, None, None, None], edited, source)
    source = torch.where(unchanged[:, None, None, None], picture, source)
    edited = torch.where(unchanged[:, None, None, None], picture, edited)
    mask = torch.where(unchanged[:, None, None], 0.0, mask)
    text = torch.where(unchanged, identity_text, text)
    # One draw decides which of text and image are dropped: three disjoint parts of [0, 1].
    text_only, image_only = mix.drop_text, mix.drop_text + mix.drop_image
    both = image_only + mix.drop_both
    has_no_text = (dropped < text_only) | ((dropped >= image_only) & (dropped < both))
    has_no_image = (dropped >= text_only) & (dropped < both)
    texts = examples.texts[torch.where(has_no_text, 0, text)]
    batch = EditBatch(
        original=torch.where(has_no_image[:, None, None, None], 0.0, source),
        target=edited,
        mask=mask,
        text=texts.float() if texts.is_floating_point() else texts.long(),
        has_condition=~(has_no_text | has_no_image),
    )
    if examples.references is not None:
        # A reference belongs to the pair's own instruction, and comes and goes with it.
        is_told = ~(has_no_text | is_swapped | (unchanged & ~is_settled))
        batch = batch._replace(reference=examples.references[rows].float() * is_told[:, None, None, None])
    reference = None if batch.reference is None else batch.reference.to(device)
    return EditBatch._make([*(item.to(device) for item in batch[:5]), reference])


def draw_timesteps(count: int, num_timesteps: int, shift: float, generator: torch.Generator) -> Int[Tensor, " count"]:
    """Draw one timestep from each of `count` equally likely parts of the schedule, in random order."""
    # Stratified, because which timesteps a batch happens to get is most of the noise in its loss.
    jitter = torch.rand(count, generator=generator)
    order = torch.randperm(count, generator=generator)
    uniform = (order + jitter) / count
    return (shift * uniform / (1 + (shift - 1) * uniform) * num_timesteps).long().clamp(max=num_timesteps - 1)


def edit_loss(
    unet: nn.Module,
    batch: EditBatch,
    generator: torch.Generator,
    *,
    schedule: Schedule,
    condition_scale: float,
    weights: LossWeights,
    noise_shift: float = 1.0,
    num_parts: int = 1,
) -> LossParts:
    """Noise-prediction loss in the UNet's own parameterization, and weighted cross-entropy of its mask output.

    There are at most `num_parts`. Everything is drawn at once, so that their number changes no more than the order of
    sums.

    `unet` is an edit UNet with mask output, or a module that is called like one with tokens in place of embedded text,
    and with `reference` where the batch has any; timesteps and noise are drawn from the generator, on the CPU.
    """
    target, channels = batch.target, batch.target.shape[1]
    t = draw_timesteps(len(target), schedule.num_train_timesteps, noise_shift, generator).to(target.device)
    noise = torch.randn(target.shape, generator=generator).to(target.device)
    inputs = torch.cat([schedule.add_noise(target, noise, t), batch.original * condition_scale], dim=1)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    wanted = schedule.target(target, noise, t)
    pixel_weights = 1 + weights.changed * batch.mask[:, None]
    pixel_weights = pixel_weights / pixel_weights.mean()
    has_mask = batch.has_condition.float()
    num_masks = has_mask.sum().clamp(min=1)

    def loss_of(rows: slice) -> dict[str, Float[Tensor, ""]]:
        shown = {} if batch.reference is None else {"reference": batch.reference[rows]}
        output = unet(inputs[rows], t[rows], encoder_hidden_states=batch.text[rows], **shown).sample.float()
        squared = (output[:, :channels] - wanted[rows]).square()
        share = len(output) / len(target)
        noise_loss = (squared * pixel_weights[rows]).mean() * share
        entropy = functional.binary_cross_entropy_with_logits(output[:, channels], batch.mask[rows], reduction="none")
        mask_loss = (entropy.mean(dim=(1, 2)) * has_mask[rows]).sum() / num_masks
        return {"noise": noise_loss, "mask": weights.mask * mask_loss}

    size = math.ceil(len(target) / num_parts)
    return LossParts(tuple(partial(loss_of, slice(at, at + size)) for at in range(0, len(target), size)))

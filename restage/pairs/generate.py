"""Prompt pairs to pictures before and after, and the mask of what may differ, by batched Prompt-to-Prompt.

Everything that depends on a pair (alignment, words, seed, strengths) becomes a tensor before the sampling loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.alignment import Alignment, CaptionsDiffer, align_phrases, align_swaps, token_mask
from restage.diffusion.attention import PairControl, merge_controls
from restage.diffusion.backbone import Backbone
from restage.diffusion.sampler import LocalBlend, blend_masks, sample_pairs
from restage.records import InputError, PromptPair, content_id, derive_seed

__all__ = ["GenerateConfig", "GeneratedPairs", "PairJob", "generate_pairs", "make_control", "make_jobs"]


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How pairs are sampled."""

    num_steps: int = 18
    """Sampling steps (DPM-Solver++ 2M)."""
    guidance: float = 4.0
    """Strength of classifier-free guidance; 1 = none."""
    cross_share: float = 0.8
    """Share of the steps with the source's cross attention (0.8 in Prompt-to-Prompt's own code)."""
    self_share: tuple[float, float] = (0.3, 0.7)
    """Lowest and highest share of the steps with the source's self attention; each pair draws its own in between,
    as the pair maker of InstructPix2Pix does (there 0.1 to 0.9)."""
    self_max_size: int | None = None
    """Inject self attention at layers of at most this many pixels a side; None = all layers."""
    blend: LocalBlend = LocalBlend()
    """Local blend, for pairs that name words."""
    batch_size: int = 16
    """Pairs per UNet call (times four: two branches, two guidance halves)."""

    def __post_init__(self) -> None:
        low, high = self.self_share
        if not (0 <= low <= high <= 1 and 0 <= self.cross_share <= 1):
            raise InputError(f"shares of steps must lie in [0, 1], low before high; got {self.self_share}")
        if self.num_steps < 1 or self.batch_size < 1:
            raise InputError(f"num_steps and batch_size must be at least 1, got {self.num_steps}, {self.batch_size}")


@dataclass(frozen=True, kw_only=True)
class PairJob:
    """One pair to make."""

    id: str
    """Content id: of the prompt pair, the number of the sample, the run seed and the config."""
    prompt: PromptPair
    sample: int
    """Number of the sample of this prompt pair, from 0."""
    seed: int
    """Of the initial noise, which both branches share."""
    self_share: float
    """Share of the steps with the source's self attention."""


class GeneratedPairs(NamedTuple):
    """A batch of pairs, in the order of their jobs."""

    sources: Float[Tensor, "pairs 3 height width"]
    edited: Float[Tensor, "pairs 3 height width"]
    masks: Float[Tensor, "pairs height width"]
    """1 where the pair may differ, else 0."""
    controls: tuple[str, ...]
    """How cross attention was controlled: `replace` or `refine`."""


def make_jobs(
    prompts: Sequence[PromptPair], config: GenerateConfig, *, samples_per_prompt: int, run_seed: int
) -> list[PairJob]:
    """List the pairs to make; each depends on its own prompt pair, sample number, run seed and config only."""
    jobs = []
    for prompt in prompts:
        for sample in range(samples_per_prompt):
            pair_id = content_id("pair", {"prompt": prompt.id, "sample": sample, "seed": run_seed, "config": config})
            seed = derive_seed(run_seed, prompt.id, sample)
            share = np.random.default_rng(derive_seed(seed, "self_share")).uniform(*config.self_share)
            jobs.append(PairJob(id=pair_id, prompt=prompt, sample=sample, seed=seed, self_share=round(share, 4)))
    return jobs


def _align(backbone: Backbone, prompt: PromptPair) -> tuple[str, Alignment]:
    """Word replacement if the captions differ by their swaps alone, else what they have in common."""
    if prompt.swaps:
        try:
            return "replace", align_swaps(backbone.tokenizer, prompt.source, prompt.target, prompt.swaps)
        except CaptionsDiffer:
            pass  # "refine" says so in the pair's facts
    return "refine", align_phrases(backbone.tokenizer, prompt.source, prompt.target)


def make_control(backbone: Backbone, job: PairJob, config: GenerateConfig) -> tuple[str, PairControl]:
    """The attention control of one pair, and the name of its kind (`replace` or `refine`).

    Raises:
        InputError: a caption is too long, or none of the pair's words stands in either caption.
    """
    prompt, tokenizer = job.prompt, backbone.tokenizer
    name, alignment = _align(backbone, prompt)
    control = PairControl(
        word_map=alignment.word_map[None],
        cross_until=config.cross_share * alignment.gate[None],
        self_until=torch.tensor([job.self_share]),
        source_words=token_mask(tokenizer, prompt.source, prompt.words)[None],
        edit_words=token_mask(tokenizer, prompt.target, prompt.words)[None],
        self_max_size=config.self_max_size,
    )
    if prompt.words and not bool(control.has_words.any()):
        raise InputError(f"none of the words {list(prompt.words)} stands in {prompt.source!r} or {prompt.target!r}")
    return name, control


def generate_pairs(backbone: Backbone, jobs: Sequence[PairJob], config: GenerateConfig) -> GeneratedPairs:
    """Make one batch of pairs; the same jobs in the same batch give the same pictures.

    Raises:
        InputError: as `make_control`.
    """
    names, controls = zip(*(make_control(backbone, job, config) for job in jobs), strict=True)
    control = merge_controls(controls)
    text = backbone.encode_text([job.prompt.source for job in jobs] + [job.prompt.target for job in jobs])
    source_text, edit_text = text.chunk(2)
    states = sample_pairs(
        backbone,
        control,
        source_text=source_text,
        edit_text=edit_text,
        seeds=[job.seed for job in jobs],
        guidance=torch.full((len(jobs),), config.guidance),
        num_steps=config.num_steps,
        blend=config.blend,
    )
    *_, last = states
    latents = torch.cat([last.source_latents, last.edit_latents])
    sources, edited = backbone.decode_latents(latents).float().cpu().clamp(0, 1).chunk(2)
    size = (sources.shape[2], sources.shape[3])
    if last.maps is None:
        masks = torch.ones(len(jobs), *size)
    else:
        masks = blend_masks(last.maps.cpu(), control, size=size, threshold=config.blend.threshold)
    return GeneratedPairs(sources, edited, masks, names)

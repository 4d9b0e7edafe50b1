"""Turns prompt pairs into pictures before and after and masks of what may differ, by batched Prompt-to-Prompt.

Everything that depends on a pair (alignment, words, seed, strengths) becomes a tensor before the sampling loop.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.diffusion.conditions import Conditions, slots_of
from restage.diffusion.control import PairControl
from restage.diffusion.control_options import build_control
from restage.diffusion.pair_sampler import PairBatch, sample_pairs
from restage.diffusion.sampling import invert_latents, sample_images
from restage.diffusion.word_maps import blend_masks
from restage.pairs.config import GenerateConfig
from restage.pairs.encoding import decode_picture, read_picture
from restage.records import PromptPair, content_id, derive_seed, to_plain
from restage.scenes.layouts import edges_of

if TYPE_CHECKING:
    from restage.diffusion.backbone import Backbone
    from restage.diffusion.ids import LayoutReaders

__all__ = ["GeneratedPairs", "PairJob", "generate_pairs", "layouts_of", "make_control", "make_jobs"]

SHAPE_KINDS = frozenset({"reshape", "add", "remove", "resize", "move"})
"""Kinds of edit that change the outlines of objects."""
PAD_COMPILED = 8
"""The number of rows in a batch for a compiled UNet is a multiple of this."""


@dataclass(frozen=True, kw_only=True)
class PairJob:
    """One pair to make."""

    id: str
    """Content id of the prompt pair, the number of the sample, the run seed and the config."""
    prompt: PromptPair
    sample: int  # number of the sample among those of the prompt pair, from 0
    seed: int
    """Seed of the noise, which both branches share; the same for all prompt pairs with this source caption."""
    self_share: float  # share of the steps with the source's self attention
    picture: bytes = dataclasses.field(default=b"", repr=False)
    """Content of the picture file that the pair is made from; empty if there is none."""

    reference: bytes = dataclasses.field(default=b"", repr=False)
    """Content of the picture file that the instruction refers to; empty if there is none."""
    reference_mask: bytes = dataclasses.field(default=b"", repr=False)

    @property
    def is_picture(self) -> bool:
        """Whether one side of the pair is a given picture."""
        return bool(self.picture)


class GeneratedPairs(NamedTuple):
    """A batch of pairs, in the order of their jobs."""

    sources: Float[Tensor, "pairs 3 height width"]
    edited: Float[Tensor, "pairs 3 height width"]
    masks: Float[Tensor, "pairs height width"]  # 1 where the pictures may differ, 0 elsewhere
    controls: tuple[str, ...]
    """How the cross attention of each pair was controlled: `replace` or `refine`."""
    steps: tuple[int, ...]  # number of steps that each pair was sampled for


def make_jobs(
    prompts: Sequence[PromptPair],
    config: GenerateConfig,
    *,
    samples_per_prompt: int,
    run_seed: int,
    folder: Path | None = None,
) -> list[PairJob]:
    """List the pairs to make; each depends on its own prompt pair, sample number, run seed and config only.

    Prompt pairs with the same source caption get the same noise, so that one sampled source serves them all.
    """
    jobs, plain = [], to_plain(config)
    for prompt in prompts:
        files = {name: getattr(prompt, name) for name in ("picture", "reference", "reference_mask")}
        given = {name: read_picture(folder or Path(), file) if file else b"" for name, file in files.items()}
        for sample in range(samples_per_prompt):
            pair_id = content_id("pair", {"prompt": prompt.id, "sample": sample, "seed": run_seed, "config": plain})
            seed = derive_seed(run_seed, prompt.source, sample)
            share = np.random.default_rng(derive_seed(seed, prompt.id, "self_share")).uniform(*config.self_share)
            share = round(share, 4)
            jobs.append(PairJob(id=pair_id, prompt=prompt, sample=sample, seed=seed, self_share=share, **given))
    return jobs


def make_control(backbone: Backbone, job: PairJob, config: GenerateConfig) -> tuple[str, PairControl]:
    """The attention control of one pair, and the name of its kind (`replace` or `refine`)."""
    prompt, options, target = job.prompt, config.control, _painted_caption(job)
    in_place = config.reshape_control_of_pictures
    if job.is_picture and in_place is not None and prompt.kind == "reshape":
        options = in_place
    elif config.shape_control is not None and prompt.kind in SHAPE_KINDS and prompt.words:
        options = config.shape_control
    else:
        window = (min(options.self_window[0], job.self_share), job.self_share)
        options = dataclasses.replace(options, self_window=window)
    return build_control(
        backbone.tokenizer, prompt.source, target, swaps=prompt.swaps, words=prompt.words, options=options
    )


def _painted_caption(job: PairJob) -> str:
    """Return the caption that the edit branch is painted with."""
    return job.prompt.behind if job.prompt.is_painted_behind else job.prompt.target


def reversed_prompt(prompt: PromptPair) -> PromptPair:
    """Return the prompt pair the other way round; its instruction and kind stay as they are."""
    swaps = tuple((new, old) for old, new in prompt.swaps)
    return dataclasses.replace(prompt, source=prompt.target, target=prompt.source, swaps=swaps, behind="")


def _batch(
    backbone: Backbone, jobs: Sequence[PairJob], config: GenerateConfig, *, pad_to: int, readers: LayoutReaders | None
) -> tuple[tuple[str, ...], PairBatch]:
    """Return the names of the controls, and the tensors of all jobs; jobs with the same source share it."""
    names, controls = zip(*(make_control(backbone, job, config) for job in jobs), strict=True)
    keys = [(job.prompt.source, job.seed, job.picture) for job in jobs]
    sources = list(dict.fromkeys(keys))
    source_text = backbone.encode_prompts([caption for caption, _, _ in sources])
    trajectories, conditions, pictures = None, None, None
    if jobs[0].is_picture:
        height, width = backbone.picture_size
        pictures = torch.stack([decode_picture(content, (height, width)) for _, _, content in sources])
    if config.held_by:
        shown = _sample_sources(backbone, sources, config) if pictures is None else pictures
        conditions = layouts_of(shown, config.held_by, readers)
    if pictures is not None:
        # Inversion runs in batches of the padded size as well, since a compiled UNet knows no other.
        rows = torch.arange(-(-len(sources) // pad_to) * pad_to) % len(sources)
        trajectories = invert_latents(
            backbone if conditions is None else backbone.steered([conditions[row] for row in rows.tolist()]),
            backbone.encode_images(pictures.to(backbone.device))[rows],
            source_text.select(rows),
            num_steps=config.sampler.num_steps,
            num_iterations=config.inversion_iterations,
        )[:, : len(sources)]
    return names, PairBatch(
        control=PairControl.merge(controls),
        source_of=torch.tensor([sources.index(key) for key in keys]),
        source_text=source_text,
        edit_text=backbone.encode_prompts([_painted_caption(job) for job in jobs]),
        seeds=tuple(seed for _, seed, _ in sources),
        guidance=torch.full((len(sources),), float(config.guidance)),
        trajectories=trajectories,
        conditions=conditions,
    )


def _sample_sources(
    backbone: Backbone, sources: Sequence[tuple[str, int, bytes]], config: GenerateConfig
) -> Float[Tensor, "sources 3 height width"]:
    """Paint the sources by themselves: what the pair keeps the layout of."""
    captions, seeds, _ = zip(*sources, strict=True)
    sampler = config.sampler
    how = {"steps": sampler.num_steps, "guidance": config.guidance, "solver": sampler.solver}
    return sample_images(backbone, captions, seeds=seeds, **how)


def layouts_of(
    pictures: Float[Tensor, "n 3 height width"], names: Sequence[str], readers: LayoutReaders | None
) -> tuple[Conditions, ...]:
    """Read conditions from pictures: `depth` and `ids` by models, `canny` by itself."""
    found: list[dict[str, Tensor]] = [{} for _ in pictures]
    if "depth" in names:
        assert readers is not None and readers.depth is not None
        for conditions, read in zip(found, readers.depth.read(pictures), strict=True):
            conditions["depth"] = read
    if "ids" in names:
        assert readers is not None and readers.ids is not None
        for conditions, ids in zip(found, readers.ids.read(pictures), strict=True):
            conditions["ids"] = slots_of(ids)
    if "canny" in names:
        for conditions, picture in zip(found, pictures, strict=True):
            conditions["canny"] = edges_of(picture.cpu())
    return tuple(found)


def _is_backwards(job: PairJob, config: GenerateConfig) -> bool:
    """Whether the picture after the edit is made, or given, first."""
    if job.is_picture:
        return job.prompt.pictured == "target"
    return config.is_removal_reversed and job.prompt.kind == "remove"


def generate_pairs(
    backbone: Backbone, jobs: Sequence[PairJob], config: GenerateConfig, readers: LayoutReaders | None = None
) -> GeneratedPairs:
    """Make one batch of pairs; the same jobs in the same batch give the same pictures.

    A pair with a picture is made from the noise that the picture would have come from. The side that it shows is the
    picture as the autoencoder gives it back, so that both sides differ by the edit alone. The UNet is compiled only if
    `is_compiled` is True (see `GenerateConfig.for_run`).
    """
    if len({job.is_picture for job in jobs}) > 1:
        return _generate_apart(backbone, jobs, config, readers)
    is_reversed = torch.tensor([_is_backwards(job, config) for job in jobs])
    sampled = [
        dataclasses.replace(job, prompt=reversed_prompt(job.prompt)) if back else job
        for job, back in zip(jobs, is_reversed.tolist(), strict=True)
    ]
    sampler = config.sampler
    if config.is_compiled:
        backbone, sampler = backbone.compiled(), dataclasses.replace(sampler, pad_to=max(sampler.pad_to, PAD_COMPILED))
    names, batch = _batch(backbone, sampled, config, pad_to=sampler.pad_to, readers=readers)
    (state,) = deque(sample_pairs(backbone, batch, sampler), maxlen=1)
    latents = (state.source_latents, state.edit_latents)
    sources, second = backbone.decode_latents(torch.cat(latents)).cpu().split([len(part) for part in latents])
    first, size = sources[state.source_of], (sources.shape[2], sources.shape[3])
    masks = torch.ones(len(second), *size)
    if state.maps is not None:
        masks = blend_masks(state.maps.cpu(), batch.control.blend, size=size)
    # A pair made backwards gets its pictures in the order of its captions again; its mask is the same.
    swapped = is_reversed[:, None, None, None]
    before, after = (torch.where(swapped, *both).contiguous() for both in ((second, first), (first, second)))
    return GeneratedPairs(before, after, masks, names, (sampler.num_steps,) * len(jobs))


def _generate_apart(
    backbone: Backbone, jobs: Sequence[PairJob], config: GenerateConfig, readers: LayoutReaders | None
) -> GeneratedPairs:
    """Make the pairs that have a picture, then the others, and return all in the order of the jobs."""
    # Their source trajectories differ in kind (inverted or sampled), which one batch cannot mix.
    order = sorted(range(len(jobs)), key=lambda index: not jobs[index].is_picture)
    cut = sum(job.is_picture for job in jobs)
    groups = (order[:cut], order[cut:])
    first, second = (generate_pairs(backbone, [jobs[index] for index in group], config, readers) for group in groups)
    place = [order.index(index) for index in range(len(jobs))]
    sources, edited, masks = (torch.cat([a, b])[place] for a, b in zip(first[:3], second[:3], strict=True))
    controls, steps = (*first.controls, *second.controls), (*first.steps, *second.steps)
    return GeneratedPairs(sources, edited, masks, tuple(controls[i] for i in place), steps)

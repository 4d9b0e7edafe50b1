"""Figures of the autoencoder, the CLIP and the sampler, and of the probe itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.miniature.held_out import Captioned, Case, Rendered
from benchmarks.miniature.text_to_image import Sampling, mask_iou_of
from benchmarks.miniature.verdicts import accuracies, judge, place_is_right, seen_in
from miniature.probe import Probe, read_pictures
from miniature.probe_pictures import FIRST_KIND_CLASS
from restage.diffusion.backbone import Backbone
from restage.diffusion.clip import Clip
from restage.diffusion.sampling import sample_images
from restage.pairs.score import score_pairs
from restage.records import PromptPair, derive_seed
from restage.world.description import Place
from restage.world.second import possible_kinds, prompt_pair_of, sample_edit

__all__ = ["fits", "judge_places", "measure_autoencoder", "measure_clip", "measure_probe", "measure_sampling"]
__all__ += ["round_trip", "roc_auc"]


def fits(tokenizer: Any, *texts: str) -> bool:
    """Return whether a tokenizer takes texts whole; that of the first edition is too short for some of the second."""
    return max(len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]) <= tokenizer.model_max_length


def round_trip(backbone: Backbone, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Pictures encoded and decoded."""
    return torch.cat([backbone.decode_latents(backbone.encode_images(part)) for part in images.split(16)])


def measure_autoencoder(backbone: Backbone, images: Float[Tensor, "n 3 h w"]) -> dict[str, float]:
    """PSNR of pictures that were encoded and decoded, mean over pictures, dB."""
    error = (round_trip(backbone, images) - images).square().mean((1, 2, 3))
    return {"vae_psnr_db": float(-10 * error.log10().mean())}


def roc_auc(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Share of pairs of a right and a wrong score in which the right one is higher; ties count half."""
    a, b = np.array(right)[:, None], np.array(wrong)[None]
    return float(((a > b) + 0.5 * (a == b)).mean())


def _directions(clip: Clip, cases: Sequence[Case], sources: Tensor, edited: Tensor) -> list[float]:
    """Direction similarity of each case's captions and a pair of pictures."""
    masks = torch.ones(len(cases), *sources.shape[2:])
    scores = score_pairs(clip, [case.prompt for case in cases], sources=sources, edited=edited, masks=masks)
    return [score.direction_similarity for score in scores]


def _other_edit(case: Case, index: int) -> PromptPair:
    """The captions of another kind of edit of the same scene."""
    scene, seed = case.edit.before, derive_seed("wrong edit", index)
    kinds = [kind for kind in possible_kinds(scene, case.camera) if kind not in (case.edit.kind, "look")]
    other = sample_edit(scene, seed, kind=kinds[seed % len(kinds)], camera=case.camera)
    return prompt_pair_of(other, seed, case.camera)


def measure_clip(clip: Clip, rendered: Rendered, cases: Sequence[Case], backbone: Backbone) -> dict[str, float]:
    """How often a picture's own caption is the nearest, and whether direction similarity tells right edits.

    Wrong edits are the pictures of one case with the captions of the next. Two more AUCs: against the captions of
    another edit of the same scene, and against no edit (the same view, once more through the autoencoder).
    """
    captions = [item.caption for item in rendered.items]
    similarity = clip.encode_images(rendered.images) @ clip.encode_text(captions).T
    # Two scenes may have one caption: a caption that reads the same is found too.
    found = np.mean([captions[j] == captions[i] for i, j in enumerate(similarity.argmax(1).tolist())])
    befores, afters = torch.stack([c.before for c in cases]), torch.stack([c.after for c in cases])
    right = _directions(clip, cases, befores, afters)
    mismatched = _directions(clip, [*cases[1:], *cases[:1]], befores, afters)
    others = [replace(case, prompt=_other_edit(case, index)) for index, case in enumerate(cases)]
    fitting = [i for i, other in enumerate(others) if fits(clip.tokenizer, other.prompt.source, other.prompt.target)]
    same_scene = _directions(clip, [others[i] for i in fitting], befores[fitting], afters[fitting])
    nothing_done = _directions(clip, cases, befores, round_trip(backbone, befores))
    return {
        "clip_top1_of_256": float(found),
        "clip_direction_auc": roc_auc(right, mismatched),
        "clip_direction_auc_same_scene": roc_auc(right, same_scene),
        "clip_direction_auc_no_edit": roc_auc(right, nothing_done),
    }


def measure_sampling(backbone: Backbone, items: Sequence[Captioned], sampling: Sampling) -> dict[str, float]:
    """Seconds to sample 16 pictures, the faster of two times."""
    captions = [item.caption for item in items[:16]]
    times_s = []
    for _ in range(2):
        start_s = time.perf_counter()
        sample_images(
            backbone,
            captions,
            seeds=list(range(len(captions))),
            steps=sampling.steps,
            guidance=sampling.guidance,
            solver=sampling.solver,
        )
        times_s.append(time.perf_counter() - start_s)
    return {"sample16_s": min(times_s)}


def measure_probe(probe: Probe, rendered: Rendered, images: Float[Tensor, "n 3 128 128"]) -> dict[str, float]:
    """What the probe gets right where the truth is known, and the IoU of its masks of objects.

    Args:
        probe: The probe.
        rendered: Unseen renders with their truth.
        images: Those renders, or what became of them.
    """
    readings = read_pictures(probe, images)
    verdicts = [judge(seen, item.description) for seen, item in zip(seen_in(readings), rendered.items, strict=True)]
    truth = torch.from_numpy(rendered.labels.classes)
    ious = [
        mask_iou_of(readings.classes[index] == int(number), truth[index] == number)
        for index in range(len(images))
        for number in truth[index].unique()
        if number >= FIRST_KIND_CLASS
    ]
    return {**accuracies(verdicts), "mask_iou": float(np.mean(ious))}


def judge_places(probe: Probe, rendered: Rendered) -> list[tuple[Place, bool]]:
    """Judge the places of captions in exact renders, where all are right: how far the judgement can be trusted."""
    readings = read_pictures(probe, rendered.images)
    judged = []
    for item, classes in zip(rendered.items, readings.classes, strict=True):
        is_right = place_is_right(item.place, classes) if item.place else None
        if item.place and is_right is not None:
            judged.append((item.place, is_right))
    return judged

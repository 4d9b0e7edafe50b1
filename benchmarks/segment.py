"""Do segments that the UNet finds fit objects, and do they sharpen the masks of image pairs? Cheaper ones are compared.

    python -m benchmarks.segment                       # 12 renders, 24 recolour pairs; pictures to runs/segment
    python -m benchmarks.segment --scenes 4 --pairs 4 --segments 8

*Renders* have exact object masks: `best`, IoU of an object with its best single segment; `union`, with the union of
the segments that lie mostly in it; `coarse`, with the mask that local blend would make of a perfect word map, and what
sharpening makes of that. *Pairs* are made by Prompt-to-Prompt with the defaults of `restage pairs`, half of one object,
half of two; truth is the object as the probe sees it in the source picture. Costs are CPU seconds per picture, which
say more than the clock on a machine with other work. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from scipy.cluster.vq import kmeans2
from torch import Tensor

from benchmarks.miniature.held_out import captions
from benchmarks.miniature.text_to_image import local_blend_mask, mask_iou_of
from miniature.probe import Probe, load_probe
from miniature.probe_pictures import FIRST_KIND_CLASS, MIN_VISIBLE_PX
from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.segment import SegmentConfig, coarse_segments, cut_masks, segment_images, sharpen_masks
from restage.pairs.config import GenerateConfig
from restage.pairs.generate import generate_pairs, make_jobs
from restage.records import PromptPair, derive_seed, write_atomically
from restage.report.pictures import compose_grid
from restage.run.models import models_in
from restage.world.capture import sample_camera
from restage.world.grammar import KINDS, prompt_pair_of, sample_description, sample_edit
from restage.world.render import render_view

PROBE = Path(__file__).parent / "miniature" / "probe.safetensors"
FIRST_OBJECT_ID = 2
PAIRS_PER_BATCH = 12
CHANGED = 0.1
"""A pixel counts as changed where some channel of a pair differs by more."""

Images = Float[Tensor, "n 3 128 128"]
Labels = Int[Tensor, "n 128 128"]
Masks = Float[Tensor, "n 128 128"]


def by_unet(images: Images, *, backbone: Backbone, config: SegmentConfig) -> Labels:
    """Segment by EmerDiff."""
    *_, last = segment_images(backbone, images, config=config)
    return last.labels


def by_features(images: Images, *, backbone: Backbone, config: SegmentConfig) -> Labels:
    """The clusters that EmerDiff begins with, brought to the pictures' size by interpolation."""
    coarse = F.one_hot(coarse_segments(backbone, images, config=config)).permute(0, 3, 1, 2).float()
    return F.interpolate(coarse, images.shape[2:], mode="bilinear").argmax(1)


def by_color(images: Images, *, count: int) -> Labels:
    """K-means over the colors of pixels."""
    draws = [np.random.default_rng(0) for _ in images]
    found = [
        kmeans2(image.flatten(1).T.numpy(), count, iter=30, minit="++", rng=draw)[1]
        for image, draw in zip(images, draws, strict=True)
    ]
    return torch.from_numpy(np.stack(found)).long().view(len(images), *images.shape[2:])


class Rendered(NamedTuple):
    """Renders with the exact masks of their objects."""

    images: Images
    picture_of: Int[Tensor, " objects"]
    masks: Bool[Tensor, "objects 128 128"]


def render(count: int) -> Rendered:
    """Scenes of one to three objects; objects that hardly show are left out."""
    items = captions(11, count)
    views = [render_view(item.description, sample_camera(item.description, item.seed)) for item in items]
    picture_of, masks = [], []
    for index, view in enumerate(views):
        for number in np.unique(view.object_ids):
            mask = view.object_ids == number
            if number >= FIRST_OBJECT_ID and mask.sum() >= MIN_VISIBLE_PX:
                picture_of.append(index)
                masks.append(mask)
    images = torch.from_numpy(np.stack([view.image for view in views]))
    return Rendered(images, torch.tensor(picture_of), torch.from_numpy(np.stack(masks)))


def mean_iou(masks: Tensor, truths: Tensor) -> float:
    """Mean over masks."""
    return float(np.mean([mask_iou_of(mask > 0.5, truth) for mask, truth in zip(masks, truths, strict=True)]))


def best_segment(labels: Int[Tensor, "128 128"], truth: Bool[Tensor, "128 128"]) -> float:
    """IoU with the segment that fits best."""
    return max(mask_iou_of(labels == number, truth) for number in labels.unique())


def perfect_word_mask(truth: Bool[Tensor, "128 128"]) -> Float[Tensor, "128 128"]:
    """What local blend makes of a word map that is the true mask, at the size of the pictures."""
    cells = F.avg_pool2d(truth[None, None].float(), 8)[0]
    return F.interpolate(local_blend_mask(cells)[None].float(), truth.shape, mode="nearest")[0, 0]


class Pairs(NamedTuple):
    """Recolour pairs, and the recolored object as the probe sees it in the source."""

    prompts: list[PromptPair]
    num_objects: list[int]
    sources: Images
    edited: Images
    masks: Masks
    truths: Bool[Tensor, "n 128 128"]
    cpu_s: float
    """Of making one."""


def recolour_prompts(count: int) -> tuple[list[int], list[PromptPair]]:
    """Half of scenes with one object, half with two."""
    numbers = [1 if index < count // 2 else 2 for index in range(count)]
    prompts = []
    for index, number in enumerate(numbers):
        seed = derive_seed("segment benchmark", number, index)
        scene = sample_description(seed, num_objects=number)
        prompts.append(prompt_pair_of(sample_edit(scene, seed, kind="recolour"), seed))
    return numbers, prompts


def probe_masks(probe: Probe, images: Images, kinds: Sequence[str]) -> Bool[Tensor, "n 128 128"]:
    """Where the probe sees one kind in each picture: its 16x16 logits, interpolated."""
    with torch.no_grad():
        classes = F.interpolate(probe(images).classes, images.shape[2:], mode="bilinear").argmax(1)
    wanted = torch.tensor([FIRST_KIND_CLASS + KINDS.index(kind) for kind in kinds])
    return classes == wanted[:, None, None]


def make_pairs(backbone: Backbone, probe: Probe, count: int) -> Pairs:
    """Make them; those in whose source the probe does not see the object are left out."""
    numbers, prompts = recolour_prompts(count)
    config = GenerateConfig()
    jobs = make_jobs(prompts, config, samples_per_prompt=1, run_seed=0)
    start_s = time.process_time()
    batches = [
        generate_pairs(backbone, jobs[first : first + PAIRS_PER_BATCH], config)
        for first in range(0, len(jobs), PAIRS_PER_BATCH)
    ]
    cpu_s = (time.process_time() - start_s) / len(jobs)
    sources, edited, masks = (torch.cat(part) for part in list(zip(*batches, strict=True))[:3])
    truths = probe_masks(probe, sources, [prompt.words[0] for prompt in prompts])
    seen = (truths.flatten(1).sum(1) >= MIN_VISIBLE_PX).nonzero()[:, 0]
    sources, edited, masks, truths = (part[seen] for part in (sources, edited, masks, truths))
    chosen = seen.tolist()
    return Pairs(
        [prompts[i] for i in chosen], [numbers[i] for i in chosen], sources, edited, masks, truths, cpu_s=cpu_s
    )


Segmenter = Callable[[Images], Labels]


def measure_renders(rendered: Rendered, segmenters: dict[str, Segmenter]) -> tuple[dict[str, Any], dict[str, Labels]]:
    """Segmentation where truth is exact."""
    truths, coarse = rendered.masks, torch.stack([perfect_word_mask(mask) for mask in rendered.masks])
    pictures = rendered.images[rendered.picture_of]
    figures: dict[str, Any] = {"objects": len(truths), "coarse": mean_iou(coarse, truths)}
    figures["graph cut"] = {"coarse": mean_iou(cut_masks(coarse, pictures), truths)}
    found = {}
    for name, segmenter in segmenters.items():
        start_s = time.process_time()
        found[name] = segmenter(rendered.images)
        cpu_s = (time.process_time() - start_s) / len(rendered.images)
        labels = found[name][rendered.picture_of]
        figures[name] = {
            "best": float(np.mean([best_segment(*item) for item in zip(labels, truths, strict=True)])),
            "union": mean_iou(sharpen_masks(truths.float(), labels, min_share=0.5), truths),
            "coarse": mean_iou(sharpen_masks(coarse, labels), truths),
            "cpu_s": cpu_s,
        }
        print(f"renders, {name}: {figures[name]}", flush=True)
    return figures, found


def changed_outside(pairs: Pairs, masks: Masks) -> float:
    """Share of all that changes between source and edited picture that lies outside of the masks."""
    change = (pairs.edited - pairs.sources).abs().mean(1)
    return float((change * (masks <= 0.5)).sum() / change.sum())


def judge_masks(pairs: Pairs, masks: Masks) -> dict[str, float]:
    """Mean IoU with truth by number of objects, how many became worse, and what of the change is outside."""
    scores = np.array([mask_iou_of(m > 0.5, t) for m, t in zip(masks, pairs.truths, strict=True)])
    stored = np.array([mask_iou_of(m > 0.5, t) for m, t in zip(pairs.masks, pairs.truths, strict=True)])
    numbers = np.array(pairs.num_objects)
    return {
        "iou": float(scores.mean()),
        **{f"iou_{number}": float(scores[numbers == number].mean()) for number in np.unique(numbers)},
        "worse": float((scores < stored - 0.01).mean()),
        "changed_outside": changed_outside(pairs, masks),
    }


def measure_pairs(pairs: Pairs, segmenters: dict[str, Segmenter]) -> tuple[dict[str, Any], dict[str, Masks]]:
    """Stored masks, and what each way of sharpening makes of them."""

    def by_segments(segmenter: Segmenter) -> Masks:
        return sharpen_masks(pairs.masks, segmenter(pairs.sources))

    ways: dict[str, Callable[[], Masks]] = {
        "stored": lambda: pairs.masks,
        "graph cut": lambda: cut_masks(pairs.masks, pairs.sources),
        "what changed": lambda: ((pairs.edited - pairs.sources).abs().amax(1) > CHANGED) * pairs.masks,
        **{name: partial(by_segments, segmenter) for name, segmenter in segmenters.items()},
    }
    figures, found = {}, {}
    for name, way in ways.items():
        start_s = time.process_time()
        found[name] = way()
        cpu_s = (time.process_time() - start_s) / len(pairs.prompts)
        figures[name] = {**judge_masks(pairs, found[name]), "cpu_s": cpu_s}
        print(f"pairs, {name}: {figures[name]}", flush=True)
    return figures, found


def to_pil(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """A picture in [0, 1] as 8 bits."""
    return Image.fromarray((image.permute(1, 2, 0).clamp(0, 1).numpy() * 255 + 0.5).astype(np.uint8))


def painted(image: Float[Tensor, "3 h w"], labels: Int[Tensor, "h w"]) -> Image.Image:
    """Each segment in its mean color, edges in black."""
    flat = torch.zeros_like(image)
    for number in labels.unique():
        flat[:, labels == number] = image[:, labels == number].mean(1, keepdim=True)
    edges = F.pad(labels.diff(dim=0).ne(0), (0, 0, 0, 1)) | F.pad(labels.diff(dim=1).ne(0), (0, 1))
    return to_pil(flat * ~edges)


def masked(image: Float[Tensor, "3 h w"], mask: Tensor) -> Image.Image:
    """The picture, dark outside of the mask."""
    return to_pil(image * (0.2 + 0.8 * (mask > 0.5).float()))


def draw(folder: Path, rendered: Rendered, labels: dict[str, Labels], pairs: Pairs, masks: dict[str, Masks]) -> None:
    """Segments of renders, and masks of pairs, as two sheets."""
    rows = [
        [to_pil(image), *(painted(image, found[index]) for found in labels.values())]
        for index, image in enumerate(rendered.images[:8])
    ]
    names = ["stored", *(name for name in masks if name != "stored")]
    order = [*range(0, len(pairs.prompts), 2)][:10]
    pair_rows = [
        [
            to_pil(pairs.sources[i]), to_pil(pairs.edited[i]), masked(pairs.sources[i], pairs.truths[i]),
            *(masked(pairs.sources[i], masks[name][i]) for name in names),
        ]
        for i in order
    ]  # fmt: skip
    sheets = {
        "renders": compose_grid(rows, column_labels=["render", *labels], cell_px=160),
        "pairs": compose_grid(
            pair_rows,
            row_labels=[pairs.prompts[i].instruction for i in order],
            column_labels=["source", "edited", "truth", *names],
            cell_px=128,
        ),
    }
    for name, sheet in sheets.items():
        with write_atomically(folder / f"{name}.png") as temporary:
            sheet.save(temporary, format="PNG")
        print(f"pictures: {folder / name}.png")


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=12, help="renders")
    parser.add_argument("--pairs", type=int, default=24, help="recolour pairs, half with two objects")
    parser.add_argument("--segments", type=int, default=SegmentConfig.num_segments)
    parser.add_argument("--steps", type=int, default=SegmentConfig.num_steps, help="of denoising after a push")
    parser.add_argument("--models", type=Path, default=None, help="folder with text_to_image; default: the package's")
    parser.add_argument("--folder", type=Path, default=Path("runs/segment"), help="where the pictures go")
    options = parser.parse_args()
    backbone = load_backbone(models_in(options.models).text_to_image)
    config = SegmentConfig(num_segments=options.segments, num_steps=options.steps)
    segmenters: dict[str, Segmenter] = {
        "color": partial(by_color, count=options.segments),
        "features": partial(by_features, backbone=backbone, config=config),
        "EmerDiff": partial(by_unet, backbone=backbone, config=config),
    }
    rendered = render(options.scenes)
    on_renders, labels = measure_renders(rendered, segmenters)
    pairs = make_pairs(backbone, load_probe(PROBE), options.pairs)
    on_pairs, masks = measure_pairs(pairs, segmenters)
    draw(options.folder, rendered, labels, pairs, masks)
    print(
        json.dumps(
            rounded(
                {
                    "segments": options.segments,
                    "steps": options.steps,
                    "scored_pairs": len(pairs.prompts),
                    "pair_cpu_s": pairs.cpu_s,
                    "renders": on_renders,
                    "pairs": on_pairs,
                }
            )
        )
    )


if __name__ == "__main__":
    main()

"""What the shipped miniature models can do, on worlds that no training has seen.

    python -m benchmarks.miniature [--models FOLDER] [--world-seed N] [--cases N] [--page FOLDER]

Measures the autoencoder, the CLIP and the edit model against exact renders, and the time to sample pictures. The last
line is JSON. Not measured yet: what the text-to-image model's pictures show (a probe has to read them).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from restage.compare.metrics import mask_iou, progress, spill
from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.clip import Clip, load_clip
from restage.diffusion.editor import EditModel, load_edit_model
from restage.diffusion.sampler import sample_images
from restage.pairs.score import score_pairs
from restage.recipes import models_in
from restage.records import PromptPair, derive_seed
from restage.report.figures import compose_grid
from restage.world.capture import change_mask, sample_camera
from restage.world.grammar import EDIT_KINDS, Edit, caption_of, prompt_pair_of, sample_description, sample_edit
from restage.world.render import render_view

APPEARANCE, SHAPE = ("recolour", "ground", "time"), ("reshape", "add", "remove")


@dataclass(frozen=True)
class Case:
    """An edit of an unseen world, seen by one camera."""

    edit: Edit
    prompt: PromptPair
    before: Float[Tensor, "3 128 128"]
    after: Float[Tensor, "3 128 128"]
    mask: Float[Tensor, "128 128"]


def make_cases(world_seed: int, count: int) -> Iterator[Case]:
    """Edits of all kinds in turn, with exact pictures before and after."""
    for index in range(count):
        kind = EDIT_KINDS[index % len(EDIT_KINDS)]
        seed = derive_seed("miniature benchmark", world_seed, index)
        description = sample_description(seed, num_objects=2 if kind == "remove" else 1 + index // 7 % 2)
        edit = sample_edit(description, seed, kind=kind)
        camera = sample_camera(description, seed)
        before, after = render_view(edit.before, camera).image, render_view(edit.after, camera).image
        mask = change_mask(before, after)
        yield Case(
            edit, prompt_pair_of(edit, seed), torch.from_numpy(before), torch.from_numpy(after), torch.from_numpy(mask)
        )


def render_captioned(world_seed: int, count: int) -> tuple[Float[Tensor, "n 3 128 128"], list[str]]:
    """Pictures of unseen worlds with captions."""
    images, captions = [], []
    for index in range(count):
        seed = derive_seed("miniature captions", world_seed, index)
        description = sample_description(seed)
        images.append(torch.from_numpy(render_view(description, sample_camera(description, seed)).image))
        captions.append(caption_of(description, seed))
    return torch.stack(images), captions


def measure_autoencoder(backbone: Backbone, images: Float[Tensor, "n 3 h w"]) -> dict[str, float]:
    """PSNR of pictures that were encoded and decoded, mean over pictures, dB."""
    decoded = torch.cat([backbone.decode_latents(backbone.encode_images(part)) for part in images.split(16)])
    return {"vae_psnr_db": float(-10 * (decoded - images).square().mean((1, 2, 3)).log10().mean())}


def roc_auc(right: list[float], wrong: list[float]) -> float:
    """Share of pairs of a right and a wrong score in which the right one is higher; ties count half."""
    a, b = np.array(right)[:, None], np.array(wrong)[None]
    return float(((a > b) + 0.5 * (a == b)).mean())


def measure_clip(clip: Clip, images: Tensor, captions: list[str], cases: list[Case]) -> dict[str, float]:
    """How often a picture's own caption is the nearest of 256, and whether direction similarity tells right edits."""
    similarity = clip.encode_images(images) @ clip.encode_text(captions).T
    # Two scenes may have one caption: a caption that reads the same is found too.
    nearest = similarity.argmax(1).tolist()
    found = np.mean([captions[j] == captions[i] for i, j in enumerate(nearest)])

    def direction(shift: int) -> list[float]:
        prompts = [case.prompt for case in cases[shift:] + cases[:shift]]
        befores, afters = torch.stack([c.before for c in cases]), torch.stack([c.after for c in cases])
        scores = score_pairs(clip, prompts, sources=befores, edited=afters, masks=torch.ones(len(cases), 128, 128))
        return [score.direction_similarity for score in scores]

    return {"clip_top1_of_256": float(found), "clip_direction_auc": roc_auc(direction(0), direction(1))}


def measure_edit_model(model: EditModel, cases: list[Case], page: Path) -> dict[str, float]:
    """Progress, spill and mask IoU of edits of single rendered views against their exact truth."""
    results: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in EDIT_KINDS}
    rows = []
    for case in cases:
        before, after = case.before[None], case.after[None]
        edited = model.edit_images(before, before, case.edit.instruction, noise_level=1.0, seeds=[0])
        kept = before + (edited.images - before) * (edited.masks[:, None] > 0.5)
        region = case.mask[None]
        scores = (
            progress(kept, before, after, region).mean,
            spill(kept, before, region).mean,
            mask_iou(kept, before, region).mean,
        )
        results[case.edit.kind].append(scores)
        rows.append([case.before, edited.images[0], kept[0], case.after])
    pictures = [[_to_pil(image) for image in row] for row in rows[:28]]
    labels = [f"{case.edit.instruction}" for case in cases[:28]]
    page.mkdir(parents=True, exist_ok=True)
    compose_grid(pictures, row_labels=labels, column_labels=["before", "edited", "with its mask", "truth"]).save(
        page / "edits.png"
    )

    def mean(kinds: tuple[str, ...], column: int) -> float:
        values = [scores[column] for kind in kinds for scores in results[kind]]
        return float(np.nanmean(values))

    by_kind = {f"edit_progress_{kind}": mean((kind,), 0) for kind in EDIT_KINDS}
    return {
        **by_kind,
        "edit_progress_appearance": mean(APPEARANCE, 0),
        "edit_progress_shape": mean(SHAPE, 0),
        "edit_spill": mean(EDIT_KINDS, 1),
        "edit_mask_iou": mean(EDIT_KINDS, 2),
    }


def measure_sampling(backbone: Backbone, captions: list[str], page: Path) -> dict[str, float]:
    """Seconds to sample 16 pictures, the faster of two times; leaves a sheet of them."""
    times_s = []
    images = torch.empty(0)
    for _ in range(2):
        start_s = time.perf_counter()
        images = sample_images(backbone, captions[:16], seeds=list(range(16)))
        times_s.append(time.perf_counter() - start_s)
    page.mkdir(parents=True, exist_ok=True)
    rows = [[_to_pil(image) for image in images[i : i + 4]] for i in range(0, 16, 4)]
    compose_grid(rows).save(page / "samples.png")
    (page / "samples.txt").write_text("\n".join(captions[:16]) + "\n")
    return {"sample16_s": min(times_s)}


def _to_pil(image: Float[Tensor, "3 h w"]) -> Image.Image:
    return Image.fromarray((image.permute(1, 2, 0).clamp(0, 1).numpy() * 255 + 0.5).astype(np.uint8))


def main(
    models: Path | None = None, world_seed: int = 0, cases: int = 70, page: Path = Path("runs/benchmark-miniature")
) -> None:
    """Measure the miniature's models.

    Args:
        models: Folder with `text_to_image`, `clip` and `edit_model`; default: those of the package.
        world_seed: Moves all worlds, captions and edits.
        cases: Edits to score, kinds in turn.
        page: Where the pictures go.
    """
    folders = models_in(models)
    backbone, clip = load_backbone(folders.text_to_image), load_clip(folders.clip)
    images, captions = render_captioned(world_seed, 256)
    edits = list(make_cases(world_seed, cases))
    root = folders.text_to_image.parent
    figures = {
        **measure_autoencoder(backbone, images[:64]),
        **measure_clip(clip, images, captions, edits),
        **measure_sampling(backbone, captions, page),
        **measure_edit_model(load_edit_model(folders.edit_model), edits, page),
        "assets_mb": sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 1e6,
    }
    print(json.dumps({"world_seed": world_seed, "cases": cases} | {k: round(v, 4) for k, v in figures.items()}))


if __name__ == "__main__":
    tyro.cli(main)

"""Pairs made of rendered pictures against the exact picture after the edit: how right is what Prompt-to-Prompt paints?

    python -m benchmarks.pictured_pairs [--pairs 88] [--variants defaults,one_iteration] [--sheet pictured.png]
    python -m benchmarks.pictured_pairs --pairs 90 --world-seed 0 --edit-model restage/assets/edit_model

Scenes of the training split, kinds of edit in turn, or the held-out edits of `benchmarks.miniature`. An edit model,
which is given the instruction instead of the captions, edits the same renders: is it as good as its pairs?
The picture shows the scene before the edit, also for removals (for half of which it shows the scene after in the edit
model's recipe). The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.miniature.edits import edit_views
from benchmarks.miniature.held_out import CASE_KINDS, edit_cases
from miniature.edit_model import RECIPE
from miniature.rendered_pairs import render_pairs
from restage.compare.metrics import mask_iou, progress, spill
from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.edit_models import load_edit_model
from restage.edit.pictures import quantize
from restage.pairs.config import GenerateConfig
from restage.pairs.generate import PairJob, generate_pairs, make_jobs
from restage.run.models import models_in
from restage.scenes.io.images import to_uint8
from restage.train.examples import ExactPair

DEFAULTS = RECIPE.made.pairs.generate
VARIANTS: Mapping[str, GenerateConfig] = {
    "defaults": DEFAULTS,
    "one_iteration": replace(DEFAULTS, inversion_iterations=1),
    "three_iterations": replace(DEFAULTS, inversion_iterations=3),
    "reshape_by_blend_alone": replace(DEFAULTS, reshape_control_of_pictures=None),
    "target_behind": DEFAULTS,
    "guidance_3": replace(DEFAULTS, guidance=3.0),
    "guidance_1": replace(DEFAULTS, guidance=1.0),
    "guidance_1.5": replace(DEFAULTS, guidance=1.5),
    "guidance_5": replace(DEFAULTS, guidance=5.0),
}


def job_of(pair: ExactPair, config: GenerateConfig) -> PairJob:
    """The job of making a pair like an exact one from its first picture."""
    (job,) = make_jobs([pair.prompt], config, samples_per_prompt=1, run_seed=0)
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(pair.source)).save(buffer, format="PNG")
    prompt = replace(pair.prompt, picture="render.png")
    return replace(job, prompt=prompt, picture=buffer.getvalue())


def without_behind(pair: ExactPair) -> ExactPair:
    """The same pair, whose removal is painted by its target caption, as all were before captions of what is behind."""
    return pair._replace(prompt=replace(pair.prompt, behind=""))


def make(backbone: Backbone, pairs: Sequence[ExactPair], config: GenerateConfig) -> tuple[Tensor, Tensor]:
    jobs = [job_of(pair, config) for pair in pairs]
    made = [generate_pairs(backbone, jobs[i : i + 16], config) for i in range(0, len(jobs), 16)]
    return torch.cat([part.sources for part in made]), torch.cat([part.edited for part in made])


def exact_pairs(count: int, world_seed: int | None) -> Iterator[ExactPair]:
    """Exact pairs of scenes of the training split; with a world seed, the held-out edits of `benchmarks.miniature`."""
    if world_seed is None:
        yield from render_pairs(count, seed=777)
        return
    for case in edit_cases(world_seed, count):
        yield ExactPair(case.before, case.after, case.mask, case.prompt)


def figures(pairs: Sequence[ExactPair], sources: Tensor, edited: Tensor) -> dict[str, dict[str, float]]:
    """Progress, spill and mask IoU of the edited pictures, by kind."""
    table: dict[str, list[tuple[float, float, float]]] = {}
    for pair, source, picture in zip(pairs, quantize(sources), quantize(edited), strict=True):
        truth, mask = pair.edited[None], pair.mask[None].float()
        row = (
            progress(picture[None], pair.source[None], truth, mask).mean,
            spill(picture[None], source[None], mask).mean,
            mask_iou(picture[None], source[None], pair.source[None], truth).mean,
        )
        table.setdefault(pair.prompt.kind, []).append(row)
    means = {kind: np.nanmean(np.array(rows), axis=0) for kind, rows in table.items()}
    return {
        kind: dict(zip(("progress", "spill", "mask_iou"), map(float, mean.round(4)), strict=True))
        for kind, mean in means.items()
    }


def write_sheet(path: Path, columns: Sequence[Tensor]) -> None:
    """A row for each pair, a column for each list of pictures."""
    rows = [torch.cat(list(row), dim=2) for row in zip(*columns, strict=True)]
    Image.fromarray(to_uint8(torch.cat(rows, dim=1).clamp(0, 1))).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=None, help="folder of models; default: those of the package")
    parser.add_argument("--pairs", type=int, default=88)
    parser.add_argument("--variants", default="defaults", help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--kinds", default=",".join(CASE_KINDS))
    parser.add_argument("--world-seed", type=int, default=None, help="edits of benchmarks.miniature in this world")
    parser.add_argument("--edit-model", type=Path, default=None, help="folder of an edit model to edit the same")
    parser.add_argument("--sheet", type=Path, default=None, help="draw source, truth and what each variant makes")
    arguments = parser.parse_args()
    names = arguments.variants.split(",")
    if unknown := sorted(set(names) - set(VARIANTS)):
        raise SystemExit(f"unknown: {', '.join(unknown)}; choose from {', '.join(VARIANTS)}")
    backbone = load_backbone(models_in(arguments.models).text_to_image)
    model = load_edit_model(arguments.edit_model) if arguments.edit_model is not None else None
    kinds, every = arguments.kinds.split(","), exact_pairs(arguments.pairs, arguments.world_seed)
    pairs = [pair for pair in every if pair.prompt.kind in kinds]
    columns = [torch.stack([pair.source for pair in pairs]), torch.stack([pair.edited for pair in pairs])]
    found = {}
    for name in names:
        started_s = time.perf_counter()
        chosen = [without_behind(pair) for pair in pairs] if name == "target_behind" else pairs
        sources, edited = make(backbone, chosen, VARIANTS[name])
        found[name] = {"seconds_a_pair": round((time.perf_counter() - started_s) / len(pairs), 3)}
        found[name] |= figures(pairs, sources, edited)
        columns.append(edited)
        print(name, found[name], flush=True)
    if model is not None:
        _, edited = edit_views(model, columns[0], [pair.prompt.instruction for pair in pairs])
        found["edit_model"] = figures(pairs, columns[0], edited)
        columns.append(edited)
        print("edit_model", found["edit_model"], flush=True)
    if arguments.sheet:
        write_sheet(arguments.sheet, columns)
    print(json.dumps({"pairs": len(pairs), "variants": found}))


if __name__ == "__main__":
    main()

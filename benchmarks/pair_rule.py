"""Does another score tell right resizes and reshapes from wrong ones better than the direction of the whole picture?

    python -m benchmarks.pair_rule                        # 96 of each kind, exact and generated

*Exact*: rendered pairs of an edit against the same scene edited in another way (recolored, the opposite size, another
shape). *Generated*: pairs that the pair maker makes of a rendered picture, whose truth is known, so that those with a
progress above 0.5 are right and those below 0.25 are wrong. Prints the area under the ROC curve of each score.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from restage.diffusion.backbone import load_backbone
from restage.diffusion.clip import load_clip
from restage.pairs.config import PAIRS
from restage.pairs.generate import PairJob, generate_pairs
from restage.pairs.score import ImageTextModel
from restage.prompts.grammar import sample_grammar_edit
from restage.records import PromptPair, derive_seed
from restage.run.models import models_in
from restage.scenes.io.images import to_uint8
from restage.world.capture import sample_camera
from restage.world.grammar import COLORS, KINDS, SIZES, Description, Edit, prompt_pair_of
from restage.world.render import render_view

SIZE_ORDER = list(SIZES)
CHANGED = 0.05
BATCH = 16


class Case(NamedTuple):
    """A pair, and whether it shows its edit."""

    prompt: PromptPair
    before: Tensor
    after: Tensor
    is_right: bool


def _other_edits(edit: Edit, item: int) -> list[Description]:
    """Scenes after other edits of the same object."""
    before, rng = edit.before, np.random.default_rng(item)
    index = next(i for i, (old, new) in enumerate(zip(before.objects, edit.after.objects, strict=True)) if old != new)
    old, new = before.objects[index], edit.after.objects[index]
    taken = {thing.kind for thing in before.objects} | {new.kind}
    colors = [color for color in COLORS if color not in {thing.color for thing in before.objects}]
    kinds = [kind for kind in KINDS if kind not in taken]
    sizes = [size for size in ("small", "big") if size != old.size]
    if edit.kind == "resize":
        size = SIZE_ORDER.index(old.size)
        sizes = SIZE_ORDER[:size] if SIZE_ORDER.index(new.size) > size else SIZE_ORDER[size + 1 :]  # the wrong way
    changes = [{"color": str(rng.choice(colors))}, {"kind": str(rng.choice(kinds))}]
    changes += [{"size": str(rng.choice(sizes))}] if sizes else []
    found = []
    for change in changes:
        objects = [dataclasses.replace(old, **change) if i == index else o for i, o in enumerate(before.objects)]
        found.append(dataclasses.replace(before, objects=tuple(objects)))
    return found


def exact_cases(kind: str, count: int) -> list[Case]:
    """Rendered pairs of a kind, each with wrong ones of the same scene."""
    cases = []
    for number in range(count):
        item = derive_seed("rule", number)
        edit = sample_grammar_edit(kind, item)
        camera, prompt = sample_camera(edit.before, item), prompt_pair_of(edit, item)
        scenes = [edit.before, edit.after, *_other_edits(edit, item)]
        before, *others = (torch.from_numpy(render_view(scene, camera).image) for scene in scenes)
        cases += [Case(prompt, before, after, place == 0) for place, after in enumerate(others)]
    return cases


def generated_cases(kind: str, count: int) -> list[Case]:
    """Pairs of the pair maker, without those that are neither right nor wrong."""
    backbone, cases = load_backbone(models_in().text_to_image, "cpu"), []
    for start in range(0, count, BATCH):
        jobs, truths = [], []
        for number in range(start, min(start + BATCH, count)):
            item = derive_seed("generated rule", number)
            edit = sample_grammar_edit(kind, item)
            camera, buffer = sample_camera(edit.before, item), io.BytesIO()
            before, truth = (torch.from_numpy(render_view(x, camera).image) for x in (edit.before, edit.after))
            Image.fromarray(to_uint8(before)).save(buffer, format="PNG")
            prompt = dataclasses.replace(prompt_pair_of(edit, item), picture="picture.png")
            share = float(np.random.default_rng(item).uniform(0.3, 0.7))
            content = buffer.getvalue()
            jobs.append(PairJob(id=str(number), prompt=prompt, sample=0, seed=item, self_share=share, picture=content))
            truths.append(((before - truth).abs().amax(0) > 3 / 255, truth))
        made = generate_pairs(backbone, jobs, PAIRS.generate)
        for job, (region, truth), before, after in zip(jobs, truths, made.sources, made.edited, strict=True):
            errors = [((picture - truth) ** 2)[:, region].mean() for picture in (after, before)]
            progress = float(1 - errors[0] / errors[1])
            if not 0.25 <= progress <= 0.5:
                cases.append(Case(job.prompt, before, after, progress > 0.5))
    return cases


def _crop(picture: Tensor, changed: Tensor) -> Tensor:
    """The square around what changed, with a tenth to spare, at the size of the picture."""
    rows, columns = torch.where(changed)
    if not len(rows):
        return picture
    height, width = changed.shape
    reach = max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) + 1
    side = min(max(round(1.2 * reach), 24), height, width)
    top = min(max((int(rows.min() + rows.max()) - side) // 2, 0), height - side)
    left = min(max((int(columns.min() + columns.max()) - side) // 2, 0), width - side)
    part = picture[None, :, top : top + side, left : left + side]
    return functional.interpolate(part, (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


def _growth(case: Case, changed: Tensor) -> float:
    """How much more of the changed region stands out from its surroundings after than before, the asked way."""
    known = (~changed).float()[None]
    background, weight = case.before * known, known
    for _ in range(40):  # spread the surroundings into the region
        blurred, spread = (functional.avg_pool2d(x[None], 3, 1, 1)[0] for x in (background, weight))
        background, weight = torch.where(known > 0, background, blurred), torch.where(known > 0, weight, spread)
    background = background / weight.clamp(min=1e-6)
    first, second = (float((x - background).abs().mean(0)[changed].mean()) for x in (case.before, case.after))
    sizes = [sum({"small": -1, "big": 1}.get(w, 0) for w in t.replace(",", "").split()) for t in _captions(case)]
    return (second - first) / max(second + first, 1e-6) * (1 if sizes[1] > sizes[0] else -1)


def _captions(case: Case) -> tuple[str, str]:
    return case.prompt.source, case.prompt.target


def _scores(clip: ImageTextModel, cases: Sequence[Case]) -> Mapping[str, np.ndarray]:
    """Scores of each case by name."""
    found: dict[str, list[float]] = {"direction": [], "direction in a crop": [], "growth": []}
    for case in cases:
        changed = (case.before - case.after).abs().amax(0) > CHANGED
        text = clip.encode_text(_captions(case))
        pictures = torch.stack([case.before, case.after, *(_crop(x, changed) for x in (case.before, case.after))])
        before, after, before_crop, after_crop = clip.encode_images(pictures)
        for name, step in (("direction", after - before), ("direction in a crop", after_crop - before_crop)):
            found[name].append(float(functional.cosine_similarity(step, text[1] - text[0], dim=0)))
        found["growth"].append(_growth(case, changed) if changed.any() else 0.0)
    return {name: np.array(values) for name, values in found.items()}


def area(values: np.ndarray, is_right: np.ndarray) -> float:
    """Area under the ROC curve."""
    right, wrong = values[is_right][:, None], values[~is_right][None]
    return float(np.mean((right > wrong) + 0.5 * (right == wrong)))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=96, help="pairs of each kind")
    count, clip = parser.parse_args().count, load_clip(models_in().clip)
    result = {}
    for kind in ("resize", "reshape"):
        for name, cases in (("exact", exact_cases(kind, count)), ("generated", generated_cases(kind, count))):
            is_right = np.array([case.is_right for case in cases], dtype=bool)
            areas = {score: round(area(values, is_right), 3) for score, values in _scores(clip, cases).items()}
            result[f"{kind}, {name}"] = {"right": int(is_right.sum()), "wrong": int((~is_right).sum()), **areas}
            print(kind, name, result[f"{kind}, {name}"], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

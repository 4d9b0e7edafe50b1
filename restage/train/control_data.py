"""Pictures of a run with their conditions, for a control branch of the user's own: views of scenes, or pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from restage.diffusion.backbone import Backbone
from restage.diffusion.conditions import Conditions, invert_depth, slots_of, stack_conditions
from restage.diffusion.config import TrainingConfig
from restage.records import InputError, Progress, content_id, read_json
from restage.regions.files import list_regions, read_region
from restage.regions.masks import render_masks
from restage.run.layout import CAPTURE, DESCRIPTION, FITS, MANIFEST, SPLATS
from restage.scenes.io import read_capture
from restage.scenes.io.images import list_images
from restage.scenes.io.splat_files import read_splats
from restage.scenes.layouts import edges_of, read_condition, splat_depths
from restage.train.chunks import hash_tensors
from restage.train.config import BranchConfig
from restage.train.control import BranchBatch, BranchData, drop_conditions
from restage.world.description import Description
from restage.world.grammar import caption_of
from restage.world.render import NEAR

__all__ = ["Example", "encode_run", "examples_of"]

NEAR_SHARE = 0.02
"""Share of the pixels that are nearer than where inverse depth counts as 1, in scenes that are not the world's."""


@dataclass(frozen=True, eq=False)
class Example:
    """A picture, what it shows, and its conditions."""

    name: str
    image: Float[Tensor, "3 h w"]
    caption: str
    conditions: Conditions


class _Run:
    """Reads examples of a run; `near` is known once the first scene was read."""

    def __init__(self, run: Path, condition: str, caption: str) -> None:
        self.run, self.caption, self.near = run, caption, NEAR
        self.folder = None if condition in ("depth", "ids", "canny") else Path(condition)
        self.name = condition if self.folder is None else self.folder.resolve().name
        if self.folder is not None and not self.folder.is_dir():
            raise InputError(f"expected depth, canny, ids, or a folder of pictures, got {condition!r}")
        self.files = {path.stem: path for path in list_images(self.folder)} if self.folder is not None else {}

    def scenes(self) -> Iterator[Example]:
        for record in sorted(self.run.glob(FITS)):
            yield from self._views(record.parent)

    def _views(self, scene: Path) -> Iterator[Example]:
        capture, caption = read_capture(scene / CAPTURE), self.caption
        is_world = (scene / DESCRIPTION).is_file()
        if is_world and not caption:
            caption = caption_of(read_json(scene / DESCRIPTION, Description), 0)
        chosen = list(capture.train_indices)
        splats, cameras = read_splats(scene / SPLATS), capture.cameras[chosen]
        depths = splat_depths(splats, cameras) if self.name in ("depth", "ids") and self.folder is None else None
        if depths is not None and self.name == "depth" and not is_world:
            seen = depths[torch.isfinite(depths)]
            self.near = float(seen.quantile(NEAR_SHARE)) if self.near == NEAR and len(seen) else self.near
        ids = None
        if depths is not None and self.name == "ids":
            regions = list_regions(self.run, scene.name)
            if not regions:
                raise InputError(f"{scene} has no regions to take ids from; make some with restage region")
            ids = torch.isfinite(depths).long()
            for number, region in enumerate(regions):
                weights = read_region(self.run, scene.name, region, splats).weights
                ids[render_masks(splats, cameras, weights) > 0.5] = 2 + number
        for place, view in enumerate(chosen):
            image, stem = capture.images[view], Path(capture.file_names[view]).stem
            if self.folder is not None:
                found = self._from_folder(stem)
            elif self.name == "canny":
                found = edges_of(image)
            else:
                found = slots_of(ids[place]) if ids is not None else invert_depth(depths[place], self.near)  # pyright: ignore
            if found is not None:
                yield Example(f"{scene.name}/{stem}", image, caption, {self.name: found})

    def pairs(self) -> Iterator[Example]:
        from restage.pairs.files import open_files
        from restage.pairs.store import read_pairs

        for pair in read_pairs(open_files(self.run / "pairs", store="")):
            sides = ((pair.source, pair.prompt.source, pair.id), (pair.edited, pair.prompt.target, f"{pair.id}-edited"))
            for image, caption, stem in sides:
                found = edges_of(image) if self.folder is None else self._from_folder(stem)
                if found is not None:
                    yield Example(stem, image, caption, {self.name: found})

    def _from_folder(self, stem: str) -> Tensor | None:
        return read_condition(self.name, self.files[stem]) if stem in self.files else None


def examples_of(run: Path, condition: str, *, caption: str = "") -> tuple[list[Example], float]:
    """Return the pictures of a run with one condition each, and `near` of their depth.

    `depth` and `ids` come from the run's fitted scenes (splats, regions), `canny` from its accepted pairs, or else from
    the views of its scenes. With a folder the condition is a picture: the file with the name of the view, of the pair
    (its source), or of the pair and `-edited`; pictures without a file are left out. Scenes of the miniature world say
    their captions, pairs have theirs, and other scenes take `caption`.

    Raises:
        InputError: the run has no such pictures.
    """
    reader = _Run(run, condition, caption)
    has_pairs = (run / MANIFEST).is_file() and reader.name not in ("depth", "ids")
    found = list(reader.pairs()) if has_pairs else list(reader.scenes())
    if not found:
        raise InputError(f"{run} holds no pictures with the condition {condition}; fit a scene, or make pairs, first")
    return found, reader.near


def encode_run(
    backbone: Backbone, examples: list[Example], near: float, config: BranchConfig, training: TrainingConfig
) -> Iterator[Progress | BranchData]:
    """Encode the pictures at the size that the model was trained on; yields the training set last."""
    latents, conditions, size = [], [], backbone.picture_size
    names = tuple(examples[0].conditions)
    for done, example in enumerate(examples, start=1):
        image = functional.interpolate(example.image[None].cpu(), size, mode="bilinear", antialias=True)
        latents.append(backbone.encode_images(image.clamp(0, 1))[0].half().cpu())
        conditions.append((stack_conditions(names, [example.conditions], size)[0] * 255).round().byte())
        yield Progress(stage="latents", done=done, total=len(examples), note=example.name)
    all_latents, all_conditions = torch.stack(latents), torch.stack(conditions)

    def batch(step: int, generator: torch.Generator) -> BranchBatch:
        chosen = torch.randint(len(examples), (training.batch_size,), generator=generator)
        has_text = (torch.rand(len(chosen), generator=generator) >= config.drop_text).tolist()
        captions = [examples[i].caption if kept else "" for i, kept in zip(chosen.tolist(), has_text, strict=True)]
        given, is_steered = drop_conditions(all_conditions[chosen].float() / 255, names, config, generator)
        return BranchBatch(all_latents[chosen].float(), captions, given, is_steered)

    told = [[example.name, example.caption] for example in examples]
    content = hash_tensors({"latents": all_latents, "conditions": all_conditions})
    yield BranchData(names, content_id("run pictures", [told, content, near]), batch, near=near)

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
from restage.diffusion.conditions import NUM_SLOTS, Conditions, invert_depth, near_depth, slots_of, stack_conditions
from restage.diffusion.config import TrainingConfig
from restage.records import InputError, Progress, content_id, read_json
from restage.regions.files import list_regions
from restage.regions.ids import render_ids
from restage.run.layout import CAPTURE, DESCRIPTION, FITS, MANIFEST, SPLATS
from restage.run.models import folder_sha256
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

__all__ = ["Example", "RunPictures", "encode_run"]


@dataclass(frozen=True, eq=False)
class Example:
    """A picture, what it shows, and its conditions."""

    name: str
    image: Float[Tensor, "3 h w"]
    caption: str
    conditions: Conditions


class RunPictures:
    """The pictures of a run with one condition each, read one after the other whenever they are gone through.

    `depth` and `ids` come from the run's fitted scenes (splats, regions), `canny` from its accepted pairs, or else from
    the views of its scenes. With a folder the condition is a picture: the file with the name of the view, of the pair
    (its source), or of the pair and `-edited`; pictures without a file are left out. Scenes of the miniature world say
    their captions unless `caption` does, pairs have theirs, and other scenes take `caption`.
    """

    def __init__(self, run: Path, condition: str, *, caption: str = "") -> None:
        """Open the pictures of a run.

        Raises:
            InputError: the condition is none, or a caption was given for pairs.
        """
        self.run, self.condition, self.caption = run, condition, caption
        self.folder = None if condition in ("depth", "ids", "canny") else Path(condition)
        self.name = condition if self.folder is None else self.folder.resolve().name
        if self.folder is not None and not self.folder.is_dir():
            raise InputError(f"expected depth, canny, ids, or a folder of pictures, got {condition!r}")
        self.files = {path.stem: path for path in list_images(self.folder)} if self.folder is not None else {}
        self.has_pairs = (run / MANIFEST).is_file() and condition not in ("depth", "ids")
        if self.has_pairs and caption:
            raise InputError(f"the pairs of {run} have captions of their own; omit --caption")
        self.near = 1.0
        """z depth whose inverse counts as 1, which the first scene decides."""
        self.total = 0
        """Number of pictures, as far as it is known by now."""

    def __iter__(self) -> Iterator[Example]:
        """Read them; an InputError where there are none."""
        self.total, is_empty = 0, True
        for example in self._pairs() if self.has_pairs else self._scenes():
            is_empty = False
            yield example
        if is_empty:
            raise InputError(
                f"{self.run} holds no pictures with the condition {self.condition}; fit a scene, or make pairs, first"
            )

    def _scenes(self) -> Iterator[Example]:
        for number, record in enumerate(sorted(self.run.glob(FITS))):
            yield from self._views(record.parent, is_first=number == 0)

    def _views(self, scene: Path, *, is_first: bool) -> Iterator[Example]:
        capture, caption = read_capture(scene / CAPTURE), self.caption
        is_world = (scene / DESCRIPTION).is_file()
        if is_world and not caption:
            caption = caption_of(read_json(scene / DESCRIPTION, Description), 0)
        chosen = list(capture.train_indices)
        self.total += len(chosen)
        splats, cameras = read_splats(scene / SPLATS), capture.cameras[chosen]
        depths = splat_depths(splats, cameras) if self.name in ("depth", "ids") and self.folder is None else None
        if is_first and depths is not None:
            self.near = NEAR if is_world else near_depth(depths)
        ids = None
        if depths is not None and self.name == "ids":
            if not list_regions(self.run, scene.name):
                raise InputError(f"{scene} has no regions to take ids from; make some with restage region")
            ids, _ = render_ids(scene, splats, cameras, depths)
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

    def _pairs(self) -> Iterator[Example]:
        from restage.pairs.files import open_files
        from restage.pairs.store import done_shards, read_pairs

        place = open_files(self.run / "pairs", store="")
        self.total = 2 * sum(mark["num_accepted"] for mark in done_shards(place).values())
        for pair in read_pairs(place):
            sides = ((pair.source, pair.prompt.source, pair.id), (pair.edited, pair.prompt.target, f"{pair.id}-edited"))
            for image, caption, stem in sides:
                found = edges_of(image) if self.folder is None else self._from_folder(stem)
                if found is not None:
                    yield Example(stem, image, caption, {self.name: found})

    def _from_folder(self, stem: str) -> Tensor | None:
        return read_condition(self.name, self.files[stem]) if stem in self.files else None


def encode_run(
    backbone: Backbone, pictures: RunPictures, config: BranchConfig, training: TrainingConfig
) -> Iterator[Progress | BranchData]:
    """Encode the pictures at the size that the model was trained on; yields the training set last."""
    if backbone.folder is None:
        raise InputError("a control branch is trained for a model that lies in a folder")
    latents, conditions, names, size = [], [], (pictures.name,), backbone.picture_size
    all_captions, told = [], []
    for done, example in enumerate(pictures, start=1):
        image = functional.interpolate(example.image[None].cpu(), size, mode="bilinear", antialias=True).clamp(0, 1)
        latents.append(backbone.encode_images(image)[0].half().cpu())
        conditions.append((stack_conditions(names, [example.conditions], size)[0] * 255).round().byte())
        all_captions.append(example.caption)
        # The pictures and not their latents, whose last bits may be others on the same GPU.
        shown = hash_tensors({"image": image, "conditions": conditions[-1]})
        told.append([example.name, example.caption, shown])
        yield Progress(stage="latents", done=done, total=max(done, pictures.total), note=example.name)
    all_latents, all_conditions = torch.stack(latents), torch.stack(conditions)

    def batch(step: int, generator: torch.Generator) -> BranchBatch:
        chosen = torch.randint(len(latents), (training.batch_size,), generator=generator)
        has_text = (torch.rand(len(chosen), generator=generator) >= config.drop_text).tolist()
        captions = [all_captions[i] if kept else "" for i, kept in zip(chosen.tolist(), has_text, strict=True)]
        given = all_conditions[chosen].float() / 255
        if names == ("ids",):
            # Which slot a thing has is drawn anew, so that it tells nothing of what the thing is.
            for row in given:
                row[-NUM_SLOTS:] = row[-NUM_SLOTS:][torch.randperm(NUM_SLOTS, generator=generator)]
        given, is_steered = drop_conditions(given, names, config, generator)
        return BranchBatch(all_latents[chosen].float(), captions, given, is_steered)

    vae = folder_sha256(backbone.folder / "vae")
    yield BranchData(names, content_id("run pictures", [told, vae, pictures.near]), batch, near=pictures.near)

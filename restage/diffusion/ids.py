"""What is one thing in a picture, as a segmentation model of transformers reads it; and all that reads layouts.

MaskFormer (Cheng et al. 2021, arXiv 2107.06278) and Mask2Former tell each thing apart, SegFormer each kind of thing.
Pairs are held by what is read here and in `depth`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import (
    Mask2FormerForUniversalSegmentation,
    MaskFormerForInstanceSegmentation,
    SegformerForSemanticSegmentation,
)

from restage.diffusion.conditions import NUM_SLOTS
from restage.diffusion.depth import DepthModel, Preparation, load_depth_model, read_preparation
from restage.diffusion.loading import load_model, read_config
from restage.records import InputError

__all__ = ["IdsModel", "LayoutReaders", "load_ids_model", "open_readers"]

KINDS: dict[str, Any] = {
    "mask2former": Mask2FormerForUniversalSegmentation,
    "maskformer": MaskFormerForInstanceSegmentation,
    "segformer": SegformerForSemanticSegmentation,
}
SKY, GROUND, FIRST_THING = 0, 1, 2
SKY_WORDS = {"sky", "cloud", "clouds"}
GROUND_WORDS = {"beach", "dirt", "earth", "field", "floor", "grass", "gravel", "ground", "lake", "land", "lawn", "path"}
GROUND_WORDS |= {"pavement", "playingfield", "river", "road", "sand", "sea", "sidewalk", "snow", "soil", "water"}
"""Words in the names of classes, as the classes of COCO and ADE20K are called."""


@dataclass(frozen=True)
class IdsModel:
    """A model that says what is one thing."""

    model: Any
    preparation: Preparation
    kinds: Int[Tensor, " classes"]
    """What each class is: `SKY`, `GROUND` or `FIRST_THING`."""

    @torch.no_grad()
    def read(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b h w"]:
        """Return 0 for sky, 1 for ground and what belongs to nothing, and from 2 on the largest things of each picture.

        There are as many things as conditions can tell apart; smaller ones are ground.
        """
        found = self.model(pixel_values=self.preparation(images, self.model.device))
        size = (images.shape[2], images.shape[3])
        if hasattr(found, "masks_queries_logits"):
            both = zip(found.class_queries_logits.cpu(), found.masks_queries_logits.cpu(), strict=True)
            return torch.stack([self._ids_of_masks(classes, masks, size) for classes, masks in both])
        classes = functional.interpolate(found.logits.float().cpu(), size, mode="bilinear").argmax(dim=1)
        return torch.stack([_numbered(self.kinds[one], one) for one in classes])

    def _ids_of_masks(
        self, classes: Float[Tensor, "queries classes"], masks: Float[Tensor, "queries h w"], size: tuple[int, int]
    ) -> Int[Tensor, "height width"]:
        """A pixel belongs to the query whose class is sure and whose mask is strong there (MaskFormer, section 3.4)."""
        nothing = classes.shape[1] - 1
        scores, labels = classes.float().softmax(dim=1).max(dim=1)
        masks = functional.interpolate(masks[None].float().sigmoid(), size, mode="bilinear")[0]
        strength, query = (masks * (scores * (labels != nothing))[:, None, None]).max(dim=0)
        kinds = torch.cat([self.kinds, torch.tensor([GROUND])])[labels][query]
        return _numbered(torch.where(strength > 0, kinds, GROUND), query)


def _numbered(kinds: Int[Tensor, "h w"], things: Int[Tensor, "h w"]) -> Int[Tensor, "h w"]:
    """Number the largest things from `FIRST_THING` on, in the order of their own numbers."""
    is_thing = kinds == FIRST_THING
    numbers, counts = things[is_thing].unique(return_counts=True)
    kept = numbers[counts.argsort(descending=True, stable=True)[:NUM_SLOTS]].sort().values
    ids = torch.where(is_thing, GROUND, kinds)
    for place, number in enumerate(kept.tolist()):
        ids[is_thing & (things == number)] = FIRST_THING + place
    return ids


def load_ids_model(folder: Path, device: str = "cpu") -> IdsModel:
    """Load a folder of Mask2Former, MaskFormer or SegFormer; another model is an InputError."""
    kind = read_config(folder).get("model_type")
    if kind not in KINDS:
        raise InputError(f"{folder} holds a {kind!r}, expected a model of segmentation: {' or '.join(KINDS)}")
    model = load_model(KINDS[kind], folder).to(device).eval().requires_grad_(False)
    names: dict[int, str] = model.config.id2label
    kinds = torch.tensor([_kind_of(names.get(number, "")) for number in range(len(names))])
    return IdsModel(model, read_preparation(folder, 512), kinds)


def _kind_of(name: str) -> int:
    words = set(re.findall("[a-z]+", name.lower()))
    return SKY if words & SKY_WORDS else GROUND if words & GROUND_WORDS else FIRST_THING


class LayoutReaders(NamedTuple):
    """The models that read layouts from pictures, as far as they are needed."""

    depth: DepthModel | None = None
    ids: IdsModel | None = None


def open_readers(depth: Path | None, ids: Path | None, device: str) -> LayoutReaders:
    """Load the models of these folders; None for those that are not needed."""
    return LayoutReaders(
        None if depth is None else load_depth_model(depth, device), None if ids is None else load_ids_model(ids, device)
    )

"""What feature extractors say of an edit: pure functions of unit-norm embeddings, one for each published definition.

C(x) below is the embedding of a picture or a text; B and E are renders of the same held-out views before and after the
edit, o and e frames of the same orbit before and after. Called by `measure.py`; METHODS: `definitions.METRICS`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from restage.compare.metrics import Measured, summarise

__all__ = [
    "clip_direction",
    "edit_consistency",
    "feature_similarity",
    "frame_consistency",
    "step_consistency",
    "text_similarity",
    "typeset_consistency",
]

MIN_STEP = 1e-4
"""Steps between unit vectors that are shorter than this have no direction: what is left of them is rounding."""

NO_STEP = "the two pictures have the same embedding, and a step of no length has no direction"

Embeddings = Float[Tensor, "n dimensions"]
Embedding = Float[Tensor, " dimensions"]


def feature_similarity(first: Embeddings, second: Embeddings) -> Measured:
    """Cosine of the embeddings of two pictures, view by view, in [-1, 1]."""
    return summarise((first.double() * second.double()).sum(dim=1).tolist(), "")


def text_similarity(edited: Embeddings, text: Embedding) -> Measured:
    """cos(C(E), C(text)), view by view, in [-1, 1]."""
    return summarise((edited.double() @ text.double()).tolist(), "")


def clip_direction(edited: Embeddings, unedited: Embeddings, target: Embedding, source: Embedding) -> Measured:
    """cos(C(E) - C(B), C(target caption) - C(source caption)) (StyleGAN-NADA, Gal et al. 2021, arXiv 2108.00946).

    The sign is kept: an edit the wrong way is negative. A view in which nothing changed is NaN, not 0.
    """
    step = (target - source).double().expand(len(edited), -1)
    return summarise(_cosines((edited - unedited).double(), step), NO_STEP)


def frame_consistency(edited: Embeddings) -> Measured:
    """Mean cos(C(e_i), C(e_i+1)) of neighbouring frames (Gen-1, Esser et al. 2023, arXiv 2302.03011)."""
    return feature_similarity(edited[:-1], edited[1:])


def step_consistency(edited: Embeddings, unedited: Embeddings) -> Measured:
    """Mean cos(C(o_i+1) - C(o_i), C(e_i+1) - C(e_i)): does the edited scene change along the path as the source does.

    Instruct-NeRF2NeRF (arXiv 2303.12789), appendix C, as issue 28 of its repository reads it. Doing nothing scores 1.
    """
    return summarise(_cosines(unedited.diff(dim=0).double(), edited.diff(dim=0).double()), NO_STEP)


def edit_consistency(edited: Embeddings, unedited: Embeddings) -> Measured:
    """Mean cos(C(e_i) - C(o_i), C(e_i+1) - C(o_i+1)): is it the same edit in neighbouring frames.

    Instruct-NeRF2NeRF (arXiv 2303.12789), appendix C, as issue 91 of its repository reads it, beside the other. Doing
    nothing is NaN.
    """
    steps = (edited - unedited).double()
    return summarise(_cosines(steps[:-1], steps[1:]), NO_STEP)


def typeset_consistency(edited: Embeddings, unedited: Embeddings) -> Measured:
    """Mean (C(e_i) - C(o_i)) . (C(e_i+1) - C(e_i)), as appendix C of arXiv 2303.12789 is printed.

    Issue 28 of its repository calls the formula a writing error. Doing nothing scores 0.
    """
    steps = (edited - unedited).double()
    return summarise((steps[:-1] * edited.diff(dim=0).double()).sum(dim=1).tolist(), "")


def _cosines(first: Tensor, second: Tensor) -> list[float]:
    """Cosine of each pair of rows; NaN where one of them has no length."""
    lengths = torch.stack([first.norm(dim=1), second.norm(dim=1)])
    products = (first * second).sum(dim=1) / lengths.prod(dim=0).clamp_min(1e-30)
    has_direction = (lengths > MIN_STEP).all(dim=0)
    return [
        value if is_defined else math.nan
        for value, is_defined in zip(products.tolist(), has_direction.tolist(), strict=True)
    ]

"""What editing a batch of pictures gives; apart from the models, so that those who use none need not load any."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

__all__ = ["Edited"]


class Edited(NamedTuple):
    """Edited pictures and the soft masks of what was meant to change."""

    images: Float[Tensor, "batch 3 height width"]
    """RGB in [0, 1]."""
    masks: Float[Tensor, "batch height width"]
    """In [0, 1], soft: 1 where the editor says that the picture is to change."""

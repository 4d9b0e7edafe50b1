"""The border between 2D editors and 3D methods: a batch of views in, edited views and soft masks out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from restage.records import EditRequest, derive_seed

__all__ = ["Edited", "Editor", "EditorFactory", "EditorSource", "noise_seeds"]


class Edited(NamedTuple):
    """What an editor made of a batch of views."""

    images: Float[Tensor, "b 3 h w"]
    """RGB in [0, 1]."""
    masks: Float[Tensor, "b h w"]
    """In [0, 1], soft: 1 where the editor says that the view is to change."""


@runtime_checkable
class Editor(Protocol):
    """Edits views by text."""

    def edit(
        self,
        views: Float[Tensor, "b 3 h w"],
        originals: Float[Tensor, "b 3 h w"],
        request: EditRequest,
        *,
        view_indices: tuple[int, ...],
        noise_level: float,
        seed: int,
        noise_keys: tuple[int, ...] | None = None,
    ) -> Edited:
        """Edit a batch of views of one scene.

        Args:
            views: Current renders, which the partial noise starts from.
            originals: The condition, always the unedited views.
            request: What to do.
            view_indices: Which view of the whole capture each one is.
            noise_level: In (0, 1], the share of the noise schedule that the edit starts at; 1 forgets `views`.
            seed: Seed of the noise.
            noise_keys: With `seed`, all that the noise of each view depends on; views of equal keys share their
                noise. Default: `view_indices`, so that the noise of a view does not depend on the batch.
        """
        ...


@dataclass(frozen=True)
class EditorSource:
    """What an editor may be made from; each takes what it needs and says what is missing."""

    file_names: tuple[str, ...] = ()
    """Of every view of the whole capture, in order."""
    truth: Path | None = None
    """Truth folder of the edit, where it exists."""
    model: Path | None = None
    """Folder of the trained edit model."""


EditorFactory = Callable[[EditorSource], Editor]


def noise_seeds(seed: int, view_indices: tuple[int, ...], noise_keys: tuple[int, ...] | None) -> Sequence[int]:
    """Seed of the noise of each view, from the seed and the view's noise key alone."""
    return [derive_seed(seed, "view noise", key) for key in (view_indices if noise_keys is None else noise_keys)]

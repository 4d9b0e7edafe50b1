"""The plain clip methods: nothing, every frame by itself, the first edited frame frozen, and shared attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from restage.edit.clips.job import ClipJob, ClipStep, Windowed
from restage.edit.sharing import FrameSharing
from restage.records import InputError, derive_seed

__all__ = ["Frozen", "Nothing", "PerFrame", "SharedAttention", "TokenFlow"]


@dataclass(frozen=True, kw_only=True)
class Nothing(Windowed):
    """Leaves the clip as it is: scores of consistency are highest for it."""

    overlap: int = 0
    needs_editor: ClassVar[bool] = False

    def run(self, job: ClipJob) -> Iterator[ClipStep]:
        """Yield the frames as they came."""
        yield ClipStep(1, 1, "nothing done", job.frames, torch.zeros_like(job.frames[:, 0]))


@dataclass(frozen=True, kw_only=True)
class PerFrame(Windowed):
    """Edits every frame by itself, from noise of its own: what every method has to beat.

    Memory: that of a window in the editor.
    """

    overlap: int = 0
    """No frame depends on another, so windows share none."""

    def run(self, job: ClipJob) -> Iterator[ClipStep]:
        """Edit the frames."""
        yield ClipStep(0, 1, "editing each frame by itself")
        edited = job.editor.edit(job.batch())
        yield ClipStep(1, 1, "edited", edited.images, edited.masks)


@dataclass(frozen=True, kw_only=True)
class Frozen(Windowed):
    """Edits the first frame and shows it throughout: consistent, and blind to all that moves."""

    overlap: int = 1

    def run(self, job: ClipJob) -> Iterator[ClipStep]:
        """Edit one frame."""
        yield ClipStep(0, 1, "editing the first frame")
        if job.held is None:
            edited = job.editor.edit(job.batch([0]))
            first, mask = edited.images[0], edited.masks[0]
        else:
            first, mask = job.held.images[0], job.held.masks[0]
        count = len(job.frames)
        yield ClipStep(1, 1, "frozen", first.repeat(count, 1, 1, 1), mask.repeat(count, 1, 1))


@dataclass(frozen=True, kw_only=True)
class SharedAttention(Windowed):
    """Edits the frames of a window as one: each attends to the tokens of all, from the same noise.

    The extended attention of TokenFlow's key frames (Geyer et al. 2023, arXiv 2307.10373) for all frames, without a
    video model. An editor without attention to share edits each frame by itself, from the same noise.

    Memory: that of a window in the editor; attention grows with the square of the window.
    """

    group_size: ClassVar[int] = 1

    def run(self, job: ClipJob) -> Iterator[ClipStep]:
        """Edit together."""
        count = len(job.frames)
        sharing = FrameSharing(count, self.group_size, derive_seed(job.seed, "sharing"))
        batch = job.batch(noise_keys=(0,) * count, sharing=sharing)
        how = "together" if batch.sharing is not None else "each by itself: this editor shares no attention"
        yield ClipStep(0, 1, f"editing {count} frames, {how}")
        edited = job.editor.edit(batch)
        yield ClipStep(1, 1, f"edited {count} frames, {how}", edited.images, edited.masks)


@dataclass(frozen=True, kw_only=True)
class TokenFlow(SharedAttention):
    """Key frames attend to all key frames; the others take over what these found, at the best match of the source.

    TokenFlow (Geyer et al. 2023, arXiv 2307.10373): one key frame of each group is drawn anew at every step; matches
    are nearest neighbors, by cosine, of the normed inputs of self-attention in the source branch; the outputs of the
    two nearest key frames are blended by the sigmoid of the share of the way. Published: 8 frames a group, and a
    text-to-image model from inverted latents. Here it works with an edit model, whose source branch is the noised
    source without text, and all frames start from one noise in place of inversion.

    Memory: that of a window in the editor, and of one more variant of the guidance.
    """

    frames_per_key: int = 4
    """Frames for each key frame."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames_per_key < 1:
            raise InputError(f"expected at least one frame for each key frame, got {self.frames_per_key}")

    @property
    def group_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Frames for each key frame."""
        return self.frames_per_key

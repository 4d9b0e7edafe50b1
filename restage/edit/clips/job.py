"""What a clip method gets and yields, and how a long clip is edited in overlapping windows without a seam."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from restage.edit.editors.interface import Editor, NoiseKeys, ViewBatch, can_share_attention
from restage.edit.sharing import FrameSharing
from restage.records import EditRequest, InputError
from restage.scenes.cameras import Cameras

__all__ = ["ClipJob", "ClipMethod", "ClipStep", "Finished", "Held", "Windowed", "WindowStep", "edit_windows", "spans"]

Frames = Float[Tensor, "n 3 h w"]


@dataclass(frozen=True)
class Held:
    """The last frames of one window, with which the next one begins."""

    images: Frames
    masks: Float[Tensor, "n h w"]
    cells: Int[Tensor, "h w"] | None = None
    """Which grain of noise each pixel of the first of them has; None for methods that carry none."""


@dataclass(frozen=True)
class ClipJob:
    """A window of a clip, as a method edits it."""

    frames: Frames
    indices: tuple[int, ...]
    """Index of each frame in the whole clip, which editors know them by."""
    request: EditRequest
    editor: Editor
    seed: int
    held: Held | None = None
    """How the window before has ended: the first frames of this one, edited already. None for the first window."""
    cameras: Cameras | None = None
    """One a frame, of a clip of a scene in which nothing moves; None where they are unknown, or something does."""

    def batch(
        self,
        places: Sequence[int] | None = None,
        *,
        noise_level: float = 1.0,
        noise_keys: NoiseKeys = None,
        sharing: FrameSharing | None = None,
    ) -> ViewBatch:
        """Frames for the editor to edit, by their places in the window; default: all. See `ViewBatch`."""
        chosen = list(range(len(self.frames)) if places is None else places)
        return ViewBatch(
            self.frames[chosen],
            self.frames[chosen],
            request=self.request,
            view_indices=tuple(self.indices[place] for place in chosen),
            noise_level=noise_level,
            seed=self.seed,
            noise_keys=noise_keys,
            sharing=sharing if can_share_attention(self.editor) else None,
        )


class ClipStep(NamedTuple):
    """A step of a clip method in a window; the last one holds the result."""

    step: int  # steps done so far
    num_steps: int
    note: str
    images: Frames | None = None
    masks: Float[Tensor, "n h w"] | None = None
    """Soft in [0, 1]: where the clip was changed."""
    cells: Int[Tensor, "n h w"] | None = None
    """See `Held.cells`; of every frame of the window."""


@runtime_checkable
class ClipMethod(Protocol):
    """A method is a frozen dataclass of its settings."""

    @property
    def window(self) -> int:
        """Frames that are edited at once."""
        ...

    @property
    def overlap(self) -> int:
        """Frames that a window shares with the one before."""
        ...

    def run(self, job: ClipJob) -> Iterator[ClipStep]:
        """Edit a window; yields at least one step."""
        ...


@dataclass(frozen=True, kw_only=True)
class Windowed:
    """Settings that all clip methods share."""

    window: int = 8
    """Frames that are edited at once; memory grows with it, and not with the clip."""
    overlap: int = 2
    """Frames that a window shares with the one before; over them one fades into the other."""
    needs_editor: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.window:
            raise InputError(f"expected 0 <= overlap < window, got {self.overlap} and {self.window}")


def spans(num_frames: int, window: int, overlap: int) -> list[range]:
    """The windows of a clip, of which the last may be shorter; each but the first begins with `overlap` old frames."""
    starts = range(0, max(1, num_frames - overlap), window - overlap)
    return [range(start, min(start + window, num_frames)) for start in starts]


class Finished(NamedTuple):
    """The frames of a window that no later one changes."""

    start: int
    images: Frames
    masks: Float[Tensor, "n h w"]
    held: Held | None
    """What the next window begins with; None after the last."""


class WindowStep(NamedTuple):
    """A step of the edit of a clip."""

    window: int  # from 0
    num_windows: int
    step: ClipStep
    finished: Finished | None = None  # with the last step of a window


def edit_windows(
    read: Callable[[Sequence[int]], Frames],
    num_frames: int,
    method: ClipMethod,
    *,
    request: EditRequest,
    editor: Editor,
    seed: int,
    first: int = 0,
    held: Held | None = None,
    cameras: Cameras | None = None,
) -> Iterator[WindowStep]:
    """Edit a clip, whose frames `read` gives by their indices, from window `first` on, which begins with `held`."""
    windows = spans(num_frames, method.window, method.overlap)
    for number, span in list(enumerate(windows))[first:]:
        path = None if cameras is None else cameras[list(span)]
        step, job = None, ClipJob(read(span), tuple(span), request, editor, seed, held, path)
        for step in method.run(job):
            yield WindowStep(number, len(windows), step._replace(images=None, masks=None, cells=None))
        if step is None or step.images is None or step.masks is None:
            raise RuntimeError("the method ended without a result")
        if not bool(torch.isfinite(step.images).all()):
            raise InputError("the edited frames are not finite; check the editor's model, or try another --seed")
        images, masks = step.images.clamp(0, 1), step.masks
        if held is not None:
            images, masks = _fade(held.images, images), _fade(held.masks, masks)
        is_last = number + 1 == len(windows)
        kept = len(span) if is_last else windows[number + 1].start - span.start
        cells = None if step.cells is None or is_last else step.cells[kept]
        held = None if is_last or not method.overlap else Held(images[kept:], masks[kept:], cells)
        yield WindowStep(number, len(windows), step, Finished(span.start, images[:kept], masks[:kept], held))


def _fade(before: Tensor, after: Tensor) -> Tensor:
    """The frames of a window, of which the first ones go over from what they were in the window before."""
    count = len(before)
    shares = (torch.arange(count, device=after.device) + 1) / (count + 1)
    mixed = torch.lerp(before, after[:count], shares.reshape(-1, *[1] * (after.ndim - 1)))
    return torch.cat([mixed, after[count:]])

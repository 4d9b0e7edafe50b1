"""How a clip is read: settings alone, without torch, since they are flags of a command."""

from __future__ import annotations

from dataclasses import dataclass

from restage.records import InputError

__all__ = ["ClipOptions"]


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """Which frames of a film or folder are taken, and how large they become."""

    size: int | None = None
    """Longer side of the frames in pixels; they are only ever made smaller. Default: as they are."""
    every: int = 1
    """Take every n-th frame; the clip then has as many frames a second fewer, and lasts as long."""
    start_s: float = 0.0
    """Second of the film at which the clip starts; of a folder of frames at its rate."""
    length_s: float | None = None
    """Length of the clip in seconds; default: to the end."""
    frames_per_s: float | None = None
    """Rate of a folder of frames, 8 by default; a film says its own."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 16:
            raise InputError(f"expected a size of at least 16 pixels, got {self.size}")
        if self.every < 1:
            raise InputError(f"expected to take every n-th frame with n of at least 1, got {self.every}")
        if not 0 <= self.start_s < float("inf"):
            raise InputError(f"expected a start at 0 s or later, got {self.start_s}")
        if self.length_s is not None and not 0 < self.length_s < float("inf"):
            raise InputError(f"expected a length above 0 s, got {self.length_s}")
        if self.frames_per_s is not None and not 0 < self.frames_per_s <= 240:
            raise InputError(f"expected a rate above 0 and up to 240 frames a second, got {self.frames_per_s}")

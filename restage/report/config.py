"""How a report is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from restage.records import InputError

__all__ = ["ReportConfig"]


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """How the report page is made."""

    formats: tuple[Literal["page", "latex", "slides", "zip"], ...] = ("page",)
    """What is written: the page always; `paper/` for LaTeX, `slides.pptx`, and all of it as `supplement.zip`."""
    max_views: int = 6
    """Held-out views shown per edit, evenly spaced over all; our choice, keeps a page of ten edits under 20 MB."""
    max_px: int = 512
    """Pictures are made smaller until their longer side is at most this, in pixels; our choice."""
    max_edits: int = 24
    """Edits shown with pictures, evenly spaced over all; our choice, a page of more is slow on a phone."""
    noop_progress: float = 0.05
    """Progress within plus or minus this is flagged as a no-op where the scores do not flag it; our choice."""

    def __post_init__(self) -> None:
        if self.max_views < 1:
            raise InputError(f"max_views should be at least 1, got {self.max_views}; 6 is the default")
        if self.max_edits < 1:
            raise InputError(f"max_edits should be at least 1, got {self.max_edits}; 24 is the default")
        if self.max_px < 16:
            raise InputError(f"max_px should be at least 16, got {self.max_px}; 512 is the default")
        if not 0 <= self.noop_progress < 1:
            raise InputError(f"noop_progress should be in [0, 1), got {self.noop_progress}; 0.05 is the default")

"""The anchor method: leaves the scene as it is, so that tables show what doing nothing scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from restage.edit.job import EditJob, EditStep

__all__ = ["Nothing"]


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """Returns the unedited splats; "best preservation" is its name in many a table.

    Memory: that of the splats, twice.
    """

    needs_editor: ClassVar[bool] = False

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """Yield the splats once, as they came."""
        yield EditStep(1, 1, 0.0, job.splats.clone(), "nothing done")

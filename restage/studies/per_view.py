"""The anchor without a scene: every held-out view is edited by itself, in 2D, to show what 3D costs or gains.

No method could do this, since methods see no held-out views. What is edited are renders of the unedited scene, so that
spill counts what the editor changed and not what the fit got wrong.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restage.edit.editors import Editor, ViewBatch
from restage.edit.job import EditJob, EditStep
from restage.edit.pictures import write_image
from restage.records import EditRequest, InputError, content_id, derive_seed, write_record
from restage.run.layout import EDIT_RECORD, HELD_OUT
from restage.run.memory import PeakMemory
from restage.scenes.capture import Capture
from restage.scenes.fit import render_views
from restage.scenes.splats import Splats

__all__ = ["PerView", "edit_views"]


@dataclass(frozen=True, kw_only=True)
class PerView:
    """Stands among the methods of a study for the anchor `per_view`; it makes pictures and no scene."""

    noise_level: float = 1.0
    """Share of the schedule that the edit of each view starts at."""

    def run(self, job: EditJob) -> Iterator[EditStep]:
        """There is no scene to make."""
        raise InputError("per_view edits pictures and makes no scene; it runs in studies only")


def edit_views(
    splats: Splats,
    capture: Capture,
    *,
    request: EditRequest,
    settings: PerView,
    editor: Editor,
    seed: int,
    folder: Path,
    facts: Mapping[str, Any],
) -> Iterator[EditStep]:
    """Edit the held-out views one by one, a step for each, into a folder that has pictures and a record only."""
    peak, started_s = PeakMemory(), time.perf_counter()
    paths = []
    for index in capture.held_out_indices:
        view = render_views(splats, capture.cameras[index])
        batch = ViewBatch(
            view,
            view,
            request=request,
            view_indices=(index,),
            noise_level=settings.noise_level,
            seed=derive_seed(seed, "per view"),
        )
        edited = editor.edit(batch)
        paths.append(folder / HELD_OUT / Path(capture.file_names[index]).with_suffix(".png").name)
        write_image(paths[-1], edited.images[0])
        yield EditStep(len(paths), len(capture.held_out_indices), 0.0, splats, "held-out views, each by itself")
    record = {
        "id": content_id("edited", {"seed": seed, **facts, "settings": settings, "request": request}),
        **facts,
        "request": request,
        "settings": settings,
        "num_steps": len(paths),
        "status": "done",
        "reason": "",
        "cost": {"seconds": time.perf_counter() - started_s, "peak_memory_mb": peak.read_mb()},
    }
    write_record(folder / EDIT_RECORD, record, files=paths)

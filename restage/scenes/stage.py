"""The scenes stage: fits splats to every capture in `<run>/scenes`, whoever put it there.

The miniature world's captures and a user's own go the same way; `restage fit` calls `fit_capture` for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from restage.records import InputError, Progress, file_sha256
from restage.run.folder import RunFolder
from restage.run.layout import CAPTURE, SPLATS
from restage.scenes.fit import FitConfig
from restage.scenes.fitted import fit_capture
from restage.scenes.io import read_capture

__all__ = ["ScenesConfig", "run_scenes"]


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """How the captures of a run are fitted."""

    fit: FitConfig = field(default_factory=FitConfig)
    """How every scene is fitted."""


def run_scenes(run: RunFolder, config: ScenesConfig) -> Iterator[Progress]:
    """Fit every capture of the run that is not fitted yet.

    Raises:
        InputError: there are no captures, one cannot be read, or the stage was finished with another config.
    """
    if run.is_done("scenes", config):
        yield Progress(stage="scenes", done=1, total=1, note="already done")
        return
    folders = sorted(path.parent.parent for path in (run.path / "scenes").glob("*/capture/transforms.json"))
    if not folders:
        raise InputError(f"{run.path / 'scenes'} holds no captures (<scene>/capture/transforms.json)")
    total = len(folders) * config.fit.steps
    for index, folder in enumerate(folders):
        for step in fit_capture(read_capture(folder / CAPTURE), folder, config.fit):
            done = index * config.fit.steps + step.done
            yield Progress(stage="scenes", done=done, total=total, note=f"{folder.name}: {step.note}")
    facts = {folder.name: file_sha256(folder / SPLATS) for folder in folders}
    run.mark_done("scenes", config, splats_sha256=facts)

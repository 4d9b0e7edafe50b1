"""The scenes stage: fits splats to every capture in `<run>/scenes`, whoever put it there, or to one of a user's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from restage.records import InputError, Progress, file_sha256
from restage.run.folder import RunFolder, open_run, working
from restage.run.layout import CAPTURE, SPLATS
from restage.scenes.fit import FitConfig
from restage.scenes.fitted import fit_capture
from restage.scenes.io import capture_name, read_capture
from restage.scenes.io.posed import ReadOptions
from restage.scenes.source import SourceCheck

__all__ = ["FIT_FIRST", "ScenesConfig", "find_scene", "fit_folder", "run_scenes"]


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


FIT_FIRST = (
    "editing starts from a fit of the capture that the splats are of: restage fit CAPTURE, then restage edit RUN"
)
"""What to do with splats that were trained elsewhere."""


def fit_folder(
    capture_folder: Path,
    folder: Path,
    config: FitConfig,
    *,
    size: int | None = None,
    follow_paths: bool = False,
    again: bool = False,
) -> Iterator[Progress]:
    """Fit a user's capture as the only scene of a run, its world turned upright.

    Args:
        capture_folder: A capture of any form that `restage.scenes.io.read_capture` reads.
        folder: Folder of the run; it is made if it does not exist.
        config: How to fit.
        size: Longer side of the views in pixels; None leaves them as they are.
        follow_paths: Whether pictures outside of the capture's folder are used.
        again: Whether a finished fit in the run is thrown away; else one of another capture, another size or with
            another config is refused.
    """
    scene_folder = folder / "scenes" / capture_name(capture_folder)
    # Before the run's folder is made, so that a capture that cannot be read leaves nothing behind.
    source = SourceCheck(capture_folder, scene_folder, ReadOptions(size=size, follow_paths=follow_paths), again=again)
    with working(open_run(folder), "scenes"):
        source.write()
        yield from fit_capture(read_capture(scene_folder / CAPTURE), scene_folder, config)


def find_scene(folder: Path) -> Path:
    """Return the folder of the fitted scene, or edit, that a path stands for: itself, or the only scene in a run."""
    if (folder / SPLATS).is_file():
        return folder
    if folder.suffix.lower() == ".ply" and folder.is_file():
        raise InputError(f"{folder} holds splats alone, without cameras and pictures; {FIT_FIRST}")
    found = sorted(path.parent for path in folder.glob("scenes/*/fit.json"))
    if len(found) != 1:
        names = ", ".join(str(path) for path in found) or "none"
        raise InputError(f"{folder}: expected one fitted scene, found {names}; name one, or run: restage fit CAPTURE")
    return found[0]

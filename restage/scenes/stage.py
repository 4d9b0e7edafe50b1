"""The scenes stage: fits splats to every capture in `<run>/scenes`, whoever put it there, or to one of a user's.

A user's capture is copied once, upright, and recognized when it is fitted again. What was read is noted in
`<scene>/source.json` as a hash of pictures, cameras and options, so that a scene is never silently of another
capture or size than the one asked for.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from restage.records import InputError, Progress, canonical_json, file_sha256, read_json, write_json
from restage.run.folder import RunFolder, open_run, working
from restage.run.layout import CAPTURE, FIT_RECORD, FIT_STATE, HELD_OUT, SOURCE, SPLATS, TRANSFORMS
from restage.scenes.capture import turn_upright
from restage.scenes.fit import FitConfig
from restage.scenes.fitted import fit_capture
from restage.scenes.io import SCENE_FORMATS, capture_name, read_capture, recognize_capture, write_capture
from restage.scenes.io.images import list_images
from restage.scenes.io.ply import splats_in
from restage.scenes.io.posed import PosedPhotos, ReadOptions
from restage.scenes.io.views import make_capture

__all__ = ["FIT_FIRST", "ScenesConfig", "SourceCheck", "find_scene", "fingerprint", "fit_folder", "run_scenes"]

OF_A_FIT = (FIT_RECORD, SPLATS, FIT_STATE, "held_out.png", HELD_OUT, "capture")
"""What a fit has made; `fit.json` goes first, since it says that all the rest is there."""


@dataclass(frozen=True)
class _Source:
    """What `source.json` says that matters when it is read again."""

    sha256: str = ""


class SourceCheck:
    """What there is to do before a capture can be fitted in a scene's folder; nothing is written until `write`."""

    def __init__(self, path: Path, scene: Path, options: ReadOptions, *, again: bool) -> None:
        """Read the capture, if the scene does not hold it yet."""
        source = recognize_capture(path)
        scene_format = SCENE_FORMATS[source.form]
        posed = None if scene_format.finds_cameras else scene_format.read(source.path, source.name, options)
        self.scene = scene
        self.sha256 = fingerprint(source.path, posed, options)
        self.record = {"form": source.form, "name": source.name, **asdict(options), "sha256": self.sha256}
        has_capture = (scene / CAPTURE / TRANSFORMS).is_file()
        kept = read_json(scene / SOURCE, _Source).sha256 if has_capture and (scene / SOURCE).is_file() else None
        is_same = kept == self.sha256
        self.is_stale = has_capture and not is_same or again
        self.capture = None
        if self.is_stale and (scene / FIT_RECORD).is_file():
            edits = scene.parent.parent / "edit" / scene.name
            if not again:
                raise InputError(
                    f"{scene} holds a finished fit of another capture or at another size, or the capture has changed "
                    "since; fit it anew in its place with --again, or elsewhere with --out"
                )
            if edits.is_dir() and any(edits.iterdir()):
                raise InputError(f"{edits} holds edits that start from the fit in {scene}; choose another --out")
        if not is_same or self.is_stale:
            posed = posed or scene_format.read(source.path, source.name, options)
            self.capture = turn_upright(make_capture(source.name, posed, options))

    def write(self) -> None:
        """Put the capture into the scene's folder, in place of another one if there is any."""
        if self.capture is None:
            return
        if self.is_stale:
            for name in OF_A_FIT:
                path = self.scene / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        # Before the capture, whose transforms.json is written last: what is there without it was never finished.
        self.scene.mkdir(parents=True, exist_ok=True)
        write_json(self.scene / SOURCE, self.record)
        write_capture(self.capture, self.scene / CAPTURE)


def fingerprint(path: Path, posed: PosedPhotos | None, options: ReadOptions) -> str:
    """Return a hash of all that a capture is made of.

    `posed` is None where reading would compute the cameras, which only depend on the pictures at `path`.
    """
    found = hashlib.sha256(canonical_json(asdict(options)).encode())
    if posed is None:
        files = list_images(path) if path.is_dir() else [path]
        found.update(canonical_json([[file.name, file_sha256(file)] for file in files]).encode())
        return found.hexdigest()
    for photo in posed.photos:
        mask = None if photo.mask_path is None else file_sha256(photo.mask_path)
        lens = [repr(value) for value in vars(photo.lens).values()]
        pose = photo.camera_to_world.tolist()
        row = [photo.name, file_sha256(photo.path), mask, lens, pose, list(photo.orientation)]
        found.update(canonical_json(row).encode())
    for tensor in posed.points:
        found.update(tensor.contiguous().numpy().tobytes())
    found.update(canonical_json([posed.split]).encode())
    return found.hexdigest()


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
    """Fit a user's capture as the only scene of a run, which is made if it does not exist, its world turned upright.

    Args:
        capture_folder: A capture of any form that `restage.scenes.io.read_capture` reads.
        folder: Folder of the run.
        config: How to fit.
        size: Longer side of the views in pixels; None leaves them as they are.
        follow_paths: Whether pictures outside of the capture's folder are used.
        again: Whether a finished fit of another capture, another size or with another config is thrown away.
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
    if content := splats_in(folder):
        raise InputError(f"{folder} holds splats ({content}) alone, without cameras and pictures; {FIT_FIRST}")
    found = sorted(path.parent for path in folder.glob("scenes/*/fit.json"))
    if len(found) != 1:
        names = ", ".join(str(path) for path in found) or "none"
        raise InputError(f"{folder}: expected one fitted scene, found {names}; name one, or run: restage fit CAPTURE")
    return found[0]

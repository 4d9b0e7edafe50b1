"""The scenes stage: fits splats to every capture in `<run>/scenes`, whoever put it there, or to one of a user's.

A fit goes on after a stop from its last checkpoint, and ends with `fit.json`. A user's capture is copied once, upright,
and recognized when it is fitted again. What was read is noted in `<scene>/source.json` as a hash of pictures, cameras
and options, so that a scene is never silently of another capture or size than the one asked for.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from restage.records import (
    InputError,
    Progress,
    canonical_json,
    content_id,
    file_sha256,
    read_json,
    to_plain,
    write_atomically,
    write_json,
    write_record,
)
from restage.run.folder import RunFolder, open_run, working
from restage.run.layout import CAPTURE, CLIP_RECORD, FIT_RECORD, FIT_STATE, HELD_OUT, SOURCE, SPLATS, TRANSFORMS
from restage.run.profile import timed
from restage.run.reading import FitRecord
from restage.scenes.capture import Capture, turn_upright
from restage.scenes.config import FitConfig, ScenesConfig
from restage.scenes.device import describe_device
from restage.scenes.fit import FitStep, SplatFit, psnr, render_views
from restage.scenes.io import SCENE_FORMATS, capture_name, read_capture, recognize_capture, write_capture
from restage.scenes.io.images import list_images, write_png
from restage.scenes.io.posed import PosedPhotos, ReadOptions
from restage.scenes.io.splat_files import read_splats, splats_in, write_splats
from restage.scenes.io.views import make_capture
from restage.scenes.losses import MARGIN, WINDOW, ssim_map
from restage.scenes.splats import Splats

__all__ = ["FIT_FIRST", "SourceCheck", "capture_sha256", "clear_fit", "find_scene", "fingerprint", "fit_capture"]
__all__ += ["measure_fit"]
__all__ += ["fit_folder", "run_scenes"]

SAVE_EVERY_S = 10.0
"""Seconds of work that a stop may cost."""
PEEK_EVERY_S = 5.0
"""Seconds between looks at held-out views, to be shown; nothing depends on them."""
PEEK_SHARE = 0.05
"""Share of the time that these looks may take."""
PEEK_VIEWS = 4
MAX_STRIP_VIEWS = 8
STATE_VERSION = 2


class _Spent(NamedTuple):
    """What a fit has cost and come to, over all sessions, and the devices of these."""

    seconds: float = 0.0
    loss: float = 0.0
    devices: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """What the fit's record says; nothing of devices where all was done on the CPU."""
        record: dict[str, Any] = {"seconds": self.seconds, "loss": self.loss}
        return record if self.devices == ("cpu",) else {**record, "device": ", then ".join(self.devices)}


def capture_sha256(capture: Capture) -> str:
    """Hash of all that a fit and its measures depend on: pixels, masks, cameras, points, names, split; as hex."""
    found = hashlib.sha256()
    cameras = capture.cameras
    tensors = [capture.images, cameras.camera_to_world, cameras.intrinsics, capture.points, capture.point_colors]
    for tensor in [*tensors, *([] if capture.masks is None else [capture.masks])]:
        found.update(canonical_json([list(tensor.shape), str(tensor.dtype)]).encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    names = [capture.file_names, capture.train_indices, capture.held_out_indices, cameras.width, cameras.height]
    found.update(canonical_json(names).encode())
    return found.hexdigest()


def fit_capture(capture: Capture, folder: Path, config: FitConfig, *, device: str = "cpu") -> Iterator[Progress]:
    """Fit splats to a capture's training views, unless that is done; refuses a folder fitted otherwise.

    Writes `splats.ply`, `held_out/<file name>.png`, `held_out.png` (renders above, truth below), and `fit.json` last.
    While it works, `preview.png` shows a few held-out views as they are then, from the first seconds on.
    A checkpoint, `fit_state.pt`, is written every ten seconds; after a stop or a kill, work goes on from there. Without
    a time budget the splats are then the same bit for bit as without the stop, on the CPU. A fit may go on on another
    device than it began on: its id is that of what was asked for, and its record names the devices.
    """
    identity = {"id": content_id("fit", config), "capture_sha256": capture_sha256(capture)}
    if (folder / FIT_RECORD).exists():
        found, way = read_json(folder / FIT_RECORD, FitRecord), "fit it anew with --again, or elsewhere with --out"
        if found.id != identity["id"]:
            raise InputError(f"{folder} was fitted with another config ({found.id}); {way}")
        if found.capture_sha256 != identity["capture_sha256"]:
            raise InputError(f"{folder} was fitted to other views, points or cameras than it holds now; {way}")
        yield Progress(stage="scenes", done=config.steps, total=config.steps, note="fitted before")
        return
    fit = SplatFit(capture, config, device=device)
    state_path = folder / FIT_STATE
    spent = _load_state(state_path, fit, identity)
    here = describe_device(device)
    if here not in spent.devices:
        spent = spent._replace(devices=(*spent.devices, here))
    started_s = saved_s = time.perf_counter()
    peeks = _Peeks(capture, folder / PREVIEW)
    for note in fit.notes[len(capture.notes) :]:
        yield Progress(stage="scenes", done=fit.schedule.step, total=config.steps, note=note)
    while not fit.is_done:
        step = fit.step()
        now_s = time.perf_counter()
        if now_s - saved_s > SAVE_EVERY_S or fit.is_done:
            now = spent._replace(seconds=spent.seconds + now_s - started_s, loss=step.loss)
            with timed("save"), write_atomically(state_path) as temporary:
                torch.save({"version": STATE_VERSION, **identity, **now._asdict(), "fit": fit.state()}, temporary)
            saved_s = now_s
        with timed("look at held-out views"):
            note = f"fit, loss {step.loss:.4f}{peeks.look(step)}"
        yield Progress(stage="scenes", done=step.step, total=step.num_steps, note=note)
        spent = spent._replace(loss=step.loss)
    spent = spent._replace(seconds=spent.seconds + time.perf_counter() - started_s)
    write_splats(fit.optimizer.splats, folder / SPLATS)
    # Measured on what was written, so that the numbers are those of the file.
    with timed("measure"):
        record = measure_fit(replace(capture, notes=fit.notes), folder, read_splats(folder / SPLATS).to(device))
    schedule = {"steps": fit.schedule.step, "levelled_off": fit.schedule.has_levelled_off}
    record = {**identity, "config": to_plain(config), **schedule, **spent.record(), **record}
    files = [folder / SPLATS, *folder.glob("held_out*.png"), *folder.glob("held_out/*.png")]
    write_record(folder / FIT_RECORD, record, files=files)
    # Last: a kill in between costs nothing, since fit.json says that the fit is done.
    for path in (state_path, folder / PREVIEW):
        path.unlink(missing_ok=True)


class _Peeks:
    """Shows a fit while it goes on: a few held-out views, their renders above the truth, and how well they come out."""

    def __init__(self, capture: Capture, path: Path) -> None:
        self.capture, self.path = capture, path
        self.views = list(capture.held_out_indices[:PEEK_VIEWS])
        self.due_s = time.perf_counter() + PEEK_EVERY_S
        self.note = ""

    def look(self, step: FitStep) -> str:
        """Return what the last look has found; look again, and write the picture, if it is time."""
        now_s = time.perf_counter()
        if not self.views or now_s < self.due_s:
            return self.note
        renders = render_views(step.splats, self.capture.cameras[self.views]).cpu()
        write_png(self.path, _strip(renders, self.capture.images[self.views]))
        value = float(_psnr_of(self.capture, self.views, renders).mean())
        self.note = f", held-out views {value:.1f} dB ({self.path.name})"
        self.due_s = time.perf_counter() + max(PEEK_EVERY_S, (time.perf_counter() - now_s) / PEEK_SHARE)
        return self.note


def _strip(renders: Float[Tensor, "n 3 h w"], truth: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "h2 w2 3"]:
    """One picture of several views, renders above the truth."""
    return torch.cat([torch.cat(list(row), dim=2) for row in (renders, truth)], dim=1).permute(1, 2, 0)


def _psnr_of(capture: Capture, views: list[int], renders: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    return psnr(renders, capture.images[views], None if capture.masks is None else capture.masks[views])


def _ssim_of(capture: Capture, views: list[int], renders: Float[Tensor, "n 3 h w"]) -> float | None:
    """Mean structural similarity of renders of some views, over pixels that count; None for views below its window."""
    if min(renders.shape[2:]) < WINDOW:
        return None
    inside = slice(MARGIN, -MARGIN)
    values = []
    for view, render in zip(views, renders, strict=True):
        weights = None if capture.masks is None else capture.masks[view]
        # What lies beyond the pixels that count is made equal, since windows reach across their border.
        truth = capture.images[view] if weights is None else torch.where(weights > 0, capture.images[view], render)
        similarity = ssim_map(render, truth).mean(dim=0)
        shares = torch.ones_like(similarity) if weights is None else weights[inside, inside]
        if shares.sum() > 0:
            values.append(float((similarity * shares).sum() / shares.sum()))
    return sum(values) / len(values) if values else None


def _load_state(path: Path, fit: SplatFit, identity: dict[str, str]) -> _Spent:
    """Bring a fit to where a stop left it; returns what it has cost so far.

    The state of a fit with another config or capture is not of use and gets overwritten; it was never finished.
    """
    if not path.exists():
        return _Spent()
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        if state["version"] != STATE_VERSION or any(state[name] != value for name, value in identity.items()):
            return _Spent()
        fit.load_state(state["fit"])
    except Exception as error:  # noqa: BLE001 - torch.load raises whatever the broken file brings about
        raise InputError(f"{path} is not readable as the state of a fit; delete it: {error}") from None
    # Versions that knew the CPU alone did not name it.
    return _Spent(float(state["seconds"]), float(state["loss"]), tuple(state.get("devices", ("cpu",))))


def measure_fit(capture: Capture, folder: Path, splats: Splats) -> dict[str, Any]:
    """Render and score the splats that were written, for `fit.json`; without held-out views keys are None."""
    train, held_out = list(capture.train_indices), list(capture.held_out_indices)
    train_renders = render_views(splats, capture.cameras[train]).cpu()
    record: dict[str, Any] = {
        "num_views": len(capture.cameras),
        "num_held_out": len(held_out),
        "width": capture.cameras.width,
        "height": capture.cameras.height,
        "own_to_world": None if capture.own_to_world is None else capture.own_to_world.tolist(),
        **({"notes": list(capture.notes)} if capture.notes else {}),
        "num_splats": len(splats),
        "train_psnr_db": float(_psnr_of(capture, train, train_renders).mean()),
        "held_out_psnr_db": None,
        "held_out_ssim": None,
        "held_out_psnr_db_by_view": {},
    }
    if held_out:
        renders, truth = render_views(splats, capture.cameras[held_out]).cpu(), capture.images[held_out]
        values = _psnr_of(capture, held_out, renders).clamp_max(100.0).tolist()
        names = [Path(capture.file_names[index]).with_suffix(".png").name for index in held_out]
        for name, image in zip(names, renders, strict=True):
            write_png(folder / HELD_OUT / name, image.permute(1, 2, 0))
        shown = slice(0, MAX_STRIP_VIEWS)
        write_png(folder / "held_out.png", _strip(renders[shown], truth[shown]))
        record["held_out_psnr_db"] = sum(values) / len(values)
        record["held_out_ssim"] = _ssim_of(capture, held_out, renders)
        record["held_out_psnr_db_by_view"] = dict(zip(names, values, strict=True))
    return record


PREVIEW = "preview.png"
OF_A_FIT = (FIT_RECORD, SPLATS, FIT_STATE, PREVIEW, "held_out.png", HELD_OUT, "capture")
"""What a fit has made; `fit.json` goes first, since it says that all the rest is there."""


def clear_fit(scene: Path) -> None:
    """Remove a capture and what a fit of it has made from a scene's folder."""
    for name in OF_A_FIT:
        path = scene / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


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
            clear_fit(self.scene)
        # Before the capture, whose transforms.json is written last: what is there without it was never finished.
        self.scene.mkdir(parents=True, exist_ok=True)
        write_json(self.scene / SOURCE, self.record)
        write_capture(self.capture, self.scene / CAPTURE)
        self.capture = None  # a fit reads what was written; two copies of large pictures need gigabytes


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


def run_scenes(run: RunFolder, config: ScenesConfig, *, device: str = "cpu") -> Iterator[Progress]:
    """Fit every capture of the run that is not fitted yet; refuses a run without captures."""
    if run.is_done("scenes", config):
        yield Progress(stage="scenes", done=1, total=1, note="already done")
        return
    folders = sorted(path.parent.parent for path in (run.path / "scenes").glob("*/capture/transforms.json"))
    if not folders:
        raise InputError(f"{run.path / 'scenes'} holds no captures (<scene>/capture/transforms.json)")
    total = len(folders) * config.fit.steps
    for index, folder in enumerate(folders):
        for step in fit_capture(read_capture(folder / CAPTURE), folder, config.fit, device=device):
            done = index * config.fit.steps + step.done
            yield Progress(stage="scenes", done=done, total=total, note=f"{folder.name}: {step.note}")
    facts = {folder.name: file_sha256(folder / SPLATS) for folder in folders}
    run.mark_done("scenes", config, splats_sha256=facts)


FIT_FIRST = (
    "editing starts from a scene of a run: restage edit FILE makes one of the splats alone, "
    "restage fit CAPTURE --splats FILE one with their photographs"
)
"""What to do with splats that were trained elsewhere."""


def fit_folder(
    capture_folder: Path,
    folder: Path,
    config: FitConfig | Callable[[int], FitConfig],
    *,
    size: int | None = None,
    follow_paths: bool = False,
    again: bool = False,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Fit a user's capture as the only scene of a run, which is made if it does not exist, its world turned upright.

    Args:
        capture_folder: A capture of any form that `restage.scenes.io.read_capture` reads.
        folder: Folder of the run.
        config: How to fit; or a function that returns it, given the longer side of the views in pixels.
        size: Longer side of the views in pixels; None leaves them as they are.
        follow_paths: Whether pictures outside of the capture's folder are used.
        again: Whether a finished fit of another capture, another size or with another config is thrown away.
        device: Where to fit.
    """
    scene_folder = folder / "scenes" / capture_name(capture_folder)
    if (scene_folder / CLIP_RECORD).exists():
        raise InputError(f"{scene_folder} is a clip; give the scene a run of its own, such as --out {folder}-scene")
    # Before the run's folder is made, so that a capture that cannot be read leaves nothing behind.
    source = SourceCheck(capture_folder, scene_folder, ReadOptions(size=size, follow_paths=follow_paths), again=again)
    with working(open_run(folder), "scenes"):
        source.write()
        capture = read_capture(scene_folder / CAPTURE)
        if not isinstance(config, FitConfig):
            config = config(max(capture.cameras.width, capture.cameras.height))
        yield from fit_capture(capture, scene_folder, config, device=device)


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

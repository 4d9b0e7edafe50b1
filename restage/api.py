"""Restage from Python: `restage.fit`, `restage.load`, `restage.edit`, `restage.generate`.

In a notebook results show themselves.

    import restage

    scene = restage.fit("photographs", size=256)
    gold = restage.edit(scene, "turn the bear into gold", editor="grade", region="bear")
    gold                             # before and after, beside each other
    night = restage.edit(gold, "turn it to night")
    night.splats                     # tensors
    golden = restage.edit("film.mp4", "make it golden", size=512)    # a clip; golden.film is the new film

They do what the commands of these names do, in the same runs: what was made here, `restage view` and `restage report`
find.
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from restage.records import EditRequest, InputError, read_json
from restage.run.layout import (
    CAPTURE,
    CLIP_FRAMES,
    CLIP_RECORD,
    CLIPS,
    EDIT_RECORD,
    FILM,
    FIT_RECORD,
    FITS,
    HELD_OUT,
    SCORES,
    SPLATS,
)
from restage.run.progress import show_progress, show_result
from restage.run.reading import EditRecord, FitRecord

if TYPE_CHECKING:
    from restage.clips.files import StoredClip
    from restage.scenes.capture import Capture
    from restage.scenes.splats import Splats

__all__ = ["Clip", "ClipEdit", "Edit", "Scene", "edit", "fit", "generate", "load"]

SHOWN_VIEWS = 3
SHOWN_PX = 220
SHOWN_FILM_BYTES = 8 * 2**20
"""Films up to this size are shown as they are; of others, frames alone."""


@dataclass(frozen=True)
class Scene:
    """A fitted scene of a run."""

    folder: Path  # `<run>/scenes/<scene>`

    @property
    def run(self) -> Path:
        """Folder of its run."""
        return self.folder.parent.parent

    @property
    def record(self) -> FitRecord:
        """What is known of its fit."""
        return read_json(self.folder / FIT_RECORD, FitRecord)

    @cached_property
    def splats(self) -> Splats:
        """Its splats, on the CPU."""
        return _splats_in(self.folder)

    @cached_property
    def capture(self) -> Capture:
        """Its views and their cameras."""
        from restage.scenes.io import read_capture

        return read_capture(self.folder / CAPTURE)

    def _repr_html_(self) -> str:
        record = self.record
        psnr = "" if record.held_out_psnr_db is None else f"{record.held_out_psnr_db:.1f} dB on held-out views"
        facts = {"scene": self.folder.name, "splats": record.num_splats, "fit": psnr, "folder": self.folder}
        return _shown([_renders(self.folder)], ["fit"], facts)


@dataclass(frozen=True)
class Edit:
    """A finished edit of a scene; another edit can start from it."""

    folder: Path  # `<run>/edit/<scene>/<edit>/<method>-<editor>/<seed>`
    scene: Scene

    @property
    def record(self) -> EditRecord:
        """What was asked for, how it was made, and what is to be said about it."""
        return read_json(self.folder / EDIT_RECORD, EditRecord)

    @cached_property
    def splats(self) -> Splats:
        """The edited splats, on the CPU."""
        return _splats_in(self.folder)

    @property
    def scores(self) -> dict[str, float]:
        """Its scores on held-out views by the names of metrics, once `restage compare` has measured them."""
        from restage.scores.rows import read_scores

        path, record = self.scene.run / SCORES, self.record
        own = (record.scene, record.edit, record.method, record.editor, record.seed)
        rows = read_scores(path) if path.is_file() else []
        return {row.metric: row.value for row in rows if (row.scene, row.edit, row.method, row.editor, row.seed) == own}

    def _repr_html_(self) -> str:
        facts = _facts_of(self.record, self.scores, self.folder)
        return _shown([_renders(self.scene.folder), _renders(self.folder)], ["before", "after"], facts)


@dataclass(frozen=True)
class Clip:
    """A clip of a run: a film or a folder of frames that was read, a clip of the world, or an orbit."""

    folder: Path  # `<run>/scenes/<clip>`

    @property
    def run(self) -> Path:
        """Folder of its run."""
        return self.folder.parent.parent

    @cached_property
    def frames(self) -> StoredClip:
        """Its frames, which are read when they are asked for: `clip.frames.read([0, 1])` is "2 3 h w" in [0, 1]."""
        from restage.clips.files import open_clip

        return open_clip(self.folder)

    def _repr_html_(self) -> str:
        facts = {"clip": self.folder.name, "frames": len(self.frames)}
        facts |= {"frames a second": f"{self.frames.record.frames_per_s:g}", "folder": self.folder}
        return _shown([_some_frames(self.folder)], ["clip"], facts)


@dataclass(frozen=True)
class ClipEdit:
    """A finished edit of a clip."""

    folder: Path  # `<run>/edit/<clip>/<edit>/<method>-<editor>/<seed>`
    clip: Clip

    @property
    def record(self) -> EditRecord:
        """What was asked for, how it was made, and what is to be said about it."""
        return read_json(self.folder / EDIT_RECORD, EditRecord)

    @property
    def film(self) -> Path:
        """The edited film, with the sound of the clip."""
        return self.folder / FILM

    @cached_property
    def frames(self) -> StoredClip:
        """The edited frames; see `Clip.frames`."""
        from restage.clips.files import StoredClip
        from restage.scenes.io.images import list_images

        return StoredClip(self.folder, tuple(list_images(self.folder / CLIP_FRAMES)), self.clip.frames.record)

    @property
    def scores(self) -> dict[str, float]:
        """Its scores by the names of `restage.compare.clips.CLIP_METRICS`, without those that cannot be measured."""
        from restage.compare.clips import read_clip_scores

        found = read_clip_scores(self.clip.run, self.record.id)
        return {} if found is None else {name: value for name, value in found.values.items() if value is not None}

    def _repr_html_(self) -> str:
        facts = _facts_of(self.record, self.scores, self.folder)
        shown = _shown([_some_frames(self.clip.folder), _some_frames(self.folder)], ["before", "after"], facts)
        if self.film.stat().st_size > SHOWN_FILM_BYTES:
            return shown
        content = base64.b64encode(self.film.read_bytes()).decode()
        return f'<video controls loop muted src="data:video/mp4;base64,{content}"></video>{shown}'


def fit(
    capture: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    size: int | None = None,
    again: bool = False,
    splats: str | os.PathLike[str] | None = None,
    device: str = "auto",
    **settings: Any,
) -> Scene:
    """Fit Gaussian splats to a capture, or open the fit that is there already.

    Args:
        capture: Folder or file of any form that `restage fit --help` lists.
        out: Folder of the run; default: `runs/` and the capture's name.
        size: Longer side of the views in pixels; default: as they are.
        again: Whether a finished fit is thrown away and made anew.
        splats: A file of splats of this capture that were trained elsewhere, to be taken as the fit.
        device: Where to fit: `auto`, `cpu`, `cuda` or `cuda:N`.
        settings: Fields of `restage.scenes.config.FitConfig`, such as `steps`.

    Raises:
        InputError: the capture, the folder or a setting cannot be used.
    """
    from restage.scenes.config import PHOTOGRAPHS, for_size
    from restage.scenes.device import choose_device
    from restage.scenes.io import capture_name
    from restage.scenes.stage import fit_folder

    source = Path(capture)
    folder = Path("runs") / capture_name(source) if out is None else Path(out)
    if splats is not None:
        from restage.scenes.io.posed import ReadOptions
        from restage.scenes.taken import take_splats

        if settings:
            raise InputError(f"splats are taken as they are; omit {', '.join(settings)}")
        options = ReadOptions(size=size)
        show_progress(take_splats(Path(splats), folder, capture=source, options=options, again=again))
        return Scene(folder / "scenes" / capture_name(source))
    config = partial(for_size, _replaced(PHOTOGRAPHS, settings))
    show_progress(fit_folder(source, folder, config, size=size, again=again, device=choose_device(device)))
    return Scene(folder / "scenes" / capture_name(source))


def load(path: str | os.PathLike[str]) -> Scene | Edit | Clip | ClipEdit:
    """Open the only scene or clip of a run, the folder of a scene or a clip, or the folder of an edit.

    Raises:
        InputError: there is none, or there are several.
    """
    from restage.scenes.stage import find_scene

    folder = Path(path)
    if (folder / EDIT_RECORD).is_file():
        record, run = read_json(folder / EDIT_RECORD, EditRecord), folder.resolve().parents[4]
        base = run / "scenes" / record.scene
        return ClipEdit(folder, Clip(base)) if (base / CLIP_RECORD).is_file() else Edit(folder, Scene(base))
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected a run, a scene of one, or an edit")
    if (folder / CLIP_RECORD).is_file():
        return Clip(folder)
    if any(folder.glob(CLIPS)) and not any(folder.glob(FITS)):
        from restage.edit.clips.stage import find_clip

        return Clip(find_clip(folder))
    return Scene(find_scene(folder))


@overload
def edit(scene: Scene | Edit, instruction: str, **how: Any) -> Edit: ...
@overload
def edit(scene: Clip, instruction: str, **how: Any) -> ClipEdit: ...
@overload
def edit(scene: str | os.PathLike[str], instruction: str, **how: Any) -> Edit | ClipEdit: ...
def edit(
    scene: Scene | Edit | Clip | str | os.PathLike[str],
    instruction: str,
    *,
    region: str | os.PathLike[str] | None = None,
    reference: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    reference_mask: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    source_caption: str = "",
    target_caption: str = "",
    size: int | None = None,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    **choice: Any,
) -> Edit | ClipEdit:
    """Edit a fitted scene or a clip by an instruction, or go on from another edit of a scene.

    Args:
        scene: A scene, an edit to start from, the folder of a run with one scene, or a file of splats, which cameras
            are placed around; or a clip: a film, what `restage clip` made, or with a `method` for clips a folder of
            frames.
        instruction: What to change.
        region: Where the scene may change; see `restage edit --help`.
        reference: Pictures that the instruction refers to, or one.
        reference_mask: A mask of the subject of each, white inside.
        source_caption: What the scene shows before the edit.
        target_caption: What the scene shows after it.
        size: Longer side of the frames in pixels, if a film is read, or of the views around a file of splats.
        out: Folder of the run that a film or a file of splats is read into; default: `runs/` and its name.
        device: Where the scene is drawn and the editor's model computes.
        choice: Fields of `restage.recipes.EditChoice`, for a clip of `restage.edit.clips.stage.ClipChoice`, such as
            `method`, `editor`, `model`, `seed`, `strength` and `settings`. The editor is by default one that suits the
            scene and the instruction.

    Raises:
        InputError: something that was given cannot be used.
    """
    from restage.edit.clips.stage import is_clip
    from restage.edit.single import AUTO, EditChoice
    from restage.recipes import edit_folder
    from restage.scenes.device import choose_device
    from restage.scenes.io.splat_files import splats_in
    from restage.scenes.references import GivenPicture

    request = EditRequest(instruction=instruction, source_caption=source_caption, target_caption=target_caption)
    path = None if isinstance(scene, (Scene, Edit)) else scene.folder if isinstance(scene, Clip) else Path(scene)
    if path is not None and is_clip(path, choice.get("method", AUTO)):
        if region is not None or reference or reference_mask:
            raise InputError("only scenes are edited with a region or a reference, and this is a clip")
        return _edit_clip(path, request, size=size, out=None if out is None else Path(out), device=device, **choice)
    if path is not None and splats_in(path):
        path, size, out = _taken(path, size=size, out=out), None, None
    if size is not None or out is not None:
        raise InputError("size and out say how a film or a file of splats is read, and this is a scene")
    opened = scene if isinstance(scene, (Scene, Edit)) else load(path or "")
    if not isinstance(opened, (Scene, Edit)):
        raise InputError(f"{path} is an edit of a clip, from which no other starts; edit its film, {FILM}")
    start = opened.folder if isinstance(opened, Edit) else None
    base = opened.scene if isinstance(opened, Edit) else opened
    chosen = _replaced(EditChoice(editor=AUTO, device=choose_device(device)), choice)
    if region is not None:
        chosen = replace(chosen, region=Path(region))
    given = GivenPicture.read_all(_paths(reference), _paths(reference_mask))
    request = replace(request, references=tuple(picture.keep(base.folder) for picture in given))
    (folder,) = show_result(edit_folder(base.folder, [request], chosen, start=start))
    return Edit(folder, base)


def _paths(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    return [Path(given)] if isinstance(given, str | os.PathLike) else [Path(one) for one in given]


def _taken(file: Path, *, size: int | None, out: str | os.PathLike[str] | None) -> Path:
    """Make the run of a file of splats, as `restage edit FILE` does; returns its folder."""
    from restage.scenes.taken import Placement, splats_name, take_splats

    folder = Path("runs") / splats_name(file) if out is None else Path(out)
    show_progress(take_splats(file, folder, placement=Placement() if size is None else Placement(size=size)))
    return folder


def _edit_clip(
    path: Path, request: EditRequest, *, size: int | None, out: Path | None, device: str, **choice: Any
) -> ClipEdit:
    from restage.clips.config import ClipOptions
    from restage.edit.clips.stage import ClipChoice
    from restage.edit.single import AUTO
    from restage.recipes import edit_clip_folder, take_clip
    from restage.scenes.device import choose_device

    chosen = _replaced(ClipChoice(editor=AUTO, device=choose_device(device)), choice)
    taken = show_progress(take_clip(path, out, ClipOptions(size=size)))
    assert taken is not None
    edited = show_progress(edit_clip_folder(Path(taken.note), [request], chosen))
    assert edited is not None
    return ClipEdit(Path(edited.note), Clip(Path(taken.note)))


def generate(
    caption: str,
    out: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    generator: str = "auto",
    device: str = "auto",
    **order: Any,
) -> Scene:
    """Make a scene of splats from a caption, or open the one that is there already.

    Args:
        caption: What the scene shows.
        out: Folder of the run; default: `runs/` and what the caption says.
        seed: Seed for the noise; other seeds make other scenes of a caption, in the same run.
        generator: How the scene grows: `sds`, `ism`, `views`, `refined` or `auto`; see `restage generate --help`.
        device: Where to make it: `auto`, `cpu`, `cuda` or `cuda:N`.
        order: Fields of `restage.generate.scene.SceneOrder`, such as `model`, `preset` and `num_steps`.

    Raises:
        InputError: the caption, the folder or a setting cannot be used.
    """
    from restage.generate.scene import SceneOrder, generate_scenes, scene_name
    from restage.scenes.device import choose_device

    base = SceneOrder(captions=(caption,), seeds=(seed,), generator=generator, device=choose_device(device))
    name = scene_name(caption, seed)
    folder = Path("runs") / name.rpartition("-")[0] if out is None else Path(out)
    show_progress(generate_scenes(folder, _replaced(base, order)))
    return Scene(folder / "scenes" / name)


def _replaced(config: Any, settings: dict[str, Any]) -> Any:
    unknown = [name for name in settings if name not in config.__dataclass_fields__]
    if unknown:
        known = ", ".join(config.__dataclass_fields__)
        raise InputError(f"unknown settings {', '.join(unknown)}; expected some of {known}")
    return replace(config, **settings)


def _splats_in(folder: Path) -> Splats:
    from restage.scenes.io.splat_files import read_splats

    return read_splats(folder / SPLATS)


def _renders(folder: Path) -> list[Path]:
    return sorted((folder / HELD_OUT).glob("*.png"))[:SHOWN_VIEWS]


def _some_frames(folder: Path) -> list[Path]:
    found = sorted((folder / CLIP_FRAMES).glob("*.png"))
    return [found[place * (len(found) - 1) // (SHOWN_VIEWS - 1)] for place in range(SHOWN_VIEWS)] if found else []


def _facts_of(record: EditRecord, scores: dict[str, float], folder: Path) -> dict[str, Any]:
    asked = record.request.instruction if record.request else record.edit
    facts: dict[str, Any] = {"instruction": asked, "made by": f"{record.method} with {record.editor}"}
    facts |= {"seconds": f"{record.cost.get('seconds', 0):.0f}", "to be said": record.reason}
    return facts | {name: f"{value:.3f}" for name, value in scores.items()} | {"folder": folder}


def _shown(columns: Sequence[Sequence[Path]], heads: Sequence[str], facts: dict[str, Any]) -> str:
    """Return rows of pictures side by side, and a table of facts, as HTML that needs no other file."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_picture(path, name)}</td>" for path, name in zip(row, heads, strict=True)) + "</tr>"
        for row in zip(*columns, strict=False)
    )
    told = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if str(value)
    )
    return f"<table><tr>{head}</tr>{rows}</table><table>{told}</table>"


def _picture(path: Path, what: str) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    label = html.escape(f"{what}, view {path.stem}", quote=True)
    return f'<img alt="{label}" width="{SHOWN_PX}" src="data:image/png;base64,{content}">'

"""One edit of one clip of a run, by a request that somebody typed: frames, masks and a film, with a sealed record.

A clip lies where scenes do, `<run>/scenes/<clip>`, and its results where those of scenes do. Windows are the unit: what
was stopped goes on with the first window that is not there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.clips.files import ClipRecord, StoredClip, frame_name, is_film, open_clip
from restage.clips.films import write_film
from restage.edit.clips.job import ClipMethod, Finished, Held, WindowStep, edit_windows, spans
from restage.edit.clips.menu import CLIP_METHODS
from restage.edit.editors import NO_EDITOR, EditorSource, NoEditor, OpenEditors
from restage.edit.editors.interface import Editor
from restage.edit.editors.weights import is_made
from restage.edit.methods import METHODS
from restage.edit.pictures import write_image, write_mask
from restage.edit.single import EditorChoice, find_case, name_case
from restage.edit.stage import EditUnit, read_case
from restage.records import (
    EditRequest,
    InputError,
    Progress,
    content_id,
    derive_seed,
    file_sha256,
    write_atomically,
    write_json,
    write_record,
)
from restage.run.environment import PeakMemory
from restage.run.folder import RunFolder
from restage.run.layout import (
    ANSWERS,
    CLIP_FRAMES,
    CLIP_RECORD,
    CLIPS,
    EDIT_CASE,
    EDIT_RECORD,
    FILM,
    FITS,
    MASKS,
    TRUTH,
)
from restage.run.models import edit_model_of
from restage.scenes.device import made_on
from restage.scenes.io.images import list_images

__all__ = ["ClipChoice", "OpenedClipEdit", "find_clip", "is_clip", "open_clip_edit"]

WINDOWS = "windows"
"""Folder for how each finished window ended, while there is more to do."""
CHANGE = 0.05
"""A pixel counts as changed from a mean difference over channels above this, as in scenes."""
NO_OP_SHARE = 0.001


@dataclass(frozen=True, kw_only=True)
class ClipChoice(EditorChoice):
    """How a clip is edited."""

    menu: ClassVar[Mapping[str, type]] = CLIP_METHODS
    what: ClassVar[str] = "clip method"
    method: str = "carried"
    settings: ClipMethod | None = None

    def resolved(self) -> ClipMethod:
        """The method with its settings."""
        return self.settings or CLIP_METHODS[self.method]()


@dataclass(frozen=True)
class OpenedClipEdit:
    """An edit of a clip that can begin, or was made before."""

    folder: Path  # where the result lies once the steps are through
    steps: Iterator[Progress]  # steps that lead to it; none if the result is there already


def is_clip(path: Path, method: str) -> bool:
    """Whether the edit of a clip is asked for: by what the path is, or for a folder of frames by the method."""
    if (path / CLIP_RECORD).is_file():
        return True
    if any(path.glob(CLIPS)) and not any(path.glob(FITS)):
        return True
    if is_film(path):
        return method == "auto" or method in CLIP_METHODS
    return path.is_dir() and method in CLIP_METHODS and method not in METHODS


def find_clip(run: Path) -> Path:
    """Returns the folder of a run's only clip."""
    found = sorted(path.parent for path in run.glob(CLIPS))
    if len(found) != 1:
        there = f"it has {len(found)}: {', '.join(path.name for path in found)}" if found else "it has none"
        raise InputError(f"{run}: expected a run with one clip; {there}. Name one as RUN/scenes/CLIP")
    return found[0]


def open_clip_edit(
    run: RunFolder,
    clip_folder: Path,
    *,
    request: EditRequest,
    choice: ClipChoice,
    editors: OpenEditors | None = None,
) -> OpenedClipEdit:
    """Find out where a result belongs, and prepare the steps that lead to it; an earlier failure is tried again.

    An instruction that the clip has a case for means that case, with its truth.
    """
    method, clip = choice.resolved(), open_clip(clip_folder)
    known = find_case(clip_folder, request)
    name, case = name_case(clip_folder, request, known=known, suffix=_suffix(choice, method), kind="clip")
    editor_name = choice.editor if choice.asks_editor else NO_EDITOR
    unit = EditUnit(scene=clip_folder.name, edit=name, method=choice.method, editor=editor_name, seed=choice.seed)
    folder = unit.folder(run.path)
    weights_id = choice.model_sha256(edit_model_of(run.path))
    if is_made(folder, weights_id, choice.model):
        return OpenedClipEdit(folder, iter(()))
    truth = clip_folder / TRUTH / known if known else None
    names = tuple(path.with_suffix(".png").name for path in clip.frame_paths)
    editor: Editor = NoEditor()
    if choice.asks_editor:
        given = {"model": edit_model_of(run.path), "device": choice.device, "answers": run.path / ANSWERS}
        source = EditorSource(file_names=names, truth=truth, **given)
        editor = (editors or OpenEditors()).open(choice.menu_editor, source)
    case_file = clip_folder / TRUTH / name / EDIT_CASE
    if not case_file.exists():
        write_json(case_file, case)
    inputs = {"edit_id": case.id, "clip_sha256": file_sha256(clip_folder / CLIP_RECORD), "truth": known or ""}
    inputs |= {"model_sha256": weights_id} if weights_id else {}
    kind = read_case(clip_folder / TRUTH / known).kind if known else case.kind
    facts = {**asdict(unit), "kind": kind, "inputs": inputs, **made_on(choice.device)}
    seed = derive_seed(run.seed, case.id, choice.seed)
    steps = _edit(
        clip, folder, method, request=case.request, editor=editor, seed=seed, facts=facts, device=choice.device
    )
    return OpenedClipEdit(folder, steps)


def _suffix(choice: ClipChoice, method: ClipMethod) -> str:
    """Returns what tells a result from the plain one of this instruction; empty for defaults."""
    marks = [content_id("settings", method)[-8:]] if method != CLIP_METHODS[choice.method]() else []
    return "".join(f"-{mark}" for mark in marks + choice.marks())


def _edit(
    clip: StoredClip,
    folder: Path,
    method: ClipMethod,
    *,
    request: EditRequest,
    editor: Editor,
    seed: int,
    facts: dict[str, Any],
    device: str,
) -> Iterator[Progress]:
    content = {"seed": seed, **facts, "settings": method, "request": request}
    result_id = content_id("edited", content)
    windows = spans(len(clip), method.window, method.overlap)
    first, held = _resume(folder / WINDOWS, result_id, len(windows), device)
    if not first:  # nothing of an edit that was stopped before, which may have been of a longer clip, is taken over
        for made in (CLIP_FRAMES, MASKS):
            shutil.rmtree(folder / made, ignore_errors=True)
    started_s, peak = time.perf_counter(), PeakMemory()

    def read(indices: Sequence[int]) -> Float[Tensor, "n 3 h w"]:
        return clip.read(indices).to(device)

    how = {"request": request, "editor": editor, "seed": seed, "first": first, "held": held}
    cameras = clip.still_cameras
    if first:
        yield Progress(
            stage="edit", done=windows[first - 1].start, total=len(clip), note=f"{first} windows were done before"
        )
    for step in edit_windows(read, len(clip), method, cameras=cameras, **how):
        if step.finished is not None:
            _store_window(folder, step.window, step.finished, result_id)
        yield _progress(step, windows, len(clip))
    write_film(
        folder / FILM,
        (frame for index in range(len(clip)) for frame in _edited(folder).read([index])),
        frames_per_s=clip.record.frames_per_s,
        sound=clip.sound,
    )
    changed = _changed_share(clip, _edited(folder))
    shutil.rmtree(folder / WINDOWS)
    record = {
        "id": result_id,
        **content,
        "num_steps": len(windows),
        "is_no_op": changed <= NO_OP_SHARE,
        "changed_share": changed,
        "num_frames": len(clip),
        "status": "done",
        "reason": "the clip did not change" if changed <= NO_OP_SHARE else "",
        "cost": {"seconds": time.perf_counter() - started_s, "peak_memory_mb": peak.read_mb()},
    }
    made = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "." and path.name != EDIT_RECORD]
    write_record(folder / EDIT_RECORD, record, files=made)


def _progress(step: WindowStep, windows: Sequence[range], num_frames: int) -> Progress:
    span = windows[step.window]
    done = span.start + len(span) * step.step.step // max(1, step.step.num_steps)
    done = min(num_frames, done)
    note = f"window {step.window + 1} of {step.num_windows}: {step.step.note}"
    return Progress(stage="edit", done=done, total=num_frames, note=note)


def _edited(folder: Path) -> StoredClip:
    return StoredClip(folder, tuple(list_images(folder / CLIP_FRAMES)), ClipRecord())


def _changed_share(before: StoredClip, after: StoredClip) -> float:
    """Share of its pixels that changed in the frame that changed most."""
    shares = []
    for index in range(len(before)):
        difference = (after.read([index]) - before.read([index])).abs().mean(dim=1)
        shares.append(float((difference > CHANGE).float().mean()))
    return max(shares)


def _store_window(folder: Path, window: int, finished: Finished, result_id: str) -> None:
    """Write the frames of a window, and last how it ended, which marks it as done."""
    for offset, (image, mask) in enumerate(zip(finished.images, finished.masks, strict=True)):
        name = frame_name(finished.start + offset)
        write_image(folder / CLIP_FRAMES / name, image)
        write_mask(folder / MASKS / name, mask)
    arrays: dict[str, np.ndarray] = {"result": np.array(result_id)}
    if finished.held is not None:
        held = {"images": finished.held.images, "masks": finished.held.masks, "cells": finished.held.cells}
        arrays |= {name: part.cpu().numpy() for name, part in held.items() if part is not None}
    with write_atomically(folder / WINDOWS / f"{window:05d}.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def _resume(folder: Path, result_id: str, num_windows: int, device: str) -> tuple[int, Held | None]:
    """The first window that is not done, and how the one before it ended; what another edit left behind is removed."""
    first, held = 0, None
    while first < num_windows and (path := folder / f"{first:05d}.npz").exists():
        with np.load(path, allow_pickle=False) as saved:
            if str(saved["result"]) != result_id:
                shutil.rmtree(folder)
                return 0, None
            parts = {name: torch.from_numpy(saved[name]).to(device) for name in saved.files if name != "result"}
        held = Held(parts["images"], parts["masks"], parts.get("cells")) if parts else None
        first += 1
    return first, held

"""Scenes for studies: of the procedural world, with exact truth; and a user's own captures, with or without."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from restage.edit.stage import read_case
from restage.records import EditCase, EditRequest, InputError, write_atomically, write_json
from restage.run.layout import CAPTURE, DEPTH, EDIT_CASE, IMAGES, MASKS, TRANSFORMS, TRUTH
from restage.scenes.capture import turn_upright
from restage.scenes.config import FitConfig
from restage.scenes.io import read_capture, write_capture
from restage.scenes.references import GivenPicture
from restage.world.config import CaptureConfig, WorldConfig
from restage.world.grammar import Description, Edit
from restage.world.render import render_view
from restage.world.stage import edit_name, make_scene, sample_scene

__all__ = ["FolderScene", "WorldScene", "sample_world_scenes"]


@dataclass(frozen=True, kw_only=True)
class WorldScene:
    """A scene of the procedural world, whose edits have exact truth: pictures, masks and depth."""

    name: str
    description: Description
    world_edits: tuple[Edit, ...]
    seed: int
    """Chooses cameras, points and the wording of captions."""
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    fit: FitConfig = field(default_factory=FitConfig)

    @property
    def edits(self) -> tuple[str, ...]:
        """Names of the edits."""
        return tuple(edit_name(edit) for edit in self.world_edits)

    def facts_of(self, edit: str) -> Mapping[str, Any]:
        """Returns what a result of this edit depends on; see `StudyScene.facts_of`."""
        found = next(one for one in self.world_edits if edit_name(one) == edit)
        return {"edit": found, "seed": self.seed, "capture": self.capture, "fit": self.fit}

    def write(self, folder: Path) -> Iterator[str]:
        """Write capture and truth; see `StudyScene.write`."""
        yield from make_scene(
            folder, self.description, self.world_edits, name=self.name, seed=self.seed, config=self.capture
        )
        for edit in self.world_edits:
            path = folder / TRUTH / edit_name(edit) / DEPTH
            if not path.exists():
                _write_depth(path, edit.after, folder / CAPTURE)


def _write_depth(path: Path, after: Description, capture_folder: Path) -> None:
    """Write the true depth of the held-out views after an edit; no camera of another view is asked."""
    capture = read_capture(capture_folder)
    maps: dict[str, Any] = {
        Path(capture.file_names[index]).with_suffix(".png").name: render_view(after, capture.cameras[index]).depth
        for index in capture.held_out_indices
    }
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **maps)


def sample_world_scenes(
    count: int,
    edit_kinds: tuple[str, ...],
    *,
    seed: int = 0,
    split: str = "unseen",
    capture: CaptureConfig | None = None,
    fit: FitConfig | None = None,
) -> tuple[WorldScene, ...]:
    """Sample scenes of one to two objects that allow all of these kinds of edit, one edit of each.

    With `split` unseen, objects are combinations of kind and color that no model was trained on.
    """
    config = WorldConfig(edit_kinds=edit_kinds, split=split)
    scenes = []
    for index in range(count):
        name = f"world-{index:03d}"
        description, edits = sample_scene(config, name=name, seed=seed)
        how: dict[str, Any] = {"seed": seed + index, "capture": capture or CaptureConfig(), "fit": fit or FitConfig()}
        scenes.append(WorldScene(name=name, description=description, world_edits=edits, **how))
    return tuple(scenes)


@dataclass(frozen=True, kw_only=True)
class FolderScene:
    """A capture on disk, of any form that `read_capture` reads, with edits that are asked for in words."""

    name: str
    folder: Path
    requests: Mapping[str, EditRequest]
    truths: Path | None = None
    """Folder with `<edit>/images/<view>.png` and `<edit>/masks/<view>.png` of every view, for edits whose truth is
    known; None if none is."""
    size: int | None = None
    """Longer side of the views in pixels; None leaves them as they are."""
    is_upright: bool = False
    """Whether z is up already; else the world is turned so that it is."""
    fit: FitConfig = field(default_factory=FitConfig)
    kind: str = "free"
    """Kind of edit that its rows are filed under; `grade` where `write_grade_truth` wrote the truths."""
    references: Mapping[str, tuple[GivenPicture, ...]] = field(default_factory=dict)
    """Pictures that an edit's request refers to, by the edit's name; `GivenPicture.read_all` reads them from files."""

    def __post_init__(self) -> None:
        if not self.requests:
            raise InputError(f"{self.name}: expected at least one edit")
        if unknown := sorted(set(self.references) - set(self.requests)):
            raise InputError(f"{self.name}: there are references for {', '.join(unknown)}, which is no edit of it")

    @property
    def edits(self) -> tuple[str, ...]:
        """Names of the edits."""
        return tuple(self.requests)

    def facts_of(self, edit: str) -> Mapping[str, Any]:
        """Returns what a result of this edit depends on; see `StudyScene.facts_of`."""
        how = {"size": self.size, "is_upright": self.is_upright, "fit": self.fit}
        references = tuple(picture.reference for picture in self.references.get(edit, ()))
        request = replace(self.requests[edit], references=references)
        return {"folder": self.folder.name, "request": request, **how}

    def write(self, folder: Path) -> Iterator[str]:
        """Write capture, requests and truth; see `StudyScene.write`."""
        if not (folder / CAPTURE / TRANSFORMS).exists():
            capture = read_capture(self.folder, self.size)
            write_capture(capture if self.is_upright else turn_upright(capture), folder / CAPTURE)
        yield f"{self.name}: capture"
        for edit, request in self.requests.items():
            references = tuple(picture.keep(folder) for picture in self.references.get(edit, ()))
            request = replace(request, references=references)
            target = folder / TRUTH / edit
            has_truth = self.truths is not None and (self.truths / edit / "images").is_dir()
            case = EditCase(scene=self.name, kind=self.kind, request=request, has_truth=has_truth)
            if (target / EDIT_CASE).exists():
                if read_case(target).id != case.id:
                    raise InputError(f"{target} holds another edit; give this one another name")
            else:
                if self.truths is not None and has_truth:
                    parts = [part for part in (IMAGES, MASKS, "regions") if (self.truths / edit / part).is_dir()]
                    for part in parts:
                        shutil.copytree(self.truths / edit / part, target / part, dirs_exist_ok=True)
                write_json(target / EDIT_CASE, case)
            yield f"{self.name}: {request.instruction}"

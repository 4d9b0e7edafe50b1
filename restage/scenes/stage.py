"""The scenes stage: captures of the miniature world with the truth of chosen edits, and the fit of each.

Writes `<run>/scenes`. A user's own capture goes through `fit_capture` too; only where it comes from differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from restage.records import (
    EditCase,
    InputError,
    Progress,
    RunFolder,
    content_id,
    derive_seed,
    file_sha256,
    write_atomically,
    write_json,
)
from restage.scenes.fit import FitConfig
from restage.scenes.fitted import fit_capture
from restage.scenes.io.nerfstudio import read_capture, write_capture

__all__ = ["ScenesConfig", "WorldEdit", "WorldScene", "edit_name", "fit_capture", "run_scenes"]


@dataclass(frozen=True, kw_only=True)
class WorldEdit:
    """One edit of a scene of the miniature world."""

    kind: str
    """One of `restage.world.grammar.EDIT_KINDS`."""
    seed: int = 0
    """Chooses what exactly is asked for, and in which words."""


@dataclass(frozen=True, kw_only=True)
class WorldScene:
    """One scene of the miniature world with its edits."""

    seed: int = 0
    """Chooses objects, ground, light and cameras."""
    num_objects: int = 1
    """1 to 3."""
    split: str = "train"
    """`train`: no held-out combination of kind and colour; `unseen`: only those; see `restage.world.grammar`."""
    edits: tuple[WorldEdit, ...] = (WorldEdit(kind="recolour"), WorldEdit(kind="ground"))

    @property
    def name(self) -> str:
        """Name of the scene's folder."""
        return f"world-{self.split}-{self.num_objects}-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Which scenes to make, how they are captured and how they are fitted."""

    worlds: tuple[WorldScene, ...] = (WorldScene(),)
    """At least one; names differ."""
    num_views: int = 40
    """Views around each scene, held-out ones included; issue 2's figures are for 40."""
    held_out_every: int = 5
    """Each so-many-th view is held out."""
    size: int = 128
    """Width and height in pixels; that of the models."""
    num_points: int = 6000
    """Sparse points a capture comes with."""
    fit: FitConfig = field(default_factory=FitConfig)
    """How splats are fitted."""

    def __post_init__(self) -> None:
        names = [world.name for world in self.worlds]
        if not names or len(set(names)) != len(names):
            raise InputError(f"expected at least one scene and different ones, got {names or 'none'}")
        if self.num_views < self.held_out_every + 1:
            raise InputError(
                f"expected more than {self.held_out_every} views, so that one is held out, got {self.num_views}"
            )


def edit_name(instruction: str) -> str:
    """Folder name of an edit: its instruction in small letters, digits and hyphens."""
    name = re.sub(r"[^a-z0-9]+", "-", instruction.lower()).strip("-")[:60].rstrip("-")
    return name or content_id("edit", instruction)


def run_scenes(run: RunFolder, config: ScenesConfig) -> Iterator[Progress]:
    """Make, capture and fit every scene that is not there yet; all seeds are those of the config.

    Raises:
        InputError: the stage was finished with another config, or a scene does not allow an edit.
    """
    if run.is_done("scenes", config):
        yield Progress(stage="scenes", done=1, total=1, note="done before")
        return
    total = len(config.worlds) * config.fit.steps
    for index, world in enumerate(config.worlds):
        folder = run.path / "scenes" / world.name
        yield Progress(stage="scenes", done=index * config.fit.steps, total=total, note=f"{world.name}: capture")
        _make_world(folder, world, config)
        capture = read_capture(folder / "capture")
        for step in fit_capture(capture, folder, config.fit):
            note = f"{world.name}: {step.note}"
            yield Progress(stage="scenes", done=index * config.fit.steps + step.done, total=total, note=note)
    facts = {world.name: file_sha256(run.path / "scenes" / world.name / "splats.ply") for world in config.worlds}
    run.mark_done("scenes", config, splats_sha256=facts)


def _make_world(folder: Path, world: WorldScene, config: ScenesConfig) -> None:
    """Write a scene's capture and truth, in whole files, each part's last file last."""
    from restage.world.capture import make_capture, make_truth
    from restage.world.grammar import request_of, sample_description, sample_edit

    description = sample_description(world.seed, num_objects=world.num_objects, split=world.split)
    capture = make_capture(
        description,
        name=world.name,
        seed=world.seed,
        num_views=config.num_views,
        held_out_every=config.held_out_every,
        size=config.size,
        num_points=config.num_points,
    )
    if not (folder / "capture" / "transforms.json").exists():
        write_capture(capture, folder / "capture")
    for wanted in world.edits:
        edit = sample_edit(description, wanted.seed, kind=wanted.kind, split=world.split)
        truth_folder = folder / "truth" / edit_name(edit.instruction)
        if (truth_folder / "edit.json").exists():
            continue
        truth = make_truth(edit, capture.cameras)
        for index, file_name in enumerate(capture.file_names):
            png_name = Path(file_name).with_suffix(".png").name
            _write_png(truth_folder / "images" / png_name, truth.images[index])
            _write_png(truth_folder / "masks" / png_name, truth.masks[index])
        write_json(truth_folder / "world.json", edit)
        request = request_of(edit, derive_seed("request", world.seed, wanted.seed))
        case = EditCase(scene=world.name, kind=edit.kind, request=request, has_truth=True)
        write_json(truth_folder / "edit.json", case)


def _write_png(path: Path, picture: Float[Tensor, "*channels h w"]) -> None:
    """Write RGB or grey values in [0, 1] as PNG."""
    values = (picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    with write_atomically(path) as temporary:
        Image.fromarray(np.ascontiguousarray(values.transpose(1, 2, 0) if values.ndim == 3 else values)).save(temporary)

"""The study behind docs/truth.md: edits of known worth, from perfect to the wrong way, for CLIP and truth to judge.

    restage study benchmarks/truth_study.py --out runs/truth --workers 2

Then `python benchmarks/truth.py runs/truth` asks whether they agree. With OpenAI's CLIP and DINOv2, from folders:

    RESTAGE_TRUTH_CLIP=clip-vit-large-patch14 RESTAGE_TRUTH_DINO=dinov2-base restage study runs/truth

which scores what is there again and makes no edit again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from restage.compare.config import CompareConfig
from restage.edit.editors import Edited, Editor, EditorSource, ViewBatch
from restage.edit.methods import Nothing, ReplaceOnce, Restage
from restage.records import derive_seed
from restage.scenes.config import FitConfig
from restage.studies.scenes import sample_world_scenes
from restage.studies.study import MenuEditor, Study, StudyMethod
from restage.world.config import CaptureConfig

KINDS = ("recolour", "reshape", "add", "remove", "ground", "time")
"""What each world allows."""
LEFT_OUT = ("add",)
"""Kinds of edit that are not made, to keep the study short."""

SCENES = sample_world_scenes(
    6,
    KINDS,
    seed=8,
    capture=CaptureConfig(num_views=12, held_out_every=4, size=64, num_points=1200),
    fit=FitConfig(steps=400, num_splats=1200),
)

INSTRUCTIONS = sorted({edit.instruction for scene in SCENES for edit in scene.world_edits})


@dataclass(frozen=True)
class _Blending:
    """Goes part of the way to another editor's pictures: half of it, or the wrong way."""

    editor: Editor
    amount: float

    def edit(self, batch: ViewBatch) -> Edited:
        edited = self.editor.edit(batch)
        images = batch.originals + self.amount * (edited.images - batch.originals)
        return Edited(images.clamp(0, 1), edited.masks)


@dataclass(frozen=True, kw_only=True)
class Blended:
    """The exact editor, which goes `amount` of the way: 0.5 is a timid edit, -1 goes the wrong way."""

    amount: float
    is_shared: bool = False

    def open(self, source: EditorSource) -> Editor:
        return _Blending(MenuEditor(name="exact").open(source), self.amount)


@dataclass(frozen=True)
class _Mishearing:
    """Does what another edit of the study asks for, instead of what it is asked for."""

    editor: Editor

    def edit(self, batch: ViewBatch) -> Edited:
        asked = batch.request
        others = [text for text in INSTRUCTIONS if text != asked.instruction]
        other = others[derive_seed(asked.instruction) % len(others)]
        return self.editor.edit(replace(batch, request=replace(asked, instruction=other)))


@dataclass(frozen=True, kw_only=True)
class Misheard:
    """The edit model, told something else."""

    is_shared: bool = True

    def open(self, source: EditorSource) -> Editor:
        return _Mishearing(MenuEditor(name="edit_model").open(source))


def _folder(variable: str) -> Path | None:
    return Path(os.environ[variable]) if variable in os.environ else None


STUDY = Study(
    name="truth",
    scenes=tuple(
        replace(scene, world_edits=tuple(edit for edit in scene.world_edits if edit.kind not in LEFT_OUT))
        for scene in SCENES
    ),
    methods={
        "nothing": StudyMethod(settings=Nothing()),
        "replace_once": StudyMethod(
            settings=ReplaceOnce(num_steps=60), editors=("exact", "noisy-0.5-exact", "half", "away")
        ),
        "restage": StudyMethod(
            settings=Restage(num_key_views=4, noise_levels=(1.0,), color_steps=30, shape_steps=30),
            editors=("exact", "edit_model", "misheard"),
        ),
    },
    editors={
        "exact": MenuEditor(name="exact"),
        "noisy-0.5-exact": MenuEditor(name="noisy-0.5-exact"),
        "half": Blended(amount=0.5),
        "away": Blended(amount=-0.5),
        "edit_model": MenuEditor(name="edit_model"),
        "misheard": Misheard(),
    },
    compare=CompareConfig(
        orbit_frames=16,
        clip=_folder("RESTAGE_TRUTH_CLIP"),
        dino=_folder("RESTAGE_TRUTH_DINO"),
        lpips=_folder("RESTAGE_TRUTH_LPIPS"),
    ),
    seed=8,
)

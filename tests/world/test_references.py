"""Edits that a picture asks for, and the picture that they refer to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from restage.records import EditCase, read_json
from restage.run.folder import RunFolder
from restage.scenes.references import read_references
from restage.world.config import CaptureConfig, WorldConfig
from restage.world.references import render_reference, sample_referenced_edit
from restage.world.render import render_view
from restage.world.second import reference_scene
from restage.world.stage import run_world


@pytest.mark.parametrize("kind", ["look", "swap"])
def test_a_reference_shows_what_is_asked_for_in_another_world(kind: str) -> None:
    for seed in range(4):
        edit, camera = sample_referenced_edit(kind, seed, size=48)
        scene, shown = reference_scene(edit, seed), render_reference(edit, seed, size=48)
        (before,) = (item for item in edit.before.objects if item not in edit.after.objects)
        (after,) = (item for item in edit.after.objects if item not in edit.before.objects)
        meant = scene.objects[0]
        assert (meant.color, meant.pattern, meant.second_color) == (after.color, after.pattern, after.second_color)
        assert (before.kind != after.kind) == (kind == "swap") and "picture" in edit.instruction
        assert kind == "look" or meant.kind == after.kind
        assert scene.ground != edit.after.ground
        assert shown.mask is not None and 0.005 < shown.mask.mean() < 0.6
        assert render_view(edit.after, camera).image.shape == (3, 48, 48)
        assert torch.equal(render_reference(edit, seed, size=48).picture, shown.picture)


def test_a_run_keeps_the_picture_that_a_look_is_asked_for_by(tmp_path: Path) -> None:
    capture = CaptureConfig(num_views=4, held_out_every=2, size=24, num_points=40)
    config = WorldConfig(edit_kinds=("look", "recolour"), capture=capture, edition=2)
    run = RunFolder.open(tmp_path / "run", config, seed=3)
    list(run_world(run, config))
    scene = run.path / "scenes" / "scene-000"
    cases = [read_json(path, EditCase) for path in sorted(scene.glob("truth/*/edit.json"))]
    assert {case.kind: len(case.request.references) for case in cases} == {"look": 1, "recolour": 0}
    look = next(case for case in cases if case.kind == "look")
    (shown,) = read_references(scene, look.request)
    assert shown.picture.shape == (3, 24, 24) and shown.mask is not None and shown.mask.sum() > 0

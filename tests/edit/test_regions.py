"""What a user says about where a scene may change reaches editors, and holds whatever they do."""

import dataclasses
from pathlib import Path

import pytest
import torch

from restage.compare.config import CompareConfig
from restage.compare.stage import run_compare
from restage.edit.editors.interface import Edited, hold_outside
from restage.edit.job import EditJob
from restage.edit.methods.distill import Sds
from restage.edit.methods.restage import Restage
from restage.edit.pictures import quantize, write_mask
from restage.edit.results import edit_scene
from restage.edit.single import EditChoice, open_edit
from restage.records import InputError, write_json
from restage.regions.files import write_region
from restage.regions.given import read_regions
from restage.regions.masks import lift_masks
from restage.regions.region import Region, render_region
from restage.run.folder import open_run
from restage.run.layout import SCORES
from restage.scenes.fit import render_views
from restage.scores.rows import read_scores


def balls(tiny_scene):
    """Boxes around the ball in four views, as shares of the view."""
    boxes = {}
    for index in (0, 1, 3, 4):
        rows, columns = tiny_scene.truth_masks[index].nonzero(as_tuple=True)
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        boxes[tiny_scene.capture.file_names[index]] = [float(edge) / 32 for edge in edges]
    return boxes


def test_boxes_on_some_views_become_masks_of_all(tiny_scene, tmp_path):
    write_json(tmp_path / "boxes.json", {**balls(tiny_scene), "other.png": [0, 0, 1, 1]})
    regions = read_regions(tmp_path / "boxes.json", tiny_scene.capture, tiny_scene.splats)
    truth = tiny_scene.truth_masks > 0
    overlap = (regions > 0.5) & truth
    assert float(overlap.sum() / ((regions > 0.5) | truth).sum()) > 0.6
    assert regions.shape == tiny_scene.truth_masks.shape and torch.equal(regions, (regions * 255).round() / 255)


def test_masks_of_the_views_are_read_by_their_names(tiny_scene, tmp_path):
    for name, mask in zip(tiny_scene.capture.file_names, tiny_scene.truth_masks, strict=True):
        write_mask(tmp_path / name, mask)
    regions = read_regions(tmp_path, tiny_scene.capture, tiny_scene.splats)
    assert torch.equal(regions, tiny_scene.truth_masks)
    write_mask(tmp_path / tiny_scene.capture.file_names[2], torch.zeros(4, 4))
    with pytest.raises(InputError, match="the mask of view_2.png has another size"):
        read_regions(tmp_path, tiny_scene.capture, tiny_scene.splats)


@pytest.mark.parametrize(
    "boxes", [{}, {"other.png": [0, 0, 1, 1]}, {"view_0.png": [0.5, 0, 0.5, 1]}, {"view_0.png": [0, 0, 300, 200]}]
)
def test_boxes_that_are_none_are_refused(tiny_scene, tmp_path, boxes):
    write_json(tmp_path / "boxes.json", boxes)
    with pytest.raises(InputError, match="expected boxes as"):
        read_regions(tmp_path / "boxes.json", tiny_scene.capture, tiny_scene.splats)


class Painter:
    """Paints everything green, and remembers the regions that it was told."""

    def __init__(self):
        self.regions = []

    def edit(self, batch):
        self.regions.append(batch.regions)
        green = torch.tensor([0.0, 1.0, 0.0])[None, :, None, None].expand_as(batch.originals)
        return Edited(green.clone(), torch.ones_like(batch.originals[:, 0]))


def test_an_edit_holds_inside_its_region_whatever_the_editor_does(tiny_scene, tmp_path):
    scene, painter = tiny_scene, Painter()
    regions = scene.truth_masks
    method = Restage(num_key_views=4, color_steps=40, shape_steps=5)
    how = {"request": scene.request, "method": method, "editor": painter, "seed": 0, "folder": tmp_path / "result"}
    *_, last = edit_scene(scene.splats, scene.capture, **how, regions=regions)
    (told,) = painter.regions
    assert len(told) == 4 and all(any(torch.equal(mask, one) for one in regions) for mask in told)
    before, after = (render_views(splats, scene.capture.cameras) for splats in (scene.splats, last.splats))
    change, inside = (after - before).abs().mean(dim=1), regions > 0
    assert float(change[inside].mean()) > 0.15 and float(change[~inside].mean()) < 0.03


def test_what_is_outside_comes_back_as_it_was(tiny_scene):
    job = EditJob.of(
        tiny_scene.splats, tiny_scene.capture, tiny_scene.request, Painter(), 0, regions=tiny_scene.truth_masks
    )
    batch = job.batch([0, 1], noise_level=1.0, seed=0)
    assert batch.regions is not None
    held = hold_outside(batch, job.editor.edit(batch))
    inside = (batch.regions > 0)[:, None].expand_as(batch.originals)
    assert (
        torch.equal(held.images[~inside], batch.originals[~inside])
        and float(held.images[:, 1][inside[:, 1]].min()) == 1
    )
    assert torch.equal(held.masks, (batch.regions > 0).float())
    everywhere = hold_outside(dataclasses.replace(batch, regions=None), job.editor.edit(batch))
    assert bool((everywhere.images[:, 1] == 1).all())


def test_splats_outside_of_a_region_stay_bit_for_bit_and_spill_is_measured_outside_of_it(tiny_scene, tmp_path):
    scene, run = tiny_scene, open_run(tmp_path)
    truth = scene.write(tmp_path / "scenes" / "tiny")
    where = {"method": "sds", "editor": "exact", "settings": Sds(num_steps=3)}
    region = Region.of(scene.splats, scene.is_ball.float(), by="words")
    write_region(tmp_path, "tiny", "ball", region)
    opened = open_edit(run, truth.parents[1], request=scene.request, choice=EditChoice(**where, region=Path("ball")))
    *_, last = opened.steps
    masks = render_region(region, scene.splats, scene.capture.cameras)
    outside = lift_masks(scene.splats, scene.capture.cameras, masks) < 0.05
    assert 30 < int(outside.sum()) < 120 and not bool((outside & scene.is_ball).any())
    for name, tensor in last.splats.parameters().items():
        assert torch.equal(tensor[outside], getattr(scene.splats, name)[outside]), name
    assert not torch.equal(last.splats.sh[scene.is_ball], scene.splats.sh[scene.is_ball])
    assert f"-in-ball-{region.id[-8:]}" in opened.folder.parents[1].name
    *_, _ = run_compare(run, CompareConfig(orbit_frames=0))
    scores = {score.metric: score for score in read_scores(tmp_path / SCORES)}
    spill = scores["spill"].value
    held_out = list(scene.capture.held_out_indices)
    after, before = (quantize(render_views(s, scene.capture.cameras[held_out])) for s in (last.splats, scene.splats))
    change, rest = (after - before).abs().mean(dim=1), masks[held_out] == 0
    expected = torch.stack([one[where].mean() for one, where in zip(change, rest, strict=True)]).mean()
    assert spill == pytest.approx(float(expected), abs=1e-6) and scores["progress"].reason

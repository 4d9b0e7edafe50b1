from __future__ import annotations

import torch

from restage.edit.clips.carried import Carried
from restage.edit.editors.exact import ExactEditor
from restage.edit.editors.interface import Edited, ViewBatch
from restage.edit.job import EditJob
from restage.edit.methods.video import Video, difference_masks, walk_around
from restage.scenes.cameras import Cameras
from restage.scenes.fit import psnr, render_views


def test_a_walk_goes_to_the_nearest_view_and_visits_all(tiny_scene) -> None:
    cameras = tiny_scene.capture.cameras
    walk = walk_around(cameras[[0, 3, 1, 4, 2]])
    assert walk == [0, 2, 4, 1, 3]
    assert sorted(walk_around(cameras)) == list(range(len(cameras)))


def test_masks_are_where_frames_differ_and_a_little_around() -> None:
    before = torch.zeros(1, 3, 12, 12)
    after = before.clone()
    after[:, :, 4:6, 4:6] = 0.5
    masks = difference_masks(after, before, 0.04)
    assert float(masks[0, 4:6, 4:6].min()) == 1 and 0 < float(masks[0, 2, 5]) < 1 and float(masks[0, 9:].max()) == 0


def test_an_orbit_edited_as_a_clip_becomes_the_edited_scene(tiny_scene, tmp_path) -> None:
    truth = tiny_scene.write(tmp_path / "tiny")
    exact = ExactEditor(truth=truth, file_names=tiny_scene.capture.file_names)
    asked: list[ViewBatch] = []

    class Recording:
        def edit(self, batch: ViewBatch) -> Edited:
            asked.append(batch)
            return exact.edit(batch)

    job = EditJob.of(tiny_scene.splats, tiny_scene.capture, tiny_scene.request, Recording(), 0)
    method = Video(clip=Carried(window=4, overlap=1), color_steps=30, shape_steps=10)
    *_, last = method.run(job)
    held_out = list(tiny_scene.capture.held_out_indices)
    cameras: Cameras = tiny_scene.capture.cameras[held_out]
    before, after = (render_views(splats, cameras) for splats in (tiny_scene.splats, last.splats))
    goal = tiny_scene.truth_images[held_out]
    assert float(psnr(after, goal).mean()) > float(psnr(before, goal).mean()) + 4
    indices = [index for batch in asked for index in batch.view_indices]
    assert set(indices) == set(tiny_scene.capture.train_indices)
    planned = method.asks(len(job.view_indices))
    assert planned is not None and len(indices) <= planned.count
    moved = (last.splats.sh != tiny_scene.splats.sh).flatten(1).any(dim=1)
    assert bool(moved.any()) and not bool(moved.all())

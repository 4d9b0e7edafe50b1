"""A thing that is taken away leaves what is behind it, and a filled surface where nothing was ever seen."""

import math
from dataclasses import replace

import pytest
import torch

from restage.edit.editors import Edited, NoEditor, ViewBatch
from restage.edit.job import EditJob
from restage.edit.methods.remove import Remove
from restage.records import EditRequest, InputError
from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.capture import Capture
from restage.scenes.fit import render_views
from restage.scenes.splats import SH_C0, Splats

SIZE, RADIUS = 72, 0.5
REQUEST = EditRequest(instruction="remove the ball", source_caption="", target_caption="")


def splats_at(points: torch.Tensor, colors: torch.Tensor, scales: list[float]) -> Splats:
    count = len(points)
    return Splats(
        means=points,
        log_scales=torch.tensor(scales).log().expand(count, 3).contiguous(),
        rotations=torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(count, 4).contiguous(),
        opacity_logits=torch.full((count,), 4.0),
        sh=((colors - 0.5) / SH_C0)[:, None],
    )


class BallOnGround:
    """A red ball on a ground of soft patches, whose splats lack where the ball stands: no view sees that place."""

    def __init__(self, tilt: float = 0.0) -> None:
        ticks = torch.linspace(-2.5, 2.5, 70)
        x, y = (axis.flatten() for axis in torch.meshgrid(ticks, ticks, indexing="ij"))
        ground = torch.stack([x, y, tilt * x], dim=1)
        colors = torch.stack([0.5 + 0.03 * (3 * x).sin(), 0.5 + 0.03 * (4 * y).cos(), 0.3 + 0 * x], dim=1)
        self.ground = splats_at(ground, colors, [0.05, 0.05, 0.01])
        directions = torch.randn(700, 3, generator=torch.Generator().manual_seed(0))
        middle = torch.tensor([0.0, 0.0, RADIUS])
        ball = splats_at(
            middle + RADIUS * torch.nn.functional.normalize(directions, dim=1),
            torch.tensor([0.85, 0.15, 0.1]).expand(700, 3),
            [0.04, 0.04, 0.04],
        )
        seen = self.ground[ground[:, :2].norm(dim=1) > 0.3]
        both = {name: torch.cat([tensor, getattr(ball, name)]) for name, tensor in seen.parameters().items()}
        self.splats = Splats(**both)
        self.weights = (torch.arange(len(self.splats)) >= len(seen)).float()
        camera_to_world = orbit(12, 3.5, height=1.6, target=torch.tensor([0.0, 0.0, 0.3]), start_rad=0.1)
        intrinsics = intrinsics_from_fov(math.radians(50), SIZE, SIZE).expand(12, 3, 3).contiguous()
        self.cameras = Cameras(camera_to_world, intrinsics, SIZE, SIZE)
        self.capture = Capture(
            name="ball",
            cameras=self.cameras,
            images=render_views(self.splats, self.cameras),
            file_names=tuple(f"{view}.png" for view in range(12)),
            points=torch.zeros(0, 3),
            point_colors=torch.zeros(0, 3),
            train_indices=tuple(range(12)),
            held_out_indices=(),
        )

    def darken(self, where: torch.Tensor) -> None:
        """Throw a shadow on splats, and photograph the scene anew."""
        self.splats.sh[where] = (0.5 * (0.5 + SH_C0 * self.splats.sh[where]) - 0.5) / SH_C0
        self.capture = replace(self.capture, images=render_views(self.splats, self.cameras))

    def removed(self, method: Remove) -> Splats:
        job = EditJob.of(self.splats, self.capture, REQUEST, NoEditor(), 0, weights=self.weights)
        return list(method.run(job))[-1].splats

    def progress(self, edited: Splats) -> float:
        """Share of the way to the empty ground, over pixels that the ball changes, from cameras of no view."""
        camera_to_world = orbit(5, 3.2, height=2.2, target=torch.tensor([0.0, 0.0, 0.2]), start_rad=0.4)
        cameras = Cameras(camera_to_world, self.cameras.intrinsics[:5], SIZE, SIZE)
        source, truth, found = (render_views(one, cameras) for one in (self.splats, self.ground, edited))
        changed = ((truth - source).abs().mean(dim=1) > 0.02).float()[:, None]
        return 1 - float(((found - truth).abs() * changed).sum() / ((source - truth).abs() * changed).sum())


@pytest.mark.parametrize("tilt", [0.0, 0.2])
def test_a_ball_is_gone_and_the_ground_below_it_is_whole(tilt: float):
    scene = BallOnGround(tilt)
    without = scene.progress(scene.splats[scene.weights == 0])
    progress = scene.progress(scene.removed(Remove(fill="plain")))
    assert without < 0.91 and progress > 0.94


def test_splats_that_the_removal_does_not_touch_stay_bit_for_bit_and_know_where_they_came_from():
    scene = BallOnGround()
    job = EditJob.of(scene.splats, scene.capture, REQUEST, NoEditor(), 0, weights=scene.weights)
    last = list(Remove(fill="plain", takes_shadow=False).run(job))[-1]
    assert last.origins is not None
    kept = last.origins >= 0
    for name, tensor in last.splats.parameters().items():
        assert torch.equal(tensor[kept], getattr(scene.splats, name)[last.origins[kept]]), name
    assert not bool(scene.weights[last.origins[kept]].any()) and int((~kept).sum()) > 20


def test_the_shadow_of_a_thing_goes_with_it_and_that_of_another_stays():
    scene = BallOnGround()
    near = (scene.splats.means[:, :2] - torch.tensor([0.7, 0.0])).norm(dim=1) < 0.5
    far = (scene.splats.means[:, :2] - torch.tensor([-1.9, 1.9])).norm(dim=1) < 0.4
    scene.darken((near | far) & (scene.weights == 0))
    progress = {
        takes: scene.progress(scene.removed(Remove(fill="plain", takes_shadow=takes))) for takes in (True, False)
    }
    assert progress[True] > progress[False] + 0.1
    job = EditJob.of(scene.splats, scene.capture, REQUEST, NoEditor(), 0, weights=scene.weights)
    last = list(Remove(fill="plain").run(job))[-1]
    assert last.origins is not None
    is_far = (last.origins >= 0) & far[last.origins.clamp_min(0)]
    assert torch.equal(last.splats.sh[is_far], scene.splats.sh[last.origins[is_far]])


def test_a_camera_that_looks_past_the_ground_does_not_matter():
    scene = BallOnGround()
    poses = scene.cameras.camera_to_world.clone()
    poses[3, :3, :3] = torch.eye(3)  # straight up
    scene.cameras = replace(scene.cameras, camera_to_world=poses)
    scene.capture = replace(scene.capture, cameras=scene.cameras)
    near = (scene.splats.means[:, :2] - torch.tensor([0.7, 0.0])).norm(dim=1) < 0.5
    scene.darken(near & (scene.weights == 0))
    assert scene.progress(scene.removed(Remove(fill="plain"))) > 0.9


def test_without_a_region_the_masks_of_an_editor_say_what_goes_and_its_picture_fills_the_place():
    scene = BallOnGround()

    class Known:
        def edit(self, batch: ViewBatch) -> Edited:
            views = list(batch.view_indices)
            images = render_views(scene.ground, scene.cameras[views])
            return Edited(images, ((images - batch.originals).abs().mean(dim=1) > 0.05).float())

    job = EditJob.of(scene.splats, scene.capture, REQUEST, Known(), 0)
    assert scene.progress(list(Remove().run(job))[-1].splats) > 0.94


def test_a_thing_in_the_air_is_deleted_and_nothing_is_filled():
    scene = BallOnGround()
    ball = scene.splats[scene.weights > 0]
    job = EditJob.of(
        ball, scene.capture, REQUEST, NoEditor(), 0, weights=torch.cat([torch.ones(600), torch.zeros(100)])
    )
    last = list(Remove(fill="plain").run(job))[-1]
    assert "no surface" in last.note and len(last.splats) <= 100


def test_a_region_that_holds_nothing_is_refused():
    scene = BallOnGround()
    job = EditJob.of(scene.splats, scene.capture, REQUEST, NoEditor(), 0, weights=torch.zeros(len(scene.splats)))
    with pytest.raises(InputError, match="name a region"):
        list(Remove(fill="plain").run(job))

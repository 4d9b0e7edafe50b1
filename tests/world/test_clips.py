from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restage.records import InputError, read_json
from restage.scenes.cameras import Cameras, project_points
from restage.world import second
from restage.world.clips import MOTIONS, Clip, edit_clip, read_clip, render_clip, sample_clip, write_clip
from restage.world.description import Description, SceneObject
from restage.world.places import gap_between
from restage.world.render import render_view

BALL = SceneObject(kind="ball", color="red")


def clip_of(*frames: Description, size: int = 48) -> Clip:
    """A clip from a camera that stands still."""
    still = sample_clip(0, motion="still", num_frames=len(frames), size=size, scene=frames[0])
    return replace(still, frames=frames)


def scene_of(*objects: SceneObject) -> Description:
    return Description(objects=objects, ground="sand", time="noon")


@pytest.mark.parametrize("moves_camera", [False, True])
@pytest.mark.parametrize("motion", MOTIONS)
def test_a_clip_moves_what_its_name_says_alone(motion: str, moves_camera: bool) -> None:
    clip = sample_clip(2, motion=motion, moves_camera=moves_camera, num_frames=4, size=32)
    assert clip.to_plain() == sample_clip(2, motion=motion, moves_camera=moves_camera, num_frames=4, size=32).to_plain()
    first, last = clip.frames[0], clip.frames[-1]
    moved = [(a, b) for a, b in zip(first.objects, last.objects, strict=True) if a != b]
    assert len(moved) == (motion in ("slide", "turn"))
    for old, new in moved:
        assert new == (replace(old, x=new.x, y=new.y) if motion == "slide" else replace(old, yaw_rad=new.yaw_rad))
    assert (first.sun_turn_rad != last.sun_turn_rad) == (motion == "sun")
    angles = torch.atan2(clip.cameras.positions[:, 1], clip.cameras.positions[:, 0])
    steps = ((angles.diff() + math.pi) % (2 * math.pi) - math.pi).abs() * 180 / math.pi
    assert ((steps > 3.99) & (steps < 6.01) if moves_camera else steps < 1e-4).all()


def test_what_slides_touches_nothing() -> None:
    for seed in range(30):
        for frame in sample_clip(seed, num_frames=5, size=16).frames:
            objects = [item for item in frame.objects if item.z == 0]
            assert all(gap_between(a, b) > -0.02 for i, a in enumerate(objects) for b in objects[:i])


def test_flow_of_a_sliding_ball_agrees_with_the_projection_of_its_points() -> None:
    clip = clip_of(scene_of(BALL), scene_of(replace(BALL, x=0.2, y=0.1)), size=64)
    truth = render_clip(clip)
    v, u = np.nonzero(truth.object_ids[0] == 2)
    depth = torch.from_numpy(truth.depths[0][v, u]).double()
    matrix, intrinsics = (m[0].double() for m in (clip.cameras.camera_to_world, clip.cameras.intrinsics))
    rays = torch.linalg.solve(intrinsics, torch.tensor(np.stack([u + 0.5, v + 0.5, np.ones(len(u))])))
    points = (matrix[:3, :3] @ (rays * depth)).T + matrix[:3, 3] + torch.tensor([0.2, 0.1, 0.0])
    pixels = project_points(points.float(), clip.cameras[1]).pixels.numpy()
    flow = truth.flows[0][:, v, u].T
    np.testing.assert_allclose(flow, pixels - np.stack([u + 0.5, v + 0.5], 1), atol=2e-3)
    assert np.abs(flow).max() > 3
    assert np.abs(truth.flows[0][:, truth.object_ids[0] != 2]).max() < 1e-4


def test_a_turning_objects_points_go_around_its_axis() -> None:
    cube = SceneObject(kind="cube", color="red", pattern="checked", second_color="white")
    truth = render_clip(clip_of(scene_of(cube), scene_of(replace(cube, yaw_rad=0.2)), size=64))
    is_cube = truth.object_ids[0] == 2
    columns = np.nonzero(is_cube)[1]
    near = truth.depths[0] < np.median(truth.depths[0][is_cube])
    # Counterclockwise from above: what is near the camera goes to the right.
    assert truth.flows[0][0][is_cube & near & truth.is_seen[0]].mean() > 1
    assert columns.size > 200


@pytest.mark.parametrize("motion", ["slide", "turn"])
def test_flow_carries_colors_to_where_they_are_seen_next(motion: str) -> None:
    for seed in range(3):
        clip = sample_clip(seed, motion=motion, moves_camera=True, num_frames=3, size=96)
        foggy = replace(clip, frames=tuple(replace(f, time="fog") for f in clip.frames))  # no shadow moves there
        truth = render_clip(foggy)
        v, u = np.mgrid[:96, :96] + 0.5
        places = np.stack([u + truth.flows[0][0], v + truth.flows[0][1]], -1) / 48 - 1
        next_image, sampled = torch.from_numpy(truth.images[1:2]), torch.from_numpy(places)[None].float()
        warped = torch.nn.functional.grid_sample(next_image, sampled, padding_mode="border", align_corners=False)
        ids = truth.object_ids[0]
        # Pixels on an edge mix two surfaces, which go different ways.
        inner = np.stack([np.roll(ids, shift, (0, 1)) == ids for shift in np.ndindex(3, 3)]).all(0)
        chosen = truth.is_seen[0] & np.roll(inner, (-1, -1), (0, 1))
        error = np.abs(warped[0].numpy() - truth.images[0]).max(0)[chosen]
        plain = np.abs(truth.images[1] - truth.images[0]).max(0)[chosen]
        assert np.quantile(error, 0.9) < 0.05
        assert error[plain > 0.05].mean() < 0.5 * plain[plain > 0.05].mean()


def test_what_goes_behind_something_or_out_of_the_picture_is_not_seen_next() -> None:
    camera = sample_clip(0, motion="still", num_frames=2, size=64, scene=scene_of(BALL)).cameras
    toward = camera.positions[0] / camera.positions[0].norm()
    small = SceneObject(kind="cube", color="blue", size="small")
    behind = replace(small, x=float(-1.5 * toward[0]), y=float(-1.5 * toward[1]))
    aside = replace(small, x=float(-1.5 * toward[0] - 1.3 * toward[1]), y=float(-1.5 * toward[1] + 1.3 * toward[0]))
    frames = (scene_of(BALL, aside), scene_of(BALL, behind))
    truth = render_clip(Clip(motion="slide", frames=frames, cameras=camera))
    is_cube = truth.object_ids[0] == 3
    hidden = (truth.object_ids[1] == 3).sum() / is_cube.sum()
    assert is_cube.sum() > 20 and truth.is_seen[0][is_cube].mean() == pytest.approx(hidden, abs=0.15)
    away = Cameras(camera.camera_to_world.clone(), camera.intrinsics, 64, 64)
    away.camera_to_world[1, :3, :3] = away.camera_to_world[1, :3, :3] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    assert not render_clip(Clip(motion="still", frames=(frames[0],) * 2, cameras=away)).is_seen.any()


def test_frames_are_the_worlds_own_pictures() -> None:
    clip = sample_clip(1, motion="sun", num_frames=3, size=32)
    truth = render_clip(clip)
    for index, frame in enumerate(clip.frames):
        view = render_view(frame, clip.cameras[index])
        assert (view.image == truth.images[index]).all() and (view.object_ids == truth.object_ids[index]).all()
    assert np.abs(truth.images[0] - truth.images[2]).max() > 0.05
    assert np.abs(truth.flows).max() < 1e-4 and truth.is_seen.all()


@pytest.mark.parametrize("kind", ["recolour", "reshape", "remove", "ground", "time", "resize", "pattern", "look"])
def test_an_edit_of_a_clip_makes_the_same_change_in_every_frame(kind: str) -> None:
    for seed in range(40):
        clip = sample_clip(seed, num_frames=3, size=16)
        if kind in second.possible_kinds(clip.frames[0]):
            break
    edit = second.sample_edit(clip.frames[0], 0, kind=kind)
    edited = edit_clip(clip, edit)
    assert edited.frames[0] == edit.after and len(edited.frames) == 3
    for frame, old in zip(edited.frames, clip.frames, strict=True):
        places = {(o.x, o.y, o.yaw_rad) for o in old.objects}
        assert {(o.x, o.y, o.yaw_rad) for o in frame.objects} <= places
        assert (frame.ground, frame.time) == (edit.after.ground, edit.after.time)


def test_clips_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(InputError, match="motion"):
        sample_clip(0, motion="fly")
    with pytest.raises(InputError, match="frames"):
        sample_clip(0, num_frames=1)
    with pytest.raises(InputError, match="turn"):
        sample_clip(0, motion="turn", scene=scene_of(BALL))
    clip = sample_clip(0, num_frames=2, size=16)
    edit = second.sample_edit(second.sample_description(99), 0, kind="ground")
    with pytest.raises(InputError, match="first frame"):
        edit_clip(clip, edit)


def test_a_clip_on_disk_has_frames_truth_and_what_to_look_at(tmp_path: Path) -> None:
    clip = sample_clip(3, num_frames=3, size=24)
    truth = write_clip(clip, tmp_path / "clip")
    saved = np.load(tmp_path / "clip" / "truth.npz")
    assert set(saved) == {"depths", "object_ids", "flows", "is_seen"} and (saved["flows"] == truth.flows).all()
    frame = np.asarray(Image.open(tmp_path / "clip" / "frames" / "frame_002.png")) / 255
    assert np.abs(frame - truth.images[2].transpose(1, 2, 0)).max() < 0.003
    assert getattr(Image.open(tmp_path / "clip" / "clip.webp"), "n_frames", 1) == 3
    assert Image.open(tmp_path / "clip" / "sheet.png").width == 3 * 28
    again = read_clip(tmp_path / "clip")
    assert (again.motion, again.frames) == (clip.motion, clip.frames)
    torch.testing.assert_close(again.cameras.camera_to_world, clip.cameras.camera_to_world)
    plain = read_json(tmp_path / "clip" / "clip.json")
    assert tuple(Description.from_plain(frame) for frame in plain["frames"]) == clip.frames

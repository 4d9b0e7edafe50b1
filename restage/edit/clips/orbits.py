"""An orbit of a run's fitted scene as a clip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from restage.clips.files import DEFAULT_RATE, ClipPath, ClipRecord, drop_frames, frame_name
from restage.edit.pictures import write_image
from restage.edit.results import orbit_cameras
from restage.edit.stage import load_scene
from restage.records import InputError, Progress, write_json
from restage.run.layout import CLIP_FRAMES, CLIP_RECORD
from restage.scenes.fit import render_views
from restage.scenes.stage import find_scene

__all__ = ["write_orbit"]

FRAMES_AROUND = 72
"""Frames that go once around: 5 degrees each."""


def write_orbit(run: Path, folder: Path, *, num_frames: int, size: int | None) -> Iterator[Progress]:
    """Render a part of a circle around a scene, 5 degrees a frame; `clip.json` comes last and has the cameras."""
    if num_frames < 2:
        raise InputError(f"expected 2 frames or more, got {num_frames}")
    scene = find_scene(run)
    capture, splats = load_scene(scene)
    cameras = orbit_cameras(capture, max(FRAMES_AROUND, num_frames))[:num_frames]
    if size is not None:
        scale = size / max(cameras.width, cameras.height)
        cameras = cameras.to_size(round(scale * cameras.width), round(scale * cameras.height))
    for index in range(num_frames):
        write_image(folder / CLIP_FRAMES / frame_name(index), render_views(splats, cameras[index])[0])
        yield Progress(stage="clip", done=index + 1, total=num_frames)
    drop_frames(folder, num_frames)
    path = ClipPath(camera_to_world=cameras.camera_to_world.tolist(), intrinsics=cameras.intrinsics.tolist())
    record = ClipRecord(frames_per_s=DEFAULT_RATE, source=f"an orbit of {scene.name}", cameras=path)
    write_json(folder / CLIP_RECORD, record)

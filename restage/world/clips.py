"""Moving clips of the procedural world: an object slides or turns, or the sun moves, with exact truth for each frame.

Every frame is a plain description, so whatever knows scenes knows clips. Called by `restage clip` and by what learns or
judges motion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32
from numpy import ndarray as Array
from PIL import Image, ImageDraw

from restage.records import (
    EditCase,
    EditRequest,
    InputError,
    derive_seed,
    read_json,
    write_atomically,
    write_json,
)
from restage.run.layout import CLIP_RECORD, CLIP_TRUTH, DESCRIPTION, EDIT_CASE, IMAGES, MASKS, TRUTH
from restage.scenes.cameras import Cameras, project_points, unproject_depth
from restage.world import grammar, second
from restage.world.capture import CHANGE_THRESHOLD, camera_at, clearness_of, middle_height, scene_radius, shown_together
from restage.world.description import Description, Edit
from restage.world.kernels import FIRST_OBJECT_ID
from restage.world.places import MAX_REACH, MIN_GAP, carriers, gap_between
from restage.world.render import cast_rays, render_view
from restage.world.stage import edit_name

__all__ = ["MOTIONS", "Clip", "ClipTruth", "edit_clip", "read_clip", "render_clip", "sample_clip", "sample_clip_edits"]
__all__ += ["write_clip", "write_clip_truth"]

MOTIONS = ("slide", "turn", "sun", "still")
"""What moves beside the camera."""
ROUND_KINDS = ("ball", "cylinder", "cone", "tree", "mushroom")
"""Kinds whose turning can be seen on a pattern alone."""
SLIDE = (0.7, 1.5)
"""Least and greatest way of an object that slides, in world units, over the whole clip."""
TURN_DEGREES, SUN_DEGREES, CAMERA_DEGREES = (60, 150), (50, 120), (4, 6)
"""Least and greatest angle: of an object and of the sun over the whole clip, of the camera from frame to frame."""
MAX_TRIES = 100
SAME_SURFACE = 2e-3
"""Share of the depth up to which two rays meet the same place."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames at even times."""

    motion: str
    """One of `MOTIONS`."""
    frames: tuple[Description, ...]
    cameras: Cameras
    """One a frame; all the same where the camera does not move."""

    def to_plain(self) -> dict[str, Any]:
        """Return its JSON form."""
        cameras = {"camera_to_world": self.cameras.camera_to_world.tolist(), "size": self.cameras.width}
        cameras["intrinsics"] = self.cameras.intrinsics.tolist()
        return {"motion": self.motion, "frames": self.frames, "cameras": cameras}


class ClipTruth(NamedTuple):
    """What a clip shows, and where everything goes."""

    images: Float32[Array, "n 3 h w"]
    """RGB in [0, 1]."""
    depths: Float32[Array, "n h w"]
    """z in the camera frame at the pixel's center, world units."""
    object_ids: Int32[Array, "n h w"]
    flows: Float32[Array, "m 2 h w"]
    """How far, in pixels to the right and down, what a pixel's center shows has gone by the next frame; m = n - 1."""
    is_seen: Bool[Array, "m h w"]
    """Whether the next frame shows it: neither outside of the picture nor behind something."""


# --- what moves -----------------------------------------------------------------------------------------------------


def _sample_angle(rng: np.random.Generator, degrees: tuple[int, int]) -> float:
    return math.radians(rng.uniform(*degrees)) * float(rng.choice([-1, 1]))


def _move(rng: np.random.Generator, scene: Description, motion: str, num_frames: int) -> list[Description] | None:
    """Return the frames; None where nothing was found that can move so that it shows."""
    shares = np.linspace(0, 1, num_frames).tolist()
    if motion == "still":
        return [scene] * num_frames
    if motion == "sun":
        angle = _sample_angle(rng, SUN_DEGREES)
        # In fog the sun throws no shadows.
        return [replace(scene, sun_turn_rad=share * angle) for share in shares] if scene.time != "fog" else None
    for _ in range(MAX_TRIES):
        index = int(rng.integers(len(scene.objects)))
        item, angle, way = scene.objects[index], rng.uniform(0, 2 * math.pi), rng.uniform(*SLIDE)
        if motion == "turn":
            angle = _sample_angle(rng, TURN_DEGREES)
            path = [replace(item, yaw_rad=item.yaw_rad + share * angle) for share in shares]
            is_possible = item.kind not in ROUND_KINDS or item.pattern not in ("", "banded")
        else:
            dx, dy = way * math.cos(angle), way * math.sin(angle)
            path = [replace(item, x=item.x + share * dx, y=item.y + share * dy) for share in shares]
            others = [o for o in scene.objects if o is not item]
            is_free = all(gap_between(step, other) > MIN_GAP for step in path for other in others)
            is_possible = is_free and item.z == 0 and math.hypot(path[-1].x, path[-1].y) < MAX_REACH
        if is_possible and index not in carriers(scene):
            before, after = scene.objects[:index], scene.objects[index + 1 :]
            return [replace(scene, objects=(*before, step, *after)) for step in path]
    return None


def sample_clip(
    seed: int,
    *,
    motion: str = "slide",
    moves_camera: bool = False,
    num_frames: int = 8,
    size: int = 128,
    scene: Description | None = None,
    split: str = "train",
) -> Clip:
    """Sample a clip; the same arguments give the same clip on any machine.

    The camera goes around the scene by 4 to 6 degrees a frame, or stands still. Scenes are of the grammar's second
    edition unless one is given, which is then the first frame.

    Raises:
        InputError: there is no such motion, fewer than two frames are asked for, or the given scene cannot move so.
    """
    if motion not in MOTIONS or num_frames < 2:
        raise InputError(
            f"expected a motion out of {', '.join(MOTIONS)} and 2 frames or more, got {motion}, {num_frames}"
        )
    frames, draw = None, 0
    while frames is None:
        rng = np.random.default_rng(derive_seed("clip", seed, motion, draw))
        start = scene or second.sample_description(derive_seed("clip", seed, draw), split=split)
        frames, draw = _move(rng, start, motion, num_frames), draw + 1
        if frames is None and scene is not None:
            raise InputError(f"nothing in this scene can {motion} so that it shows; take another motion or scene")
    return Clip(motion=motion, frames=tuple(frames), cameras=_sample_path(seed, frames, moves_camera, size))


def _sample_path(seed: int, frames: list[Description], moves_camera: bool, size: int) -> Cameras:
    """Choose a camera for each frame: of some paths the one on which the worst seen object is seen best."""
    rng = np.random.default_rng(derive_seed("clip camera", seed))
    framed = shown_together(*frames)
    best, best_clearness = None, -1.0
    for _ in range(8):
        angle, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(10, 27))
        radius, step = scene_radius(framed) * rng.uniform(0.95, 1.12), _sample_angle(rng, CAMERA_DEGREES)
        path = [
            camera_at(angle + step * i * moves_camera, elevation, radius, size, target_height=middle_height(framed))
            for i in range(len(frames))
        ]
        clearness = min(clearness_of(frames[i], path[i]) for i in range(0, len(frames), 2))
        if clearness > best_clearness:
            best, best_clearness = path, clearness
        if clearness >= 1:
            break
    assert best is not None
    poses, intrinsics = ([getattr(c, name) for c in best] for name in ("camera_to_world", "intrinsics"))
    return Cameras(torch.cat(poses), torch.cat(intrinsics), size, size)


def edit_clip(clip: Clip, edit: Edit) -> Clip:
    """Make the same change in every frame, for the exact truth of a clip's edit.

    Raises:
        InputError: the edit starts from another scene, or it adds or moves an object, which may be in the way.
    """
    if edit.before != clip.frames[0] or edit.kind in ("add", "move"):
        raise InputError("expected an edit of the clip's first frame that neither adds nor moves an object")
    before, after = edit.before, edit.after
    kept = [i for i in range(len(before.objects)) if edit.kind != "remove" or before.objects[i] in after.objects]
    changes = [
        {name: value for name, value in vars(new).items() if value != getattr(before.objects[i], name)}
        for i, new in zip(kept, after.objects, strict=True)
    ]
    frames = tuple(
        replace(
            frame,
            objects=tuple(replace(frame.objects[i], **change) for i, change in zip(kept, changes, strict=True)),
            ground=after.ground,
            time=after.time,
        )
        for frame in clip.frames
    )
    return replace(clip, frames=frames)


# --- truth ----------------------------------------------------------------------------------------------------------


def render_clip(clip: Clip) -> ClipTruth:
    """Render a clip and find, by rays, where everything that it shows goes."""
    views = [render_view(frame, clip.cameras[i]) for i, frame in enumerate(clip.frames)]
    flows, is_seen = zip(*(_flow(clip, i) for i in range(len(clip.frames) - 1)), strict=True)
    return ClipTruth(*(np.stack(part) for part in (*zip(*views, strict=True), flows, is_seen)))


def _flow(clip: Clip, index: int) -> tuple[Float32[Array, "2 h w"], Bool[Array, "h w"]]:
    """Return the flow from a frame to the next one, and what is seen there as well."""
    (now, then), (width, height) = clip.frames[index : index + 2], (clip.cameras.width, clip.cameras.height)
    # All in float64: on far ground a rounded depth would show in the flow.
    camera, next_camera = (
        Cameras(c.camera_to_world.double(), c.intrinsics.double(), width, height)
        for c in (clip.cameras[index], clip.cameras[index + 1])
    )
    grid = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1).reshape(-1, 2)
    depths, ids = cast_rays(now, camera, grid)
    points = unproject_depth(torch.from_numpy(depths).reshape(height, width), camera).reshape(-1, 3).numpy()
    for k, (old, new) in enumerate(zip(now.objects, then.objects, strict=True)):
        if old != new:  # the points of an object go and turn with it
            chosen, turn = ids == FIRST_OBJECT_ID + k, new.yaw_rad - old.yaw_rad
            x, y, z = (points[chosen] - (old.x, old.y, old.z)).T
            cos, sin = math.cos(turn), math.sin(turn)
            points[chosen] = np.stack([cos * x - sin * y + new.x, sin * x + cos * y + new.y, z + new.z], 1)
    pixels, next_depths = (part.numpy() for part in project_points(torch.from_numpy(points), next_camera))
    is_inside = (next_depths > 0) & (pixels >= 0).all(1) & (pixels < (width, height)).all(1)
    met_depths, met_ids = cast_rays(then, next_camera, pixels)
    is_seen = is_inside & (met_ids == ids) & (np.abs(met_depths - next_depths) < SAME_SURFACE * next_depths)
    return (pixels - grid).astype(np.float32).T.reshape(2, height, width), is_seen.reshape(height, width)


# --- files ----------------------------------------------------------------------------------------------------------


def write_clip(clip: Clip, folder: Path, *, frames_per_s: int = 8) -> ClipTruth:
    """Write a clip: `clip.json`, `frames/`, `truth.npz`, and to look at `clip.webp` and `sheet.png`.

    Rows of the sheet: frames; flow as color (its direction is the hue) where the next frame still shows what moves;
    each frame as it follows from the next one by flow, gray where that cannot be known.
    """
    truth = render_clip(clip)
    pictures = [_to_uint8(image.transpose(1, 2, 0)) for image in truth.images]
    for left in (folder / "frames").glob("frame_*.png"):  # by a longer clip that was stopped before its record
        left.unlink()
    for index, picture in enumerate(pictures):
        with write_atomically(folder / "frames" / f"frame_{index:03d}.png") as temporary:
            picture.save(temporary, format="PNG")
    _write_arrays(folder / CLIP_TRUTH, truth)
    with write_atomically(folder / "clip.webp") as temporary:
        settings = {"save_all": True, "duration": 1000 // frames_per_s, "loop": 0, "lossless": True}
        pictures[0].save(temporary, format="WEBP", append_images=pictures[1:], **settings)
    with write_atomically(folder / "sheet.png") as temporary:
        _draw_sheet(clip, truth, pictures).save(temporary, format="PNG")
    write_json(folder / DESCRIPTION, clip.frames[0])
    write_json(folder / CLIP_RECORD, {**clip.to_plain(), "frames_per_s": frames_per_s})
    return truth


def _write_arrays(path: Path, truth: ClipTruth) -> None:
    arrays: dict[str, Any] = {name: value for name, value in truth._asdict().items() if name != "images"}
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_clip(folder: Path) -> Clip:
    """Read a clip of the world back from its `clip.json`; another clip, which has no descriptions, is refused."""
    plain = read_json(folder / CLIP_RECORD, _ClipPlain)
    cameras, size = plain.cameras, plain.cameras.size
    poses, intrinsics = torch.tensor(cameras.camera_to_world), torch.tensor(cameras.intrinsics)
    return Clip(motion=plain.motion, frames=plain.frames, cameras=Cameras(poses, intrinsics, size, size))


@dataclass(frozen=True, kw_only=True)
class _CamerasPlain:
    camera_to_world: list[list[list[float]]]
    intrinsics: list[list[list[float]]]
    size: int


@dataclass(frozen=True, kw_only=True)
class _ClipPlain:
    motion: str
    frames: tuple[Description, ...]
    cameras: _CamerasPlain


def sample_clip_edits(clip: Clip, kinds: Sequence[str], seed: int, *, edition: int = 2) -> list[Edit]:
    """Sample an edit of each kind of a clip's first frame, in the words of an edition of the grammar."""
    writer = second if edition == 2 else grammar
    return [
        writer.sample_edit(clip.frames[0], derive_seed("clip edit", seed), kind=kind, split="all") for kind in kinds
    ]


def write_clip_truth(clip: Clip, edit: Edit, folder: Path) -> str:
    """Write the exact frames of an edited clip below its folder, as the truth of a scene's edit; returns its name."""
    name, known = edit_name(edit), render_clip(edit_clip(clip, edit))
    truth = folder / TRUTH / name
    for index, (before, target) in enumerate(zip(clip.frames, known.images, strict=True)):
        source = render_view(before, clip.cameras[index]).image
        file = f"frame_{index:03d}.png"
        with write_atomically(truth / IMAGES / file) as temporary:
            _to_uint8(target.transpose(1, 2, 0)).save(temporary, format="PNG")
        changed = np.abs(target - source).max(axis=0) > CHANGE_THRESHOLD
        with write_atomically(truth / MASKS / file) as temporary:
            Image.fromarray(changed.astype(np.uint8) * 255).save(temporary, format="PNG")
    _write_arrays(truth / CLIP_TRUTH, known)
    pair = grammar.prompt_pair_of(edit, 0)
    request = EditRequest(instruction=edit.instruction, source_caption=pair.source, target_caption=pair.target)
    case = EditCase(scene=folder.resolve().name, kind=edit.kind, request=request, has_truth=True)
    write_json(truth / EDIT_CASE, case)
    return name


def _to_uint8(image: Float32[Array, "h w 3"]) -> Image.Image:
    return Image.fromarray((image.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def _draw_sheet(clip: Clip, truth: ClipTruth, pictures: list[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    caption = second.caption_of(clip.frames[0], 0)
    sheet = Image.new("RGB", (len(pictures) * (width + 4), 3 * (height + 4) + 18), "white")
    ImageDraw.Draw(sheet).text((2, 3), f"{clip.motion}: {caption}", fill="black")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index * (width + 4), 18))
    longest = max(1.0, float(np.abs(truth.flows[:, :, truth.is_seen.any(0)]).max(initial=1.0)))
    for index, (flow, is_seen) in enumerate(zip(truth.flows, truth.is_seen, strict=True)):
        hue, length = np.arctan2(flow[1], flow[0]) / (2 * math.pi) % 1, np.hypot(*flow) / longest
        colors = np.stack([hue, length.clip(0, 1), np.where(is_seen, 1.0, 0.4)], -1) * 255
        drawn = Image.fromarray(colors.astype(np.uint8), "HSV").convert("RGB")
        sheet.paste(drawn, (index * (width + 4), height + 22))
        v, u = np.mgrid[:height, :width]
        u, v = (np.floor(p + 0.5 + d).astype(int) for p, d in ((u, flow[0]), (v, flow[1])))
        back = truth.images[index + 1][:, v.clip(0, height - 1), u.clip(0, width - 1)]
        back = np.where(is_seen, back, 0.5).astype(np.float32)
        sheet.paste(_to_uint8(back.transpose(1, 2, 0)), (index * (width + 4), 2 * height + 26))
    return sheet

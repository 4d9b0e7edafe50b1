"""Packs the scenes of edits so that the page can draw them itself: splats as SPZ in a script, and where to look from.

A page that is opened from disk may fetch no file, but it may add a script; `turn.js` draws what is in it.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from restage.report.pictures import AssetFolder
from restage.run.layout import CAPTURE, SPLATS
from restage.scenes.io.nerfstudio import NERFSTUDIO
from restage.scenes.io.posed import ReadOptions
from restage.scenes.io.splat_files import read_splats, write_splats
from restage.scenes.splats import Splats

__all__ = ["MAX_PAGE_BYTES", "SceneCameras", "SceneStore", "TurnableEdit", "read_cameras", "thin_out"]

MAX_SCENE_BYTES = 3_000_000
"""Most bytes of the script that holds one scene; of larger ones the splats that show least are left out."""
MAX_PAGE_BYTES = 24_000_000
"""Shared by the edits of a page, beyond the scene before and the one that is shown first, which each edit has."""
SPZ_AXES = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
"""From the axes of a PLY to those of SPZ."""


class PackedScene(NamedTuple):
    """Splats as the page takes them."""

    path: str  # path of the script relative to the page
    num_bytes: int
    middle: Float[Tensor, 3]
    num_kept: int
    num_splats: int  # before any were left out


@dataclass(frozen=True, kw_only=True)
class SceneCameras:
    """The cameras of a scene's capture; matrices are float64 in OpenCV axes, lengths on the image in shares of it."""

    names: Sequence[str]  # file names without their ending
    camera_to_world: Float[Tensor, "n 4 4"]
    lenses: Sequence[tuple[float, float, float, float]]
    """Focal lengths in shares of the width and of the height, and the center in the same."""
    width: int
    height: int

    @property
    def positions(self) -> Float[Tensor, "n 3"]:
        """Where the cameras stand."""
        return self.camera_to_world[:, :3, 3]

    def script_data(self, view: str, middle: Float[Tensor, 3]) -> dict[str, Any]:
        """One camera as `turn.js` takes it, of the named view or else the first; it turns around the `middle`'s depth.

        Numbers are rounded to what can be seen, which keeps the page the same on any machine.
        """
        index = self.names.index(view) if view in self.names else 0
        distance = float((self.positions - middle).norm(dim=1).median().clamp_min(1e-3))
        matrix = self.camera_to_world[index, :3] * SPZ_AXES[:, None]
        return {
            "position": _rounded(matrix[:, 3]),
            "axes": [_rounded(matrix[:, axis]) for axis in range(3)],
            "lens": [round(value, 6) for value in self.lenses[index]],
            "distance": round(distance, 6),
        }

    @property
    def up(self) -> list[float]:
        """The direction that is up on average over the views, in the axes of SPZ."""
        up = -self.camera_to_world[:, :3, 1].mean(dim=0) * SPZ_AXES
        return _rounded(up / up.norm().clamp_min(1e-6))


def _rounded(values: Float[Tensor, 3]) -> list[float]:
    return [round(value, 6) + 0.0 for value in values.tolist()]


def read_cameras(scene_folder: Path) -> SceneCameras | None:
    """The cameras of a fitted scene's capture, without its pictures; None where the capture is not stored."""
    found = NERFSTUDIO.find(scene_folder / CAPTURE)
    if found is None:
        return None
    photos = NERFSTUDIO.read(found, scene_folder.name, ReadOptions()).photos
    if not photos:
        return None
    lenses = [photo.lens for photo in photos]
    return SceneCameras(
        names=[Path(photo.name).stem for photo in photos],
        camera_to_world=torch.stack([photo.camera_to_world for photo in photos]).double(),
        lenses=[
            (
                lens.focal_x_px / lens.width,
                lens.focal_y_px / lens.height,
                lens.center_x_px / lens.width,
                lens.center_y_px / lens.height,
            )
            for lens in lenses
        ],
        width=lenses[0].width,
        height=lenses[0].height,
    )


def thin_out(splats: Splats, positions: Float[Tensor, "n 3"], count: int) -> Splats:
    """The `count` splats that cover most of the nearest camera's image, opacity counted in, in the order they had."""
    if len(splats) <= count:
        return splats
    axes = splats.log_scales.sort(dim=1).values[:, 1:].sum(dim=1).double()
    depths = torch.cat([torch.cdist(part.double(), positions).amin(dim=1) for part in splats.means.split(65536)])
    shown = splats.opacity_logits.double().sigmoid() * (axes - 2 * depths.clamp_min(1e-6).log()).exp()
    return splats[shown.topk(count).indices.sort().values]


@dataclass(frozen=True, kw_only=True)
class TurnableEdit:
    """An edit whose scenes the page can turn around."""

    width: int  # size of the capture's pictures in pixels
    height: int
    script_data: Mapping[str, Any]
    """What `turn.js` needs: cameras by shown view, paths of the scenes before and after, by method."""
    note: str  # how many splats there are, and whether some were left out


@dataclass
class SceneStore:
    """Stores the scenes of a page as its assets; the same splats once."""

    assets: AssetFolder
    bytes_per_edit: int  # for scenes beyond the one before and the one that is shown first
    packed: dict[Path, PackedScene | None] = field(default_factory=dict)
    cameras: dict[Path, SceneCameras | None] = field(default_factory=dict)

    def store_edit(
        self, scene: Path, results: Sequence[Path], *, chosen: int, views: Sequence[str]
    ) -> TurnableEdit | None:
        """Store the scene before an edit and after it by each method, whose folders are given, in turn.

        None where the chosen result or the capture's cameras are not stored. Views are names without their ending.
        """
        if scene not in self.cameras:
            self.cameras[scene] = read_cameras(scene)
        cameras, label = self.cameras[scene], f"scene-{scene.name}"
        shown = self._add(results[chosen], cameras, label) if cameras is not None else None
        if cameras is None or shown is None:
            return None
        before = self._add(scene, cameras, label)
        after, left = [], self.bytes_per_edit
        for index, folder in enumerate(results):
            found = shown if index == chosen else self._add(folder, cameras, label) if left > 0 else None
            left -= found.num_bytes if found is not None and index != chosen else 0
            after.append(found.path if found is not None else None)
        data = {
            "width": cameras.width,
            "height": cameras.height,
            "up": cameras.up,
            "cameras": [cameras.script_data(view, shown.middle) for view in views or cameras.names[:1]],
            "before": before.path if before is not None else None,
            "after": after,
        }
        return TurnableEdit(width=cameras.width, height=cameras.height, script_data=data, note=_count(shown))

    def store_scene(self, scene: Path, view: str) -> TurnableEdit | None:
        """Store a scene by itself, first seen from a view; None where its splats or its cameras are not stored."""
        cameras = read_cameras(scene)
        shown = self._add(scene, cameras, f"scene-{scene.name}") if cameras is not None else None
        if cameras is None or shown is None:
            return None
        data = {
            "width": cameras.width,
            "height": cameras.height,
            "up": cameras.up,
            "cameras": [cameras.script_data(view, shown.middle)],
            "before": None,
            "after": [shown.path],
        }
        return TurnableEdit(width=cameras.width, height=cameras.height, script_data=data, note=_count(shown))

    def _add(self, folder: Path, cameras: SceneCameras, label: str) -> PackedScene | None:
        path = folder / SPLATS
        if path not in self.packed:
            self.packed[path] = self._pack(path, cameras, label) if path.is_file() else None
        return self.packed[path]

    def _pack(self, path: Path, cameras: SceneCameras, label: str) -> PackedScene:
        splats = read_splats(path)
        content, num_kept = _as_script(splats, cameras.positions)
        stored = self.assets.add_bytes(content, label, suffix=".js")
        middle = splats.means.double().median(dim=0).values
        return PackedScene(stored, len(content), middle, num_kept, len(splats))


def _count(scene: PackedScene) -> str:
    if scene.num_kept == scene.num_splats:
        return f"{scene.num_splats:,} splats"
    return f"the {scene.num_kept:,} of {scene.num_splats:,} splats that cover most, to keep the page small"


def _as_script(splats: Splats, positions: Float[Tensor, "n 3"]) -> tuple[bytes, int]:
    """A script that hands the splats to the page, at most `MAX_SCENE_BYTES` long, and how many splats are in it."""
    count = len(splats)
    while True:
        kept = thin_out(splats, positions, count)
        script = f"restageScene({json.dumps(base64.b64encode(_as_spz(kept)).decode())});\n".encode()
        if len(script) <= MAX_SCENE_BYTES:
            return script, len(kept)
        count = int(0.98 * len(kept) * MAX_SCENE_BYTES / len(script))


def _as_spz(splats: Splats) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.spz"
        write_splats(replace(splats, means=splats.means.float()), path)
        return path.read_bytes()

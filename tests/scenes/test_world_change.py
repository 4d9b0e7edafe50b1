"""Coordinates of any size and place: the world is moved once in float64, and given back in every export."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from restage.records import read_json
from restage.scenes.capture import Capture
from restage.scenes.config import FitConfig
from restage.scenes.fit import render_views
from restage.scenes.io import read_capture, read_splats, write_capture, write_points
from restage.scenes.io.ply import read_vertices
from restage.scenes.stage import fit_capture, fit_folder
from restage.scenes.turning import export_splats
from tests.scenes.ball import ball_capture
from tests.scenes.tiny_captures import ColmapModel, change, save_images, small_capture

PLACES = {
    "UTM": (1.0, (320_000.25, 5_100_000.5, 410.0)),
    "earth-centered": (30.0, (4_177_000.0, 855_000.0, 4_728_000.0)),
    "millimeters": (1000.0, (0.0, 0.0, 0.0)),
    "tiny": (1e-4, (0.0, 0.0, 0.0)),
    "tiny and far": (1e-3, (1e4, 0.0, -1e4)),
}


def write_moved(capture: Capture, folder: Path, scale: float, shift: tuple[float, ...], turn: np.ndarray) -> None:
    """The capture in another world, as COLMAP text with all digits."""
    model = ColmapModel.of_capture(capture)
    for index, (number, _, _, camera, name) in enumerate(model.images):
        camera_to_world = capture.cameras.camera_to_world[index].double().numpy()
        rotation = Rotation.from_matrix((turn @ camera_to_world[:3, :3]).T)  # the nearest one: far away, 1e-7 counts
        x, y, z, w = rotation.as_quat()
        translation = -rotation.as_matrix() @ (scale * turn @ camera_to_world[:3, 3] + np.array(shift))
        model.images[index] = (number, np.array([w, x, y, z]), translation, camera, name)
    model.points = [(n, scale * turn @ position + np.array(shift), color) for n, position, color in model.points]
    model.write_text(folder / "sparse/0")
    save_images(capture.images, folder / "images", capture.file_names)


def plain(folder: Path, capture: Capture) -> Capture:
    write_moved(capture, folder, 1.0, (0.0, 0.0, 0.0), np.eye(3))
    return read_capture(folder)


@pytest.mark.parametrize("place", PLACES)
def test_a_moved_world_is_read_with_all_its_digits(tmp_path, place):
    scale, shift = PLACES[place]
    expected = plain(tmp_path / "plain", small_capture())
    write_moved(small_capture(), tmp_path / "moved", scale, shift, np.eye(3))
    found = read_capture(tmp_path / "moved")
    assert expected.own_to_world is None and found.own_to_world is not None
    own_to_world = found.own_to_world.numpy()
    in_own = scale * expected.cameras.positions.double().numpy() + np.array(shift)
    np.testing.assert_allclose(
        found.cameras.positions.numpy(), in_own @ own_to_world[:3, :3].T + own_to_world[:3, 3], atol=3e-5
    )
    ratio = own_to_world[0, 0] * scale
    distances = torch.cdist(expected.points, expected.cameras.positions) * ratio
    torch.testing.assert_close(torch.cdist(found.points, found.cameras.positions), distances, atol=1e-4, rtol=1e-4)
    assert 1 < float(distances.median()) < 10


def test_points_that_their_file_has_rounded_to_a_coarse_grid_are_spread_over_its_cells(tmp_path):
    shift = torch.tensor([320_000.25, 5_100_000.5, 410.0], dtype=torch.float64)
    points = small_capture().points.repeat(60, 1) + 0.01 * torch.randn(
        420, 3, generator=torch.Generator().manual_seed(1)
    )
    capture = replace(small_capture(), points=points, point_colors=torch.full((420, 3), 0.5))
    write_capture(capture, tmp_path)

    def move(meta: dict[str, Any]) -> None:
        for frame in meta["frames"]:
            for row in range(3):
                frame["transform_matrix"][row][3] += float(shift[row])

    change(tmp_path, move)
    write_points(points.double() + shift, tmp_path / "sparse_pc.ply", colors=capture.point_colors)
    with pytest.warns(UserWarning, match=r"a grid 0\.5 apart"):
        found = read_capture(tmp_path)
    assert found.own_to_world is not None
    in_own = (found.points.double() - found.own_to_world[:3, 3]) / found.own_to_world[0, 0]
    rounded = (points.double() + shift).float().double()
    cells = torch.tensor([0.03125, 0.5, 3.0517578125e-05], dtype=torch.float64)
    assert ((in_own - rounded).abs() <= 0.5 * cells + 1e-4).all()
    assert len(torch.unique(rounded[:, 1])) < 30 and len(torch.unique(found.points[:, 1])) > 400


def test_an_ordinary_world_keeps_its_bits(tmp_path):
    assert plain(tmp_path, small_capture()).own_to_world is None
    write_capture(small_capture(), tmp_path / "ns")
    found = read_capture(tmp_path / "ns")
    assert found.own_to_world is None
    assert torch.equal(found.cameras.camera_to_world, small_capture().cameras.camera_to_world)


@pytest.mark.parametrize("place", ["UTM", "earth-centered", "millimeters"])
def test_a_fit_of_a_moved_scene_is_as_good_and_its_export_fits_the_captures_own_cameras(tmp_path, place):
    scale, shift = PLACES[place]
    turn = Rotation.from_rotvec([0.3, -0.2, 1.0]).as_matrix() if place == "earth-centered" else np.eye(3)
    config = FitConfig(steps=150, num_splats=400)
    write_moved(ball_capture(), tmp_path / "plain", 1.0, (0.0, 0.0, 0.0), np.eye(3))
    write_moved(ball_capture(), tmp_path / "moved", scale, shift, turn)
    records = {}
    for name in ("plain", "moved"):
        list(fit_folder(tmp_path / name, tmp_path / f"run-{name}", config))
        records[name] = read_json(tmp_path / f"run-{name}/scenes/{name}/fit.json")
    assert records["moved"]["held_out_psnr_db"] == pytest.approx(records["plain"]["held_out_psnr_db"], abs=0.5)

    scene = tmp_path / "run-moved/scenes/moved"
    export_splats(scene, tmp_path / "own.ply", frame="own")
    rows = read_vertices(tmp_path / "own.ply")
    centers = np.stack([rows[name] for name in "xyz"], axis=1)
    assert rows["x"].dtype == (np.float64 if place == "UTM" else rows["x"].dtype)
    upright = read_splats(scene / "splats.ply")
    own_to_world = np.array(records["moved"]["own_to_world"])
    back = centers @ own_to_world[:3, :3].T + own_to_world[:3, 3]
    np.testing.assert_allclose(back, upright.means.numpy(), atol=1e-3)
    spread = np.linalg.norm(centers - np.median(centers, axis=0), axis=1)
    assert 0.3 * scale < np.median(spread) < 20 * scale
    factor = np.log(np.linalg.norm(own_to_world[0, :3]))
    np.testing.assert_allclose(read_splats(tmp_path / "own.ply").log_scales, upright.log_scales - factor, atol=1e-4)


def test_a_run_gives_back_what_its_capture_was_made_of(tmp_path):
    scale, shift = PLACES["UTM"]
    write_moved(small_capture(), tmp_path / "moved", scale, shift, np.eye(3))
    capture = read_capture(tmp_path / "moved")
    write_capture(capture, tmp_path / "capture")
    again = read_capture(tmp_path / "capture")
    assert again.own_to_world is not None and capture.own_to_world is not None
    assert torch.equal(again.own_to_world, capture.own_to_world)
    assert torch.equal(again.cameras.camera_to_world, capture.cameras.camera_to_world)
    list(fit_capture(again, tmp_path / "scene", FitConfig(steps=2, num_splats=50)))
    assert json.loads((tmp_path / "scene/fit.json").read_text())["own_to_world"] == capture.own_to_world.tolist()


def test_splats_in_their_own_frame_look_the_same_to_the_own_cameras(tmp_path):
    scale, shift = PLACES["millimeters"]
    write_moved(small_capture(), tmp_path / "moved", scale, shift, np.eye(3))
    capture = read_capture(tmp_path / "moved")
    list(fit_capture(capture, tmp_path / "scene", FitConfig(steps=2, num_splats=80)))
    export_splats(tmp_path / "scene", tmp_path / "own.ply", frame="own")
    poses = small_capture().cameras.camera_to_world.clone()
    poses[:, :3, 3] *= scale
    own_cameras = replace(capture.cameras, camera_to_world=poses)
    expected = render_views(read_splats(tmp_path / "scene/splats.ply"), capture.cameras)
    found = render_views(read_splats(tmp_path / "own.ply"), own_cameras)
    assert float(expected.std()) > 0.02
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)

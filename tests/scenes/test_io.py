"""Captures and splats survive their files; broken folders give one clear line."""

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from restage.records import InputError
from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.capture import Capture
from restage.scenes.io import read_capture, read_points, read_splats, write_capture, write_points, write_splats
from restage.scenes.splats import Splats


def small_capture(num_views: int = 9) -> Capture:
    generator = torch.Generator().manual_seed(0)
    intrinsics = intrinsics_from_fov(0.9, 20, 16).repeat(num_views, 1, 1)
    intrinsics[:, 0, 2] += torch.arange(num_views) * 0.1
    return Capture(
        name="small",
        cameras=Cameras(orbit(num_views, 3.0, height=1.0), intrinsics, 20, 16),
        images=(torch.rand(num_views, 3, 16, 20, generator=generator) * 255).round() / 255,
        file_names=tuple(f"view_{index:02d}.png" for index in range(num_views)),
        points=torch.randn(7, 3, generator=generator),
        point_colors=(torch.rand(7, 3, generator=generator) * 255).round() / 255,
        train_indices=tuple(range(num_views - 2)),
        held_out_indices=(num_views - 2, num_views - 1),
    )


@pytest.fixture
def folder(tmp_path):
    write_capture(small_capture(), tmp_path / "small")
    return tmp_path / "small"


def change(folder, edit) -> None:
    meta = json.loads((folder / "transforms.json").read_text())
    edit(meta)
    (folder / "transforms.json").write_text(json.dumps(meta))


def test_a_written_capture_reads_back_the_same(folder):
    written, found = small_capture(), read_capture(folder)
    torch.testing.assert_close(found.images, written.images, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.cameras.camera_to_world, written.cameras.camera_to_world, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.cameras.intrinsics, written.cameras.intrinsics)
    torch.testing.assert_close(found.points, written.points)
    torch.testing.assert_close(found.point_colors, written.point_colors)
    assert found.train_indices == written.train_indices
    assert found.held_out_indices == written.held_out_indices
    assert found.file_names == written.file_names
    assert found.name == "small"


def test_the_file_has_opengl_axes(folder):
    meta = json.loads((folder / "transforms.json").read_text())
    matrix = torch.tensor(meta["frames"][0]["transform_matrix"])
    backward = matrix[:3, 3] / matrix[:3, 3].norm()
    assert float(matrix[:3, 2] @ backward) > 0.9
    assert float(matrix[2, 1]) > 0.5


def test_without_a_split_every_eighth_view_is_held_out(folder):
    change(folder, lambda meta: [meta.pop(f"{name}_filenames") for name in ("train", "val", "test")])
    assert read_capture(folder).held_out_indices == (0, 8)


def test_a_smaller_size_keeps_the_view_and_the_mean(folder):
    whole, small = read_capture(folder), read_capture(folder, 10)
    assert tuple(small.images.shape) == (9, 3, 8, 10)
    torch.testing.assert_close(small.cameras.intrinsics[:, :2], whole.cameras.intrinsics[:, :2] / 2)
    torch.testing.assert_close(small.images.mean(dim=(2, 3)), whole.images.mean(dim=(2, 3)), atol=1e-4, rtol=0)


def test_global_intrinsics_of_another_size_are_scaled(folder):
    def edit(meta):
        for frame in meta["frames"]:
            for name in ("fl_x", "fl_y", "cx", "cy"):
                frame.pop(name)
        meta.update(w=40, h=32, fl_x=50.0, fl_y=48.0, cx=20.0, cy=15.0)

    change(folder, edit)
    intrinsics = read_capture(folder).cameras.intrinsics[0]
    torch.testing.assert_close(intrinsics[:2], torch.tensor([[25.0, 0, 10.0], [0, 24.0, 7.5]]))


def test_distortion_is_taken_out(tmp_path):
    """A distorted grid of dots, as OpenCV's own model draws it, lies straight after reading."""
    width = height = 200
    dots = np.array([[x, y, 1.0] for x in (-0.4, 0.0, 0.4) for y in (-0.4, 0.0, 0.4)])
    intrinsics = np.array([[180.0, 0, 99.5], [0, 180.0, 99.5], [0, 0, 1]])
    distortion = np.array([-0.2, 0.03, 0.001, -0.002])
    pixels, _ = cv2.projectPoints(dots, np.zeros(3), np.zeros(3), intrinsics, distortion)
    grid_y, grid_x = np.mgrid[:height, :width]
    image = np.zeros((height, width))
    for x, y in pixels[:, 0]:
        image = np.maximum(image, np.exp(-((grid_x - x) ** 2 + (grid_y - y) ** 2) / 18))
    (tmp_path / "images").mkdir()
    Image.fromarray(np.repeat((image * 255).astype(np.uint8)[..., None], 3, 2)).save(tmp_path / "images/0.png")
    lens = {"fl_x": 180.0, "fl_y": 180.0, "cx": 100.0, "cy": 100.0, "k1": -0.2, "k2": 0.03, "p1": 0.001, "p2": -0.002}
    frame = {"file_path": "images/0.png", "transform_matrix": np.eye(4).tolist()}
    (tmp_path / "transforms.json").write_text(json.dumps({**lens, "camera_model": "OPENCV", "frames": [frame]}))
    found = read_capture(tmp_path)
    expected = dots @ found.cameras.intrinsics[0].double().numpy().T
    for x, y in expected[:, :2]:
        column, row = round(x - 0.5), round(y - 0.5)
        window = found.images[0, 0, row - 5 : row + 6, column - 5 : column + 6].numpy()
        offsets = np.arange(-5, 6)
        center_x = column + 0.5 + float((window.sum(0) * offsets).sum() / window.sum())
        center_y = row + 0.5 + float((window.sum(1) * offsets).sum() / window.sum())
        assert abs(center_x - x) < 0.4
        assert abs(center_y - y) < 0.4


def _first_frame(**values):
    return lambda meta: meta["frames"][0].update(values)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda meta: meta.pop("frames"), "frames"),
        (lambda meta: meta.update(frames=[]), "frames"),
        (lambda meta: meta.update(camera_model="EQUIRECTANGULAR"), "camera_model"),
        (lambda meta: meta.update(ply_file_path="../other.ply"), "inside"),
        (lambda meta: meta.update(ply_file_path="none.ply"), "exist"),
        (lambda meta: meta.update(train_filenames=["images/none.png"]), "none.png"),
        (lambda meta: meta["frames"].append(meta["frames"][0]), "twice"),
        (_first_frame(file_path="../../etc/passwd"), "inside"),
        (_first_frame(file_path="images/none.png"), "does not exist"),
        (_first_frame(file_path=3), "file_path"),
        (_first_frame(transform_matrix=[[1, 2], [3, 4]]), "4x4"),
        (_first_frame(transform_matrix=[[float("nan")] * 4] * 4), "finite"),
        (_first_frame(transform_matrix=(2 * np.eye(4)).tolist()), "rotation"),
        (_first_frame(transform_matrix=np.diag([1.0, 1, -1, 1]).tolist()), "reflection"),
        (_first_frame(fl_x="wide"), "fl_x"),
        (_first_frame(fl_x=-3.0), "fl_x"),
        (_first_frame(w=1000, h=20), "shape"),
    ],
)
def test_broken_transforms_give_one_clear_line(folder, edit, expected):
    change(folder, edit)
    with pytest.raises(InputError, match=expected) as error:
        read_capture(folder)
    assert "\n" not in str(error.value)


def test_missing_and_corrupt_files_give_one_clear_line(folder, tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        read_capture(tmp_path / "none")
    with pytest.raises(InputError, match="does not exist"):
        read_capture(tmp_path)
    with pytest.raises(InputError, match="size"):
        read_capture(folder, 100_000)
    image = folder / "images" / "view_03.png"
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(InputError, match="view_03"):
        read_capture(folder)
    (folder / "transforms.json").write_text("{")
    with pytest.raises(InputError, match="JSON"):
        read_capture(folder)


@pytest.mark.parametrize("k", [1, 4, 9])
def test_splats_survive_their_ply(tmp_path, k):
    generator = torch.Generator().manual_seed(k)
    splats = Splats(*(torch.randn(5, *shape, generator=generator) for shape in ((3,), (3,), (4,), (), (k, 3))))
    splats.rotations = torch.nn.functional.normalize(splats.rotations, dim=1)
    write_splats(splats, tmp_path / "splats.ply")
    found = read_splats(tmp_path / "splats.ply")
    for name, tensor in splats.parameters().items():
        torch.testing.assert_close(found.parameters()[name], tensor)


def test_the_ply_has_the_columns_that_viewers_read(tmp_path):
    write_splats(Splats(*(torch.ones(2, *shape) for shape in ((3,), (3,), (4,), (), (4, 3)))), tmp_path / "s.ply")
    header = (tmp_path / "s.ply").read_bytes().split(b"end_header")[0].decode()
    names = [line.split()[-1] for line in header.splitlines() if line.startswith("property float ")]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9:18] == [f"f_rest_{index}" for index in range(9)]
    assert names[18:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert "binary_little_endian" in header


def test_wrong_ply_files_are_refused(tmp_path):
    write_points(torch.zeros(2, 3), tmp_path / "points.ply", colors=torch.ones(2, 3))
    assert read_points(tmp_path / "points.ply").colors.tolist() == [[1, 1, 1]] * 2
    with pytest.raises(InputError, match="3DGS"):
        read_splats(tmp_path / "points.ply")
    (tmp_path / "text.ply").write_text("hello")
    for read in (read_splats, read_points):
        with pytest.raises(InputError, match="PLY"):
            read(tmp_path / "text.ply")
        with pytest.raises(InputError, match="exist"):
            read(tmp_path / "none.ply")
    bad = Splats(*(torch.full((1, *shape), float("nan")) for shape in ((3,), (3,), (4,), (), (1, 3))))
    write_splats(bad, tmp_path / "nan.ply")
    with pytest.raises(InputError, match="finite"):
        read_splats(tmp_path / "nan.ply")

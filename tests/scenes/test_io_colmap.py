"""COLMAP models, text and binary, give the capture that other forms of the same scene give."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restage.records import InputError
from restage.scenes.capture import Capture
from restage.scenes.io import read_capture, write_capture
from restage.scenes.io.colmap import read_cameras, read_images, read_points
from tests.scenes.tiny_captures import ColmapModel, change, save_images, small_capture


def assert_same(found: Capture, expected: Capture) -> None:
    assert torch.equal(found.images, expected.images)
    torch.testing.assert_close(found.cameras.camera_to_world, expected.cameras.camera_to_world, atol=2e-6, rtol=0)
    torch.testing.assert_close(found.cameras.intrinsics, expected.cameras.intrinsics, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.points, expected.points, atol=1e-6, rtol=0)
    assert torch.equal(found.point_colors, expected.point_colors)
    assert found.file_names == expected.file_names
    assert (found.train_indices, found.held_out_indices) == (expected.train_indices, expected.held_out_indices)
    assert (found.masks is None) == (expected.masks is None)


def write_project(model: ColmapModel, folder: Path, form: str, place: str = "sparse/0") -> Path:
    save_images(small_capture().images, folder / "images", [image[4] for image in model.images])
    (model.write_text if form == "text" else model.write_binary)(folder / place)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(ColmapModel.of_capture(small_capture()), tmp_path / "scene", "binary")


@pytest.mark.parametrize("form", ["text", "binary"])
@pytest.mark.parametrize("place", ["sparse/0", "colmap/sparse/0", "sparse", ""])
def test_both_forms_in_all_usual_places_give_the_same_capture_as_nerfstudio(tmp_path, form, place):
    write_capture(small_capture(), tmp_path / "scene_ns")
    change(tmp_path / "scene_ns", lambda meta: [meta.pop(f"{name}_filenames") for name in ("train", "val", "test")])
    folder = write_project(ColmapModel.of_capture(small_capture()), tmp_path / "scene", form, place)
    expected = read_capture(tmp_path / "scene_ns")
    assert_same(read_capture(folder), expected)
    assert read_capture(folder).name == "scene"
    assert_same(read_capture(folder / place), expected)
    assert read_capture(folder / place).name == "scene"


@pytest.mark.parametrize(
    ("model", "extra", "lens"),
    [
        ("OPENCV", (-0.1, 0.02, 0.001, -0.002), {"k1": -0.1, "k2": 0.02, "p1": 0.001, "p2": -0.002}),
        ("OPENCV_FISHEYE", (0.05, -0.01, 0.002, -0.001), {"k1": 0.05, "k2": -0.01, "k3": 0.002, "k4": -0.001}),
        ("SIMPLE_RADIAL", (-0.08,), {"k1": -0.08}),
        ("RADIAL", (-0.08, 0.01), {"k1": -0.08, "k2": 0.01}),
        ("FULL_OPENCV", (-0.1, 0.02, 0.0, 0.0, 0.003, 0.0, 0.0, 0.0), {"k1": -0.1, "k2": 0.02, "k3": 0.003}),
        ("RADIAL_FISHEYE", (0.05, -0.01), {"k1": 0.05, "k2": -0.01}),
        ("SIMPLE_PINHOLE", (), {}),
    ],
)
def test_every_model_of_camera_gives_what_nerfstudio_gives(tmp_path, model, extra, lens):
    write_capture(small_capture(), tmp_path / "ns")
    names = {"camera_model": "OPENCV_FISHEYE" if "FISHEYE" in model else "OPENCV"}
    change(tmp_path / "ns", lambda meta: meta.update(**lens, **names))
    folder = write_project(ColmapModel.of_capture(small_capture(), model, extra), tmp_path / "colmap", "binary")
    expected, found = read_capture(tmp_path / "ns"), read_capture(folder)
    torch.testing.assert_close(found.images, expected.images, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.cameras.intrinsics, expected.cameras.intrinsics, atol=1e-4, rtol=0)
    assert extra == () or not torch.equal(found.images, small_capture().images)


def test_one_shared_camera_a_smaller_size_and_sub_folders_work(tmp_path):
    model = ColmapModel.of_capture(small_capture())
    model.cameras = {1: ("PINHOLE", 40, 32, (50.0, 48.0, 20.0, 15.0))}
    model.images = [(*image[:3], 1, f"left/{image[4]}") for image in model.images]
    found = read_capture(write_project(model, tmp_path / "scene", "text"), 10, hold_out_every=3)
    torch.testing.assert_close(found.cameras.intrinsics[0, :2], torch.tensor([[12.5, 0, 5], [0, 12, 3.75]]))
    assert tuple(found.images.shape) == (9, 3, 8, 10)
    assert found.held_out_indices == (0, 3, 6)


def test_masks_beside_the_images_are_taken(project):
    pixels = np.full((16, 20), 255, np.uint8)
    pixels[:, :10] = 0
    (project / "masks").mkdir()
    Image.fromarray(pixels).save(project / "masks" / "view_00.png.png")
    masks = read_capture(project).masks
    assert masks is not None
    assert masks[0, 0].tolist() == [0] * 10 + [1] * 10
    assert float(masks[1:].min()) == 1


def test_a_model_without_points_and_with_observations_missing_at_the_end_is_read(tmp_path):
    model = ColmapModel.of_capture(small_capture())
    folder = write_project(model, tmp_path / "scene", "text")
    (folder / "sparse/0/points3D.txt").unlink()
    path = folder / "sparse/0/images.txt"
    path.write_text(path.read_text().rstrip("\n"))
    found = read_capture(folder)
    assert len(found.points) == 0
    assert len(found.cameras) == 9


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_a_binary_file_cut_anywhere_gives_one_clear_line(project, name):
    path = project / "sparse/0" / f"{name}.bin"
    whole = path.read_bytes()
    for length in [0, 7, 8, 20, 60, *range(70, len(whole), 41), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"{name}\.bin") as error:
            read_capture(project)
        assert "\n" not in str(error.value)
    path.write_bytes(whole + b"more")
    with pytest.raises(InputError, match="expected the end"):
        read_capture(project)


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("cameras", "PINHOLE 20", "WIDE 20", "SIMPLE_PINHOLE"),
        ("cameras", "PINHOLE 20", "OPENCV 20", "8 parameters"),
        ("cameras", "PINHOLE 20", "PINHOLE wide", "CAMERA_ID"),
        ("cameras", "PINHOLE 20", "PINHOLE -20", "size"),
        ("cameras", "PINHOLE 20 16", "PINHOLE 20 16 0.0 #", "PARAMS"),
        ("images", " view_00.png", "", "IMAGE_ID"),
        ("images", "view_01.png", "view_00.png", "once"),
        ("points3D", "0.5 10 0 11 1", "", ""),
        ("points3D", "5 ", "5 one ", "POINT3D_ID"),
    ],
)
def test_broken_text_gives_one_clear_line(tmp_path, name, old, new, expected):
    folder = write_project(ColmapModel.of_capture(small_capture()), tmp_path / "scene", "text")
    path = folder / "sparse/0" / f"{name}.txt"
    header, _, rest = path.read_text().partition("\n")
    if name == "cameras":
        comment, _, rest = rest.partition("\n")
        header += "\n" + comment
    assert old in rest
    path.write_text(header + "\n" + rest.replace(old, new, 1))
    if not expected:
        read_capture(folder)
        return
    with pytest.raises(InputError, match=expected) as error:
        read_capture(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda model: model.images.clear(), "1 to 100000 images"),
        (lambda model: model.cameras.pop(1), "camera"),
        (lambda model: model.images[0][1].__imul__(2), "unit quaternion"),
        (lambda model: model.images[0][1].fill(np.nan), "unit quaternion"),
        (lambda model: model.images[0][2].fill(np.inf), "finite"),
        (lambda model: model.cameras.update({1: ("PINHOLE", 20, 16, (0.0, 9.0, 10.0, 8.0))}), "focal"),
        (lambda model: model.cameras.update({1: ("PINHOLE", 20, 16, (9.0, np.nan, 10.0, 8.0))}), "finite"),
        (lambda model: model.cameras.update({1: ("PINHOLE", 20, 99, (9.0, 9.0, 10.0, 8.0))}), "shape"),
        (lambda model: model.cameras.update({1: ("UNKNOWN", 20, 16, (9.0, 9.0, 10.0, 8.0, 1.0))}), "model number 99"),
        (lambda model: model.points.append((99, np.full(3, np.inf), (0, 0, 0))), "finite"),
    ],
)
def test_absurd_numbers_in_a_model_give_one_clear_line(tmp_path, edit, expected):
    model = ColmapModel.of_capture(small_capture())
    edit(model)
    save_images(small_capture().images, tmp_path / "images", small_capture().file_names)
    model.write_binary(tmp_path / "sparse/0")
    with pytest.raises(InputError, match=expected) as error:
        read_capture(tmp_path)
    assert "\n" not in str(error.value)


def test_megabytes_of_observations_tracks_and_a_byte_order_mark_change_nothing_and_such_names_are_refused(tmp_path):
    folder = write_project(ColmapModel.of_capture(small_capture()), tmp_path / "scene", "text")
    expected = read_capture(folder)
    for name, at in (("images", 2), ("points3D", 1)):
        path = folder / "sparse/0" / f"{name}.txt"
        lines = path.read_text().splitlines()
        lines[at] += " 1.5 2.5 -1" * 100_000
        path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    assert_same(read_capture(folder), expected)
    path = folder / "sparse/0/images.txt"
    path.write_text(path.read_text("utf-8-sig").replace("view_01.png", "a" * 1_000_000))
    with pytest.raises(InputError, match="images.txt, line 4: expected a name of at most 4096") as error:
        read_capture(folder)
    assert len(str(error.value)) < 400


def test_a_missing_image_folder_is_named(tmp_path):
    ColmapModel.of_capture(small_capture()).write_binary(tmp_path / "sparse/0")
    with pytest.raises(InputError, match="folder 'images' with 'view_00.png'"):
        read_capture(tmp_path)


def test_files_written_by_pycolmap_are_read_as_pycolmap_reads_them(tmp_path):
    pycolmap = pytest.importorskip("pycolmap", reason="needs restage[colmap]")
    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions(num_rigs=2, num_cameras_per_rig=1, num_frames_per_rig=4, num_points3D=50)
    truth = pycolmap.synthesize_dataset(options)
    for form, suffix in (("write_binary", ".bin"), ("write_text", ".txt")):
        folder = tmp_path / form
        folder.mkdir()
        getattr(truth, form)(str(folder))
        cameras = read_cameras(folder / f"cameras{suffix}")
        assert {number: (c.model_name, c.width, c.height) for number, c in truth.cameras.items()} == {
            number: camera[:3] for number, camera in cameras.items()
        }
        for number, camera in truth.cameras.items():
            np.testing.assert_allclose(cameras[number].params, camera.params, rtol=1e-12)
        images = {image.name: image for image in read_images(folder / f"images{suffix}")}
        assert set(images) == {image.name for image in truth.images.values()}
        for image in truth.images.values():
            matrix = image.cam_from_world().matrix()
            x, y, z, w = image.cam_from_world().rotation.quat
            np.testing.assert_allclose(images[image.name].rotation_wxyz, (w, x, y, z), atol=1e-12)
            np.testing.assert_allclose(images[image.name].translation, matrix[:, 3], atol=1e-9)
            assert images[image.name].camera_id == image.camera_id
        points = read_points(folder / f"points3D{suffix}")
        order = sorted(truth.points3D)
        np.testing.assert_allclose(points.positions, [truth.points3D[number].xyz for number in order], atol=1e-9)
        assert (points.colors * 255).round().int().tolist() == [
            truth.points3D[number].color.tolist() for number in order
        ]


def test_of_several_models_the_one_with_most_images_is_read_and_the_others_are_told(tmp_path):
    capture = small_capture()
    ColmapModel.of_capture(capture.select([0, 1, 2])).write_binary(tmp_path / "sparse/0")
    ColmapModel.of_capture(capture).write_binary(tmp_path / "sparse/1")
    ColmapModel.of_capture(capture.select([3, 4, 5, 6])).write_text(tmp_path / "sparse/10")
    save_images(capture.images, tmp_path / "images", capture.file_names)
    with pytest.warns(UserWarning, match=r"of 3 models \(sparse/0 with 3, 1 with 9, 10 with 4 images\), 1 is used"):
        found = read_capture(tmp_path, hold_out_every=0)
    assert found.file_names == capture.file_names
    assert "of 3 models" in found.notes[0]
    with pytest.warns(UserWarning, match="ONLY 4 OF 9 PICTURES"):
        assert len(read_capture(tmp_path / "sparse/10", hold_out_every=0).cameras) == 4


def test_a_model_of_fewer_than_half_of_the_pictures_is_loud_about_it(tmp_path):
    capture = small_capture()
    ColmapModel.of_capture(capture.select([0, 2, 4, 6])).write_text(tmp_path / "sparse/0")
    save_images(capture.images, tmp_path / "images", capture.file_names)
    with pytest.warns(UserWarning, match="ONLY 4 OF 9 PICTURES"):
        found = read_capture(tmp_path)
    assert "ONLY 4 OF 9 PICTURES" in found.notes[0]
    (tmp_path / "images/view_01.png").unlink()
    assert read_capture(tmp_path).notes == ()


def test_images_that_are_missing_are_left_out_and_named(tmp_path):
    folder = write_project(ColmapModel.of_capture(small_capture()), tmp_path, "text")
    for index in (0, 5):
        (folder / f"images/view_{index:02d}.png").unlink()
    with pytest.warns(UserWarning, match="2 of the 9 pictures that it names do not exist"):
        found = read_capture(folder)
    assert found.file_names == tuple(name for i, name in enumerate(small_capture().file_names) if i not in (0, 5))


@pytest.mark.parametrize("place", ["images_4", "input"])
def test_the_pictures_lie_in_any_usual_folder_with_endings_in_any_case(tmp_path, place):
    folder = write_project(ColmapModel.of_capture(small_capture()), tmp_path, "text")
    (folder / "images").rename(folder / place)
    for path in (folder / place).iterdir():
        path.rename(path.with_suffix(".PNG"))
    assert torch.equal(read_capture(folder).images, small_capture().images)


def test_a_rig_of_two_cameras_written_by_pycolmap_reads_as_pycolmap_has_it(tmp_path):
    pycolmap = pytest.importorskip("pycolmap", reason="needs restage[colmap]")
    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions(num_rigs=1, num_cameras_per_rig=2, num_frames_per_rig=4, num_points3D=50)
    truth = pycolmap.synthesize_dataset(options)
    (tmp_path / "sparse/0").mkdir(parents=True)
    truth.write_binary(str(tmp_path / "sparse/0"))
    assert (tmp_path / "sparse/0/rigs.bin").is_file() and (tmp_path / "sparse/0/frames.bin").is_file()
    for image in truth.images.values():
        camera = truth.cameras[image.camera_id]
        path = tmp_path / "images" / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (camera.width // 16, camera.height // 16)).save(path)
    found = read_capture(tmp_path, hold_out_every=0)
    assert len(found.cameras) == 8
    change = np.eye(4) if found.own_to_world is None else found.own_to_world.numpy()
    for index, image in enumerate(sorted(truth.images.values(), key=lambda image: image.name)):
        center = change[:3, :3] @ image.projection_center() + change[:3, 3]
        np.testing.assert_allclose(found.cameras.positions[index], center, atol=1e-4)

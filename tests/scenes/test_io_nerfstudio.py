"""nerfstudio folders: what is written reads back, all fields count, broken folders give one clear line."""

import json
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restage.records import InputError
from restage.scenes.cameras import project_points
from restage.scenes.capture import Capture
from restage.scenes.io import read_capture, write_capture
from tests.scenes.tiny_captures import ColmapModel, change, small_capture


@pytest.fixture
def folder(tmp_path):
    write_capture(small_capture(), tmp_path / "small")
    return tmp_path / "small"


def test_a_written_capture_reads_back_bit_for_bit(folder):
    written, found = small_capture(), read_capture(folder)
    assert torch.equal(found.images, written.images)
    assert torch.equal(found.cameras.camera_to_world, written.cameras.camera_to_world)
    assert torch.equal(found.cameras.intrinsics, written.cameras.intrinsics)
    assert torch.equal(found.points, written.points)
    assert torch.equal(found.point_colors, written.point_colors)
    assert found.masks is None
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


def _first_frame(**values):
    return lambda meta: meta["frames"][0].update(values)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda meta: meta.pop("frames"), "frames"),
        (lambda meta: meta.update(test_filenames="images/view_00.png"), "test_filenames: expected array"),
        (
            lambda meta: meta.update(val_filenames=["images/view_00.png", 3]),
            r"val_filenames\[1\]: expected str, got int",
        ),
        (lambda meta: meta.update(k1="0.1"), r"k1: expected float \| null, got str"),
        (lambda meta: meta.update(is_fisheye="no"), r"is_fisheye: expected bool \| null, got str"),
        (lambda meta: meta.update(applied_transform=[[1, 2]]), "applied_transform"),
        (lambda meta: meta.update(restage_own_to_world="up"), "restage_own_to_world: expected array"),
        (lambda meta: meta.update(restage_own_to_world=[[1, 2], [3, 4]]), "restage_own_to_world: expected a 4x4"),
        (lambda meta: meta.update(restage_notes={"a": 1}), "restage_notes: expected array"),
        (lambda meta: meta["frames"].append("view.png"), r"frames\[9\]: expected object, got str"),
        (lambda meta: meta["frames"][2].pop("transform_matrix"), r"frames\[2\]: .*transform_matrix"),
        (lambda meta: meta.update(train_filenames=[]), "at least one view"),
        (lambda meta: meta.update(ply_file_path=7), "ply_file_path"),
        (_first_frame(mask_path="../mask.png"), "inside"),
        (_first_frame(mask_path="images/none.png"), "does not exist"),
        (_first_frame(mask_path=["a"]), "mask_path"),
        (_first_frame(transform_matrix="none"), "transform_matrix: expected array, got str"),
        (_first_frame(transform_matrix=[[float("inf")] * 4] * 4), "finite"),
        (_first_frame(fl_x=0, fl_y=0), "fl_x"),
        (_first_frame(fl_x=float("nan")), "fl_x"),
        (_first_frame(fl_x=10**400), "fl_x"),
        (_first_frame(w=0, h=0), r"frames\[0\]\.w: expected float >= 1"),
        (_first_frame(k1=float("inf")), "k1"),
        (_first_frame(k4=0.1), "k4"),
        (_first_frame(k1=1e9), "distortion"),
        (_first_frame(camera_model="OPENCV_FISHEYE", p1=0.1), "p1"),
        (_first_frame(distortion_params=[0.1]), "distortion_params"),
        (lambda meta: meta.update(frames=[]), "frames"),
        (lambda meta: meta.update(camera_model="EQUIRECTANGULAR"), "camera_model"),
        (lambda meta: meta.update(ply_file_path="../other.ply"), "inside"),
        (lambda meta: meta.update(ply_file_path="none.ply"), "exist"),
        (lambda meta: meta.update(train_filenames=["images/none.png"]), "none.png"),
        (lambda meta: meta["frames"].append(meta["frames"][0]), "twice"),
        (_first_frame(file_path=3), "file_path"),
        (_first_frame(transform_matrix=[[1, 2], [3, 4]]), r"transform_matrix: expected array of length >= 3"),
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


def test_masks_survive_and_are_weights(tmp_path):
    masks = torch.zeros(9, 16, 20)
    masks[:, :, 5:] = 1
    masks[:, 3] = 128 / 255
    capture = Capture(**{**vars(small_capture()), "masks": masks})
    write_capture(capture, tmp_path / "masked")
    found = read_capture(tmp_path / "masked").masks
    assert found is not None
    assert torch.equal(found, masks)
    halved = read_capture(tmp_path / "masked", 10).masks
    assert halved is not None
    torch.testing.assert_close(halved[0, 4], torch.tensor([0, 0, 0.5, *[1.0] * 7]))


@pytest.mark.parametrize(
    ("mode", "kept", "size"), [("L", 1, (20, 16)), ("L", 255, (20, 16)), ("1", 1, (20, 16)), ("I;16", 65535, (10, 8))]
)
def test_masks_of_labels_of_two_colors_and_of_other_sizes_mean_the_same(folder, mode, kept, size):
    pixels = np.zeros((size[1], size[0]), np.uint16 if mode == "I;16" else np.uint8)
    pixels[:, size[0] // 2 :] = kept
    image = Image.fromarray(pixels)
    (image.point(lambda value: 255 * value).convert("1") if mode == "1" else image).save(folder / "mask.png")
    change(folder, _first_frame(mask_path="mask.png"))
    masks = read_capture(folder).masks
    assert masks is not None
    assert masks[0, :, :9].max() == 0
    assert masks[0, :, 11:].min() == 1
    assert masks[1:].min() == 1


def test_every_kind_of_split_list_is_followed(folder):
    names = [f"images/view_{index:02d}.png" for index in range(9)]

    def only(**lists):
        def edit(meta):
            for kind in ("train", "val", "test"):
                meta.pop(f"{kind}_filenames", None)
            meta.update({f"{kind}_filenames": files for kind, files in lists.items()})

        change(folder, edit)
        found = read_capture(folder)
        return found.train_indices, found.held_out_indices

    assert only(train=names[:4]) == ((0, 1, 2, 3), ())
    assert only(test=["./" + names[2]]) == ((0, 1, 3, 4, 5, 6, 7, 8), (2,))
    assert only(train=names[:3], val=[names[5]], test=[names[4], names[0]]) == ((0, 1, 2), (4, 5))


def test_numbers_may_stand_in_a_frame_or_on_top_and_unknown_fields_are_ignored(folder):
    expected = read_capture(folder)

    def edit(meta):
        meta.update(fl_x=1.0, fl_y=1.0, orientation_override="none", aabb_scale=16, k1=0.0, distortion_params=[0.0] * 6)
        for frame in meta["frames"]:
            frame.update(colmap_im_id=3, sharpness=1.5, depth_file_path="../no/matter.png", w=meta["w"], h=meta["h"])
        meta.pop("w")
        meta.pop("camera_model")

    change(folder, edit)
    found = read_capture(folder)
    assert torch.equal(found.cameras.intrinsics, expected.cameras.intrinsics)
    assert torch.equal(found.images, expected.images)


def test_an_angle_of_view_stands_in_for_a_focal_length(folder):
    def edit(meta):
        meta["camera_angle_x"] = float(2 * np.arctan(0.5))
        for frame in meta["frames"]:
            frame.pop("fl_x")
            frame.pop("fl_y")

    change(folder, edit)
    intrinsics = read_capture(folder).cameras.intrinsics[0]
    assert float(intrinsics[0, 0]) == pytest.approx(20)
    assert float(intrinsics[1, 1]) == pytest.approx(20)


def test_points_of_a_colmap_model_in_the_folder_go_through_the_applied_transform(folder):
    points = small_capture().points
    capture = Capture(**{**vars(small_capture()), "points": points[:, [0, 2, 1]] * torch.tensor([1.0, -1.0, 1.0]) / 2})
    ColmapModel.of_capture(capture).write_binary(folder / "colmap/sparse/0")
    (folder / "sparse_pc.ply").unlink()
    change(folder, lambda meta: meta.pop("ply_file_path"))
    applied = [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]]
    change(folder, lambda meta: meta.update(applied_transform=applied, applied_scale=2.0))
    assert torch.equal(read_capture(folder).points, points)
    change(folder, lambda meta: meta.update(applied_transform=[[1, 0], [0, 1]]))
    with pytest.raises(InputError, match="applied_transform"):
        read_capture(folder)


def test_images_of_one_shape_come_to_one_size_with_a_warning(folder):
    path = folder / "images" / "view_04.png"
    with Image.open(path) as image:
        image.resize((40, 32), Image.Resampling.NEAREST).save(path)
    with pytest.warns(UserWarning, match="brought to one of 20x16"):
        found = read_capture(folder)
    torch.testing.assert_close(found.images[4], small_capture().images[4])
    torch.testing.assert_close(found.cameras.intrinsics[4], small_capture().cameras.intrinsics[4])
    assert "brought to one of 20x16" in found.notes[0]


def test_portraits_among_landscapes_lie_in_the_middle_of_views_that_hold_both(folder):
    expected = read_capture(folder)
    path = folder / "images" / "view_04.png"
    with Image.open(path) as image:
        image.crop((4, 0, 14, 16)).resize((20, 32), Image.Resampling.NEAREST).save(path)
    change(folder, lambda meta: [meta.pop("w"), meta.pop("h")])
    change(folder, lambda meta: meta["frames"][4].update(w=10, h=16, cx=meta["frames"][4]["cx"] - 4))
    with pytest.warns(UserWarning, match=r"several shapes \(20x16, 20x32\) are shown on views of 20x20"):
        found = read_capture(folder)
    assert found.masks is not None
    assert (found.cameras.width, found.cameras.height) == (20, 20)
    assert torch.equal(found.images[0, :, 2:18], expected.images[0])
    assert found.masks[0, 2:18].min() == 1 and found.masks[0, :2].max() == 0 and found.masks[0, 18:].max() == 0
    assert int(found.masks[4].sum()) == 12 * 20  # 20x32 at a longer side of 20
    assert found.masks[4, :, 4:16].min() == 1
    point = expected.cameras.positions.mean(0, keepdim=True)
    for index in (0, 4):
        before = project_points(point, expected.cameras[index]).pixels[0]
        after = project_points(point, found.cameras[index]).pixels[0]
        moved = torch.tensor([0.0, 2.0]) if index == 0 else None
        if moved is None:  # cropped by 4, then 16 rows and 10 columns brought to 20 and 12
            assert float(after[0]) == pytest.approx((float(before[0]) - 4) * 1.2 + 4, abs=1e-3)
            assert float(after[1]) == pytest.approx(float(before[1]) * 1.25, abs=1e-3)
        else:
            torch.testing.assert_close(after, before + moved)


def test_deep_grey_transparent_and_palette_images_are_read(folder):
    images = folder / "images"
    Image.fromarray(np.full((16, 20), 32768, np.uint16)).save(images / "view_00.png")
    Image.new("RGBA", (20, 16), (255, 255, 255, 51)).save(images / "view_01.png")
    Image.new("L", (20, 16), 51).save(images / "view_02.png")
    Image.new("RGB", (20, 16), (0, 51, 255)).quantize().save(images / "view_03.png")
    found = read_capture(folder).images[:4, :, 5, 5]
    expected = torch.tensor([[0.5] * 3, [0.2] * 3, [0.2] * 3, [0.0, 0.2, 1.0]])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_links_that_the_user_made_inside_of_the_folder_are_followed(folder, tmp_path):
    path = folder / "images" / "view_00.png"
    expected = read_capture(folder)
    shutil.move(path, tmp_path / "moved.png")
    os.symlink(tmp_path / "moved.png", path)
    assert torch.equal(read_capture(folder).images, expected.images)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "images/nu\0ll.png", "images", "a" * 5000])
def test_pictures_that_are_missing_are_left_out_and_named(folder, name):
    expected = read_capture(folder)
    change(folder, _first_frame(file_path=name))
    change(folder, lambda meta: meta["train_filenames"].__setitem__(0, name))
    with pytest.warns(UserWarning, match="1 of the 9 pictures that it names do not exist"):
        found = read_capture(folder)
    assert found.file_names == expected.file_names[1:]
    assert torch.equal(found.images, expected.images[1:])
    assert (found.train_indices, found.held_out_indices) == ((0, 1, 2, 3, 4, 5), (6, 7))
    assert "1 of the 9 pictures" in found.notes[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_capture(found, folder.parent / "again")
        assert read_capture(folder.parent / "again").notes == found.notes


def test_fewer_than_three_pictures_that_are_left_are_refused(folder):
    for index in range(7):
        (folder / f"images/view_{index:02d}.png").unlink()
    with pytest.raises(InputError, match=r"7 of the 9 pictures.*'images/view_00.png'"):
        read_capture(folder)


def _rename(change_name):
    return lambda meta: [frame.update(file_path=change_name(frame["file_path"])) for frame in meta["frames"]]


@pytest.mark.parametrize(
    "change_name",
    [
        lambda name: name.replace("/", "\\"),
        lambda name: "C:\\Users\\someone\\scan\\" + name.replace("/", "\\"),
        lambda name: f"/home/someone/scan/{name}",
        lambda name: f"../project/{name}",
        lambda name: f"./images/../{name}",
        lambda name: name.replace(".png", ".PNG"),
        lambda name: name.replace(".png", ""),
        lambda name: name.replace("images/view", "IMAGES/VIEW").replace("IMAGES", "images"),
    ],
)
def test_pictures_are_found_by_their_tail_whatever_machine_the_file_was_written_on(folder, change_name):
    expected = read_capture(folder)
    change(folder, _rename(change_name))
    for kind in ("train", "val", "test"):
        change(
            folder,
            lambda meta, kind=kind: meta.update({f"{kind}_filenames": [*map(change_name, meta[f"{kind}_filenames"])]}),
        )
    found = read_capture(folder)
    assert torch.equal(found.images, expected.images)
    assert (found.train_indices, found.held_out_indices) == (expected.train_indices, expected.held_out_indices)
    assert [Path(name).stem.lower() for name in found.file_names] == [Path(name).stem for name in expected.file_names]


def test_pictures_outside_of_the_folder_are_used_only_with_follow_paths(folder, tmp_path):
    expected = read_capture(folder)
    (tmp_path / "frames").mkdir()
    for path in (folder / "images").iterdir():
        shutil.move(path, tmp_path / "frames" / path.name)
    change(folder, _rename(lambda name: name.replace("images", "../frames")))
    change(folder, lambda meta: [meta.pop(f"{kind}_filenames") for kind in ("train", "val", "test")])
    with pytest.raises(InputError, match=r"9 lie outside of small/.*--follow-paths"):
        read_capture(folder)
    assert torch.equal(read_capture(folder, follow_paths=True).images, expected.images)


def test_smaller_copies_stand_in_for_pictures_that_are_not_there(folder):
    expected = read_capture(folder, 10)
    shutil.move(folder / "images", folder / "images_2")
    for path in (folder / "images_2").iterdir():
        with Image.open(path) as image:
            image.resize((10, 8), Image.Resampling.BOX).save(path)
    found = read_capture(folder)
    torch.testing.assert_close(found.images, expected.images, atol=2 / 255, rtol=0)
    torch.testing.assert_close(found.cameras.intrinsics, expected.cameras.intrinsics)


def test_a_picture_that_is_named_twice_in_other_words_is_refused(folder):
    twin = {"file_path": "images/../images/view_00.png"}
    change(folder, lambda meta: meta["frames"].append({**meta["frames"][0], **twin}))
    with pytest.raises(InputError, match="expected each image once.*view_00"):
        read_capture(folder)


def test_more_than_memory_holds_is_refused_before_anything_is_decoded(folder, monkeypatch):
    class NoMemory:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", NoMemory)
    monkeypatch.setattr("restage.scenes.io.views.read_image", lambda path: pytest.fail("an image was decoded"))
    with pytest.raises(InputError, match="memory.*smaller size"):
        read_capture(folder)


def test_absurdly_large_images_are_refused_by_their_header(folder):
    path = folder / "images" / "view_02.png"
    data = bytearray(path.read_bytes())
    data[16:24] = (20_001).to_bytes(4, "big") + (10).to_bytes(4, "big")
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(InputError, match="view_02.png: expected an image of at most 20000 px"):
        read_capture(folder)


def test_too_many_frames_are_refused(folder):
    change(folder, lambda meta: meta.update(frames=[{}] * 100_001))
    with pytest.raises(InputError, match="frames: expected array of length <= 100000"):
        read_capture(folder)


def test_missing_and_corrupt_files_give_one_clear_line(folder, tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        read_capture(tmp_path / "none")
    with pytest.raises(InputError, match="size"):
        read_capture(folder, 100_000)
    image = folder / "images" / "view_03.png"
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(InputError, match="view_03"):
        read_capture(folder)
    for text in ("{", "\xff", "[" * 100_000, '{"w": ' + "9" * 5000 + "}", "[1]", "3", "null"):
        (folder / "transforms.json").write_text(text, encoding="latin-1")
        with pytest.raises(InputError, match=r"transforms\.json(.*JSON|: expected object, got)") as error:
            read_capture(folder)
        assert "\n" not in str(error.value)


def test_how_a_capture_was_turned_is_written_and_read(tmp_path: Path):
    turn = torch.tensor([[0.0, -2, 0, 7], [2, 0, 0, 5e6], [0, 0, 2, 1], [0, 0, 0, 1]], dtype=torch.float64)
    write_capture(replace(small_capture(), own_to_world=turn), tmp_path)
    found = read_capture(tmp_path).own_to_world
    assert found is not None and torch.equal(found, turn)
    meta = json.loads((tmp_path / "transforms.json").read_text())
    earlier = [[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]
    (tmp_path / "transforms.json").write_text(json.dumps({**meta, "restage_own_to_world": earlier}))
    found = read_capture(tmp_path).own_to_world
    assert found is not None and found[:3, :3].tolist() == earlier and found[:3, 3].tolist() == [0, 0, 0]
    meta["restage_own_to_world"][0][0] = 0.7
    (tmp_path / "transforms.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="restage_own_to_world"):
        read_capture(tmp_path)

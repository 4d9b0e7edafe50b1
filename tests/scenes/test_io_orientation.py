"""EXIF orientation: whichever way up pixels are stored, and whichever a camera model is for, views are upright."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restage.scenes.cameras import project_points
from restage.scenes.capture import Capture, turn_upright
from restage.scenes.io import read_capture, write_capture
from restage.scenes.io.images import MIRRORED, unexif
from restage.scenes.io.photographs import pose_photographs
from tests.scenes.tiny_captures import ColmapModel, change, small_capture

STORE = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.swapaxes(0, 1),
    6: lambda shown: np.rot90(shown, 1),
    7: lambda shown: shown[::-1, ::-1].swapaxes(0, 1),
    8: lambda shown: np.rot90(shown, -1),
}
"""How the pixels of an upright picture are stored under each EXIF orientation, by its definition in the standard."""
SWAPPED = (5, 6, 7, 8)


def store_turned(folder: Path, orientation: int, names: tuple[str, ...] | None = None) -> None:
    """Store the pictures of a folder turned, with a tag that turns them back."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in sorted((folder / "images").iterdir()):
        if names is None or path.name in names:
            with Image.open(path) as image:
                shown = np.asarray(image.convert("RGB"))
            Image.fromarray(np.ascontiguousarray(STORE[orientation](shown))).save(path, exif=exif)


def of_stored_pixels(capture: Capture, orientation: int) -> list[dict]:
    """Camera entries for the stored pixels of turned pictures, worked out by hand for each turn; no mirrored ones."""
    entries = []
    for pose, intrinsics in zip(capture.cameras.camera_to_world, capture.cameras.intrinsics, strict=True):
        fx, fy, cx, cy = (float(intrinsics[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
        right, down, rest = pose[:, 0], pose[:, 1], pose[:, 2:]
        w, h = capture.cameras.width, capture.cameras.height
        if orientation == 3:
            axes, lens = (-right, -down), (w, h, fx, fy, w - cx, h - cy)
        elif orientation == 6:  # stored right is shown down, stored down is shown left
            axes, lens = (down, -right), (h, w, fy, fx, cy, w - cx)
        else:  # 8: stored right is shown up, stored down is shown right
            axes, lens = (-down, right), (h, w, fy, fx, h - cy, cx)
        matrix = torch.cat([axes[0][:, None], axes[1][:, None], rest], dim=1)
        lens = dict(zip(("w", "h", "fl_x", "fl_y", "cx", "cy"), lens, strict=True))
        entries.append({"transform_matrix": (matrix * torch.tensor([1.0, -1, -1, 1])).tolist(), **lens})
    return entries


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_capture(small_capture(), tmp_path / "small")
    return tmp_path / "small"


def assert_same(found: Capture) -> None:
    expected = small_capture()
    torch.testing.assert_close(found.images, expected.images)
    torch.testing.assert_close(found.cameras.intrinsics, expected.cameras.intrinsics, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.cameras.camera_to_world, expected.cameras.camera_to_world, atol=1e-5, rtol=0)
    for view in range(9):
        before = project_points(expected.points, expected.cameras[view]).pixels
        after = project_points(found.points, found.cameras[view]).pixels
        torch.testing.assert_close(after, before, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_come_upright_as_pillow_turns_them(orientation):
    shown = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    np.testing.assert_array_equal(unexif(np.ascontiguousarray(STORE[orientation](shown)), orientation), shown)


@pytest.mark.parametrize("orientation", SWAPPED)
def test_a_model_of_shown_pictures_is_recognized_by_its_size(folder, orientation):
    store_turned(folder, orientation)
    assert_same(read_capture(folder))


@pytest.mark.parametrize("orientation", SWAPPED)
def test_a_model_of_shown_pictures_is_recognized_by_its_principal_point_alone(folder, orientation):
    store_turned(folder, orientation)
    change(folder, lambda meta: [meta.pop("w"), meta.pop("h")])
    assert_same(read_capture(folder))


@pytest.mark.parametrize("orientation", [6, 8])
@pytest.mark.parametrize("names", [None, ("view_02.png", "view_05.png")])
def test_a_model_of_stored_pixels_is_turned_upright_with_them(folder, orientation, names):
    store_turned(folder, orientation, names)
    entries = of_stored_pixels(small_capture(), orientation)

    def edit(meta):
        for frame, entry in zip(meta["frames"], entries, strict=True):
            if names is None or Path(frame["file_path"]).name in names:
                frame.update(entry)

    change(folder, edit)
    assert_same(read_capture(folder))


def test_half_a_turn_cannot_be_told_and_is_taken_for_stored_pixels_with_one_warning(folder):
    store_turned(folder, 3)
    entries = of_stored_pixels(small_capture(), 3)
    change(folder, lambda meta: [frame.update(entry) for frame, entry in zip(meta["frames"], entries, strict=True)])
    with pytest.warns(UserWarning, match="EXIF") as caught:
        found = read_capture(folder)
    assert len([1 for warning in caught if "EXIF" in str(warning.message)]) == 1
    assert_same(found)
    assert "9 pictures are to be turned by their EXIF" in found.notes[0]


@pytest.mark.parametrize("orientation", SWAPPED)
def test_a_colmap_model_of_stored_pixels_gives_upright_views_of_the_same_world(tmp_path, orientation):
    """COLMAP reads pixels as they are stored. A mirrored picture stays mirrored, as is the world of its model."""
    capture = small_capture()
    model = ColmapModel.of_capture(capture)
    write_capture(capture, tmp_path / "ns")
    (tmp_path / "ns/images").rename(tmp_path / "images")
    store_turned(tmp_path, orientation)
    if orientation in MIRRORED:
        model.cameras = {n: (m, h, w, (fy, fx, h / 2, w / 2)) for n, (m, w, h, (fx, fy, _, _)) in model.cameras.items()}
        model.write_text(tmp_path / "sparse/0")
        found = read_capture(tmp_path)
        torch.testing.assert_close(found.images, capture.images.flip(3))
        return
    entries = of_stored_pixels(capture, orientation)
    own = Capture(
        **{
            **vars(capture),
            "cameras": type(capture.cameras)(
                torch.tensor([entry["transform_matrix"] for entry in entries]) * torch.tensor([1.0, -1, -1, 1]),
                torch.tensor([[[e["fl_x"], 0, e["cx"]], [0, e["fl_y"], e["cy"]], [0, 0, 1]] for e in entries]),
                capture.cameras.height,
                capture.cameras.width,
            ),
            "images": capture.images.transpose(2, 3),
        }
    )
    ColmapModel.of_capture(own).write_binary(tmp_path / "sparse/0")
    assert_same(read_capture(tmp_path, hold_out_every=0))
    upright = turn_upright(read_capture(tmp_path))
    assert float(-upright.cameras.camera_to_world[:, 2, 1].mean()) > 0.5


def test_a_mask_is_turned_with_its_picture(folder):
    store_turned(folder, 6)
    pixels = np.full((16, 20), 255, np.uint8)
    pixels[:4] = 0
    Image.fromarray(pixels).save(folder / "shown.png")
    Image.fromarray(np.ascontiguousarray(STORE[6](pixels))).save(folder / "stored.png")
    for name in ("shown.png", "stored.png"):
        change(folder, lambda meta, name=name: meta["frames"][0].update(mask_path=name))
        masks = read_capture(folder).masks
        assert masks is not None
        assert masks[0, :4].max() == 0 and masks[0, 4:].min() == 1


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photographs_from_a_phone_come_upright_through_structure_from_motion(tmp_path, monkeypatch, orientation):
    """What pycolmap is shown is upright; so is what the capture is made of, and the file stays the user's own."""
    capture = small_capture()
    write_capture(capture, tmp_path)
    store_turned(tmp_path, orientation)

    def find(folder, workplace, where):
        for path in folder.iterdir():
            with Image.open(path) as image:
                assert image.size == (20, 16) and image.getexif().get(0x0112, 1) == 1
        model = ColmapModel.of_capture(capture)
        shown = {Path(path.name).name.split(".")[0]: path.name for path in folder.iterdir()}
        model.images = [(n, q, t, c, shown[Path(name).stem]) for n, q, t, c, name in model.images]
        model.write_binary(workplace / "model")
        from restage.scenes.io.colmap import ModelFiles

        return ModelFiles(workplace / "model", ".bin")

    monkeypatch.setattr("restage.scenes.io.photographs.find_cameras", find)
    found = read_capture(tmp_path / "images", hold_out_every=0)
    torch.testing.assert_close(found.images, capture.images)
    torch.testing.assert_close(found.cameras.camera_to_world, capture.cameras.camera_to_world, atol=2e-6, rtol=0)
    assert found.file_names == capture.file_names


def test_heic_among_jpegs_goes_to_structure_from_motion_too(tmp_path, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif (the extra heif) is not installed")
    seen = []

    def find(folder, workplace, where):
        seen.extend(sorted(path.name for path in folder.iterdir()))
        raise RuntimeError

    monkeypatch.setattr("restage.scenes.io.photographs.find_cameras", find)
    Image.new("RGB", (32, 24), (9, 200, 30)).save(tmp_path / "a.jpg")
    pillow_heif.from_pillow(Image.new("RGB", (32, 24), (200, 30, 60))).save(tmp_path / "b.HEIC", quality=95)
    with pytest.raises(RuntimeError):
        pose_photographs({"a.jpg": tmp_path / "a.jpg", "b.HEIC": tmp_path / "b.HEIC"}, "here")
    assert seen == ["a.jpg", "b.HEIC.jpg"]

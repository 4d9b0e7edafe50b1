"""Blender, LLFF, Record3D, Polycam and video: each gives the capture that the same scene gives in plain form."""

import json
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from restage.records import InputError
from restage.scenes.capture import Capture
from restage.scenes.io import capture_name, read_capture, recognize_capture
from restage.scenes.io.photographs import sharpest_frames, sharpness
from tests.scenes.tiny_captures import HEIGHT, WIDTH, save_images, small_capture

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
CAPTURE = small_capture()
FOCAL = float(CAPTURE.cameras.intrinsics[0, 0, 0])
POSES = CAPTURE.cameras.camera_to_world.double().numpy() @ OPENGL


def assert_like_plain(found: Capture, indices: list[int], *, atol: float = 0.0) -> None:
    """The pictures and poses of these views, with a centred principal point."""
    torch.testing.assert_close(found.images, CAPTURE.images[indices], atol=atol, rtol=0)
    expected = CAPTURE.cameras.camera_to_world[indices]
    torch.testing.assert_close(found.cameras.camera_to_world, expected, atol=1e-5, rtol=0)
    centred = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    torch.testing.assert_close(found.cameras.intrinsics[0], centred)


def write_blender(folder: Path, splits: dict[str, list[int]]) -> None:
    for kind, indices in splits.items():
        names = [f"{kind}/r_{number}" for number in range(len(indices))]
        save_images(CAPTURE.images[indices], folder, [f"{name}.png" for name in names])
        frames = [
            {"file_path": f"./{name}", "rotation": 0.01, "transform_matrix": POSES[index].tolist()}
            for name, index in zip(names, indices, strict=True)
        ]
        meta = {"camera_angle_x": 2 * np.arctan(WIDTH / 2 / FOCAL), "frames": frames}
        (folder / f"transforms_{kind}.json").write_text(json.dumps(meta))


def test_a_blender_scene_keeps_its_own_split(tmp_path):
    write_blender(tmp_path, {"train": [0, 1, 2, 3], "val": [4, 5], "test": [6, 7, 8]})
    assert recognize_capture(tmp_path).form == "blender"
    found = read_capture(tmp_path)
    assert_like_plain(found, [0, 1, 2, 3, 6, 7, 8])
    assert (found.train_indices, found.held_out_indices) == ((0, 1, 2, 3), (4, 5, 6))
    assert len(set(found.file_names)) == 7
    (tmp_path / "transforms_test.json").unlink()
    assert_like_plain(read_capture(tmp_path), [0, 1, 2, 3, 4, 5])
    (tmp_path / "transforms_val.json").unlink()
    assert read_capture(tmp_path).held_out_indices == (0,)


def write_llff(folder: Path, *, smaller: int = 1) -> None:
    save_images(CAPTURE.images, folder / "images", CAPTURE.file_names)
    rows = []
    for pose in POSES:
        right, up, back, position = pose[:3].T
        matrix = np.stack([-up, right, back, position, [HEIGHT * smaller, WIDTH * smaller, FOCAL * smaller]], axis=1)
        rows.append([*matrix.ravel(), 1.0, 9.0])
    np.save(folder / "poses_bounds.npy", np.array(rows))


@pytest.mark.parametrize("smaller", [1, 4])
def test_an_llff_folder_reads_by_its_poses(tmp_path, smaller):
    write_llff(tmp_path, smaller=smaller)
    assert recognize_capture(tmp_path).form == "llff"
    assert_like_plain(read_capture(tmp_path), list(range(9)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (np.zeros((8, 17)), "9 images for 8 poses"),
        (np.zeros((9, 12)), r"shape \(n, 17\)"),
        (np.full((9, 17), np.nan), "size in pixels"),
        (np.array([{}], dtype=object), "not readable"),
    ],
)
def test_broken_llff_poses_give_one_clear_line(tmp_path, content, expected):
    write_llff(tmp_path)
    np.save(tmp_path / "poses_bounds.npy", content, allow_pickle=True)
    with pytest.raises(InputError, match=expected):
        read_capture(tmp_path)
    rows = np.lib.format.header_data_from_array_1_0(np.zeros((9, 17)))
    for header in (b"no array", b"\x93NUMPY\x01\x00\x0a\x00{'descr': ("):
        (tmp_path / "poses_bounds.npy").write_bytes(header)
        with pytest.raises(InputError, match="not readable as a numpy array"):
            read_capture(tmp_path)
    with (tmp_path / "poses_bounds.npy").open("wb") as file:  # a header that claims more than the file holds
        np.lib.format.write_array_header_1_0(file, {**rows, "shape": (10**12, 17)})
    with pytest.raises(InputError, match="not readable as a numpy array"):
        read_capture(tmp_path)


def write_record3d(folder: Path, **changes: Any) -> None:
    save_images(CAPTURE.images, folder / "rgb", [f"{index}.png" for index in range(9)])
    meta = {
        "w": WIDTH,
        "h": HEIGHT,
        "fps": 30,
        "K": [FOCAL, 0, 0, 0, FOCAL, 0, WIDTH / 2, HEIGHT / 2, 1],
        "poses": [[*Rotation.from_matrix(pose[:3, :3]).as_quat(), *pose[:3, 3]] for pose in POSES],
    }
    (folder / "metadata").write_text(json.dumps({**meta, **changes}))


def test_a_record3d_export_reads_by_its_quaternions(tmp_path):
    write_record3d(tmp_path)
    assert recognize_capture(tmp_path).form == "record3d"
    assert_like_plain(read_capture(tmp_path), list(range(9)))
    each = [[FOCAL * (1 + 0.01 * index), FOCAL, WIDTH / 2, HEIGHT / 2] for index in range(9)]
    write_record3d(tmp_path, perFrameIntrinsicCoeffs=each)
    found = read_capture(tmp_path).cameras.intrinsics[:, 0, 0]
    torch.testing.assert_close(found, FOCAL * (1 + 0.01 * torch.arange(9)))


def test_many_record3d_frames_go_with_their_poses_by_number(tmp_path):
    poses = [[0, 0, 0, 1, float(index), 0, 0] for index in range(12)]
    write_record3d(tmp_path, poses=poses)
    save_images(CAPTURE.images[:3], tmp_path / "rgb", ["9.png", "10.png", "11.png"])
    found = read_capture(tmp_path, hold_out_every=0)
    assert [float(x) for x in found.cameras.positions[:, 0]] == [int(Path(name).stem) for name in found.file_names]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"poses": [[0, 0, 0, 1, 0, 0, 0]] * 4}, "4 poses for 9 pictures"),
        ({"poses": [[0, 0, 0, 1]] * 9}, r"poses\[0\]: expected array of length 7, got 4"),
        ({"poses": [[0, 0, 0, 0, 1, 2, 3]] * 9}, "unit quaternion"),
        ({"poses": 3}, "poses: expected array, got int"),
        ({"K": [1, 2]}, "K: expected array of length 9, got 2"),
        ({"K": ["a"] * 9}, r"K\[0\]: expected float, got str"),
        (
            {"perFrameIntrinsicCoeffs": [[1, 2, 3, True]]},
            r"Coeffs\[0\]\[3\]: expected float, got bool",
        ),
        ({"w": None}, "w: expected float, got null"),
        ({"w": -3}, "w: expected float >= 1"),
    ],
)
def test_a_broken_record3d_export_gives_one_clear_line(tmp_path, changes, expected):
    write_record3d(tmp_path, **changes)
    with pytest.raises(InputError, match=expected):
        read_capture(tmp_path)


@pytest.mark.parametrize(("images", "cameras"), [("images", "cameras"), ("corrected_images", "corrected_cameras")])
def test_a_polycam_export_reads_by_its_keyframes(tmp_path, images, cameras):
    folder = tmp_path / "scan" / "keyframes"
    save_images(CAPTURE.images, folder / images, CAPTURE.file_names)
    (folder / cameras).mkdir()
    lens = {"fx": FOCAL, "fy": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2, "width": WIDTH, "height": HEIGHT}
    for name, pose in zip(CAPTURE.file_names, POSES, strict=True):
        numbers = {f"t_{row}{column}": pose[row, column] for row in range(3) for column in range(4)}
        path = folder / cameras / Path(name).with_suffix(".json")
        path.write_text(json.dumps({**numbers, **lens, "blur_score": 90, "timestamp": 1}))
    assert recognize_capture(tmp_path / "scan").form == recognize_capture(folder).form == "polycam"
    assert capture_name(folder) == "scan"
    assert_like_plain(read_capture(tmp_path / "scan"), list(range(9)))
    path.unlink()
    with pytest.warns(UserWarning, match="1 of 9 pictures have no camera"):
        assert_like_plain(read_capture(tmp_path / "scan"), list(range(8)))
    for text, expected in (
        ('"far"', "expected float, got str"),
        ("NaN", "expected float"),
        ("1e999", "expected float <="),
    ):
        (folder / cameras / "view_00.json").write_text(
            json.dumps({**numbers, **lens, "t_00": 0.5}).replace("0.5", text)
        )
        with pytest.raises(InputError, match=rf"view_00\.json: t_00: {expected}"):
            read_capture(tmp_path / "scan")


def write_video(path: Path, frames: list[np.ndarray], fps: int = 12) -> None:
    height, width = frames[0].shape[:2]
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=fps, quality=9, macro_block_size=2)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def blurred(frame: np.ndarray) -> np.ndarray:
    small = Image.fromarray(frame).resize((frame.shape[1] // 8, frame.shape[0] // 8), Image.Resampling.BOX)
    return np.asarray(small.resize((frame.shape[1], frame.shape[0]), Image.Resampling.BICUBIC))


def test_the_sharpest_frame_of_each_stretch_of_a_video_is_taken(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    sharp = np.asarray(Image.fromarray(noise).resize((96, 64), Image.Resampling.BOX))
    assert sharpness(sharp) > 10 * sharpness(blurred(sharp))
    frames = [sharp if index in (1, 6, 11) else blurred(sharp) for index in range(12)]
    write_video(tmp_path / "walk.mp4", frames)
    taken = list(sharpest_frames(tmp_path / "walk.mp4"))
    assert [index for index, _ in taken] == [1, 6, 11]
    assert taken[0][1].shape == (64, 96, 3)
    assert recognize_capture(tmp_path / "walk.mp4").form == "video"
    assert capture_name(tmp_path / "walk.mp4") == "walk"


def test_what_is_no_video_gives_one_clear_line(tmp_path):
    (tmp_path / "walk.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"walk\.mp4 is not readable as a video"):
        read_capture(tmp_path / "walk.mp4")

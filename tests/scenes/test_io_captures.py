"""A path is taken for what it is; the real bear reads in every form; photographs need pycolmap and say so."""

import contextlib
import json
import signal
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restage.cli import run
from restage.records import InputError, MissingExtra, Progress
from restage.scenes.config import FitConfig
from restage.scenes.io import (
    capture_name,
    is_capture,
    read_capture,
    read_points,
    recognize_capture,
    write_capture,
    write_points,
)
from restage.scenes.io.posed import ReadOptions, check_rigid, split_every
from restage.scenes.stage import fit_folder
from tests.conftest import REPOSITORY
from tests.scenes.tiny_captures import ColmapModel, save_images, small_capture

BEAR = REPOSITORY.parent / "shared" / "data" / "captures" / "bear"
needs_bear = pytest.mark.skipif(not BEAR.is_dir(), reason="needs the bear's capture beside the repository")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_capture(small_capture(), tmp_path / "small")
    return tmp_path / "small"


def test_every_form_is_recognized_and_posed_forms_come_before_photographs(folder, tmp_path):
    assert recognize_capture(folder).form == "nerfstudio"
    assert recognize_capture(folder / "transforms.json").form == "nerfstudio"
    assert recognize_capture(folder / "images").form == "photographs"
    ColmapModel.of_capture(small_capture()).write_text(folder / "sparse/0")
    assert recognize_capture(folder).form == "nerfstudio"
    (folder / "transforms.json").unlink()
    assert recognize_capture(folder).form == "colmap"
    assert recognize_capture(folder / "sparse").form == "colmap"
    (folder / "sparse/0/cameras.txt").unlink()
    assert recognize_capture(folder).form == "photographs"
    assert recognize_capture(folder).path == folder / "images"


def test_a_json_file_reads_as_its_folder_does_whatever_its_name(folder):
    expected = read_capture(folder)
    (folder / "transforms.json").rename(folder / "transforms_train.json")
    found = read_capture(folder / "transforms_train.json")
    assert torch.equal(found.images, expected.images)
    assert found.name == expected.name == "small"


def test_a_capture_is_named_by_the_innermost_folder_with_a_name_of_its_own(tmp_path):
    for place in ("bear", "bear/images", "bear/sparse/0", "bear/colmap/sparse/0", "bear/capture"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        assert capture_name(tmp_path / place) == "bear"
    (tmp_path / "bear/transforms.json").write_text("{}")
    assert capture_name(tmp_path / "bear/transforms.json") == "bear"
    assert capture_name(Path("/")) == "capture"


def test_what_is_no_capture_is_told_what_is_expected(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        read_capture(tmp_path / "none")
    with pytest.raises(InputError, match="holds no capture; expected one of these: transforms.json.*a COLMAP model"):
        read_capture(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="a folder, a transforms.json or a video"):
        read_capture(tmp_path / "notes.txt")


def test_a_run_and_a_fitted_scene_are_no_captures_though_they_hold_pictures(folder):
    assert is_capture(folder)
    for name in ("run.json", "splats.ply"):
        (folder / name).write_text("{}")
        assert not is_capture(folder)
        (folder / name).unlink()
    assert not is_capture(folder / "none")


@pytest.mark.parametrize(
    ("num_views", "every", "held_out"), [(9, 8, (0, 8)), (9, 0, ()), (1, 8, ()), (5, 2, (0, 2, 4)), (2, 3, (0,))]
)
def test_a_split_shares_no_view_and_leaves_some_to_train(num_views, every, held_out):
    train, found = split_every(num_views, every)
    assert found == held_out
    assert sorted((*train, *found)) == list(range(num_views))
    assert train


def test_the_choice_of_held_out_views_is_checked():
    for every in (-1, 1):
        with pytest.raises(InputError, match="hold_out_every"):
            ReadOptions(hold_out_every=every)


def test_a_transform_that_is_off_by_rounding_gets_the_nearest_rotation_and_a_good_one_keeps_its_bits():
    exact = small_capture().cameras.camera_to_world[3].double()
    assert torch.equal(check_rigid(exact, "here"), exact)
    rounded = exact.clone()
    rounded[:3, :3] = (rounded[:3, :3] * 1000).round() / 1000
    rotation = check_rigid(rounded, "here")[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(rotation, exact[:3, :3], atol=1e-3, rtol=0)


def test_photographs_without_pycolmap_name_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(MissingExtra, match=r"photographs without cameras.*pip install 'restage\[colmap\]'"):
        read_capture(folder / "images")


def test_too_few_or_unconnected_photographs_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("pycolmap", reason="needs restage[colmap]")
    generator = torch.Generator().manual_seed(0)
    save_images(torch.rand(2, 3, 64, 64, generator=generator), tmp_path, ("a.png", "b.png"))
    with pytest.raises(InputError, match="at least 3 photographs, got 2"):
        read_capture(tmp_path)
    save_images(torch.rand(2, 3, 64, 64, generator=generator), tmp_path, ("c.png", "d.png"))
    reported: list[Progress] = []
    monkeypatch.setattr("restage.scenes.io.photographs.report", reported.append)
    with pytest.raises(InputError, match="0 of 4 connect"):
        read_capture(tmp_path)
    last = {step.stage: (step.done, step.total) for step in reported}
    assert last == {"features": (4, 4), "matches": (6, 6), "cameras": (4, 4)}


def test_a_stop_reaches_structure_from_motion_at_once(tmp_path, monkeypatch):
    pytest.importorskip("pycolmap", reason="needs restage[colmap]")
    save_images(torch.rand(3, 3, 64, 64), tmp_path, ("a.png", "b.png", "c.png"))
    handler = signal.getsignal(signal.SIGTERM)

    def stop(step: Progress) -> None:
        if step.stage == "matches":
            raise KeyboardInterrupt

    monkeypatch.setattr("restage.scenes.io.photographs.report", stop)
    with pytest.raises(KeyboardInterrupt):
        read_capture(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_what_colmap_has_written_is_counted_without_a_lock(tmp_path):
    from restage.scenes.io.photographs import _rows_in

    database = tmp_path / "database.db"
    assert _rows_in(database, "keypoints") == 0
    with contextlib.closing(sqlite3.connect(database)) as writer:
        writer.execute("CREATE TABLE keypoints (x)")
        writer.execute("INSERT INTO keypoints VALUES (1)")
        writer.commit()
        writer.execute("BEGIN EXCLUSIVE")
        assert _rows_in(database, "keypoints") == 1


@needs_bear
def test_the_bear_reads_small_with_its_distortion_taken_out():
    bear = read_capture(BEAR, 64)
    assert bear.name == "bear"
    assert tuple(bear.images.shape) == (96, 3, 64, 64)
    assert len(bear.points) == 34_174
    assert len(bear.held_out_indices) == 12
    assert bear.masks is None
    assert 0.2 < float(bear.images.mean()) < 0.8


@needs_bear
def test_the_bear_as_a_colmap_model_is_the_same_capture(tmp_path):
    """Four photographs of it, written as COLMAP has them: one OPENCV camera, full-size images."""
    meta = json.loads((BEAR / "transforms.json").read_text())
    for folder in (tmp_path / "ns", tmp_path):
        (folder / "images").mkdir(parents=True)
        for frame in meta["frames"][:4]:
            (folder / frame["file_path"]).write_bytes((BEAR / frame["file_path"]).read_bytes())
    few = {**meta, "frames": meta["frames"][:4], "ply_file_path": "few.ply"}
    (tmp_path / "ns/transforms.json").write_text(json.dumps(few))
    points = read_points(BEAR / "sparse_pc.ply")
    write_points(points.positions[:500], tmp_path / "ns/few.ply", colors=points.colors[:500])
    expected = read_capture(tmp_path / "ns", 128, hold_out_every=0)
    model = ColmapModel.of_capture(expected)
    lens = tuple(float(meta[name]) for name in ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2"))
    model.cameras = {number: ("OPENCV", 512, 512, lens) for number in model.cameras}
    model.write_binary(tmp_path / "sparse/0")
    found = read_capture(tmp_path, 128, hold_out_every=0)
    assert torch.equal(found.images, expected.images)
    torch.testing.assert_close(found.cameras.intrinsics, expected.cameras.intrinsics)
    torch.testing.assert_close(found.cameras.camera_to_world, expected.cameras.camera_to_world, atol=1e-5, rtol=0)
    assert torch.equal(found.points, expected.points)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*photographs find no place")
@needs_bear
def test_the_cameras_of_the_bears_photographs_are_found(tmp_path):
    pytest.importorskip("pycolmap", reason="needs restage[colmap]")
    for index in range(1, 97, 8):
        name = f"frame_{index:05d}.jpg"
        (tmp_path / name).write_bytes((BEAR / "images" / name).read_bytes())
    found = read_capture(tmp_path, 64)
    assert len(found.cameras) >= 6
    assert len(found.points) > 300
    truth = read_capture(BEAR, 64)
    centers = truth.cameras.positions[[truth.file_names.index(name) for name in found.file_names]].double().numpy()
    assert _error_after_alignment(found.cameras.positions.double().numpy(), centers) < 0.02


def _error_after_alignment(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square distance after the best similarity, in units of the cameras' spread (Umeyama 1991)."""
    a, b = found - found.mean(0), expected - expected.mean(0)
    left, values, right = np.linalg.svd(b.T @ a)
    signs = np.array([1, 1, np.sign(np.linalg.det(left @ right))])
    scale = (values * signs).sum() / (a**2).sum()
    residual = b - scale * a @ (left * signs @ right).T
    return float(np.sqrt((residual**2).sum() / (b**2).sum()))


def test_sixteen_bit_and_eight_bit_photographs_agree(folder):
    path = folder / "images" / "view_00.png"
    with Image.open(path) as image:
        grey = np.asarray(image.convert("L"))
    Image.fromarray(grey).save(path)
    expected = read_capture(folder).images[0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    torch.testing.assert_close(read_capture(folder).images[0], expected, atol=1e-6, rtol=0)


def test_a_colmap_project_comes_into_a_run_upright_and_with_its_masks(tmp_path, monkeypatch, capsys):
    turn = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    cameras = small_capture().cameras
    capture = replace(small_capture(), cameras=replace(cameras, camera_to_world=turn @ cameras.camera_to_world))
    ColmapModel.of_capture(capture).write_text(tmp_path / "statue/sparse/0")
    save_images(capture.images, tmp_path / "statue/images", capture.file_names)
    pixels = np.full((16, 20), 255, np.uint8)
    pixels[:4] = 0
    (tmp_path / "statue/masks").mkdir()
    Image.fromarray(pixels).save(tmp_path / "statue/masks/view_03.png.png")
    fitted = []
    monkeypatch.setattr(
        "restage.scenes.stage.fit_capture", lambda capture, *_, **__: fitted.append(capture) or iter(())
    )
    list(fit_folder(tmp_path / "statue", tmp_path / "run", FitConfig()))
    (kept,) = fitted
    assert kept.masks is not None
    assert float(kept.masks[3, :4].max()) == 0
    torch.testing.assert_close(kept.cameras.camera_to_world, cameras.camera_to_world, atol=2e-6, rtol=0)
    (tmp_path / "statue/sparse/0/images.txt").write_text("broken\n")
    assert run(["fit", str(tmp_path / "statue"), "--out", str(tmp_path / "other")]) == 2
    assert "images.txt, line 1" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()

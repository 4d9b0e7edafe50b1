"""Splats from elsewhere become a fit: of their capture, of other cameras, or of cameras placed around them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from restage.audit.verify import verify_folder
from restage.pairs.config import VerifyConfig
from restage.records import InputError, file_sha256, read_json, write_json
from restage.run.folder import open_run
from restage.scenes.capture import turn_upright
from restage.scenes.config import FitConfig
from restage.scenes.io import read_capture, read_splats, recognize_capture, write_capture, write_splats
from restage.scenes.io.images import write_png
from restage.scenes.splats import Splats
from restage.scenes.stage import fit_folder
from restage.scenes.taken import Placement, take_splats
from restage.scenes.turning import export_splats
from tests.scenes.test_capture import turned
from tests.scenes.test_turning import TURN
from tests.scenes.tiny_captures import small_capture

SMALL = Placement(num_views=8, size=32)


def table(up: tuple[float, float, float] = (0.0, 0.0, 1.0), count: int = 600) -> Splats:
    """A flat, colored slab across an axis, with ten floaters far away."""
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(count, 3, generator=generator) * 2 - 1
    axis = torch.tensor(up).abs().argmax()
    means[:, axis] *= 0.15
    means[:10] = 40 * torch.randn(10, 3, generator=generator)
    sh = torch.randn(count, 1, 3, generator=generator)
    rotations = torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4)
    return Splats(means, torch.full((count, 3), -2.5), rotations, torch.full((count,), 3.0), sh)


def written(tmp_path: Path, name: str = "slab.spz", up: tuple[float, float, float] = (0.0, 0.0, 1.0)) -> Path:
    write_splats(table(up), tmp_path / name)
    return tmp_path / name


def test_cameras_around_see_the_middle_and_the_record_says_where_the_splats_came_from(tmp_path):
    file = written(tmp_path)
    list(take_splats(file, tmp_path / "run", placement=SMALL))
    scene = tmp_path / "run" / "scenes" / "slab"
    record = read_json(scene / "fit.json")
    assert record["splats_from"] == {"file": "slab.spz", "sha256": file_sha256(file)}
    assert record["num_views"] == 8 and record["num_held_out"] == 1 and record["train_psnr_db"] > 40
    capture = read_capture(scene / "capture")
    assert "renders of slab.spz stand for photographs" in capture.notes[0]
    # Floaters at 40 units do not push the cameras away, and the slab fills much of every picture.
    assert 2 < float(capture.cameras.positions.norm(dim=1).median()) < 6
    assert float((capture.images.amax(dim=1) > 0.05).float().mean(dim=(1, 2)).min()) > 0.1
    assert not verify_folder(str(tmp_path / "run"), VerifyConfig())
    list(take_splats(file, tmp_path / "run", placement=SMALL))
    assert read_json(scene / "fit.json") == record


@pytest.mark.parametrize(
    ("flat", "expected"),
    [((0.0, 0.0, 1.0), (0.0, 0.0, 1.0)), ((0.0, 1.0, 0.0), (0.0, -1.0, 0.0)), ((1.0, 0.0, 0.0), (1.0, 0.0, 0.0))],
)
def test_up_is_guessed_across_a_flat_scene_and_becomes_z(tmp_path, flat, expected):
    file = written(tmp_path, up=flat)
    list(take_splats(file, tmp_path / "run", placement=SMALL))
    change = read_capture(tmp_path / "run" / "scenes" / "slab" / "capture").own_to_world
    assert change is not None
    up = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(
        change[:3, :3] @ up, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_up_that_is_named_is_taken_and_an_export_gives_the_splats_back_in_their_frame(tmp_path):
    file = written(tmp_path, "slab.ply")
    list(take_splats(file, tmp_path / "run", placement=Placement(up="-x", num_views=8, size=32)))
    scene = tmp_path / "run" / "scenes" / "slab"
    assert "up is -x" in read_json(scene / "fit.json")["notes"][0]
    export_splats(scene, tmp_path / "back.ply", frame="own")
    torch.testing.assert_close(read_splats(tmp_path / "back.ply").means, read_splats(file).means, atol=1e-4, rtol=0)


def test_other_splats_do_not_take_the_place_of_a_fit(tmp_path):
    list(take_splats(written(tmp_path), tmp_path / "run", placement=SMALL))
    before = (tmp_path / "run" / "scenes" / "slab" / "fit.json").read_bytes()
    with pytest.raises(InputError, match="holds another fit, or other splats"):
        list(take_splats(written(tmp_path, up=(0.0, 1.0, 0.0)), tmp_path / "run", placement=SMALL))
    assert (tmp_path / "run" / "scenes" / "slab" / "fit.json").read_bytes() == before


@pytest.mark.parametrize("name", ["none.ply", "cut.spz"])
def test_a_file_that_cannot_be_read_leaves_nothing_behind(tmp_path, name):
    (tmp_path / "cut.spz").write_bytes(b"NGSP....")
    with pytest.raises(InputError, match=name):
        list(take_splats(tmp_path / name, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_splats_with_their_capture_are_its_fit_in_the_upright_world(tmp_path):
    own = turned(small_capture(), TURN)
    write_capture(own, tmp_path / "mine")
    list(fit_folder(tmp_path / "mine", tmp_path / "first", FitConfig(steps=120, num_splats=60)))
    fitted = tmp_path / "first" / "scenes" / "mine"
    export_splats(fitted, tmp_path / "own.ply", frame="own")
    list(take_splats(tmp_path / "own.ply", tmp_path / "second", capture=tmp_path / "mine"))
    taken = tmp_path / "second" / "scenes" / "mine"
    torch.testing.assert_close(read_splats(taken / "splats.ply").means, read_splats(fitted / "splats.ply").means)
    first, second = (read_json(folder / "fit.json") for folder in (fitted, taken))
    assert abs(first["held_out_psnr_db"] - second["held_out_psnr_db"]) < 0.1
    assert first["capture_sha256"] == second["capture_sha256"] and first["id"] != second["id"]
    assert not verify_folder(str(tmp_path / "second"), VerifyConfig())
    with pytest.raises(InputError, match="another config"):
        list(fit_folder(tmp_path / "mine", tmp_path / "second", FitConfig(steps=120, num_splats=60)))


def test_splats_of_another_frame_are_refused_before_anything_is_written(tmp_path):
    write_capture(turn_upright(small_capture()), tmp_path / "mine")
    with pytest.raises(InputError, match="in the frame of mine's cameras, got a PSNR of"):
        list(take_splats(written(tmp_path), tmp_path / "run", capture=tmp_path / "mine"))
    assert not (tmp_path / "run").exists()


def test_cameras_of_a_capture_are_used_without_its_pictures(tmp_path):
    write_capture(small_capture(), tmp_path / "mine")
    list(take_splats(written(tmp_path), tmp_path / "run", cameras=tmp_path / "mine"))
    capture = read_capture(tmp_path / "run" / "scenes" / "slab" / "capture")
    torch.testing.assert_close(capture.cameras.camera_to_world, small_capture().cameras.camera_to_world)
    assert read_json(tmp_path / "run" / "scenes" / "slab" / "fit.json")["train_psnr_db"] > 40


def test_what_a_stopped_start_left_is_not_part_of_the_scene(tmp_path):
    file, scene = written(tmp_path), open_run(tmp_path / "run").path / "scenes" / "slab"
    write_capture(small_capture(), scene / "capture")
    (scene / "held_out").mkdir()
    (scene / "held_out" / "old.png").write_bytes(b"old")
    list(take_splats(file, tmp_path / "run", placement=SMALL))
    assert not (scene / "held_out" / "old.png").exists() and not verify_folder(str(tmp_path / "run"), VerifyConfig())
    names = {path.name for path in (scene / "capture" / "images").iterdir()}
    assert names == set(read_capture(scene / "capture").file_names)


def test_a_fit_that_has_begun_is_not_overwritten(tmp_path):
    write_capture(small_capture(), tmp_path / "slab")
    config = FitConfig(steps=5, num_splats=60)
    next(fit_folder(tmp_path / "slab", tmp_path / "run", config))
    with pytest.raises(InputError, match="whose fit has begun; choose another --out"):
        list(take_splats(written(tmp_path), tmp_path / "run", placement=SMALL))
    assert read_capture(tmp_path / "run" / "scenes" / "slab" / "capture").file_names == small_capture().file_names


def test_cameras_are_used_though_their_pictures_are_missing(tmp_path):
    capture = small_capture()
    write_capture(capture, tmp_path / "mine")
    for folder in ("images", "masks"):
        shutil.rmtree(tmp_path / "mine" / folder, ignore_errors=True)
    (tmp_path / "mine" / "sparse_pc.ply").unlink(missing_ok=True)
    list(take_splats(written(tmp_path), tmp_path / "run", cameras=tmp_path / "mine"))
    found = read_capture(tmp_path / "run" / "scenes" / "slab" / "capture")
    torch.testing.assert_close(found.cameras.camera_to_world, capture.cameras.camera_to_world)
    torch.testing.assert_close(found.cameras.intrinsics, capture.cameras.intrinsics)
    assert float(found.images.max()) > 0.2  # renders, and not the black that stands for pictures
    with pytest.raises(InputError, match="pictures that it names do not exist"):
        read_capture(tmp_path / "mine")
    meta = read_json(tmp_path / "mine" / "transforms.json")
    (tmp_path / "outside.png").write_bytes(b"never read")
    meta["frames"][0]["file_path"] = str(tmp_path / "outside.png")
    names = {name: meta[name] for name in meta if not name.endswith("_filenames")}
    write_json(tmp_path / "mine" / "transforms.json", names)
    list(take_splats(written(tmp_path), tmp_path / "third", cameras=tmp_path / "mine"))
    write_json(tmp_path / "mine" / "transforms.json", {name: meta[name] for name in meta if name not in ("w", "h")})
    with pytest.raises(InputError, match="expected the size of a view, w and h, since there is no picture"):
        list(take_splats(written(tmp_path), tmp_path / "other", cameras=tmp_path / "mine"))


def test_cameras_of_a_colmap_model_alone_are_used(tmp_path):
    model = tmp_path / "model" / "sparse" / "0"
    model.mkdir(parents=True)
    (model / "cameras.txt").write_text("1 PINHOLE 48 32 40 40 24 16\n")
    rows = [f"{number + 1} 1 0 0 0 {0.1 * number} 0 4 1 view_{number}.jpg\n\n" for number in range(4)]
    (model / "images.txt").write_text("".join(rows))
    list(take_splats(written(tmp_path), tmp_path / "run", cameras=tmp_path / "model"))
    found = read_capture(tmp_path / "run" / "scenes" / "slab" / "capture")
    assert (found.cameras.width, found.cameras.height, len(found.cameras)) == (48, 32, 4)


def test_cameras_that_3d_gaussian_splatting_writes_beside_its_splats_are_used(tmp_path):
    capture, model = small_capture(), tmp_path / "model"
    model.mkdir()
    height, width = capture.images.shape[-2:]
    rows = []
    for index, pose in enumerate(capture.cameras.camera_to_world.tolist()):
        (fx, _, _), (_, fy, _), _ = capture.cameras.intrinsics[index].tolist()
        seen = {"id": index, "img_name": f"view_{index:02d}", "width": width, "height": height, "fx": fx, "fy": fy}
        rows.append({**seen, "position": [row[3] for row in pose[:3]], "rotation": [row[:3] for row in pose[:3]]})
    write_json(model / "cameras.json", rows)
    list(take_splats(written(tmp_path), tmp_path / "by_file", cameras=model / "cameras.json"))
    found = read_capture(tmp_path / "by_file" / "scenes" / "slab" / "capture").cameras
    torch.testing.assert_close(found.camera_to_world, capture.cameras.camera_to_world)
    torch.testing.assert_close(found.intrinsics[:, :2, :2], capture.cameras.intrinsics[:, :2, :2])
    with pytest.raises(InputError, match="holds no capture"):
        recognize_capture(model)  # other programs, too, call files so
    (model / "point_cloud").mkdir()
    assert recognize_capture(model).form == "gaussian-splatting"
    with pytest.raises(InputError, match="pictures that it names do not exist"):
        read_capture(model)
    (model / "images").mkdir()
    for index, image in enumerate(capture.images):
        write_png(model / "images" / f"view_{index:02d}.png", image.permute(1, 2, 0))
    torch.testing.assert_close(read_capture(model).images, capture.images, rtol=0, atol=1 / 250)
    rows[0]["fx"] = 0
    write_json(model / "cameras.json", rows)
    with pytest.raises(InputError, match="fx"):
        read_capture(model)

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from restage.cli import run
from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.conditions import stack_conditions
from restage.diffusion.config import BranchSource
from restage.diffusion.motion import build_motion
from restage.generate.layouts import layouts_like, read_layouts
from restage.records import InputError
from restage.regions.files import write_region
from restage.regions.region import Region
from restage.scenes.io.splat_files import read_splats
from restage.world.clips import render_clip, sample_clip, write_clip
from restage.world.render import NEAR
from tests.commands.shell import write_capture_folder
from tests.tiny_branch import write_tiny_branch
from tests.tiny_models import write_tiny_models

CAPTION = "a red cube on the grass at noon"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models with a branch, and files of conditions."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_models(folder)
    write_tiny_branch(folder / "text_to_image", folder / "branch")
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (32, 32), dtype=np.uint8)).save(folder / "depth.png")
    np.save(folder / "depth.npy", generator.uniform(1, 8, (32, 32)).astype(np.float32))
    Image.fromarray(generator.integers(0, 4, (32, 32), dtype=np.uint8)).save(folder / "ids.png")
    return folder


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(folder / "text_to_image", branches=[BranchSource(folder=folder / "branch")])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "clip"
    write_clip(sample_clip(1, num_frames=3, size=32), folder)
    return folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    capture = write_capture_folder(folder / "mine")
    assert run(["fit", str(capture), "--out", str(folder / "run"), "--steps", "10", "--num-splats", "200"]) == 0
    return folder / "run"


def generate(folder: Path, out: Path, *arguments: str) -> int:
    model = ["--backbone", str(folder / "text_to_image"), "--branch", str(folder / "branch")]
    return run(["generate", CAPTION, "--steps", "1", "--out", str(out), *model, *arguments])


def test_files_of_depth_and_ids_hold_a_picture(folder: Path, tmp_path: Path) -> None:
    files = ["--control", f"depth={folder / 'depth.npy'}", f"ids={folder / 'ids.png'}"]
    assert generate(folder, tmp_path / "held.png", *files) == 0
    assert generate(folder, tmp_path / "other.png", "--control", f"depth={folder / 'depth.png'}") == 0
    held, other = (np.asarray(Image.open(tmp_path / name), np.float32) for name in ("held.png", "other.png"))
    assert held.shape == (128, 128, 3) and np.abs(held - other).mean() > 0.1
    assert generate(folder, tmp_path / "held.png", *files) == 0  # it is there
    assert generate(folder, tmp_path / "held.png", *files[:2]) == 2  # of another layout


def test_frames_are_held_each_to_its_own_file_and_share_their_noise(
    folder: Path, tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = tmp_path / "depths"
    frames.mkdir()
    for number in range(2):
        shutil.copy(folder / "depth.png", frames / f"{number}.png")
    ids = f"ids={folder / 'ids.png'}"
    assert generate(folder, tmp_path / "out", "--control", f"depth={frames}", ids) == 0
    first, second = (np.asarray(Image.open(tmp_path / "out" / f"00{n}.png"), np.float32) for n in range(2))
    assert np.abs(first - second).max() <= 1
    assert generate(folder, tmp_path / "clip", "--like", str(clip)) == 0
    assert sorted(path.name for path in (tmp_path / "clip").iterdir()) == [f"00{n}.png" for n in range(3)]
    capsys.readouterr()
    assert generate(folder, tmp_path / "no", "--control", f"depth={frames}", "--like", str(clip)) == 2
    assert "2 of depth, 3 of ids" in capsys.readouterr().err


def test_a_clip_is_held_frame_by_frame_and_may_have_temporal_attention_too(
    folder: Path, tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    motion = build_motion(load_backbone(folder / "text_to_image").unet)
    for name in ("up_blocks", "down_blocks"):  # untrained, it changes nothing
        for layer in (layer for block in getattr(motion, name) for layer in block.motion_modules):
            torch.nn.init.normal_(layer.proj_out.weight, std=0.5)
    motion.save_pretrained(tmp_path / "motion")
    like, films = ["--like", str(clip)], []
    assert generate(folder, tmp_path / "alone.mp4", *like, "--batch-size", "2") == 0
    assert generate(folder, tmp_path / "moved.mp4", *like, "--motion", str(tmp_path / "motion")) == 0
    for name in ("alone.mp4", "moved.mp4"):
        shape, *frames = imageio_ffmpeg.read_frames(str(tmp_path / name))
        assert shape["size"] == (128, 128) and len(frames) == 3
        films.append(np.stack([np.frombuffer(frame, np.uint8) for frame in frames]).astype(np.float32))
    assert np.abs(films[0] - films[1]).mean() > 1
    assert generate(folder, tmp_path / "no.mp4", *like, "--frames", "4") == 2
    assert "as many frames as these" in capsys.readouterr().err


def test_the_frames_of_a_clip_are_exact(clip: Path) -> None:
    truth = render_clip(sample_clip(1, num_frames=3, size=32))
    found = layouts_like(str(clip), NEAR)
    for frame, depth, ids in zip(found, truth.depths, truth.object_ids, strict=True):
        torch.testing.assert_close(frame["depth"][0], torch.from_numpy(NEAR / depth).clamp(max=1))
        for number in range(int(ids.max()) + 1):
            assert np.array_equal(frame["ids"][number].bool().numpy(), ids == number)
    (last,) = layouts_like(f"{clip}:2", NEAR)
    assert torch.equal(last["ids"], found[2]["ids"])


def test_a_view_of_a_scene_has_the_depth_of_its_splats_and_the_ids_of_its_regions(scene: Path) -> None:
    (view,) = layouts_like(f"{scene}:1.png", 2.0)
    assert set(view) == {"depth"} and view["depth"].shape == (1, 32, 32)
    assert len(layouts_like(str(scene), 2.0)) == 4
    splats = read_splats(scene / "scenes" / "mine" / "splats.ply")
    weights = (splats.means[:, 2] > 0).float()
    write_region(scene, "mine", "top", Region.of(splats, weights, by="test"))
    write_region(scene, "mine", "sky", Region.of(splats, (splats.means[:, 2] < -0.5).float(), by="test"))
    (view,) = layouts_like(f"{scene}:1", 2.0)
    ids = view["ids"]
    assert ids.sum(0).eq(1).all() and ids[2].any() and not ids[3:].any()
    assert torch.equal(ids[0] + ids[1] + ids[2], torch.ones(32, 32))


@pytest.mark.parametrize(
    ("control", "like", "expected"),
    [
        (["depth"], "", "NAME=FILE"),
        (["depth=none.png"], "", "none.png"),
        (["ids=FOLDER/color.png"], "", "gray or indexed"),
        (["depth=FOLDER/flat.npy"], "", "rows and columns"),
        (["ids=FOLDER/depth.npy"], "", "whole numbers"),
        (["depth=FOLDER/red.png"], "", "gray picture"),
        (["depth=FOLDER/two.npz"], "", "called depth, got a, b"),
        (["depth=FOLDER/depth.png", "depth=FOLDER/depth.npy"], "", "given twice"),
        (["dept=FOLDER/depth.png"], "", "no control branch takes dept; expected depth or ids"),
        (["ids=FOLDER/below.npy"], "", "from 0 on"),
        (["ids=FOLDER/many.npy"], "", "at most 6 things"),
        ([], "nowhere:3", "not there"),
        ([], "FOLDER:3", "one fitted scene"),
    ],
)
def test_bad_layouts_are_one_line(
    backbone: Backbone, folder: Path, control: list[str], like: str, expected: str
) -> None:
    Image.new("RGB", (8, 8)).save(folder / "color.png")
    Image.new("RGB", (8, 8), "red").save(folder / "red.png")
    np.savez(folder / "two.npz", a=np.ones((4, 4)), b=np.ones((4, 4)))
    np.save(folder / "below.npy", np.full((4, 4), -1))
    np.save(folder / "many.npy", np.arange(16).reshape(4, 4))
    np.save(folder / "flat.npy", np.zeros(4))
    places = [text.replace("FOLDER", str(folder)) for text in (*control, like)]
    with pytest.raises(InputError, match=expected):
        read_layouts(places[:-1], places[-1], backbone.branches)


def test_views_that_are_not_there_and_a_branch_without_conditions_are_refused(
    folder: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"frame_000.png to frame_002.png, or 0 to 2"):
        layouts_like(f"{clip}:3", NEAR)
    assert generate(folder, tmp_path / "x.png") == 2
    assert "--control NAME=FILE" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["npz", "npz of several", "float16 with a channel", "float tiff"])
def test_depth_is_read_from_every_form_of_array(folder: Path, backbone: Backbone, tmp_path: Path, form: str) -> None:
    depth = np.load(folder / "depth.npy").astype(np.float16).astype(np.float32)
    if form == "float tiff":
        Image.fromarray(depth).save(path := tmp_path / "depth.tiff")
    elif form.startswith("npz"):
        more = {"other": depth + 1} if form.endswith("several") else {}
        np.savez(path := tmp_path / "depth.npz", depth=depth, **more)
    else:
        np.save(path := tmp_path / "depth.npy", depth[..., None].astype(np.float16))
    (found,) = read_layouts([f"depth={path}"], "", backbone.branches)
    torch.testing.assert_close(found["depth"][0], torch.from_numpy(1.5 / depth).clamp(max=1), rtol=1e-3, atol=1e-3)


def test_frames_are_counted_as_people_do_and_a_thing_keeps_its_slot(backbone: Backbone, tmp_path: Path) -> None:
    for number in (1, 2, 11):  # the first thing leaves after the first frame, and numbers have gaps
        ids = np.full((4, 4), 300, np.uint16)
        ids[0], ids[1] = 0, 40 if number == 1 else 1
        ids[2] = number == 2
        Image.fromarray(ids).save(tmp_path / f"frame_{number}.png")
    found = [frame["ids"] for frame in read_layouts([f"ids={tmp_path}"], "", backbone.branches)]
    assert [bool(ids[1, 2].all()) for ids in found] == [False, True, False]
    assert bool(found[0][2, 1].all()) and not any(bool(ids[2].any()) for ids in found[1:])
    assert all(bool(ids[3, 3].all()) for ids in found)


def test_depth_of_several_branches_is_on_the_scale_of_the_one_that_minds(backbone: Backbone, folder: Path) -> None:
    (own,) = backbone.branches
    net = replace(own, conditions=("depth",), takes_picture=True, near=1.0)
    text = [f"depth={folder / 'depth.npy'}"]
    (alone,), (after,) = (read_layouts(text, "", branches) for branches in ([own], [net, own]))
    assert torch.equal(alone["depth"], after["depth"])
    # A ControlNet alone sees everything, however small the units are.
    depth = torch.from_numpy(np.load(folder / "depth.npy")) / 100
    np.save(folder / "near.npy", depth.numpy())
    (seen,) = read_layouts([f"depth={folder / 'near.npy'}"], "", [net])
    assert float((seen["depth"] == 1).float().mean()) < 0.03 and len(seen["depth"].unique()) > 900
    with pytest.raises(InputError, match="different scales"):
        read_layouts(text, "", [own, replace(own, near=2.0)])


def test_edges_are_found_in_a_picture_and_left_alone_in_one_of_edges(tmp_path: Path, backbone: Backbone) -> None:
    branches = [replace(backbone.branches[0], conditions=("canny",))]
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, 16:] = 128
    Image.fromarray(picture).save(tmp_path / "picture.png")
    (found,) = read_layouts([f"canny={tmp_path / 'picture.png'}"], "", branches)
    edges = found["canny"][0]
    assert edges.sum() >= 20 and not edges[:, :14].any() and not edges[:, 18:].any()
    Image.fromarray((edges.numpy() * 255).astype(np.uint8)).save(tmp_path / "edges.png")
    (again,) = read_layouts([f"canny={tmp_path / 'edges.png'}"], "", branches)
    assert torch.equal(again["canny"][0], edges)
    # A drawing on white is a picture, and what is larger than the model's pictures keeps its lines.
    Image.fromarray(255 - (edges.numpy() * 255).astype(np.uint8)).save(tmp_path / "drawing.png")
    (drawn,) = read_layouts([f"canny={tmp_path / 'drawing.png'}"], "", branches)
    assert float(drawn["canny"].mean()) < 0.5
    line = torch.zeros(1, 64, 64)
    line[0, 21] = 1
    assert bool(stack_conditions(("canny",), [{"canny": line}], (16, 16))[0, 0, 5].all())

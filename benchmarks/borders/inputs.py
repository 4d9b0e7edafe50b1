"""Small valid inputs of every kind that the package reads, made once: what `cases` spoils afterwards."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

import restage
from restage import cli
from restage.edit.config import EditConfig
from restage.recipes import demo
from restage.run.models import models_in
from restage.world.config import CaptureConfig, WorldConfig
from tests.scenes.tiny_captures import HEIGHT, WIDTH, ColmapModel, save_images, small_capture
from tests.tiny_demo import tiny_demo_config
from tests.tiny_models import write_tiny_models

CAPTURE = small_capture(6)
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
FOCAL = float(CAPTURE.cameras.intrinsics[0, 0, 0])
POSES = CAPTURE.cameras.camera_to_world.double().numpy() @ OPENGL

STUDY = """
from restage.edit.methods import Nothing
from restage.scenes.fit import FitConfig
from restage.studies.scenes import sample_world_scenes
from restage.studies.study import MenuEditor, Study, StudyMethod
from restage.world.stage import CaptureConfig

STUDY = Study(
    name="mine",
    scenes=sample_world_scenes(
        1, ("recolour",),
        capture=CaptureConfig(num_views=6, held_out_every=3, size=32, num_points=200),
        fit=FitConfig(steps=3, num_splats=100),
    ),
    editors={"exact": MenuEditor(name="exact")},
    methods={"nothing": StudyMethod(settings=Nothing())},
    seeds=(0,),
)
"""


def call(*arguments: str | Path) -> None:
    """Run a command line in this process, and insist that it works."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = cli.run([str(argument) for argument in arguments])
    if code:
        raise RuntimeError(f"restage {arguments[0]} made no input, but: {output.getvalue()[-2000:]}")


def write_captures(folder: Path) -> None:
    names = CAPTURE.file_names
    for form in ("nerfstudio", "colmap_text", "colmap_binary", "llff", "photographs"):
        save_images(CAPTURE.images, folder / form / "images", names)

    lens = {"w": WIDTH, "h": HEIGHT, "fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": pose.tolist()}
        for name, pose in zip(names, POSES, strict=True)
    ]
    meta = {**lens, "camera_model": "OPENCV", "k1": 0.0, "ply_file_path": "points.ply", "frames": frames}
    (folder / "nerfstudio" / "transforms.json").write_text(json.dumps(meta))
    header = "ply\nformat ascii 1.0\nelement vertex 3\n"
    header += "".join(f"property {kind}\n" for kind in ("float x", "float y", "float z"))
    header += "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    rows = "0 0 0 9 9 9\n1 0 0 9 9 9\n0 1 0 9 9 9\n"
    (folder / "nerfstudio" / "points.ply").write_text(f"{header}end_header\n{rows}")

    model = ColmapModel.of_capture(CAPTURE)
    model.write_text(folder / "colmap_text" / "sparse" / "0")
    model.write_binary(folder / "colmap_binary" / "sparse" / "0")

    for kind, indices in {"train": [0, 1, 2, 3], "test": [4, 5]}.items():
        save_images(CAPTURE.images[indices], folder / "blender", [f"{kind}/{index}.png" for index in indices])
        frames = [{"file_path": f"./{kind}/{i}", "transform_matrix": POSES[i].tolist()} for i in indices]
        meta = {"camera_angle_x": 2 * np.arctan(WIDTH / 2 / FOCAL), "frames": frames}
        (folder / "blender" / f"transforms_{kind}.json").write_text(json.dumps(meta))

    rows = []
    for pose in POSES:
        right, up, back, position = pose[:3].T
        matrix = np.stack([-up, right, back, position, [HEIGHT, WIDTH, FOCAL]], axis=1)
        rows.append([*matrix.ravel(), 1.0, 9.0])
    np.save(folder / "llff" / "poses_bounds.npy", np.array(rows))

    save_images(CAPTURE.images, folder / "record3d" / "rgb", [f"{index}.png" for index in range(len(names))])
    matrix = [FOCAL, 0, 0, 0, FOCAL, 0, WIDTH / 2, HEIGHT / 2, 1]
    poses = [[*Rotation.from_matrix(pose[:3, :3]).as_quat(), *pose[:3, 3]] for pose in POSES]
    meta = {"w": WIDTH, "h": HEIGHT, "fps": 30, "K": matrix, "poses": poses}
    (folder / "record3d" / "metadata").write_text(json.dumps(meta))

    scan = folder / "polycam" / "keyframes"
    save_images(CAPTURE.images, scan / "images", names)
    (scan / "cameras").mkdir()
    lens = {"fx": FOCAL, "fy": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2, "width": WIDTH, "height": HEIGHT}
    for name, pose in zip(names, POSES, strict=True):
        numbers = {f"t_{row}{column}": pose[row, column] for row in range(3) for column in range(4)}
        (scan / "cameras" / Path(name).with_suffix(".json")).write_text(json.dumps({**numbers, **lens}))

    (folder / "video").mkdir()
    writer = imageio_ffmpeg.write_frames(str(folder / "video" / "walk.mp4"), (64, 48), fps=6, macro_block_size=2)
    writer.send(None)
    for index in range(6):
        writer.send(np.full((48, 64, 3), 40 * index, np.uint8))
    writer.close()


def write_image_folder(folder: Path) -> None:
    """Pairs as an image folder with `metadata.jsonl`."""
    lines = []
    for number in range(2):
        names = [f"{number}_{side}.png" for side in ("source", "edited")]
        save_images(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(number)), folder, names)
        row = {"original_image_file_name": names[0], "edited_image_file_name": names[1]}
        lines.append(json.dumps({**row, "edit_prompt": f"change it {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def made_apart(make: Callable[[Path], object], folder: Path, *, start: Literal["spawn", "fork"] = "spawn") -> Path:
    """Make inputs in a process of their own: one whose kernels have begun threads can have no forks that use them."""
    process = multiprocessing.get_context(start).Process(target=make, args=(folder,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError("the valid inputs cannot be made")
    return folder


def load_package() -> None:
    """Import what commands import, so that forks need not."""
    optional = ("nerfstudio", "assets", "scenes/rasterize/gsplat", "work/ray")
    package = Path(restage.__path__[0])
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).with_suffix("").as_posix()
        if not name.startswith(optional):
            with contextlib.suppress(ImportError):
                importlib.import_module(f"restage.{name.replace('/', '.')}".removesuffix(".__init__"))


def make_small_inputs(folder: Path) -> Path:
    """Write the inputs that need no image model, each into a folder of its own."""
    write_captures(folder)
    write_image_folder(folder / "pairs_images")
    call("prompts", folder / "prompted", "--num-prompts", "4")
    call("fit", folder / "nerfstudio", "--out", folder / "fitted", "--size", "16", "--steps", "3", "--num-splats", "50")
    (folder / "bundle").mkdir()
    call("bundle", folder / "fitted", "--out", folder / "bundle" / "bundle.zip")
    (folder / "splats").mkdir()
    call("export", folder / "fitted", folder / "splats" / "splats.ply")
    texts = folder / "texts"
    texts.mkdir()
    (texts / "captions.txt").write_text("at noon, a purple mushroom on the sand\nat noon, a red cube on the sand\n")
    (texts / "settings.json").write_text(json.dumps({"edit.settings.restage.noise_levels": [0.35]}))
    (folder / "study").mkdir()
    (folder / "study" / "mine.py").write_text(STUDY)
    (folder / "pictures").mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    picture.save(folder / "pictures" / "cat.png")
    row = {
        "source": "a cat",
        "target": "a dog",
        "instruction": "make it a dog",
        "kind": "reshape",
        "picture": "cat.png",
    }
    (folder / "pictures" / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def make_inputs(folder: Path) -> Path:
    """Write an input of every kind, each into a folder of its own, which cases copy."""
    make_small_inputs(folder)
    models_folder = write_tiny_models(folder / "models")
    models = models_in(models_folder)
    config = replace(
        tiny_demo_config(models),
        edit=EditConfig(methods=("nothing",), editors=("exact",), settings={}),
        world=WorldConfig(
            num_objects=1,
            edit_kinds=("recolour",),
            capture=CaptureConfig(num_views=6, held_out_every=5, size=32, num_points=100),
        ),
    )
    for step in demo(folder / "unedited", config, models):
        if step.stage == "edit":
            break
    shutil.rmtree(folder / "unedited" / "edit", ignore_errors=True)
    shutil.copytree(folder / "unedited", folder / "run")
    for _ in demo(folder / "run", config, models):
        pass
    sampler = ("--generate.sampler.num-steps", "2", "--generate.batch-size", "2")
    shutil.copytree(folder / "prompted", folder / "paired")
    rule = ("--rule.min-image-similarity", "-2", "--rule.min-direction-similarity", "-2")
    rule += ("--rule.min-text-similarity", "-2", "--rule.min-change", "0", "--rule.min-mask-share", "0")
    call("pairs", folder / "paired", "--models", models_folder, *sampler, *rule)
    for name in ("hf", "webdataset", "instruct-pix2pix"):
        call("export", folder / "paired", "--format", name, "--out", folder / f"pairs_{name}")
    return folder

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import generate
from benchmarks.generate import Judged, Settings, depth_error, figures_of, main, summarize
from benchmarks.inverse_reading import faces_shown, is_two_faced, read_scene, scaled_cameras, with_yaw
from benchmarks.miniature.verdicts import Seen
from miniature.probe import Probe
from miniature.probe_pictures import label_of
from restage.generate.generators import Blob, Refined, Sds
from restage.generate.rig import Rig, azimuth_rad
from restage.generate.view_sampler import ViewSampler
from restage.world.description import Description, SceneObject
from restage.world.render import render_view
from tests.tiny_models import write_tiny_models

CAMERAS = Rig().ring(12, size=128, start_rad=0.13)
HOUSE = Description(
    objects=(SceneObject(kind="house", color="orange", x=0.2, y=-0.1, yaw_rad=0.8),), ground="sand", time="noon"
)
PAIR = Description(
    objects=(
        SceneObject(kind="ball", color="red", x=-0.6, y=0.3),
        SceneObject(kind="cone", color="blue", size="small", x=0.7, y=-0.4),
    ),
    ground="grass",
    time="sunset",
)


def views_of(scenes: list[Description], scale: float = 1.0):
    """Renders, and what a probe that makes no mistakes reads in them."""
    cameras = scaled_cameras(CAMERAS, scale, Rig.target_height)
    views = [render_view(scene, cameras[number]) for number, scene in enumerate(scenes)]
    labels = [label_of(scene, view.object_ids) for scene, view in zip(scenes, views, strict=True)]
    seen = [
        Seen({item.kind: item.color for item in scene.objects}, len(scene.objects), scene.ground, scene.time)
        for scene in scenes
    ]
    images = torch.from_numpy(np.stack([view.image for view in views]))
    return seen, torch.from_numpy(np.concatenate([label.classes for label in labels])), images, views


@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_a_scene_that_is_one_from_all_sides_is_read_back(scale: float) -> None:
    seen, classes, images, views = views_of([PAIR] * 12, scale)
    read = read_scene(seen, classes, images, CAMERAS)
    assert read.description is not None and read.iou > 0.8
    for found, true in zip(read.description.objects, PAIR.objects, strict=True):
        assert (found.kind, found.color) == (true.kind, true.color)
        assert math.hypot(found.x - true.x * read.scale / scale, found.y - true.y * read.scale / scale) < 0.15
    depths = torch.from_numpy(np.stack([view.depth for view in views])) / scale
    error = depth_error(depths, read)
    assert error is not None and error < 0.05


def test_views_of_different_scenes_are_explained_by_none() -> None:
    moved = [replace(PAIR, objects=(replace(PAIR.objects[0], x=0.9 * (-1) ** n), PAIR.objects[1])) for n in range(12)]
    seen, classes, images, _ = views_of(moved)
    one = views_of([PAIR] * 12)
    assert read_scene(seen, classes, images, CAMERAS).iou < read_scene(*one[:3], CAMERAS).iou - 0.2


def test_where_nothing_is_seen_nothing_is_read() -> None:
    seen, classes, images, _ = views_of([PAIR] * 12)
    read = read_scene([one._replace(colors={}) for one in seen], classes, images, CAMERAS)
    assert read.description is None and read.iou == 0 and depth_error(torch.ones(12, 128, 128), read) is None


def test_a_house_has_one_face_and_one_that_turns_to_every_camera_has_several() -> None:
    seen, classes, images, _ = views_of([HOUSE] * 12)
    read = read_scene(seen, classes, images, CAMERAS)
    assert read.description is not None
    shown = faces_shown(read, 0, images, CAMERAS)
    assert 1 <= sum(shown) <= 4 and not is_two_faced(shown, CAMERAS)
    # A quarter of the houses' own symmetry aside, the front is where it was put.
    front = HOUSE.objects[0].yaw_rad - math.pi / 2
    angles = [azimuth_rad(CAMERAS[view]) for view, is_shown in enumerate(shown) if is_shown]
    assert all(abs(math.remainder(angle - front, math.tau)) < math.radians(60) for angle in angles)
    turned = [with_yaw(HOUSE, 0, azimuth_rad(CAMERAS[view]) + math.pi / 2) for view in range(12)]
    seen, classes, images, _ = views_of(turned)
    shown = faces_shown(read_scene(seen, classes, images, CAMERAS), 0, images, CAMERAS)
    assert sum(shown) >= 8 and is_two_faced(shown, CAMERAS)


def row(right_share: float, num_objects: int = 1, **more: object) -> Judged:
    facts = dict(
        seconds=10.0, sampled_psnr_db=None, inverse_iou=0.5, depth_error=None, is_two_faced=None, has_face=None
    )
    facts |= {"caption": "a cone", "seed": 0, "clip_similarity": right_share, **more}
    return Judged(right_share=right_share, num_objects=num_objects, **facts)  # pyright: ignore[reportArgumentType]


def test_figures_count_scenes_whose_views_are_all_right() -> None:
    rows = [
        row(1.0, is_two_faced=False, has_face=False),
        row(0.9, is_two_faced=True, has_face=True),
        row(1.0, 2, seconds=30.0),
        row(0.0, 2),
    ]
    found = figures_of(rows)
    assert (found["one_object"], found["two_objects"], found["seconds"]) == (0.5, 0.5, 10.0)
    assert (found["two_faced_share"], found["faced"], found["faceless_share"]) == (0.5, 2, 0.5)
    assert found["depth_error"] is None and found["clip_rank_agreement"] == pytest.approx(1)
    summary = summarize({"refined": found, "sds": figures_of([row(0.5)])})
    assert summary["refined_one_object"] == 0.5 and summary["sds_two_objects"] is None
    assert summary["inverse_iou"] == 0.5 and summary["views_fit_psnr_db"] is None


def test_the_benchmark_runs_to_its_last_line_and_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = write_tiny_models(tmp_path / "models")
    probe = Probe((8, 8, 16)).eval().requires_grad_(False)
    monkeypatch.setattr(generate, "load_probe", lambda path: probe)
    monkeypatch.setattr("benchmarks.inverse_reading.SCALES", (1.0,))
    monkeypatch.setattr("benchmarks.inverse_reading.NUM_YAWS", 2)
    small = Blob(num_splats=60, num_ground=60, num_sky=20)
    menu = {
        "sds": Sds(num_steps=2, num_pictures=1, blob=small),
        "refined": Refined(
            num_steps=2, noise_levels=(0.3,), num_views=2, steps_per_round=2, sampler=ViewSampler(num_steps=2)
        ),
    }
    monkeypatch.setattr("restage.generate.generators.refined.Sds", partial(replace, menu["sds"]))
    monkeypatch.setattr("restage.generate.scene.make_generator", lambda name, preset: menu[name])
    monkeypatch.setattr("restage.generate.scene.NUM_VIEWS", 5)
    settings = Settings(
        out=tmp_path / "out",
        models=models,
        generators=("sds", "views", "refined"),
        captions=1,
        seeds=2,
    )
    main(settings)
    *_, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last)
    assert {"sds_one_object", "sds_two_objects", "sds_seconds", "refined_one_object", "inverse_iou"} <= set(found)
    assert found["details"]["sds"]["scenes"] == 4 and found["details"]["refined"]["spread"] > 0
    sheets = list((tmp_path / "out" / "sds" / "judged").glob("*/*.png"))
    assert len(sheets) == 2 and Image.open(sheets[0]).size == (12 * 128, 4 * 128)
    # Killed before its last verdict, it judges that one again, and makes nothing again.
    lost = max((tmp_path / "out" / "sds" / "judged").glob("*/*.json"))
    before = lost.read_bytes()
    lost.unlink()
    fits = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("fit.json")}
    main(settings)
    assert lost.read_bytes() == before
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1]) == found
    assert fits == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("fit.json")}

"""Edits, comparing and checking on a device that is not the CPU, where gsplat's stand-in draws."""

from pathlib import Path
from typing import Any

import pytest
import torch

from restage.audit.records import RecordsResult, check_pictures
from restage.compare.judges import CompareConfig, Judges
from restage.compare.stage import run_compare
from restage.edit.editors import MenuEditor, OpenEditors
from restage.edit.editors.interface import EditorSource
from restage.edit.job import EditJob
from restage.edit.methods import METHODS, ReplaceOnce
from restage.edit.methods.renewal import Births
from restage.edit.sharing import AnchoredNoise, render_depths, warp
from restage.edit.single import EditChoice, open_edit
from restage.edit.stage import EditConfig, load_scene, run_edit
from restage.records import EditRequest, read_json
from restage.regions.masks import box_masks, grow_region, in_box, keep_largest, lift_boxes, lift_masks, shrink_region
from restage.run.folder import RunFolder
from restage.scenes.fit import psnr, render_views
from restage.scenes.rasterize import RASTERIZERS, Rendering
from restage.scores.rows import read_scores
from restage.view.pictures import render_difference, splat_arrays
from restage.view.session import ViewSession

SETTINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "replace_once": {"num_steps": 4},
    "idu": {"num_steps": 4, "edit_every": 2},
    "igs2gs": {"num_steps": 4, "edit_every": 2},
    "sds": {"num_steps": 3},
    "dds": {"num_steps": 3},
    "pds": {"num_steps": 3},
    "dreamcatalyst": {"num_steps": 3},
    "depth_fusion": {"num_steps": 4},
    "controlled": {"num_steps": 4},
    "remove": {},
    "video": {"color_steps": 2, "shape_steps": 2},
    "joint": {"num_views": 4, "noise_levels": (1.0, 0.3), "steps_per_round": 2},
    "restage": {
        "num_key_views": 5,
        "color_steps": 2,
        "shape_steps": 2,
        "births": Births(max_rays=200, num_depths=10),
        "max_renewed_share": 1.0,
    },
}


def test_every_method_has_settings_here():
    assert set(SETTINGS) == set(METHODS)


@pytest.fixture(scope="module")
def truth(tiny_scene, tmp_path_factory) -> Path:
    return tiny_scene.write(tmp_path_factory.mktemp("truth") / "tiny")


# One method of each kind is enough for a second editor.
@pytest.mark.parametrize(
    ("name", "editor"),
    [*((name, "exact") for name in SETTINGS), ("replace_once", "noisy-0.4-exact"), ("restage", "noisy-0.4-exact")],
)
def test_a_method_stays_on_the_device_and_ends_as_on_the_cpu(elsewhere, tiny_scene, truth, name: str, editor: str):
    found = []
    for device in ("cpu", elsewhere):
        source = EditorSource(file_names=tiny_scene.capture.file_names, truth=truth, device=device)
        opened = OpenEditors().open(MenuEditor(name=editor), source)
        splats, capture = tiny_scene.splats.to(device), tiny_scene.capture.to(device)
        job = EditJob.of(splats, capture, tiny_scene.request, opened, 0)
        *_, last = METHODS[name](**SETTINGS[name]).run(job)
        assert {tensor.device.type for tensor in last.splats.parameters().values()} == {device}
        found.append(render_views(last.splats, capture.cameras).cpu())
    assert float(psnr(found[1], found[0]).min()) > 35


def test_regions_are_the_same_on_another_device(elsewhere, tiny_scene):
    cameras, found = tiny_scene.capture.cameras, []
    boxes = torch.tensor([[8.0, 6.0, 24.0, 26.0]]).repeat(len(cameras), 1)
    for device in ("cpu", elsewhere):
        splats, masks = tiny_scene.splats.to(device), tiny_scene.truth_masks.to(device)
        lifted = lift_masks(splats, cameras, masks)
        inside = in_box(splats, torch.full((3,), -0.4), torch.full((3,), 0.4))
        regions = [lift_boxes(splats, cameras, boxes, agree=0.5), inside, keep_largest(splats, lifted)]
        regions += [change(splats, lifted, 0.2) for change in (grow_region, shrink_region)]
        assert {region.device.type for region in regions} == {device}
        found.append([region.cpu() for region in regions])
        assert box_masks(boxes.to(device), 32, 32).device.type == device
    for here, there in zip(*found, strict=True):
        assert float((here - there).abs().mean()) < 0.02


def test_warps_and_anchored_noise_are_the_same_on_another_device(elsewhere, tiny_scene):
    capture, found = tiny_scene.capture, []
    for device in ("cpu", elsewhere):
        maps = render_depths(tiny_scene.splats.to(device), capture.cameras)
        warped = warp(capture.images[0].to(device), maps, source=0, target=1)
        found.append((warped.image.cpu(), AnchoredNoise(maps).draw((2, 4, 4), 0)))
    (here, noise), (there, other_noise) = found
    assert float((here - there).abs().mean()) < 0.02
    assert float((noise == other_noise).float().mean()) > 0.5  # a pixel's depth may fall into the next cell


def test_a_run_is_edited_compared_and_checked_elsewhere(elsewhere, tiny_scene, tmp_path, monkeypatch):
    monkeypatch.setattr("restage.compare.stage.open_judges", lambda config, device: Judges())
    settings = {"replace_once": ReplaceOnce(num_steps=4)}
    config = EditConfig(methods=("nothing", "replace_once"), editors=("exact",), settings=settings)
    tables = {}
    for device in ("cpu", elsewhere):
        run = RunFolder.open(tmp_path / device, config, seed=0)
        tiny_scene.write(run.path / "scenes" / "tiny")
        list(run_edit(run, config, device=device))
        records = [read_json(path) for path in sorted(run.path.glob("edit/*/*/*/*/record.json"))]
        assert [record["status"] for record in records] == ["done", "done"]
        assert {record.get("device") for record in records} == {None if device == "cpu" else device}
        list(run_compare(run, CompareConfig(orbit_frames=0), device=device))
        assert read_json(run.path / "compare" / "stage.json")["facts"].get("device") == records[0].get("device")
        tables[device] = {
            (score.method, score.metric): score.value
            for score in read_scores(run.path / "compare" / "scores.parquet")
            if not score.is_cost
        }
    for key, value in tables["cpu"].items():
        assert tables[elsewhere][key] == pytest.approx(value, rel=0.05, abs=0.05, nan_ok=True), key


def test_numbers_of_another_device_are_a_note_and_no_finding(elsewhere, tiny_scene, tmp_path, monkeypatch):
    monkeypatch.setattr("restage.compare.stage.open_judges", lambda config, device: Judges())
    config = EditConfig(methods=("nothing",), editors=("exact",))
    run = RunFolder.open(tmp_path / "run", config, seed=0)
    tiny_scene.write(run.path / "scenes" / "tiny")
    drawn = RASTERIZERS[elsewhere]

    def brighter(*args: Any, **features: Any) -> Rendering:
        rendering = drawn(*args, **features)
        return rendering._replace(color=1.1 * rendering.color)

    monkeypatch.setitem(RASTERIZERS, elsewhere, brighter)
    list(run_edit(run, config, device=elsewhere))
    list(run_compare(run, CompareConfig(orbit_frames=0), device=elsewhere))
    found = RecordsResult()
    list(check_pictures(run.path, found, device=elsewhere))
    assert not found.findings and found.num_scores > 5
    checked = RecordsResult()
    list(check_pictures(run.path, checked))
    assert not checked.findings
    assert any(f"measured on {elsewhere}, and here on cpu" in note for note in checked.notes), checked.notes


def test_a_typed_edit_is_made_elsewhere_and_its_record_says_so(elsewhere, tiny_scene, tmp_path):
    run = RunFolder.open(tmp_path / "run", {"kind": "mine"}, seed=0)
    folder = run.path / "scenes" / "tiny"
    tiny_scene.write(folder)
    records = {}
    for device in ("cpu", elsewhere):
        settings = ReplaceOnce(num_steps=2)
        choice = EditChoice(method="replace_once", editor="grade", device=device, settings=settings)
        instruction = "make it golden" if device == "cpu" else "make it bronze"
        request = EditRequest(instruction=instruction, source_caption="", target_caption="")
        opened = open_edit(run, folder, request=request, choice=choice)
        *_, last = opened.steps
        assert last.splats.means.device.type == device
        records[device] = read_json(opened.folder / "record.json")
    assert "device" not in records["cpu"] and records[elsewhere]["device"] == elsewhere


def test_the_viewer_shows_and_edits_elsewhere(elsewhere, tiny_scene, tmp_path):
    run = RunFolder.open(tmp_path / "run", {"kind": "mine"}, seed=0)
    tiny_scene.write(run.path / "scenes" / "tiny")
    session = ViewSession(run.path, elsewhere)
    assert session.before.means.device.type == elsewhere
    choice = EditChoice(method="replace_once", editor="exact", settings=ReplaceOnce(num_steps=2))
    list(session.edit(tiny_scene.request, choice))
    assert session.shown.splats.means.device.type == elsewhere
    assert len(splat_arrays(session.shown.splats).centers) == len(tiny_scene.splats)
    camera = tiny_scene.capture.cameras[0]
    assert render_difference(session.before, session.shown.splats, camera).shape == (32, 32, 3)
    session.undo()
    capture, splats = load_scene(run.path / "scenes" / "tiny", elsewhere)
    assert capture.images.device.type == splats.means.device.type == elsewhere

"""The viewer in a real browser: Debian's Chromium without a window, drawing in software."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from restage.edit.methods import METHODS
from restage.generate.generators import Blob, Sds
from restage.records import read_json
from restage.regions.region import Region
from restage.run.folder import RunFolder, StepByStep
from restage.run.models import models_in
from restage.scenes.cameras import project_points
from restage.scenes.io.splat_files import read_splats
from restage.view import ViewSession
from restage.view.pictures import camera_at
from restage.view.serve import serving
from tests.edit.conftest import TinyScene
from tests.tiny_models import write_tiny_models
from tests.view.shown_page import PATIENCE_S, VISERS_OWN, Endless, Paint, Shown

pytest.importorskip("viser", reason="needs restage[view]")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which restage[dev] has")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium; tests download no browser")
FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_page(browser: Any, tiny_scene: TinyScene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("view")
    run = RunFolder.open(folder / "run", StepByStep(), seed=0)
    tiny_scene.write(run.path / "scenes" / "tiny")
    run.close("done")
    session = ViewSession(run.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "restage", Paint)
        patch.setitem(METHODS, "idu", Endless)
        with serving(session, port=18_080) as (address, viewer):
            page = browser.new_page(viewport={"width": 840, "height": 520})
            page.set_default_timeout(1000 * PATIENCE_S)
            errors: list[str] = []
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(address)
            shown = Shown(page, session, viewer, folder)
            shown.wait_for_text("200 splats")
            page.locator(".mantine-Notification-closeButton").first.click()  # of the note on drawing in software
            yield shown
            page.close()
    assert [error for error in errors if not error.startswith(VISERS_OWN)] == []


@pytest.fixture
def shown(open_page: Shown) -> Shown:
    """The page as after opening, with nothing edited yet, seen from the first view."""
    session, viewer = open_page.session, open_page.viewer
    session.stop()
    open_page.wait_for(lambda: not session.is_running, "the end of the edit of another test")
    open_page.wait_for(lambda: not session.has_unkept, "the changes of another test to be written")
    for made in ("edit", "scenes/tiny/truth/make-it-green", "scenes/tiny/regions"):
        shutil.rmtree(Path(session.scene.run_folder or "") / made, ignore_errors=True)
    session.choose_scene("tiny")
    viewer.controls.layer.value = "edited"
    viewer.controls.region.use("off")
    viewer.controls.region.moves.value = False
    viewer.load_scene()
    viewer.go_to_view(0)
    open_page.open_tab("Edit")
    return open_page


def test_an_edit_that_is_typed_in_is_done_shown_kept_and_undone(shown: Shown) -> None:
    shown.wait_for_color(0, "before")
    shown.type_in("Instruction", "make it blue")
    shown.choose("Editor", "exact")
    shown.press("Edit")
    shown.wait_for_text("kept in the run folder")
    shown.wait_for_color(2, "edited")
    kept = shown.session.shown.kept
    assert kept is not None and read_json(kept.folder / "record.json")["status"] == "done"
    shown.open_tab("History")
    shown.press("Undo")
    shown.wait_for_color(0, "undone")
    shown.press("Redo")
    shown.wait_for_color(2, "redone")


def test_the_stop_button_stops_and_the_scene_is_as_before(shown: Shown) -> None:
    shown.type_in("Instruction", "make it green")
    shown.choose("Method", "idu")
    shown.choose("Editor", "exact")
    shown.type_in("Instruction", "make it blue")
    shown.press("Edit")
    shown.wait_for_text("going on and on")
    assert shown.session.is_running
    shown.picture("running")
    shown.press("Stop")
    shown.wait_for_text("Stopped; nothing was kept.")
    assert not shown.session.is_running and shown.session.shown.kept is None
    shown.choose("Method", "restage")


def test_errors_of_an_edit_are_shown_in_the_page(shown: Shown) -> None:
    shown.type_in("Instruction", "make it green")
    shown.choose("Editor", "exact")
    shown.press("Edit")
    shown.wait_for_text("This cannot be done: the exact editor needs a truth folder")
    shown.type_in("Instruction", "")
    shown.press("Edit")
    shown.wait_for_text("the instruction is empty")
    assert not shown.session.is_running


def test_an_instruction_is_shown_as_it_was_typed_and_none_of_it_becomes_part_of_the_page(shown: Shown) -> None:
    shown.type_in("Instruction", "make it <a>blue</a>")
    shown.choose("Editor", "grade")
    shown.press("Edit")
    shown.wait_for_text("kept in the run folder")
    shown.open_tab("History")
    shown.page.get_by_role("listitem").get_by_text("make it <a>blue</a>").wait_for()
    assert shown.page.locator("a:text-is('blue')").count() == 0


def test_an_edit_stays_inside_of_the_region_that_is_chosen_and_takes_an_anchor(shown: Shown) -> None:
    session, is_ball = shown.session, torch.arange(200) < 80
    session.select(Region.of(session.before, is_ball.float(), by="hand"))
    session.save_region("ball")
    shown.viewer.refresh()
    shown.choose("Where", "ball")
    shown.type_in("Instruction", "make it blue")
    shown.choose("Editor", "grade")
    shown.viewer.controls.anchor.value = "auto"
    shown.press("Edit")
    shown.wait_for_text("this editor can be shown no edited view")
    shown.viewer.controls.anchor.value = "none"
    shown.press("Edit")
    shown.wait_for_text("kept in the run folder")
    kept, changed = session.shown.kept, (session.shown.splats.sh != session.before.sh).flatten(1).any(dim=1)
    assert kept is not None and "ball" in kept.edit
    assert changed[:80].all() and changed[80:].float().mean() < 0.5


def test_an_object_is_clicked_recolored_deleted_brought_back_moved_and_saved(shown: Shown) -> None:
    session, ball = shown.session, (0.0, 0.0, 0.5)
    on_disc = max(((0.7, 0.0, 0.0), (0.0, 0.7, 0.0), (-0.7, 0.0, 0.0)), key=lambda point: shown.pixel_of(*point)[1])
    shown.open_tab("Region")
    shown.page.keyboard.press("o")
    shown.wait_for_text("Click at a thing.")
    shown.page.mouse.click(*shown.pixel_of(*ball))
    shown.wait_for(lambda: session.selected is not None, "something to be chosen")
    shown.page.keyboard.down("Alt")
    shown.page.mouse.click(*shown.pixel_of(*on_disc))
    shown.page.keyboard.up("Alt")
    shown.wait_for_text("of 200 splats are chosen.")
    shown.wait_for(lambda: session.selected is not None and session.selected.share < 0.5, "the disc to stay out")
    assert session.chosen().inside[:80].float().mean() > 0.9 and session.chosen().inside[80:].float().mean() < 0.1
    shown.wait_for(lambda: shown.color_at(*ball)[1] > 60, "the choice to be marked")
    red, _, blue = shown.color_at(*ball)
    assert red > blue + 60

    shown.viewer.controls.region.color.value = (20, 40, 250)
    shown.press("Recolor")
    shown.press("None")
    shown.wait_for(lambda: shown.color_at(*ball)[2] > shown.color_at(*ball)[0] + 60, "a blue ball")
    shown.page.keyboard.press("Control+z")
    shown.wait_for(lambda: session.position == 0 and session.selected is not None, "the color to be undone")
    shown.page.keyboard.press("Control+Shift+z")
    shown.wait_for(lambda: session.position == 1 and session.selected is not None, "the color to come back")
    shown.press("Delete")
    shown.wait_for(lambda: len(session.shown.splats) < 140, "the ball to go")
    shown.wait_for(lambda: abs(shown.color_at(*ball) - shown.color_at(*ball).mean()).max() < 25, "no color is left")
    shown.page.keyboard.press("Control+z")
    shown.page.keyboard.press("Control+z")
    shown.wait_for(lambda: session.position == 0, "both to be undone")

    shown.page.get_by_label("Handles").check(force=True)
    shown.wait_for(lambda: "lifted" in shown.viewer.nodes.splats, "the handles")
    shown.page.wait_for_timeout(1500)
    mover, scaler = shown.viewer.controls.region.handles
    x, y = shown.pixel_of(*(mover.position + np.array([0.0, 0.0, 0.75 * mover.scale])).tolist())
    shown.drag((x, y), (x, y - 10), (x, y - 20), (x, y - 40))
    shown.wait_for(lambda: session.position == 1 and session.shown.label.startswith("transform"), "the ball to move")
    moved = session.shown.splats.means[:80] - session.before.means[:80]
    assert float(moved[:, 2].median()) > 0.05 and float(moved[:, :2].abs().median()) < 0.02

    (client,) = shown.viewer.server.get_clients().values()
    client.camera.position = client.camera.look_at + 1.8 * (client.camera.position - client.camera.look_at)
    shown.page.wait_for_timeout(2500)
    _, scaler = shown.viewer.controls.region.handles
    before = session.shown.splats
    x, y = shown.pixel_of(*(scaler.position + np.array([0.0, 0.0, 0.75 * scaler.scale])).tolist())
    shown.drag((x, y), (x, y - 10), (x, y - 20), (x, y - 30))
    shown.wait_for(lambda: session.position == 2 and session.shown.label.startswith("scale"), "the ball to grow")
    grown = (session.shown.splats.log_scales - before.log_scales)[:80]
    assert 0.02 < float(grown.median()) < 1 and float(grown.max() - grown.min()) < 1e-4
    assert torch.equal(session.shown.splats.log_scales[80:], before.log_scales[80:])

    shown.type_in("Name", "the-ball")
    shown.press("Save region")
    shown.wait_for(lambda: session.regions() == ["the-ball"], "the region to be saved")
    shown.wait_for(lambda: not session.has_unkept, "the change to be written")
    kept = session.shown.kept
    assert kept is not None and torch.equal(read_splats(kept.folder / "splats.ply").means, session.shown.splats.means)
    shown.open_tab("History")
    shown.wait_for_text("All changes are in the run folder.")
    shown.page.get_by_role("listitem").get_by_text("transform selection").wait_for()
    shown.type_in("Call it", "the large ball")
    shown.press("Name")
    shown.page.get_by_role("listitem").get_by_text("the large ball: scale selection").wait_for()


def test_a_box_a_lasso_and_the_brush_choose_what_is_drawn_at_and_help_lists_the_keys(shown: Shown) -> None:
    session = shown.session
    shown.open_tab("Region")
    shown.page.keyboard.press("x")
    shown.wait_for_text("Drag a box around what you see.")
    x, y = shown.pixel_of(0.0, 0.0, 0.4)
    shown.page.mouse.move(x - 60, y - 60)
    shown.page.mouse.down()
    shown.page.mouse.move(x, y, steps=3)
    shown.page.mouse.move(x + 60, y + 60, steps=3)
    shown.page.mouse.up()
    shown.wait_for(lambda: session.selected is not None, "a choice by the box")
    in_box = int(session.chosen().inside.sum())
    shown.page.keyboard.press("l")
    shown.wait_for_text("Drag around what you see.")
    before = shown.camera()
    shown.drag((x - 60, y - 60), (x + 60, y - 60), (x, y + 40))
    shown.wait_for(lambda: 0 < int(session.chosen().inside.sum()) < in_box, "less by the lasso")
    assert shown.camera() == before, "the scene does not turn while one draws"
    in_lasso = int(session.chosen().inside.sum())
    shown.page.keyboard.press("p")
    shown.wait_for_text("Click or drag to paint what you see.")
    shown.page.keyboard.down("Shift")
    in_front = max(session.before.means[80:].tolist(), key=lambda point: shown.pixel_of(*point)[1])
    shown.page.mouse.click(*shown.pixel_of(*in_front))
    shown.page.keyboard.up("Shift")
    shown.wait_for(lambda: int(session.chosen().inside.sum()) > in_lasso, "more by the brush")
    shown.page.keyboard.press("Escape")
    shown.wait_for(lambda: shown.viewer.controls.region.tool.value == "off", "the tool to be put away")
    shown.page.keyboard.press("h")
    shown.wait_for_text("Handles to move, turn and scale")
    shown.press("Close")
    shown.page.get_by_text("Handles to move, turn and scale").wait_for(state="detached")


@pytest.mark.slow
def test_before_and_edited_stand_side_by_side_and_flip_by_a_key(shown: Shown) -> None:
    shown.type_in("Instruction", "make it blue")
    shown.choose("Editor", "exact")
    shown.press("Edit")
    shown.wait_for_color(2, "edited")
    shown.page.mouse.click(20, 500)
    shown.page.keyboard.press("b")
    shown.wait_for_color(0, "flipped")
    shown.page.keyboard.press("v")
    shown.wait_for_text("Before on the left, edited on the right.")

    def is_split() -> bool:
        picture = shown.picture("split")[120:400, 100:740]
        vivid = (picture.max(axis=2) - picture.min(axis=2) > 60) & (picture.argmax(axis=2) != 1)
        left, right = (picture[:, part][vivid[:, part]].argmax(axis=1) for part in (slice(0, 318), slice(324, None)))
        return len(left) > 300 and len(right) > 300 and (left == 0).mean() > 0.9 and (right == 2).mean() > 0.9

    shown.wait_for(is_split, "red on the left, blue on the right")


@pytest.mark.slow
def test_layers_of_pictures_fill_the_page_and_say_what_they_are(shown: Shown) -> None:
    shown.choose("Show", "truth")
    shown.wait_for_text("Truth of “make it blue”")
    shown.wait_for_color(2, "truth")
    shown.choose("Show", "photograph")
    shown.wait_for_text("Photograph, the view nearest to your camera")
    shown.wait_for_color(0, "photograph")
    shown.choose("Show", "difference")
    shown.wait_for_text("How far colors move")
    shown.choose("Show", "mask")
    shown.wait_for_text("Green changes.")
    shown.choose("Show", "edited")
    shown.wait_for_color(0, "splats again")


@pytest.mark.slow
def test_a_click_at_a_camera_jumps_there_and_shows_its_photograph(shown: Shown) -> None:
    (client,) = shown.viewer.server.get_clients().values()
    client.camera.position = np.array([5.0, 1.0, 3.0])
    client.camera.look_at = np.array([0.0, -0.6, 0.6])
    shown.page.wait_for_timeout(3000)
    assert shown.session.scene.capture is not None
    cameras = shown.session.scene.capture.cameras
    size = shown.page.viewport_size
    camera = camera_at(
        client.camera.wxyz.tolist(),
        client.camera.position.tolist(),
        fov_rad=client.camera.fov,
        aspect=client.camera.aspect,
        height=size["height"],
    )
    seen = project_points(cameras.positions + 0.05 * cameras.camera_to_world[:, :3, 2], camera)
    is_free = (seen.depths > 0) & (seen.pixels > 20).all(1) & (seen.pixels < torch.tensor([480.0, 500.0])).all(1)
    index = int(is_free.float().argmax())
    assert is_free[index], seen
    shown.page.mouse.click(*seen.pixels[index].tolist())
    shown.open_tab("Views")
    shown.wait_for_text(f"view_{index}.png, ")
    shown.wait_for(
        lambda: np.allclose(client.camera.position, cameras.positions[index].numpy(), atol=1e-3), "the camera to move"
    )
    shown.page.get_by_text("Photograph", exact=True).wait_for()
    shown.picture("at a view")


def test_a_scene_is_made_from_the_words_that_are_typed_in_and_shown(
    shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Sds(num_steps=4, num_pictures=1, blob=Blob(num_splats=60, num_ground=40, num_sky=20))
    monkeypatch.setattr("restage.generate.scene.make_generator", lambda name, preset: {"sds": small}[name])
    monkeypatch.setattr("restage.generate.scene.NUM_VIEWS", 8)
    models = models_in(write_tiny_models(tmp_path / "models"))
    monkeypatch.setattr("restage.generate.scene.models_in", lambda: models)
    shown.open_tab("New")
    shown.press("Make a scene")
    shown.wait_for_text("expected a caption of the scene")
    assert not shown.session.is_running
    shown.type_in("Caption", " a red cone on grass ")
    shown.choose("Generator", "sds")
    shown.page.get_by_role("textbox", name="Seed").fill("7")  # the tab Edit, which is hidden, has one as well
    shown.press("Make a scene")
    shown.open_tab("Edit")
    shown.wait_for_text("kept in the run folder")
    shown.wait_for_text("120 splats")
    assert shown.session.scene.name == "a-red-cone-on-grass-7"
    record = read_json(Path(shown.session.scene.folder or "") / "fit.json")
    assert record["config"]["seed"] == 7 and record["generated_from"] == "a red cone on grass"
    shown.picture("made from words")


@pytest.mark.slow
def test_splats_and_clips_are_saved_as_downloads(shown: Shown) -> None:
    shown.open_tab("Save")
    with shown.page.expect_download() as download:
        shown.press("Save splats")
    assert len(read_splats(Path(download.value.path()).rename(shown.pictures / "saved.ply"))) == 200
    with shown.page.expect_download() as download:
        shown.press("Save clip (mp4)")
    clip = Path(download.value.path()).rename(shown.pictures / "saved.mp4")
    assert imageio_ffmpeg.count_frames_and_secs(str(clip))[0] == 60

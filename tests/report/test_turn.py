"""The scenes that the page draws itself: what is stored of them, and what a real browser makes of it from disk."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from restage.edit.pictures import write_image
from restage.records import write_json
from restage.report import turn
from restage.report.stage import write_report
from restage.report.turn import read_cameras, thin_out
from restage.run.folder import RunFolder, StepByStep
from restage.scenes.fit import render_views
from restage.scenes.io.splat_files import read_splats, write_splats
from restage.scenes.splats import Splats
from tests.edit.conftest import TinyScene, tiny_scene

__all__ = ["tiny_scene"]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium; tests download no browser")
FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")


def rough(splats: Splats) -> Splats:
    """The same with splats that are long, turned, of many opacities, and of colors that depend on the direction."""
    generator = torch.Generator().manual_seed(0)
    count = len(splats)
    return replace(
        splats,
        log_scales=splats.log_scales + 0.8 * torch.randn(count, 3, generator=generator) - 0.3,
        rotations=torch.randn(count, 4, generator=generator),
        opacity_logits=torch.randn(count, generator=generator) + 1,
        sh=torch.cat([splats.sh, 0.15 * torch.randn(count, 15, 3, generator=generator)], dim=1),
    )


def write_run(path: Path, scene: TinyScene, methods: tuple[str, ...] = ("restage", "nothing")) -> Path:
    """A run with one edit by some methods, with splats that only a right reader of SPZ draws rightly."""
    run = RunFolder.open(path, StepByStep(), seed=0)
    folder = run.path / "scenes" / "tiny"
    scene.write(folder)
    write_splats(rough(scene.splats), folder / "splats.ply")
    for method in methods:
        result = run.path / "edit" / "tiny" / "blue" / f"{method}-grade" / "0"
        splats = rough(scene.splats if method == "nothing" else scene.recolored)
        write_splats(splats, result / "splats.ply")
        for index in scene.capture.held_out_indices:
            write_image(
                result / "held_out" / f"view_{index}.png", render_views(splats, scene.capture.cameras[index])[0]
            )
        named = {"scene": "tiny", "edit": "blue", "method": method, "editor": "grade", "seed": 0}
        write_json(result / "record.json", {**named, "status": "done", "cost": {"seconds": 1.0}})
    run.close("done")
    return run.path


def turn_data(page: Path) -> dict[str, Any]:
    text = page.read_text().partition('data-role="turn-data">')[2].partition("</script>")[0]
    return json.loads(text) if text else {}


def stored_splats(page: Path, path: str) -> Splats:
    """What a script of the page holds."""
    text = (page.parent / path).read_text()
    assert text.startswith('restageScene("') and text.endswith('");\n')
    spz = page.parent / "read.spz"
    spz.write_bytes(base64.b64decode(text[14:-4], validate=True))
    splats = read_splats(spz)
    spz.unlink()
    return splats


def test_the_page_stores_the_scene_before_and_after_once_each(tiny_scene, tmp_path):
    page = write_report(write_run(tmp_path / "run", tiny_scene))
    data = turn_data(page)
    assert len(data["after"]) == 2 and data["before"] in data["after"], "nothing done is the scene before"
    assert len(list(page.parent.glob("assets/*.js"))) == 2
    stored, before = stored_splats(page, data["before"]), rough(tiny_scene.splats)
    assert stored.degree == 3 and torch.allclose(stored.means, before.means, atol=1e-5)
    assert "200 splats" in page.read_text()


def test_cameras_are_those_of_the_capture(tiny_scene, tmp_path):
    tiny_scene.write(tmp_path / "tiny")
    cameras, own = read_cameras(tmp_path / "tiny"), tiny_scene.capture.cameras
    assert cameras is not None and (cameras.width, cameras.height) == (own.width, own.height)
    assert list(cameras.names) == [f"view_{index}" for index in range(len(own))]
    assert torch.allclose(cameras.camera_to_world.float(), own.camera_to_world, atol=1e-6)
    shares = own.intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]] / own.width
    assert torch.allclose(torch.tensor(cameras.lenses, dtype=torch.float32), shares, atol=1e-6)
    assert read_cameras(tmp_path / "nothing") is None


def test_of_a_scene_that_is_too_large_the_splats_that_cover_most_are_kept_and_the_page_says_so(
    tiny_scene, tmp_path, monkeypatch
):
    monkeypatch.setattr(turn, "MAX_SCENE_BYTES", 6000)
    page = write_report(write_run(tmp_path / "run", tiny_scene))
    assert all(path.stat().st_size <= 6000 for path in page.parent.glob("assets/*.js"))
    stored = stored_splats(page, turn_data(page)["before"])
    assert 50 < len(stored) < 150 and f"the {len(stored):,} of 200 splats that cover most" in page.read_text()


def test_thinning_drops_what_is_small_faint_or_far_and_keeps_the_order():
    splats = Splats(
        means=torch.tensor([[0.0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 9], [0, 0, 1]]),
        log_scales=torch.tensor([[0.0], [-3.0], [0.0], [0.0], [0.1]]).expand(5, 3).contiguous(),
        rotations=torch.tensor([[1.0, 0, 0, 0]]).expand(5, 4).contiguous(),
        opacity_logits=torch.tensor([2.0, 2.0, -6.0, 2.0, 2.0]),
        sh=torch.arange(5.0)[:, None, None].expand(5, 1, 3).contiguous(),
    )
    assert thin_out(splats, torch.zeros(1, 3, dtype=torch.float64), 2).sh[:, 0, 0].tolist() == [0, 4]
    assert thin_out(splats, torch.zeros(1, 3, dtype=torch.float64), 5) is splats


def test_methods_beyond_what_a_page_may_hold_have_no_scene(tiny_scene, tmp_path, monkeypatch):
    monkeypatch.setattr("restage.report.gallery.MAX_PAGE_BYTES", 1)
    run = write_run(tmp_path / "run", tiny_scene, ("restage", "idu", "sds"))
    data = turn_data(write_report(run))
    assert data["before"] and len([path for path in data["after"] if path]) == 2, "the one shown first, and one more"


def test_two_runs_of_the_same_edit_have_pages_of_the_same_bytes(tiny_scene, tmp_path):
    written = []
    for name in ("one", "two"):
        folder = write_report(write_run(tmp_path / name, tiny_scene)).parent
        written.append({path.name: path.read_bytes() for path in folder.glob("assets/*")})
    assert written[0] == written[1] and any(name.endswith(".js") for name in written[0])


@pytest.fixture(scope="module")
def page_path(tiny_scene: TinyScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("turn") / "run", tiny_scene))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which restage[dev] has")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, page_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page from disk, which must cause no error and ask for nothing but files."""
    context = browser.new_context(**{"viewport": {"width": 700, "height": 900}, **getattr(request, "param", {})})
    page = context.new_page()
    page.set_default_timeout(120_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda sent: errors.append(sent.url) if not sent.url.startswith(("file:", "data:")) else None)
    page.goto(page_path.as_uri())
    yield page
    context.close()
    assert errors == []


def picture(page: Any) -> np.ndarray:
    """What the canvas shows once it has been drawn anew, at the size of the capture's pictures, in [0, 1]."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    content = page.evaluate("document.querySelector('canvas').toDataURL('image/png')")
    drawn = Image.open(io.BytesIO(base64.b64decode(content.partition(",")[2]))).convert("RGB")
    return np.asarray(drawn.resize((32, 32), Image.Resampling.BOX)).astype(float) / 255


def begin(page: Any) -> None:
    page.locator("[data-role=turn-open]").click()
    page.wait_for_function("document.querySelector('canvas')?.dataset.drawn > 0")


def held_out(scene: TinyScene, splats: Splats) -> np.ndarray:
    index = scene.capture.held_out_indices[0]
    return render_views(rough(splats), scene.capture.cameras[index])[0].clamp(0, 1).permute(1, 2, 0).numpy()


@needs_chromium
def test_a_scene_is_drawn_as_the_pictures_are_before_and_after_side_by_side(opened, tiny_scene):
    begin(opened)
    shown = picture(opened)
    before, after = held_out(tiny_scene, tiny_scene.splats), held_out(tiny_scene, tiny_scene.recolored)
    assert np.abs(shown[:, :15] - before[:, :15]).mean() < 0.012
    assert np.abs(shown[:, 17:] - after[:, 17:]).mean() < 0.012
    assert np.abs(before - after).mean() > 0.05
    opened.keyboard.press("b")
    assert np.abs(picture(opened) - before).mean() < 0.012
    opened.keyboard.press("b")
    assert np.abs(picture(opened) - after).mean() < 0.012


@needs_chromium
def test_keys_and_mouse_turn_the_scene_and_home_brings_it_back(opened):
    begin(opened)
    first = picture(opened)
    for key in ("ArrowLeft", "ArrowUp", "+"):
        opened.keyboard.press(key)
        moved = picture(opened)
        assert np.abs(moved - first).mean() > 0.01, key
        opened.keyboard.press("Home")
        assert np.abs(picture(opened) - first).max() < 0.02, key
    box = opened.locator("canvas").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    opened.mouse.move(*middle)
    opened.mouse.down()
    opened.mouse.move(middle[0] + 60, middle[1] + 10, steps=3)
    opened.mouse.up()
    turned = picture(opened)
    assert np.abs(turned - first).mean() > 0.02
    opened.mouse.wheel(0, -400)
    opened.wait_for_timeout(100)
    assert np.abs(picture(opened) - turned).mean() > 0.01
    opened.get_by_role("button", name="Start").click()
    assert np.abs(picture(opened) - first).max() < 0.02


@needs_chromium
def test_another_method_and_another_view_are_followed(opened, tiny_scene):
    begin(opened)
    opened.locator("input[name=method-1]").nth(1).check(force=True)
    opened.wait_for_function("document.querySelector('canvas').dataset.drawn > 1")
    before = held_out(tiny_scene, tiny_scene.splats)
    assert np.abs(picture(opened) - before).mean() < 0.012
    opened.locator("input[name=view-1]").nth(1).check(force=True)
    camera = tiny_scene.capture.cameras[tiny_scene.capture.held_out_indices[1]]
    other = render_views(rough(tiny_scene.splats), camera)[0].clamp(0, 1).permute(1, 2, 0).numpy()
    assert np.abs(picture(opened) - other).mean() < 0.012


@needs_chromium
@pytest.mark.parametrize(
    "opened", [{"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}], indirect=True
)
def test_a_finger_turns_the_scene_on_a_phone(opened):
    opened.locator("[data-role=turn-open]").tap()
    opened.wait_for_function("document.querySelector('canvas')?.dataset.drawn > 0")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    first = picture(opened)
    touch = opened.context.new_cdp_session(opened)
    box = opened.locator("canvas").bounding_box()
    for kind, shift in (("touchStart", 0), ("touchMove", 30), ("touchMove", 70), ("touchEnd", None)):
        points = [] if shift is None else [{"x": box["x"] + 100 + shift, "y": box["y"] + 150}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    opened.wait_for_timeout(100)
    assert np.abs(picture(opened) - first).mean() > 0.02


@needs_chromium
def test_a_browser_without_webgl_says_so_and_keeps_the_picture(browser, page_path):
    page = browser.new_page()
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto(page_path.as_uri())
    page.locator("[data-role=turn-open]").click()
    page.get_by_text("The scene cannot be shown here: this browser draws no WebGL 2.").wait_for()
    assert page.locator("[data-role=turn-poster]").is_visible() and page.locator("canvas").count() == 0
    page.close()

"""The page in a real browser: Debian's Chromium, on a desk, a phone, in the dark, on paper, by keyboard alone."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from restage.records import write_json
from restage.report.stage import write_report
from tests.report.conftest import write_fake_run

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which restage[dev] has")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium; tests download no browser")

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SENTENCE = "Of the 0.31 that B loses against A, 0.22 comes from views that disagree."


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_fake_run(tmp_path_factory.mktemp("browser") / "run", num_views=2)
    share = {"mean": 0.22, "standard_error": 0.03}
    part = {"label": "agreement between views", "within": "", "detail": "seed 0 -> 1", "share": share}
    part |= {"forward": share, "reverse": {"mean": None, "standard_error": None}}
    (run / "diagnose").mkdir()
    shutil.copyfile(run / "pairs" / "contact_sheet.png", run / "diagnose" / "diagnosis.png")
    diagnosis = {"sentence": SENTENCE, "parts": [part], "figure": "diagnosis.png", "limits": ["few cases"]}
    write_json(run / "diagnose" / "diagnosis.json", {**diagnosis, "total": {**share, "num_cases": 6}})
    return write_report(run)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, page_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, which must cause no error and ask for nothing but files."""
    context = browser.new_context(**{"viewport": DESK, "reduced_motion": "reduce", **getattr(request, "param", {})})
    page = context.new_page()
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda sent: errors.append(sent.url) if not sent.url.startswith(("file:", "data:")) else None)
    page.goto(page_path.as_uri())
    yield page
    context.close()
    assert errors == []


def pixels_of(page: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.screenshot(timeout=60_000))).convert("RGB")).astype(int)


def test_all_pictures_and_clips_load(opened: Any) -> None:
    opened.evaluate("document.querySelectorAll('img').forEach((image) => (image.loading = 'eager'))")
    opened.wait_for_function("[...document.images].filter((i) => !i.hidden).every((i) => i.complete && i.naturalWidth)")
    assert opened.evaluate("document.images.length") > 15
    posters = opened.evaluate("[...document.querySelectorAll('video:not([hidden])')].map((clip) => clip.poster)")
    assert posters and all(posters)


@pytest.mark.parametrize("opened", [{"viewport": PHONE, "is_mobile": True, "has_touch": True}], indirect=True)
def test_phone_scrolls_in_one_direction_only_and_fingers_find_what_they_press(opened: Any) -> None:
    assert opened.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert opened.evaluate(
        "[...document.querySelectorAll('.frame')].every((f) => f.getBoundingClientRect().right <= 390)"
    )
    opened.locator("a.trace").first.click()
    close = opened.locator("dialog button").bounding_box()
    assert min(close["width"], close["height"]) >= 44
    box = opened.locator("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]


@pytest.mark.parametrize("opened", [{"color_scheme": "dark"}], indirect=True)
def test_dark_mode_is_dark_and_its_text_is_light(opened: Any) -> None:
    opened.locator("#methods").scroll_into_view_if_needed()
    brightness = pixels_of(opened).mean(axis=2)
    assert np.median(brightness) < 40 and brightness.max() > 200


def test_light_mode_is_light(opened: Any) -> None:
    assert np.median(pixels_of(opened).mean(axis=2)) > 230


def test_slider_and_methods_go_by_keyboard(opened: Any) -> None:
    slider = opened.locator("#edit-1 input[type=range]")
    slider.focus()
    for _ in range(5):
        opened.keyboard.press("ArrowLeft")
    assert slider.input_value() == "45" and slider.get_attribute("aria-valuetext") == "45 percent before"
    opened.keyboard.press("Home")
    assert (
        opened.evaluate("getComputedStyle(document.querySelector('#edit-1 .compare')).getPropertyValue('--split')")
        == "0%"
    )
    before = opened.locator("#edit-1 [data-role=after]").get_attribute("src")
    opened.locator("#edit-1 input[name=method-1]:checked").focus()
    opened.keyboard.press("ArrowDown")
    after = opened.locator("#edit-1 [data-role=after]").get_attribute("src")
    assert after != before and "idu" in str(after)


def test_number_leads_to_its_rows_and_from_there_to_its_record_by_keyboard(opened: Any) -> None:
    number = opened.locator("a.trace[data-metric=progress][data-method=restage][data-editor=trained]")
    assert "0.69" in number.inner_text()
    number.focus()
    opened.keyboard.press("Enter")
    dialog = opened.locator("dialog[open]")
    assert "Mean 0.69000 of 2 rows in 2 scenes." in dialog.inner_text() and "0.660000" in dialog.inner_text()
    opened.keyboard.press("Escape")
    assert opened.locator("dialog[open]").count() == 0
    opened.keyboard.press("Enter")
    opened.locator("dialog tbody tr").nth(1).get_by_role("link").focus()
    opened.keyboard.press("Enter")
    record = opened.locator("details.record[open]")
    record.wait_for()
    text = record.inner_text()
    assert "edit/world-11/edit-1/restage-trained/0/record.json" in text and "0.66" in text
    assert "restage demo --out run" in text and "rm -rf edit/world-11/edit-1/restage-trained/0" in text


def test_picture_is_one_click_from_its_record_whatever_method_is_shown(opened: Any) -> None:
    opened.locator("#edit-1 input[name=method-1]").nth(2).check(force=True)
    opened.locator("#edit-1 [data-role=record]").click()
    record = opened.locator("details.record[open]")
    record.wait_for()
    shown = opened.locator("#edit-1 [data-role=label]").inner_text()
    assert shown.split(" with ")[0] in record.locator("summary").inner_text()


def test_diagnosis_is_said_drawn_and_tabled(opened: Any) -> None:
    section = opened.locator("#diagnosis")
    assert SENTENCE in section.inner_text() and "agreement between views" in section.inner_text()
    assert section.locator("img").get_attribute("alt") == SENTENCE


def test_paper_has_pictures_and_records_and_no_controls(opened: Any) -> None:
    opened.emulate_media(media="print")
    for hidden in ("nav", ".tabs", "#edit-1 .views", "[data-role=record]", "details.record"):
        assert not opened.locator(hidden).first.is_visible(), hidden
    assert opened.locator("#edit-1 [data-role=panel]").is_visible()
    content = opened.pdf(format="A4")
    assert content[:5] == b"%PDF-" and len(content) > 50_000
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"

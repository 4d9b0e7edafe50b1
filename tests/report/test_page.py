"""The page: complete, escaped, movable, the same twice, and useful for runs that are not finished."""

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from restage.records import InputError, read_json, write_json
from restage.report.read import ReportConfig
from restage.report.stage import run_report, write_report
from restage.report.words import format_duration
from restage.run.folder import RunFolder
from restage.scenes.references import GivenPicture
from restage.scores.rows import read_scores, write_scores
from tests.scenes.test_references import picture

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{{ 7 * 7 }}"


class Elements(HTMLParser):
    """Collects start tags with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def read_page(run):
    return write_report(run).read_text(encoding="utf-8")


def dump_dom(page):
    """The page as headless Chromium has it after its script ran."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([chromium, *flags, page.as_uri()], capture_output=True, text=True, timeout=60)
    assert "<html" in done.stdout, done.stderr
    return done.stdout


def test_page_of_a_complete_run_has_all_its_parts(fake_run):
    page = Elements(read_page(fake_run()))
    for expected in (
        "Miniature.",
        "2 edits of 2 miniature scenes",
        "“make the red sphere blue”",
        "0.72",
        "10 min 5 s",
        "96 image pairs, 64 accepted, a yield of 67 %",
        "clip_direction > 0.10",
        "300 training steps",
        "37.9 dB held-out PSNR",
        "restage demo --out run",
    ):
        assert expected in page.text
    assert {"sds", "idu", "replace_once", "nothing"} <= set(page.texts)
    assert "wrong way" in page.text


def test_every_picture_has_alternative_text(fake_run):
    images = [attrs for tag, attrs in Elements(read_page(fake_run())).tags if tag == "img"]
    assert len(images) > 10
    assert all(image.get("alt") for image in images)


def test_unscored_is_a_dash_with_its_reason(fake_run):
    tags = Elements(read_page(fake_run())).tags
    assert "the edit changes every pixel" in [
        attrs.get("title") for _, attrs in tags if attrs.get("class") == "unscored"
    ]


def test_page_refers_to_nothing_outside_its_own_folder(fake_run):
    run = fake_run(with_orbit=True)
    folder = write_report(run).parent
    page = (folder / "index.html").read_text()
    references = [attrs[name] for _, attrs in Elements(page).tags for name in ("src", "href") if attrs.get(name)]
    data = [json.loads(text) for text in re.findall(r'type="application/json"[^>]*>(.*?)</script>', page, re.S)]
    paths = {text for text in re.findall(r'"(assets/[^"]+)"', json.dumps(data))}
    paths |= {reference for reference in references if not reference.startswith("#")}
    assert len(paths) > 50
    assert all(path.startswith("assets/") and ".." not in path and (folder / path).is_file() for path in paths)
    assert {path.name for path in (folder / "assets").iterdir()} == {path.removeprefix("assets/") for path in paths}
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_hostile_text_stays_text(fake_run):
    run = fake_run(instructions=(HOSTILE, "make it blue"), scene_names=("<svg onload=alert(1)>", "b&b"))
    record = read_json(run / "run.json")
    write_json(run / "run.json", {**record, "command": ["restage", HOSTILE], "git_commit": HOSTILE})
    page = write_report(run)
    elements = Elements(page.read_text())
    assert HOSTILE.split("{{")[0] in "".join(elements.texts)
    assert "49" not in elements.text.split("becomes")[0]
    assert not [attrs for _, attrs in elements.tags if any(name.startswith("on") for name in attrs)]
    assert sum(tag == "script" for tag, _ in elements.tags) == 4
    assert not [attrs for tag, attrs in elements.tags if tag == "img" and attrs.get("src") == "x"]


def test_hostile_text_runs_nothing_in_a_browser(fake_run):
    dom = dump_dom(write_report(fake_run(instructions=(HOSTILE, HOSTILE))))
    assert "<title>Restage report: run</title>" in dom
    assert dom.count("aria-valuetext") >= 2, "the page's own script did not run"


def test_choosing_method_view_and_panel_swaps_the_pictures(fake_run):
    page = write_report(fake_run())
    script = """<script>
      const edit = document.querySelector("#edit-1");
      for (const name of ["method-1", "view-1", "panel-1"]) {
        const inputs = edit.querySelectorAll(`input[name=${name}]`);
        inputs[name === "panel-1" ? 3 : 1].click();
      }
      const range = edit.querySelector("input[type=range]");
      range.value = 20;
      range.dispatchEvent(new Event("input"));
    </script></body>"""
    page.write_text(page.read_text().replace("</body>", script))
    tags = Elements(dump_dom(page)).tags
    shown = {attrs["data-role"]: attrs for _, attrs in reversed(tags) if "data-role" in attrs}
    assert "frame-00001-idu-trained-after" in shown["after"]["src"]
    assert "frame-00001-before" in shown["before"]["src"]
    assert "frame-00001-idu-trained-mask" in shown["panel"]["src"]
    assert "20%" in next(attrs["style"] for _, attrs in tags if "data-compare" in attrs)


def test_writing_twice_gives_the_same_bytes_and_drops_what_is_unused(fake_run):
    run = fake_run()
    first = {path.name: path.read_bytes() for path in write_report(run).parent.rglob("*") if path.is_file()}
    (run / "report" / "assets" / "old.webp").write_bytes(b"old")
    second = {path.name: path.read_bytes() for path in write_report(run).parent.rglob("*") if path.is_file()}
    assert first == second


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        ("pairs", "No image pairs in this run."),
        ("train", "No edit model was trained in this run."),
        ("compare", "Not compared:"),
        ("edit", "No edit in this run yet:"),
        ("scenes", "No scene in this run."),
    ],
)
def test_missing_stage_is_one_line(fake_run, stage, line):
    stages = [name for name in ("prompts", "pairs", "train", "scenes", "edit", "compare") if name != stage]
    if stage == "scenes":
        stages.remove("edit")
    assert line in Elements(read_page(fake_run(stages=stages))).text


def test_own_capture_without_truth_gets_a_page(fake_run):
    page = read_page(fake_run(has_truth=False, stages=("scenes", "edit")))
    text = Elements(page).text
    assert "no truth to score against" in text
    assert "Exact truth" not in text
    assert "Miniature" not in text
    assert "Difference" in text


def test_failed_result_is_shown_with_its_reason(fake_run):
    run = fake_run()
    folder = next(run.glob("edit/world-7/*/idu-trained/0"))
    shutil.rmtree(folder)
    who = {"scene": "world-7", "edit": "edit-0", "method": "idu", "editor": "trained", "seed": 0}
    write_json(folder / "record.json", {**who, "status": "failed", "reason": "RuntimeError: not finite"})
    page = read_page(run)
    assert "RuntimeError: not finite" in page
    assert "idu" in Elements(page).texts


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        write_report(tmp_path)


def test_broken_files_are_named(fake_run):
    run = fake_run()
    scores = run / "compare" / "scores.parquet"
    content = scores.read_bytes()
    scores.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="scores.parquet"):
        write_report(run)
    scores.write_bytes(content)
    picture = next(run.glob("edit/*/*/restage-trained/0/held_out/*.png"))
    picture.write_bytes(b"no picture")
    with pytest.raises(InputError, match=picture.name):
        write_report(run)


def test_metrics_line_cut_short_by_a_kill_is_left_out(fake_run):
    run = fake_run()
    metrics = run / "train" / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-8])
    assert "299 training steps" in Elements(read_page(run)).text
    metrics.write_text("nonsense\n" + metrics.read_text())
    with pytest.raises(InputError, match="line 1"):
        write_report(run)


def test_stage_is_skipped_until_the_run_has_something_new(fake_run):
    path = fake_run()
    run = RunFolder(path=path, config={}, seed=7)
    assert list(run_report(run, ReportConfig()))[-1].note == str(path / "report" / "index.html")
    assert [step.note for step in run_report(run, ReportConfig())] == ["already done"]
    shutil.rmtree(next(path.glob("edit/*/*/idu-trained")))
    assert list(run_report(run, ReportConfig()))[-1].note.endswith("index.html")


def test_config_out_of_range_is_refused():
    for name, wrong in (("max_views", 0), ("max_px", 4), ("noop_progress", 1.5)):
        with pytest.raises(InputError, match=name):
            dataclasses.replace(ReportConfig(), **{name: wrong})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.83, "0.8 s"), (41.0, "41 s"), (119.6, "2 min"), (425.0, "7 min 5 s"), (7800.0, "2 h 10 min")],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert format_duration(seconds) == text


def test_edits_of_a_capture_with_nothing_held_out_are_shown_by_orbit_and_editor_views(fake_run):
    run = fake_run(has_truth=False, stages=("scenes", "edit"), with_orbit=True)
    for folder in run.glob("edit/*/*/*/0/held_out"):
        shutil.rmtree(folder)
    for path in run.glob("scenes/*/fit.json"):
        write_json(path, {**read_json(path), "held_out_psnr_db": None, "seconds": -3.0})
    write_json(run / "run.json", {**read_json(run / "run.json"), "sessions": [{"wall_s": -5.0}, {"wall_s": 7.0}]})
    page = Elements(write_report(run, ReportConfig(formats=("page", "latex"))).read_text(encoding="utf-8"))
    assert "2 edits of 2 scenes by text" in page.text and "No view of this capture was held out" in page.text
    assert "no edit yet" not in page.text and "dB held-out PSNR" not in page.text
    assert "7.0 s" in page.text and "seconds 0" in page.text
    pictures = [attrs.get("src", "") for tag, attrs in page.tags if tag in ("img", "video")]
    assert any("editor" in picture for picture in pictures) and any(picture.endswith(".mp4") for picture in pictures)


def test_a_page_without_held_out_views_can_be_used_in_a_browser(fake_run):
    run = fake_run(has_truth=False, stages=("scenes", "edit"))
    for folder in run.glob("edit/*/*/*/0/held_out"):
        shutil.rmtree(folder)
    page = write_report(run)
    script = '<script>document.querySelectorAll("input[name=method-1]")[1].click(); document.title = "clicked"</script>'
    page.write_text(page.read_text().replace("</body>", f"{script}</body>"))
    assert "<title>clicked</title>" in dump_dom(page)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("run.json", "machine", {"gpus": 3}, "machine: gpus: expected array, got int"),
        ("run.json", "seed", "7", "run.json: seed: expected int, got str"),
        ("edit/*/*/*/0/record.json", "cost", {"seconds": "long"}, "cost.seconds: expected float, got str"),
        ("scenes/*/fit.json", "seconds", [], "fit.json: seconds: expected float, got array"),
        ("scenes/*/truth/*/edit.json", "request", "blue", "edit.json: request: expected object, got str"),
    ],
)
def test_records_of_wrong_types_are_named(fake_run, name, field, value, message):
    run = fake_run(stages=("scenes", "edit"))
    for path in run.glob(name):
        write_json(path, {**read_json(path), field: value})
    with pytest.raises(InputError) as error:
        write_report(run)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_column_is_there_only_where_some_row_says_anything_of_it(fake_run):
    assert "Fit error" not in read_page(fake_run("old"))
    run = fake_run("new")
    scores = run / "compare" / "scores.parquet"
    rows = read_scores(scores)
    more = [dataclasses.replace(row, metric="fit_error") for row in rows if row.metric == "spill"]
    write_scores(scores, [*rows, *more])
    assert "Fit error" in read_page(run)


def test_graded_photographs_are_not_called_the_miniature(fake_run):
    run = fake_run()
    for path in run.glob("scenes/*/truth/*/edit.json"):
        write_json(path, {**read_json(path), "kind": "grade"})
    text = Elements(read_page(run)).text
    assert "Miniature." not in text and "2 edits of 2 scenes by text" in text and "against exact truth" in text


def test_the_page_says_where_the_time_went_and_where_splats_were_taken_from(fake_run):
    run = fake_run()
    assert "Where the time went" not in read_page(run) and "taken from" not in read_page(run)
    parts = {"render": {"wall_s": 60.0, "cpu_s": 50.0, "times": 3}, "save": {"wall_s": 1.0, "cpu_s": 1.0, "times": 1}}
    took = {"wall_s": 80.0, "cpu_s": 90.0, "queued_s": 5.0, "num_threads": 2, "parts": parts}
    sessions = [
        {"wall_s": 600.0, "profile": {"edit": took}},
        {"wall_s": 9.0, "profile": {"edit": took, "scenes": took}},
    ]
    write_json(run / "run.json", {**read_json(run / "run.json"), "sessions": sessions})
    fit = run / "scenes" / "world-7" / "fit.json"
    write_json(fit, {**read_json(fit), "splats_from": {"file": "bear.spz", "sha256": "abcdef0123456789"}})
    text = Elements(read_page(run)).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "scenes 80 s 90 s 5.0 s 2 render 60 s, other 19 s" in text
    assert "edit 2 min 40 s 3 min 10 s 2 render 2 min, other 38 s" in text
    assert text.index("scenes 80 s") < text.index("edit 2 min 40 s") and "save 1.0 s" not in text
    assert "taken from bear.spz, not fitted here" in text and "abcdef012345" in text


def test_pictures_that_an_edit_refers_to_are_shown_with_it(fake_run):
    run = fake_run()
    case = run / "scenes" / "world-7" / "truth" / "edit-0" / "edit.json"
    record = json.loads(case.read_text())
    kept = GivenPicture(picture()).keep(run / "scenes" / "world-7")
    record["request"]["references"] = [{"picture": kept.picture}, {"picture": "gone.png"}]
    case.write_text(json.dumps(record))
    tags = Elements(read_page(run)).tags
    shown = [attrs for tag, attrs in tags if tag == "img" and attrs.get("class") == "reference"]
    assert len(shown) == 1 and "make the red sphere blue" in shown[0]["alt"]
    assert (run / "report" / shown[0]["src"]).is_file()

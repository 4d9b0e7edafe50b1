"""What a paper needs beside the page: website, poster, teaser, marked tables, a table of two studies."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import pytest
from PIL import Image

from restage.cli import run as restage
from restage.records import InputError
from restage.report.paper import Paper, read_paper
from restage.report.read import ReportConfig, read_contents
from restage.report.rebuttal import rebuttal_tabular
from restage.report.stage import write_report
from restage.report.summary import method_tabular, standings, summarise
from restage.report.website import MAX_WEBSITE_BYTES
from restage.scores.rows import read_scores, write_scores
from tests.report.test_page import Elements

HOSTILE = "</h3><script>owned()</script> 100 % of $x_1$ & <b>{{ 7 * 7 }}</b> 雪"
FakeRun = Callable[..., Path]
TOML = """
title = "Edits & <i>more</i>"
authors = ["Ada Lovelace", {given-names = "Grace", family-names = "Hopper", website = "https://example.org"}]
venue = "A Conference"
year = 2026
abstract = "All of it."
url = "https://example.org/paper.pdf"
method-figure = "method.png"
links = {Supplement = "more.txt"}
"""


@pytest.fixture(scope="module")
def website(shared_run: FakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paper")
    Image.new("RGB", (40, 20), "red").save(folder / "method.png")
    (folder / "more.txt").write_text("more")
    (folder / "paper.toml").write_text(TOML)
    run = shared_run(instructions=(HOSTILE, "make it blue"))
    write_report(run, ReportConfig(formats=("page", "website"), max_views=1), read_paper(folder / "paper.toml"))
    return run / "report" / "website"


def external(tags: list[tuple[str, dict[str, str | None]]]) -> list[str]:
    """Addresses outside of the folder that a page loads by itself."""
    loaded = [attrs.get(name) for tag, attrs in tags if tag != "a" for name in ("src", "href", "poster", "srcset")]
    return [path for path in loaded if path and re.match(r"(?:[a-z]+:|//|/|\.\.)", path)]


def check_accessible(page: str) -> None:
    """Alternative texts, names of controls, one language, headings that skip no level, nothing from elsewhere."""
    tags = Elements(page).tags
    assert all(attrs.get("alt") for tag, attrs in tags if tag == "img")
    assert all(attrs.get("aria-label") for tag, attrs in tags if tag == "video")
    ranges = [attrs for tag, attrs in tags if tag == "input" and attrs.get("type") == "range"]
    assert ranges and all(attrs.get("aria-label") for attrs in ranges)
    for name, words in re.findall(r"<button([^>]*)>(.*?)</button>", page, re.DOTALL):
        assert re.sub(r"<[^>]*>|[\s×]", "", words) or "aria-label" in name
    assert next(attrs for tag, attrs in tags if tag == "html")["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False)), levels
    assert external(tags) == [] and not re.search(r"url\(\s*(?![\"']?data:)", page.partition("</style>")[0])
    assert "prefers-reduced-motion" in page and "http-equiv" not in page


def test_page_and_website_are_accessible_and_ask_nobody(website: Path) -> None:
    check_accessible((website / "index.html").read_text())
    check_accessible((website.parent / "index.html").read_text())


def luminance(color: str) -> float:
    color = color if len(color) == 7 else "#" + "".join(2 * digit for digit in color[1:])
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_stands_out_in_light_and_dark_and_in_print() -> None:
    sheet = (Path(__file__).parents[2] / "restage" / "report" / "page.css").read_text()
    themes = [
        dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)
    ]
    assert len(themes) >= 2
    for theme in themes[:2]:
        for ink in ("ink", "soft", "faint", "accent", "good", "bad"):
            for ground in ("paper", "raised"):
                pair = sorted((luminance(theme[ink]), luminance(theme[ground])))
                ratio = (pair[1] + 0.05) / (pair[0] + 0.05)
                assert ratio >= 4.5, f"{ink} on {ground}: {ratio:.2f}"


def test_website_is_one_folder_with_everything_in_it(website: Path) -> None:
    page = (website / "index.html").read_text()
    assert (website / ".nojekyll").is_file()
    tags = Elements(page).tags
    used = [
        attrs[name]
        for _, attrs in tags
        for name in ("src", "href", "poster")
        if (attrs.get(name) or "").startswith("assets/")
    ]
    assert used and all((website / path).is_file() for path in used)
    names = {path.name for path in (website / "assets").iterdir()}
    assert names == {Path(path).name for path in used} | {name for name in names if name.endswith(".js")}
    assert sum(path.stat().st_size for path in website.rglob("*") if path.is_file()) < MAX_WEBSITE_BYTES
    for text in (
        "Edits &amp; &lt;i&gt;more",
        "Ada Lovelace",
        "Grace Hopper",
        "All of it.",
        "A Conference 2026",
        "more-",
    ):
        assert text in page, text
    assert "<script>owned" not in page and "{{ 7 * 7 }}" in page and "<b>{{" not in page
    assert "@inproceedings{lovelace2026edits," in page and r"title = {{Edits \&amp; &lt;i&gt;more&lt;/i&gt;}}" in page


def test_website_without_texts_has_placeholders_and_keeps_its_bytes(fake_run: FakeRun) -> None:
    run = fake_run()
    config = ReportConfig(formats=("page", "website"), max_views=1)
    write_report(run, config)
    folder = run / "report" / "website"
    page = (folder / "index.html").read_bytes()
    assert b"Title of the paper" in page and b"First Author" in page and b'id="method"' not in page
    write_report(run, config)
    assert (folder / "index.html").read_bytes() == page


def test_website_that_is_too_large_says_what_to_lower(fake_run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restage.report.website.MAX_WEBSITE_BYTES", 1000)
    run = fake_run()
    with pytest.raises(InputError, match="lower --max-edits"):
        write_report(run, ReportConfig(formats=("page", "website"), max_views=1))
    assert not (run / "report" / "website" / "index.html").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", 'titel = "x"', "unknown key titel; expected any of: title, authors"),
        ("a.toml", "title = ", "is not readable"),
        ("a.toml", "title = 3", "a.toml: title: expected"),
        ("a.yaml", "- a\n- b", "expected keys with values"),
        ("a.yaml", "title: [", "not readable as YAML"),
        ("a.toml", 'url = "javascript:alert(1)"', "Paper should lead to https"),
        ("a.toml", 'links = {More = "absent.pdf"}', "More should lead to https"),
        ("a.toml", 'method-figure = "absent.png"', "which is not there"),
        ("a.toml", 'authors = [{nme = "x"}]', "an author has the unknown key nme"),
        ("a.txt", "", "expected a .toml, .yaml or .cff"),
    ],
)
def test_bad_texts_are_refused_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        read_paper(tmp_path / name)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_texts_of_a_citation_file_are_taken() -> None:
    paper = read_paper(Path(__file__).parents[2] / "CITATION.cff")
    assert paper.title.startswith("Restage") and paper.authors[0].full_name == "The Restage authors"
    assert replace(paper, bibtex=" @x{y} ").entry == "@x{y}" and Paper().entry.startswith("@misc{author")


def test_poster_is_readable_on_a0_and_the_same_twice(fake_run: FakeRun) -> None:
    run = fake_run(instructions=(HOSTILE, "make it blue"))
    config = ReportConfig(formats=("page", "poster"), max_views=1)
    write_report(run, config)
    path = run / "report" / "poster.png"
    with Image.open(path) as image:
        assert image.width == 2050 and image.height > 2000
    first = path.read_bytes(), path.with_suffix(".pdf").read_bytes()
    assert first[1].startswith(b"%PDF")
    write_report(run, config)
    assert (path.read_bytes(), path.with_suffix(".pdf").read_bytes()) == first


def test_teaser_is_a_film_that_plays_everywhere(fake_run: FakeRun) -> None:
    run = fake_run(instructions=(HOSTILE, "make it blue"))
    write_report(run, ReportConfig(formats=("page", "teaser"), max_views=1))
    path = run / "report" / "teaser.mp4"
    told = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True, check=False
    ).stderr
    assert "Video: h264" in told and "yuv420p" in told and "24 fps" in told and "Duration: 00:00:06.00" in told
    width, height = map(int, re.search(r", (\d+)x(\d+)", told).groups())  # pyright: ignore[reportOptionalMemberAccess]
    assert width % 2 == height % 2 == 0
    with Image.open(path.with_suffix(".jpg")) as poster:
        assert poster.size == (width, height)


def test_formats_of_a_run_without_edits_say_what_is_missing(fake_run: FakeRun) -> None:
    run = fake_run(stages=("scenes",))
    for form in ("poster", "teaser"):
        with pytest.raises(InputError, match="no edit with pictures before and after"):
            write_report(run, ReportConfig(formats=("page", form)))
    write_report(run, ReportConfig(formats=("page", "website")))
    page = (run / "report" / "website" / "index.html").read_text()
    assert 'id="results"' not in page and 'id="numbers"' not in page


def shifted(run: Path, changes: dict[str, tuple[float, float]]) -> None:
    """Add to the progress of methods, in the first scene and in the second."""
    rows = read_scores(run / "compare" / "scores.parquet")
    scenes = sorted({row.scene for row in rows})
    changed = [
        replace(row, value=row.value + changes[row.method][scenes.index(row.scene)])
        if row.metric == "progress" and row.method in changes and row.editor == "trained"
        else row
        for row in rows
    ]
    write_scores(run / "compare" / "scores.parquet", changed)


def test_ties_within_the_standard_error_share_a_place(fake_run: FakeRun) -> None:
    run = fake_run()
    shifted(run, {"idu": (0.1, 0.35)})  # on average almost as good as restage, better in one scene, worse in the other
    contents = read_contents(run)
    rows = summarise(contents, ReportConfig()).rows
    found = standings(rows, contents.scores, "progress")
    assert found == {
        ("restage", "trained"): "best",
        ("idu", "trained"): "best",
        ("replace_once", "trained"): "second",
    }
    assert standings(rows, contents.scores, "spill")["restage", "trained"] == "best", "lower is better"
    table = method_tabular(summarise(contents, ReportConfig()))
    assert table.count(r"\underline{") >= 2 and "shares the place" in table


def test_two_studies_give_a_table_for_a_rebuttal(fake_run: FakeRun, tmp_path: Path) -> None:
    first, second = fake_run("first_run"), fake_run("second_run")
    shifted(second, {"idu": (0.10, 0.11), "replace_once": (-0.2, 0.3)})
    table = rebuttal_tabular(first, second)
    lines = {line.split(" & ")[0]: line for line in table.splitlines() if " & progress" in line}
    assert r"$0.450 \to 0.555$ & $\mathbf{+0.105}$ & $[+0.0" in lines["idu"]
    assert r"$+0.050$ & $[-3" in lines[r"replace\_once"], "an interval over 0 is not bold"
    assert r"first\_run to second\_run" in table
    out = tmp_path / "rebuttal.tex"
    restage(["diff", str(first), str(second), "--latex", str(out)])
    assert out.read_text() == table
    shutil.rmtree(second / "compare")
    with pytest.raises(InputError, match="no scored result in common"):
        rebuttal_tabular(first, second)

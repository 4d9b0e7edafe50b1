"""Lists of runs: which are found, what filters let through, and the page over many of them."""

from __future__ import annotations

import html.parser
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from restage.audit.listing import ListedRun, RunFilter, find_all_runs, find_runs, list_runs, run_line
from restage.audit.run_index import write_index
from restage.cli import run as restage
from restage.records import InputError, read_json, write_json
from restage.run.folder import open_run
from restage.run.reading import read_run_record
from tests.audit.sealed_run import write_sealed_run

DAY_S = 86400.0


def write_run(folder: Path, **facts: Any) -> Path:
    """Write the record of a run alone."""
    record = {"id": f"run-{folder.name}", "seed": 0, "status": "done", "command": ["restage", "fit", "a"], **facts}
    write_json(folder / "run.json", record)
    return folder


def names(folder: Path, **wanted: Any) -> list[str]:
    return [Path(run.path).name for run in list_runs(folder, wanted=RunFilter(**wanted), is_deep=True)]


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """Five runs of two people at several depths, one of them broken, and one that lies within another."""
    write_run(tmp_path / "a-bear", user="kim", git_commit="abc123", started_s=1_000_000.0, sessions=[{"wall_s": 5.0}])
    write_run(tmp_path / "x" / "b-cone", user="ada", git_commit="abd999+changes", status="failed", started_s=DAY_S * 20)
    write_run(tmp_path / "x" / "y" / "z" / "c-deep", user="kim", git_commit="ffff", status="stopped")
    write_run(tmp_path / "a-bear" / "rounds" / "00", user="kim")
    (tmp_path / "d-broken").mkdir()
    (tmp_path / "d-broken" / "run.json").write_text("{")
    write_sealed_run(tmp_path / "e-edits")
    write_json(tmp_path / ".hidden" / "run.json", {})
    return tmp_path


def test_all_depths_are_looked_at_but_what_lies_within_a_run_is_part_of_it(lab: Path) -> None:
    assert [path.name for path in find_all_runs(lab)] == ["a-bear", "d-broken", "e-edits", "b-cone", "c-deep"]
    assert "c-deep" not in {path.name for path in find_runs(lab)}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"name": "bear"}, ["a-bear"]),
        ({"name": "*/[bc]-[cd]*"}, ["b-cone", "c-deep"]),
        ({"status": ("failed", "unreadable")}, ["d-broken", "b-cone"]),
        ({"user": "kim"}, ["a-bear", "c-deep"]),
        ({"commit": "ab"}, ["a-bear", "b-cone"]),
        ({"dirty": True, "commit": "ab"}, ["b-cone"]),
        ({"clean": True, "user": "kim"}, ["a-bear", "c-deep"]),
        ({"until": "1970-01-15"}, ["a-bear"]),
        ({"since": "1970-01-15", "until": "1970-02-01T00:00"}, ["b-cone"]),
        ({"method": "idu"}, ["e-edits"]),
        ({"method": "idu", "editor": "exact"}, []),
        ({"editor": "edit_model"}, ["e-edits"]),
    ],
)
def test_filters_let_through_what_they_say(lab: Path, wanted: dict[str, Any], expected: list[str]) -> None:
    assert names(lab, **wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"since": "yesterday"}, "a day such as"),
        ({"status": ("good",)}, "expected a status of done"),
        ({"dirty": True, "clean": True}, "both --dirty and --clean"),
    ],
)
def test_filters_that_cannot_be_are_refused(wanted: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        RunFilter(**wanted)


def test_a_line_says_who_when_and_from_which_code(lab: Path) -> None:
    lines = {Path(run.path).name: run_line(run) for run in list_runs(lab, is_deep=True)}
    assert "a-bear  done  5 s  no stage yet  1970-01-12" in lines["a-bear"] and lines["a-bear"].endswith("kim  abc123")
    assert lines["b-cone"].endswith("ada  abd999+changes")
    assert "d-broken  unreadable  " in lines["d-broken"]
    assert "edit" in lines["e-edits"]
    assert ListedRun(path="a", status="done", started_s=1e30).started == ""


def test_a_run_says_who_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTAGE_USER", "kim")
    run = open_run(tmp_path / "run")
    monkeypatch.setenv("RESTAGE_USER", "")
    run.close("done")
    record = read_run_record(tmp_path / "run")
    assert record.user == "kim" and [session.user for session in record.sessions] == [""]


def test_the_command_lists_filters_and_tells_json(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restage(["ls", str(lab), "--all", "--user", "kim", "--clean"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert restage(["ls", "--all", str(lab), "--json", "--method", "idu"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert "idu-edit_model" in found["contenders"] and "problem" not in found
    assert found["is_dirty"] == found["git_commit"].endswith("+changes")
    assert restage(["ls", str(lab), "--user", "nobody"]) == 0
    assert "no runs" in capsys.readouterr().out
    assert restage(["ls", str(lab), "--since", "soon"]) == 2


class Page(html.parser.HTMLParser):
    """What a page holds: its tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("style", "script"):
            self.text += data


def test_the_index_of_200_runs_with_broken_ones_opens_offline_and_is_escaped(tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    for number in range(196):
        write_run(lab / f"{number:03d}", user="<b>kim</b>", command=["restage", "<script>alert(1)</script>"])
    for number, content in enumerate(("{", "[]", '{"id": 3}', "\x00")):
        (lab / f"broken-{number}").mkdir()
        (lab / f"broken-{number}" / "run.json").write_text(content)
    picture = lab / "000" / "scenes" / "ball" / "held_out" / "0.png"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (500, 300), (200, 30, 30)).save(picture)
    (lab / "001" / "scenes" / "ball" / "held_out").mkdir(parents=True)
    (lab / "001" / "scenes" / "ball" / "held_out" / "0.png").write_text("no picture")
    scored = write_sealed_run(lab / "scored & <i>run")
    (lab / "002" / "compare").mkdir()
    (lab / "002" / "compare" / "scores.parquet").write_text("no table")
    steps = list(write_index(list_runs(lab, is_deep=True, with_results=True), tmp_path / "runs.html"))
    assert len(steps) == 201
    page = Page((tmp_path / "runs.html").read_text(encoding="utf-8"))
    rows = [tag for tag, _ in page.tags].count("tr")
    assert rows == 202  # and the head
    assert [tag for tag, _ in page.tags].count("script") == 1 and "i" not in [tag for tag, _ in page.tags]
    assert "<script>alert(1)</script>" in page.text and "<b>kim</b>" in page.text
    assert page.text.count("unreadable") == 4 and scored.name in page.text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1 + any(scored.rglob("held_out/*.png"))
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") and image["alt"] for image in images)
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert not (attributes.get(name) or "").startswith(("http", "//")), tag
    if "compare" in os.listdir(scored):
        assert "idu, edit_model" in page.text and "progress" in page.text


def test_a_run_with_a_page_is_linked_from_where_the_index_lies(lab: Path) -> None:
    report = lab / "x" / "b-cone" / "report" / "index.html"
    report.parent.mkdir()
    report.write_text("<html></html>")
    list(write_index(list_runs(lab, is_deep=True), lab / "pages" / "runs.html"))
    links = [tags["href"] for tag, tags in Page((lab / "pages" / "runs.html").read_text()).tags if tag == "a"]
    assert links == ["../x/b-cone/report/index.html"]
    shutil.rmtree(lab / "pages")


def test_a_report_that_lacks_an_extra_leaves_the_run_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_sealed_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "pptx", None)
    assert restage(["report", str(run), "--formats", "page", "slides"]) == 2
    assert "pip install 'restage[slides]'" in capsys.readouterr().err
    assert read_run_record(run).status == "done" and not (run / "report").exists()


def test_an_index_has_to_be_a_page(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restage(["ls", "--all", str(lab), "--index", str(lab / "runs.txt")]) == 2
    assert "name of a page such as runs.html" in capsys.readouterr().err
    assert restage(["ls", "--all", str(lab), "--index", str(lab / "runs.html")]) == 0
    assert "index: " in capsys.readouterr().out and (lab / "runs.html").is_file()
    assert read_json(lab / "a-bear" / "run.json")["user"] == "kim"

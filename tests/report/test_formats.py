"""The report as LaTeX, slides and zip: complete, escaped, the same twice, and readable by the programs they are for."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import zipfile
from html.parser import HTMLParser

import pytest

from restage.cli import run as restage
from restage.records import InputError
from restage.report.read import ReportConfig, read_contents
from restage.report.stage import write_report, write_supplement
from restage.report.summary import best_row, escape_latex, method_tabular, summarise

HOSTILE = r"make it 100 % \input{/etc/passwd} & $x_1^2$ ~ #7 {<b>} ± → “é” 雪 --out"
ALL = ReportConfig(formats=("page", "latex", "slides", "zip"), max_views=1)


def test_best_competitor_of_each_column_is_bold_and_anchors_stand_below(fake_run):
    lines = method_tabular(summarise(read_contents(fake_run()), ReportConfig())).splitlines()
    restage_line = next(line for line in lines if line.startswith("restage & trained"))
    assert restage_line.count(r"\textbf{0.690}") == 1 and r"$\pm$0.030" in restage_line
    assert r"\textbf" not in next(line for line in lines if line.startswith("restage & exact"))
    assert lines.index(r"\midrule") < lines.index(restage_line) < len(lines) - 1 - lines[::-1].index(r"\midrule")
    assert "wrong way" in next(line for line in lines if line.startswith("sds"))


def test_method_that_goes_the_wrong_way_is_best_by_nothing(fake_run):
    rows = summarise(read_contents(fake_run()), ReportConfig()).rows
    assert [row.method for row in rows if row.flag == "wrong way"] == ["sds"]
    best = best_row([row for row in rows if row.method in ("sds", "idu")], "seconds")
    assert best is not None and best.method == "idu", "though sds took less time"


def test_unscored_is_a_dash_and_what_is_missing_is_counted(fake_run):
    table = method_tabular(summarise(read_contents(fake_run()), ReportConfig()))
    assert "(1)" in next(line for line in table.splitlines() if line.startswith("restage & trained")), (
        "spill of one edit"
    )


def test_text_of_users_is_escaped():
    escaped = escape_latex(HOSTILE)
    assert r"\textbackslash{}input\{/etc/passwd\}" in escaped and r"100 \% " in escaped
    assert r"\&" in escaped and r"\$x\_1\textasciicircum{}2\$" in escaped and "?" in escaped and "-{}-out" in escaped


def test_latex_compiles_even_with_hostile_text(fake_run):
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex (Debian: apt-get install texlive-latex-recommended)")
    run = fake_run(instructions=(HOSTILE, "make it blue"))
    write_report(run, ReportConfig(formats=("page", "latex"), max_views=1))
    folder = run / "report" / "paper"
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and (folder / "paper.pdf").stat().st_size > 10_000


def test_slides_open_with_title_table_and_a_picture_with_words_for_each_edit(fake_run):
    pptx = pytest.importorskip("pptx", reason="needs restage[slides]")
    run = fake_run()
    write_report(run, ReportConfig(formats=("page", "slides"), max_views=1))
    slides = pptx.Presentation(str(run / "report" / "slides.pptx")).slides
    titles = [slide.shapes.title.text for slide in slides]
    assert titles[0] == "2 edits of 2 scenes by text" and titles[1] == "Methods on held-out views"
    assert "“make the red sphere blue”" in titles and titles[-1] == "Record"
    table = next(shape.table for shape in slides[1].shapes if shape.has_table)
    assert table.cell(1, 0).text == "restage" and table.cell(1, 2).text == "0.690 ± 0.030"
    pictures = [shape for slide in slides for shape in slide.shapes if shape.shape_type == 13]
    assert len(pictures) >= 4
    assert all(shape._element.nvPicPr.cNvPr.get("descr") for shape in pictures)
    right, bottom = 13.34 * 914400, 7.51 * 914400
    for slide in slides:
        for shape in slide.shapes:
            assert shape.left >= 0 and shape.left + shape.width <= right and shape.top + shape.height <= bottom


class Links(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.paths = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.paths += [value for name, value in attrs if name in ("href", "src") and value and value[0] != "#"]


def test_every_link_of_the_supplement_leads_to_a_file_in_it(fake_run):
    pytest.importorskip("pptx", reason="needs restage[slides]")
    runs = [fake_run("one"), fake_run("two")]
    for run in runs:
        write_report(run, ALL)
    target = write_supplement(runs, runs[0].parent / "supplement.zip")
    with zipfile.ZipFile(target) as archive:
        names = set(archive.namelist())
        index = Links(archive.read("index.html").decode()).paths
        assert {"one/index.html", "two/slides.pptx", "one/data/scores.csv", "two/records/run.json"} <= set(index)
        assert set(index) <= names
        page = {f"one/{path}" for path in Links(archive.read("one/index.html").decode()).paths}
        assert "one/slides.pptx" in page and page <= names
        rows = list(csv.DictReader(io.StringIO(archive.read("one/data/scores.csv").decode())))
    assert len(rows) == 2 * 7 * 6 and rows[0]["metric"] == "progress"


def test_supplement_follows_no_links(fake_run, tmp_path):
    run = fake_run()
    write_report(run, ReportConfig())
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("secret")
    (run / "report" / "assets").mkdir(exist_ok=True)
    (run / "report" / "assets" / "key.txt").symlink_to(tmp_path / "secret" / "key.txt")
    (run / "report" / "paper").symlink_to(tmp_path / "secret")
    (run / "study.json").symlink_to(tmp_path / "secret" / "key.txt")
    (tmp_path / "link").symlink_to(run)  # that the run itself is reached by one is no matter
    with zipfile.ZipFile(write_supplement([tmp_path / "link"], tmp_path / "x.zip")) as archive:
        assert f"{run.name}/index.html" in archive.namelist()
        assert not [name for name in archive.namelist() if "secret" in str(archive.read(name)) or "key" in name]


def test_supplement_does_not_say_who_ran_it(fake_run):
    run = fake_run()
    record = json.loads((run / "run.json").read_text())
    record |= {"user": "jane-roe", "sessions": [{**session, "user": "jane-roe"} for session in record["sessions"]]}
    (run / "run.json").write_text(json.dumps(record))
    write_report(run, ReportConfig(formats=("page", "zip"), max_views=1))
    with zipfile.ZipFile(run / "report" / "supplement.zip") as archive:
        assert json.loads(archive.read(f"{run.name}/records/run.json"))["id"] == record["id"]
        assert not [name for name in archive.namelist() if b"jane-roe" in archive.read(name)]


def test_same_run_gives_the_same_supplement(fake_run):
    run = fake_run()
    write_report(run, ReportConfig(formats=("page", "latex", "zip"), max_views=1))
    before = (run / "report" / "supplement.zip").read_bytes()
    write_report(run, ReportConfig(formats=("page", "latex", "zip"), max_views=1))
    assert (run / "report" / "supplement.zip").read_bytes() == before


def test_supplement_of_runs_without_pages_or_of_one_name_is_refused(fake_run, tmp_path):
    run = fake_run()
    with pytest.raises(InputError, match="no page"):
        write_supplement([run], tmp_path / "x.zip")
    with pytest.raises(InputError, match="same name"):
        write_supplement([run, run], tmp_path / "x.zip")


def test_one_command_writes_what_is_asked_for(fake_run, capsys):
    run = fake_run()
    assert restage(["report", str(run), "--formats", "page", "latex", "--max-views", "1"]) == 0
    assert (run / "report" / "paper" / "tables.tex").exists() and not (run / "report" / "slides.pptx").exists()
    assert restage(["report", str(run), "--max-views", "2"]) == 0, "a page is made anew with another config"
    assert restage(["report"]) == 2 or "RUN" in capsys.readouterr().err
    assert restage(["report", str(run.parent)]) == 2

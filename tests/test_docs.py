from __future__ import annotations

import contextlib
import functools
import io
import re
from pathlib import Path

import pytest

from restage.cli import SUMMARIES, run
from tests.docs.blocks import read_blocks
from tests.test_architecture import ROOMS

REPOSITORY = Path(__file__).parent.parent
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
PATH = re.compile(r"`((?:restage|miniature|benchmarks|tests|docs)/[\w./-]*\w\.\w+)`")


COMMAND = re.compile(r"(?:^|[\s;|&(])(?:\.venv/bin/)?restage ([a-z][\w-]*)((?: (?!&&|\||;|#|restage )\S+)*)")


def names_of(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(REPOSITORY)) for page in pages]


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.replace("`", "").lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=names_of(PAGES))
def test_links_lead_somewhere(page: Path) -> None:
    for place, anchor in LINK.findall(page.read_text()):
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), place
        assert not anchor or anchor in anchors_of(target), f"{place}#{anchor}"


# The log tells of files as they were on its days; my_method and its kind are examples.
@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "log"], ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    for path in PATH.findall(page.read_text()):
        assert (REPOSITORY / path).exists() or "my_" in path, path


def test_formulas_are_where_the_page_says() -> None:
    rows = [line for line in (REPOSITORY / "docs" / "methods.md").read_text().splitlines() if line.startswith("| ")]
    for row in rows[2:]:
        for path, names in re.findall(r"`([\w/]+\.py)`((?:,? `[\w.]+`)*)", row.split(" | ")[-1]):
            found = [folder / path for folder in (REPOSITORY / "restage", REPOSITORY) if (folder / path).exists()]
            assert found or path == "reference.py", path
            for name in re.findall(r"`[\w.]*?(\w+)`", names):
                assert re.search(rf"\b{name}\b", found[0].read_text()), f"{path} has no {name}"


def test_readme_is_one_page_and_shows_every_room() -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.split()) <= 900
    shown = re.findall(r"^restage/(\w+)", text, flags=re.MULTILINE)
    assert shown == [room for room in ROOMS if room != "cli"]


def test_the_drawing_of_the_architecture_has_every_room_in_its_order() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    order = re.search(r"is the order: (.*?)\.", text, flags=re.DOTALL)
    assert order and tuple(re.split(r",\s+", order[1])) == ROOMS
    drawing = text.split("```mermaid")[1].split("```")[0]
    assert [room for room in ROOMS if not re.search(rf"\b{room}\b", drawing)] == []


def commands_in(page: Path) -> list[tuple[str, list[str]]]:
    """The commands in a page's shell blocks: each with the options that it is given."""
    found = []
    for block in read_blocks(page):
        for name, arguments in COMMAND.findall(block.text.replace("\\\n", " ")):
            found.append((name, re.findall(r"(?:^| )(--[a-z][\w.-]*)", arguments)))
    return found


@functools.cache
def help_of(command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        run([command, "--help"])
    return out.getvalue()


# The log tells of commands as they were on its days, and files of results name their own.
@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "log"], ids=lambda page: page.name)
def test_commands_that_a_page_shows_exist_and_take_its_options(page: Path) -> None:
    for name, options in commands_in(page):
        assert name in SUMMARIES, f"restage {name}"
        if name == "miniature":  # its options are those of its parts
            continue
        for option in options:
            assert re.search(rf"{re.escape(option)}\b(?![-.])", help_of(name)), f"restage {name} {option}"


def test_the_readme_shows_commands() -> None:
    assert {"fit", "edit", "region", "pairs", "study"} <= {name for name, _ in commands_in(REPOSITORY / "README.md")}


def test_the_site_has_every_page_in_its_navigation() -> None:
    listed = re.findall(r": ([\w/]+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    docs = REPOSITORY / "docs"
    pages = {page.relative_to(docs).as_posix() for folder in (docs, docs / "tutorials") for page in folder.glob("*.md")}
    made = {"index.md", "commands.md", "python.md", "contributing.md", "changes.md"}
    assert set(listed) == pages | made | {"log/README.md"}

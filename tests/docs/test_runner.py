"""What runs the shell blocks of the documentation: it runs what stands there, and fails where a page is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import Block, Shell, looks_like, read_blocks, read_commands, reason_not_to_run
from tests.docs.pages import PAGES, REPOSITORY

PAGE = """# A page
```sh
restage ls runs   # a comment
A=1 restage show runs/a --json && restage verify runs/a \\
    --fast
```
It prints
```text
runs/a  done  12 s  ...
```
<!-- not run: needs three servers -->
```
ray start
```
```python
print("no shell")
```
## A heading
```text
is printed by nothing
```
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path / "page.md"


def run_text(folder: Path, text: str, *printed: str) -> None:
    Shell(folder).run_block(Block(1, text, "", printed))


def test_shell_blocks_are_found_with_what_they_print_and_why_they_are_not_run(page: Path) -> None:
    first, second = read_blocks(page)
    assert first.line == 2 and first.printed == ("runs/a  done  12 s  ...",) and not first.reason
    assert second.text == "ray start\n" and second.reason == "needs three servers" and not second.printed


def test_commands_are_read_as_a_shell_reads_them(page: Path) -> None:
    found = list(read_commands(read_blocks(page)[0].text))
    assert [command.text for command in found] == [
        "restage ls runs",
        "restage show runs/a --json",
        "restage verify runs/a --fast",
    ]
    assert [command.variables for command in found] == [{}, {"A": "1"}, {}]
    assert [one.is_background for one in read_commands(".venv/bin/restage serve & restage ls 'a b'")] == [True, False]
    assert next(read_commands(".venv/bin/restage ls")).words[0] == "restage"


def test_a_command_that_works_passes_and_leaves_its_files_in_the_folder(tmp_path: Path) -> None:
    run_text(tmp_path, "mkdir runs\nrestage ls runs", "no runs in runs")
    assert (tmp_path / "runs").is_dir()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("restage ls nowhere", "ended with 2"),
        ("restage ls --no-such-option", "ended with 2"),
        ("restage fitt photographs", "did you mean fit"),
        ("mkdir runs && restage ls runs --since soon", "ended with 2"),
        ("rm -r runs", "neither run nor marked"),
        ("restage ls & ", "in the background"),
    ],
)
def test_a_wrong_command_fails(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        run_text(tmp_path, text)


def test_a_line_that_is_not_printed_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not printed:\n3 runs in runs"):
        run_text(tmp_path, "mkdir runs\nrestage ls runs", "3 runs in runs")


def test_variables_hold_for_the_commands_after_them(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell.run_block(Block(1, "export PLACE=there\nmkdir $PLACE", "", ()))
    assert (tmp_path / "there").is_dir()


def test_printed_lines_may_have_other_numbers_and_leave_something_out() -> None:
    assert looks_like("300 splats: mine.ply", "45,000 splats:  mine.ply")
    assert looks_like("edited: runs/.../0", "edited: runs/bear/edit/restage-grade/0")
    assert not looks_like("300 splats: mine.ply", "300 splats: other.ply")
    assert not looks_like("bear: 1 splats", "bear: 1 splats and more")


def test_what_cannot_run_has_a_reason() -> None:
    (pip,) = read_commands(".venv/bin/pip install -e '.[segment]'")
    (ours,) = read_commands("restage ls runs")
    assert reason_not_to_run(pip) and not reason_not_to_run(ours)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_block_of_a_page_is_run_or_says_why_not(page: Path) -> None:
    for block in read_blocks(page):
        for command in read_commands(block.text):
            program = command.words[0] if command.words else "export"
            known = program in ("restage", "export", "cat", "cp", "ls", "mkdir", "python")
            assert known or block.reason or reason_not_to_run(command), f"{page.name}: {command.text}"


def test_every_page_with_shell_blocks_is_run() -> None:
    pages = [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").glob("*.md"),
        *(REPOSITORY / "docs").glob("tutorials/*.md"),
    ]
    assert {page for page in pages if read_blocks(page)} == set(PAGES)

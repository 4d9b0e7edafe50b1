"""Every shell block of the documentation is run, on tiny settings: `make test-docs`."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.docs.blocks import Shell, read_blocks, read_commands, reason_not_to_run
from tests.docs.given import give
from tests.docs.pages import PAGES, REPOSITORY


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_the_commands_of_a_page_do_what_it_says(page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    give(tmp_path, *PAGES[page])
    shell = Shell(tmp_path, free_port())
    try:
        for block in read_blocks(page):
            reasons = [reason_not_to_run(command) for command in read_commands(block.text)]
            with capsys.disabled():
                for reason in dict.fromkeys(filter(None, [block.reason, *reasons])):
                    print(f"\n{page.name}:{block.line + 1} not run: {reason}")
            if not block.reason:
                try:
                    shell.run_block(block)
                except AssertionError as error:
                    raise AssertionError(f"{page.name}, line {block.line + 1}: {error}") from None
    finally:
        shell.stop()

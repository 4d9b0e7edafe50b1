"""What `restage --completion` writes for shells."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from restage.cli import SUMMARIES
from tests.commands.shell import assert_is_bad_input, restage


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_asks_help_for_options(shell: str) -> None:
    result = restage("--completion", shell)
    assert result.returncode == 0
    assert all(re.search(rf"\b{name}\b", result.stdout) for name in SUMMARIES) and "--help" in result.stdout


def test_completion_of_bash_completes(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    (tmp_path / "restage").write_text("#!/bin/sh\necho '  --steps INT  --size {None}|INT'\n")
    (tmp_path / "restage").chmod(0o755)
    (tmp_path / "complete.sh").write_text(restage("--completion", "bash").stdout)
    for words, expected in (("restage diag", "diagnose"), ("restage fit --s", "--steps --size")):
        line = f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))"
        program = f'PATH="{tmp_path}:$PATH"; . "{tmp_path}/complete.sh"; {line}; _restage; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run([bash, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.split() == expected.split()


def test_completion_of_an_unknown_shell_is_bad_input() -> None:
    assert_is_bad_input(restage("--completion", "csh"), "bash, zsh or fish")

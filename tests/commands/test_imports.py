"""Commands load no more than they need, and so answer at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from restage.cli import SUMMARIES

HEAVY = ("torch", "numba", "diffusers", "transformers", "scipy", "matplotlib")
OF_HELP = (*HEAVY, "numpy", "jaxtyping", "PIL")
"""What a page of help does without: together they are a third of a second."""


PROGRAM = """
import contextlib, io, json, sys
from restage.cli import run
for words, unwanted, is_refused in json.loads(sys.argv[1]):
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            code = run(words)
    except SystemExit as ended:
        code = ended.code
    assert bool(code) == is_refused, (words, code)
    assert is_refused or output.getvalue().strip(), words
    heavy = set(unwanted) & set(sys.modules)
    assert not heavy, (words, heavy)
"""


def check_imports(*commands: tuple[list[str], Sequence[str]], is_refused: bool = False, cwd: Path) -> None:
    """Run commands one after the other in a fresh process, and look at what each has imported there."""
    given = json.dumps([[words, unwanted, is_refused] for words, unwanted in commands])
    command = [sys.executable, "-c", PROGRAM, given]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert result.returncode == 0, result.stderr


def test_commands_that_read_import_nothing_heavy(scored_run: Path, tmp_path: Path) -> None:
    run = str(scored_run)
    listing = [["ls", str(scored_run.parent)], ["show", run], ["verify", run, "--fast"], ["show", run, "--profile"]]
    pages = [["--help"], *([name, "--help"] for name in SUMMARIES)]
    commands = [*((words, OF_HELP) for words in pages), *((words, HEAVY) for words in (*listing, ["doctor"]))]
    check_imports(*commands, cwd=tmp_path)


def test_no_refusal_imports_anything_heavy(tmp_path: Path) -> None:
    refused = [["verify", "none"], ["report", "none"], ["show", "none"], ["bundle", "none", "--out", "b.zip"]]
    refused.append(["pairs", "run", "--workers", "0"])
    check_imports(*((words, HEAVY) for words in refused), is_refused=True, cwd=tmp_path)


def test_a_fit_does_without_image_models(fitted_run: Path, tmp_path: Path) -> None:
    fit = ["fit", str(fitted_run.parent / "mine"), "--out", "run", "--steps", "1", "--num-splats", "50"]
    check_imports((fit, ("diffusers", "transformers")), cwd=tmp_path)

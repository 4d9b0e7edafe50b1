"""A process that serves or shows until it is stopped; what is imported here is imported once for all of them."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import restage.serve.app
import restage.view.serve  # noqa: F401
from restage.cli import run
from restage.run.progress import stop_on_signals

__all__ = ["run_waiting"]


def run_waiting(words: list[str], folder: Path, variables: dict[str, str], log: Path) -> None:
    """Run a command of restage in a folder, with what it prints in a file."""
    os.chdir(folder)
    os.environ.update(variables)
    stop_on_signals()
    with log.open("w", buffering=1) as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = run(words)
    sys.exit(code)

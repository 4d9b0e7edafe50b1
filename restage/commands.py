"""The sub-commands of `restage`: each is a function whose arguments tyro turns into flags.

Called by `cli.py`. Whatever is heavy (torch, diffusers) is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from restage.show import describe_run, list_runs, show_progress

__all__ = ["COMMANDS"]

RunFolderArgument = Annotated[Path, arg(metavar="RUN")]


def demo(*, out: Path = Path("runs/demo"), seed: int = 0, size: str = "full") -> None:
    """From prompts to the report page of an edited scene.

    Example: restage demo --out runs/demo

    Stops with Ctrl-C at any time; the same command goes on from there. A folder that is done is not done again.

    Args:
        out: Folder of the run.
        seed: Chooses prompts, scene and noise.
        size: `full`, or `tiny` for a run of a minute that shows that everything works and nothing else.
    """
    raise NotImplementedError


def show(run: Positional[RunFolderArgument]) -> None:
    """Print what a run holds: its stages with their facts, its edits, its page.

    Example: restage show runs/demo

    Args:
        run: Folder of the run.
    """
    print("\n".join(describe_run(run)))


def ls(folder: Positional[Path] = Path("runs")) -> None:
    """List the runs in a folder: where, status, time, stages done.

    Example: restage ls runs

    Args:
        folder: Where the runs are.
    """
    print("\n".join(list_runs(folder)) or f"no runs in {folder}")


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "show": show,
    "ls": ls,
}

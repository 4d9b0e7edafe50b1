"""Sub-commands about finished work: what a run holds, whether it still holds it, and what this machine can do.

Annotations are evaluated when a command is built: hence no `from __future__ import annotations` here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from restage.commands.arguments import ModelsArgument, RunArgument
from restage.show import describe_run, list_runs

__all__ = ["build_doctor", "build_ls", "build_show", "build_verify"]

VerifiedArgument = Annotated[str, arg(metavar="PATH", help="A run, or a folder or URL of shards of image pairs.")]


def build_show() -> Callable[..., None]:
    """Build `restage show`."""

    def show(run: Positional[RunArgument]) -> None:
        """Print what a run holds: its stages with their facts, its edits, its page.

        Example: restage show runs/demo
        """
        print("\n".join(describe_run(run)))

    return show


def build_ls() -> Callable[..., None]:
    """Build `restage ls`."""

    def ls(folder: Positional[Path] = Path("runs")) -> None:
        """List the runs in a folder: where, status, time, stages done.

        Example: restage ls runs

        Args:
            folder: Where the runs are.
        """
        print("\n".join(list_runs(folder)) or f"no runs in {folder}")

    return ls


def build_verify() -> Callable[..., None]:
    """Build `restage verify`."""
    from restage.verify import VerifyConfig, verify_folder

    default = VerifyConfig()

    def verify(
        path: Positional[VerifiedArgument],
        *,
        config: Annotated[VerifyConfig, arg(name="")] = default,
        repair: bool = False,
        json: bool = False,
        sheets: Path | None = None,
        models: ModelsArgument = None,
    ) -> None:
        """Check that a run holds what was written, and that its pictures show what they are said to show.

        Example: restage verify runs/demo

        The exit code is 1 if anything was found. Nothing is changed, but for contact sheets, unless --repair is given.

        Args:
            path: What to check.
            config: What to look at.
            repair: Take out exactly what is bad: bad shards are made again by the command that made them, bad single
                pairs are left out by readers from now on. Nothing is deleted; it moves to a folder `quarantine`.
            json: Print JSON instead of lines.
            sheets: Folder for a contact sheet of each reason; default: `verify` in the run.
            models: Folder with the CLIP to judge captions with; default: the one that comes with the package.
        """
        if verify_folder(path, config, models=models, repairs=repair, is_json=json, sheets=sheets):
            raise SystemExit(1)

    return verify


def build_doctor() -> Callable[..., None]:
    """Build `restage doctor`."""

    def doctor(*, runs: Path = Path("runs"), online: bool = False, json: bool = False) -> None:
        """Say what this machine can do, what is missing, and what to do about it. It changes nothing.

        Example: restage doctor

        The exit code is 1 if something that is needed is broken.

        Args:
            runs: Folder that runs go to.
            online: Also ask whether the model hub answers; else the network is not touched.
            json: Print JSON instead of a table.
        """
        from restage import doctor as checks

        findings = list(checks.examine(runs=runs, is_online=online))
        if json:
            print(checks.to_json(findings))
        else:
            checks.show_table(findings)
        if not checks.is_healthy(findings):
            raise SystemExit(1)

    return doctor

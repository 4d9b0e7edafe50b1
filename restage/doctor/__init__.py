"""`restage doctor`: what this machine can do, what is missing, and what to do about it; it changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from restage.doctor import editors, machine, packages
from restage.doctor.machine import Finding, is_healthy, show_table, to_json

__all__ = ["Finding", "examine", "is_healthy", "show_table", "to_json"]

Checks = dict[str, Callable[[], Iterable[Finding]]]


def list_checks(*, runs: Path, is_online: bool, starts: bool) -> dict[str, Checks]:
    """Return all checks by section and name, in the order of the report."""
    return {
        "Python": {"interpreter": packages.check_python, "restage": packages.check_restage},
        "Packages": {"dependencies": packages.check_packages, "known traps": packages.check_traps},
        "Extras": {"extras": packages.check_extras},
        "Machine": {"processor": machine.check_processor, "memory": machine.check_memory, "GPU": machine.check_gpus},
        "Threads": {"threads": partial(machine.check_threads, starts=starts)},
        "Editors": {"editors": editors.check_editors},
        "Places": {
            "shipped models": machine.check_models,
            "disk": partial(machine.check_disk, runs),
            "ffmpeg": machine.check_ffmpeg,
            "hub": partial(machine.check_hub, is_online=is_online),
            "nerfstudio": machine.check_nerfstudio,
        },
    }


def examine(*, runs: Path = Path("runs"), is_online: bool = False, starts: bool = False) -> Iterator[Finding]:
    """Run every check; a check that breaks is a finding itself.

    The network is used only with `is_online`; torch and numba are started, which takes seconds, only with `starts`.
    """
    for group, checks in list_checks(runs=runs, is_online=is_online, starts=starts).items():
        for name, check in checks.items():
            try:
                found = list(check())
            except Exception as error:  # what breaks a check is just what the user wants to know
                advice = f"Something that Restage needs does not start; reinstall it: {packages.reinstall_command()}"
                found = [Finding(name, f"{type(error).__name__}: {error}", advice, is_problem=True)]
            yield from (replace(finding, group=group) for finding in found)

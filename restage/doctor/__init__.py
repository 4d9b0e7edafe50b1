"""`restage doctor`: what this machine can do, what is missing, and what to do about it; it changes nothing.

Whether installed packages suit each other is left to `pip check`, which finds all that a check here would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from restage.doctor import machine, packages, places
from restage.doctor.findings import Finding, is_healthy, show_table, to_json

__all__ = ["Finding", "examine", "is_healthy", "show_table", "to_json"]

Check = Callable[[], Iterable[Finding]]


def list_checks(*, runs: Path, is_online: bool) -> dict[str, Check]:
    """Return all checks by name, in the order of the report."""
    return {
        "python": packages.check_python,
        "restage": packages.check_restage,
        "packages": packages.check_packages,
        "traps": packages.check_traps,
        "extras": packages.check_extras,
        "processor": machine.check_processor,
        "memory": machine.check_memory,
        "bf16": machine.check_bf16,
        "gpus": machine.check_gpus,
        "threads": machine.check_threads,
        "models": places.check_models,
        "disk": partial(places.check_disk, runs),
        "numba cache": places.check_numba_cache,
        "ffmpeg": places.check_ffmpeg,
        "hub": partial(places.check_hub, is_online=is_online),
        "browser": places.check_browser,
        "nerfstudio": places.check_nerfstudio,
    }


def examine(*, runs: Path = Path("runs"), is_online: bool = False) -> Iterator[Finding]:
    """Run every check; a check that breaks is a finding itself.

    Args:
        runs: Where runs go.
        is_online: Also ask whether the hub answers; otherwise the network is not used.

    Yields:
        One finding for each line of the report.
    """
    for name, check in list_checks(runs=runs, is_online=is_online).items():
        try:
            yield from check()
        except Exception as error:  # what breaks a check is just what the user wants to know
            yield Finding(
                group="Checks",
                name=name,
                status="problem",
                found=f"{type(error).__name__}: {error}",
                advice="Something that Restage needs does not start; reinstall it: make clean demo",
            )

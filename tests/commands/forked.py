"""The shell command in processes forked from one that has loaded what a fit needs, which saves seconds of imports."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from restage.cli import main
from restage.scenes import fit, stage

__all__ = ["break_down", "close_output", "interrupt", "run_forked"]


def run_forked(errors: Path, *arguments: str | Path, prepare: Callable[..., None], how: str = "") -> tuple[int, str]:
    """Run a command line after `prepare(how)`; returns its exit code and what it has said to stderr."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_main, args=(errors, [*map(str, arguments)], prepare, how))
    process.start()
    process.join(100)
    process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, errors.read_text()


def _main(errors: Path, arguments: list[str], prepare: Callable[[str], None], how: str) -> None:
    for number, path in ((1, os.devnull), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    prepare(how)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  (the one that was there takes a pipe for what was there)
    sys.argv = ["restage", *arguments]
    main()


def interrupt(answer: str) -> None:
    """Let SIGTERM come in the first step of a fit, whose compiled code passes it on, changes it or swallows it."""
    step = fit.SplatFit.step

    def interrupted_step(self: fit.SplatFit) -> object:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            if answer == "passes on":
                raise
            if answer == "changes":
                raise SystemError("returned a result with an exception set") from None
        return step(self)

    fit.SplatFit.step = interrupted_step  # pyright: ignore[reportAttributeAccessIssue]


def close_output(_: str) -> None:
    """Be a command whose reader has seen enough, such as `head`, and has gone."""
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)


def break_down(reason: str) -> None:
    """Let every fit raise an error that nobody expects."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(reason)

    stage.SplatFit = broken  # pyright: ignore[reportAttributeAccessIssue]

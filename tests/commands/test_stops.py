"""Commands that are stopped or break: what they say, their exit codes, and what the record of the run says then."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from restage.records import read_json
from tests.commands.forked import break_down, interrupt, run_forked
from tests.commands.shell import restage, write_capture_folder


def test_stopped_run_says_so_and_goes_on(tmp_path: Path) -> None:
    capture = write_capture_folder(tmp_path / "mine")
    command = ["fit", str(capture), "--out", str(tmp_path / "run"), "--num-splats", "200"]
    process = subprocess.Popen(
        [sys.executable, "-m", "restage.cli", *command, "--steps", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()  # the first step is done
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.strip() == "stopped; the same command goes on from here"
    assert read_json(tmp_path / "run" / "run.json")["status"] == "stopped"
    assert not (tmp_path / "run" / "scenes" / "mine" / "fit.json").exists()
    assert restage(*command, "--steps", "3").returncode == 0
    assert read_json(tmp_path / "run" / "run.json")["status"] == "done"


@pytest.mark.parametrize("answer", ["passes on", "changes", "swallows"])
def test_a_stop_is_one_whatever_compiled_code_makes_of_it(tmp_path: Path, answer: str) -> None:
    arguments = ("fit", write_capture_folder(tmp_path / "mine"), "--out", tmp_path / "run", "--num-splats", "200")
    arguments = (*arguments, "--steps", "100000")
    code, errors = run_forked(tmp_path / "errors", *arguments, prepare=interrupt, how=answer)
    assert (code, errors.strip()) == (130, "stopped; the same command goes on from here")
    assert read_json(tmp_path / "run" / "run.json")["status"] == "stopped"


def test_unexpected_error_keeps_its_traceback_and_marks_the_run_failed(tmp_path: Path) -> None:
    arguments = ("fit", write_capture_folder(tmp_path / "mine"), "--out", tmp_path / "run")
    code, errors = run_forked(tmp_path / "errors", *arguments, prepare=break_down, how="a bug")
    assert code == 1 and "Traceback" in errors and "RuntimeError: a bug" in errors
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed"

"""Two commands on one run: one stage is one command's, what others write stays, and the dead hold nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from restage.cli import run as restage
from restage.records import InputError, read_json, temporary_beside
from restage.run.folder import RunFolder, hold_stages, is_abandoned, open_run, working

HOLD = """
import sys, time
from pathlib import Path
from restage.records import write_atomically
from restage.run.folder import open_run, working
with working(open_run(Path(sys.argv[1])), sys.argv[2]) as run:
    with write_atomically(run.path / sys.argv[2] / "half.txt") as temporary:
        temporary.write_text("half")
        print("holds", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start another process that works on a stage of `tmp_path / "run"` until it gets a line."""
    started: list[subprocess.Popen[str]] = []

    def start(stage: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), stage]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "holds\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_same_stage_is_refused_with_who_holds_it_and_since_when(
    hold: Callable[[str], subprocess.Popen[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = hold("prompts")
    assert restage(["prompts", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"process {holder.pid} on {socket.gethostname()} since {time.strftime('%Y-')}" in line and "prompts" in line
    assert restage(["show", str(tmp_path / "run")]) == 0  # readers never lock


def test_other_stages_go_on_and_leave_alone_what_a_living_process_writes(
    hold: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    holder = hold("pairs")
    assert restage(["prompts", str(tmp_path / "run"), "--num-prompts", "3"]) == 0
    assert len(list((tmp_path / "run" / "pairs").glob(".half.*"))) == 1
    holder.communicate("end\n")
    assert holder.returncode == 0 and (tmp_path / "run" / "pairs" / "half.txt").read_text() == "half"
    record = read_json(tmp_path / "run" / "run.json")
    assert [session["status"] for session in record["sessions"]] == ["done", "done"]
    assert not list((tmp_path / "run").glob(".*"))


def test_a_killed_holder_holds_nothing_and_what_it_left_is_swept(
    hold: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    holder = hold("prompts")
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / ".prompts.lock").exists() and list((tmp_path / "run" / "prompts").glob(".half.*"))
    assert restage(["prompts", str(tmp_path / "run"), "--num-prompts", "3"]) == 0
    assert not list((tmp_path / "run").rglob(".*"))


@pytest.mark.parametrize("has_system_locks", [True, False])
def test_the_number_of_a_dead_holder_that_another_process_got_is_no_holder(
    has_system_locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int, kind: int) -> None:
        raise OSError(95, "Operation not supported")

    if not has_system_locks:
        monkeypatch.setattr("restage.run.file_locks.fcntl.flock", refuse)
    with hold_stages(tmp_path, "pairs"):
        content = json.loads((tmp_path / ".pairs.lock").read_text())
        with pytest.raises(InputError, match=f"process {os.getpid()} on"), hold_stages(tmp_path, "pairs"):
            pass
        with hold_stages(tmp_path, "train"):
            pass
    assert content["pid"] == os.getpid() and not (tmp_path / ".pairs.lock").exists()
    (tmp_path / ".pairs.lock").write_text(json.dumps({**content, "began_s": content["began_s"] - 1000}))
    with hold_stages(tmp_path, "pairs"):
        pass
    assert not (tmp_path / ".pairs.lock").exists()


def test_a_holder_on_another_host_is_refused_with_the_file_to_remove(tmp_path: Path) -> None:
    with hold_stages(tmp_path, "pairs"):
        content = json.loads((tmp_path / ".pairs.lock").read_text())
    (tmp_path / ".pairs.lock").write_text(json.dumps({**content, "host": "elsewhere"}))
    with pytest.raises(InputError, match=f"on elsewhere since .*remove {tmp_path}/.pairs.lock"):
        with hold_stages(tmp_path, "train", "pairs"):
            pass
    assert not (tmp_path / ".train.lock").exists()
    (tmp_path / ".pairs.lock").write_text("{")  # torn by a machine that went down
    with hold_stages(tmp_path, "pairs"):
        pass


def test_two_that_start_at_once_never_both_hold_a_stage(tmp_path: Path) -> None:
    program = """
import os, sys, time
from pathlib import Path
from restage.records import InputError
from restage.run.folder import hold_stages
folder, count = Path(sys.argv[1]), 0
while count < 40:
    try:
        with hold_stages(folder, "pairs"):
            os.mkdir(folder / "alone")
            os.rmdir(folder / "alone")
            count += 1
    except InputError:
        pass
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[1] for process in both] == ["", ""]


def test_a_temporary_file_is_abandoned_only_if_its_maker_ran_here_and_is_gone(tmp_path: Path) -> None:
    path = temporary_beside(tmp_path / "value.json")
    path.write_text("half")
    assert not is_abandoned(path)
    os.utime(path, (1, 1))  # written before this process began: by another one of its number
    assert is_abandoned(path)
    other = path.rename(path.with_name(path.name.replace(socket.gethostname(), "elsewhere")))
    assert not is_abandoned(other)


def test_time_that_somebody_sets_back_makes_no_session_negative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.open(tmp_path / "run", {}, seed=0)
    monkeypatch.setattr(time, "time", lambda: 5.0)
    run.close("done")
    assert 0 <= read_json(tmp_path / "run" / "run.json")["sessions"][0]["wall_s"] < 60


REFUSED = (
    ["pairs"],
    ["train"],
    ["scenes"],
    ["compare"],
    ["edits"],
    ["prompts", "--captions", "missing.txt"],
    ["prompts", "--learn-from", "missing"],
    ["rounds", "--models", "missing"],
    ["world", "--edit-kinds", "add", "--num-objects", "3"],
)


@pytest.mark.parametrize("command", REFUSED, ids=" ".join)
def test_a_refused_command_leaves_no_run_behind(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *options = command
    assert restage([name, "deep/run", *options]) == 2, capsys.readouterr().err
    assert os.listdir(tmp_path) == []
    (tmp_path / "empty").mkdir()
    assert restage([name, "empty", *options]) == 2
    assert os.listdir(tmp_path) == ["empty"] and os.listdir(tmp_path / "empty") == []


def test_what_was_there_or_was_made_stays_when_a_command_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError), working(open_run(tmp_path / "made"), "prompts") as run:
        (run.folder("prompts") / "half.jsonl").write_text("")
        raise InputError("no more")
    assert read_json(tmp_path / "made" / "run.json")["status"] == "failed"
    open_run(tmp_path / "old")
    with pytest.raises(InputError), working(open_run(tmp_path / "old"), "prompts"):
        raise InputError("no")
    assert (tmp_path / "old" / "run.json").exists()
    shutil.rmtree(tmp_path / "old")
    first = open_run(tmp_path / "old")
    with pytest.raises(InputError), hold_stages(first.path, "pairs"), working(first, "prompts"):
        raise InputError("no")  # while another command works on another stage of the new run
    assert (tmp_path / "old" / "run.json").exists()

"""Full disks, folders that cannot be written, closed pipes: one line, the right exit code, and then it goes on."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from restage import cli, records
from restage.records import InputError, is_disk_full, system_error, write_atomically
from restage.run.environment import check_device, choose_kernel_cache
from restage.run.folder import RunFolder
from tests.commands.forked import close_output, run_forked
from tests.commands.shell import write_capture_folder


@contextlib.contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """What a full disk is to a process, without one: no file may grow beyond this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # Python keeps half of a module else
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes_bytecode
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run(*arguments: str | Path) -> tuple[int, list[str]]:
    """Run a command line in this process: its exit code and the lines of its errors."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = cli.run([str(argument) for argument in arguments])
    return code, errors.getvalue().splitlines()


NOISE = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
WRITERS: dict[str, Callable[[Path], object]] = {
    "torch": lambda path: torch.save({"x": torch.rand(50_000)}, path),
    "safetensors": lambda path: save_file({"x": torch.rand(50_000)}, path),
    "parquet": lambda path: pq.write_table(pa.table({"x": np.random.default_rng(0).random(50_000)}), path),
    "png": lambda path: Image.fromarray(NOISE).save(path, format="PNG"),
    "text": lambda path: path.write_text("x" * 50_000),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_says_that_the_disk_is_full_and_which_file_it_was(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with files_of_at_most(20_000), pytest.raises(OSError, match="file.bin") as caught, write_atomically(path) as place:
        WRITERS[name](place)
    assert is_disk_full(caught.value) and caught.value.filename == str(path)
    assert os.listdir(tmp_path) == []
    with write_atomically(path) as place:
        WRITERS[name](place)
    assert path.stat().st_size > 20_000


def test_errors_that_are_not_of_the_disk_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), write_atomically(tmp_path / "a"):
        raise ZeroDivisionError
    with pytest.raises(FileNotFoundError) as caught, write_atomically(tmp_path / "a"):
        (tmp_path / "source").read_bytes()
    assert caught.value.filename == str(tmp_path / "source")
    torch.save({"x": torch.rand(1000)}, tmp_path / "broken.pt")
    os.truncate(tmp_path / "broken.pt", 3000)
    with pytest.raises(RuntimeError, match="PytorchStreamReader") as broken:
        torch.load(tmp_path / "broken.pt")
    assert system_error(broken.value) is None


SMALL_WORLD = ["world", "--num-objects", "1", "--capture.num-views", "5", "--capture.size", "96"]


@pytest.mark.parametrize("command", [["prompts", "--num-prompts", "100"], SMALL_WORLD])
def test_a_command_that_ran_out_of_space_goes_on_when_there_is_some(command: list[str], tmp_path: Path) -> None:
    name, *options = command
    if name == "world":  # kernels that are compiled meanwhile would not fit into their cache either
        assert run(name, tmp_path / "before", *options) == (0, [])
    with files_of_at_most(10_000):
        code, lines = run(name, tmp_path / "run", *options)
    assert code == 3 and len(lines) == 1, lines
    assert str(tmp_path / "run") in lines[0] and "goes on when there is space" in lines[0]
    assert not list(tmp_path.rglob("*.tmp*"))
    assert run(name, tmp_path / "run", *options) == (0, [])


@pytest.mark.parametrize("place", ["/dev/null/run", "/proc/run", "a" * 300])
def test_a_place_that_cannot_be_written_is_one_line_with_path_and_reason(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["prompts", place], ["world", place], ["prompts", "run", "--captions", place]):
        code, lines = run(*command)
        assert code == 2 and len(lines) == 1, lines
        assert place in lines[0]


def test_a_read_only_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), target)

    monkeypatch.setattr(records.os, "replace", refuse)
    code, lines = run("prompts", tmp_path / "run")
    assert (code, lines) == (2, [f"restage prompts: {tmp_path / 'run' / 'run.json'}: Read-only file system"])


def test_names_with_nul_or_escape_sequences_are_shown_harmlessly() -> None:
    code, (line,) = run("world", "a\0b")
    assert code == 2 and "NUL" in line and "\0" not in line
    code, (line,) = run("show", "\x1b[2Jgone")
    assert code == 2 and "\\x1b[2Jgone" in line and "\x1b" not in line
    code, (line,) = run("show", "x" * 5000)
    assert code == 2 and len(line) < 1200


def test_escape_sequences_in_options_are_shown_harmlessly(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run(["pairs", "nowhere", "--engine", "\x1b[2J"])
    shown = capsys.readouterr().err
    assert "\\x1b[2J" in shown and "\x1b" not in shown


def test_an_argument_that_is_no_text_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["prompts", str(tmp_path / "run"), "--learn-from", "\udcff"]
    monkeypatch.setattr(sys, "argv", ["restage", *arguments])
    code, (line,) = run(*arguments)
    assert code == 2 and "UTF-8, got '\\udcff'" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "cpu:x", ""])
def test_a_device_that_is_not_there_is_bad_input(device: str) -> None:
    with pytest.raises(InputError, match="expected cpu, or cuda"):
        check_device(device)
    check_device("cpu")


def test_a_closed_pipe_is_no_error_of_a_listing_and_stops_long_work(tmp_path: Path) -> None:
    def piped(*arguments: str) -> tuple[int, str]:
        read, write = os.pipe()
        os.close(read)  # as `head` does when it has seen enough
        command = [sys.executable, "-m", "restage.cli", *arguments]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
        os.close(write)
        return done.returncode, done.stderr

    RunFolder.open(tmp_path / "run", {}, seed=0).close("done")
    assert piped("ls", str(tmp_path)) == (0, "")
    assert piped("--help") == (0, "")
    fit = ("fit", write_capture_folder(tmp_path / "mine"), "--out", tmp_path / "new", "--steps", "100000")
    code, errors = run_forked(tmp_path / "errors", *fit, "--num-splats", "200", prepare=close_output)
    assert (code, errors.strip()) == (130, "stopped; the same command goes on from here")
    assert records.read_json(tmp_path / "new" / "run.json")["status"] == "stopped"


def test_output_to_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "restage.cli", "ls", str(tmp_path)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3 and len(done.stderr.splitlines()) == 1 and "No space left" in done.stderr


def test_kernels_are_kept_in_a_temporary_folder_where_nothing_else_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")  # so that what is set below is undone
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    choose_kernel_cache(tmp_path)
    assert "NUMBA_CACHE_DIR" not in os.environ  # numba finds a place by itself

    monkeypatch.setattr("restage.run.environment.os.access", lambda path, mode: False)
    choose_kernel_cache(tmp_path)
    folder = Path(os.environ["NUMBA_CACHE_DIR"])
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0

    monkeypatch.delenv("NUMBA_CACHE_DIR")
    folder.chmod(0o777)  # somebody else could put code there
    choose_kernel_cache(tmp_path)
    assert Path(os.environ["NUMBA_CACHE_DIR"]) != folder

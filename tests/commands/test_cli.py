from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from restage.cli import SUMMARIES, run
from restage.records import Progress, Score, read_json
from restage.run.progress import PlainLines, duration
from restage.scores.rows import write_scores


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def restage(*arguments: str | Path) -> Result:
    """Run a command line in this process, which saves seconds of imports."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = run([str(argument) for argument in arguments])
    return Result(code, out.getvalue(), errors.getvalue())


def restage_process(*arguments: str | Path) -> Result:
    """Run a command line as a user does."""
    command = [sys.executable, "-m", "restage.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def assert_is_bad_input(result: Result, *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


def write_capture_folder(folder: Path, num_views: int = 4, size: int = 32) -> Path:
    (folder / "images").mkdir(parents=True)
    frames = []
    for index in range(num_views):
        pixels = np.random.default_rng(index).integers(0, 255, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        angle = 2 * np.pi * index / num_views
        # OpenGL axes: the camera looks along its -z, here at the origin from a circle of radius 3.
        right, up, back = (-np.sin(angle), np.cos(angle), 0), (0, 0, 1), (np.cos(angle), np.sin(angle), 0)
        matrix = np.eye(4)
        matrix[:3] = np.stack([right, up, back, 3 * np.array(back)], axis=1)
        frames.append({"file_path": f"images/{index}.png", "transform_matrix": matrix.tolist()})
    meta = {"w": size, "h": size, "fl_x": size, "fl_y": size, "cx": size / 2, "cy": size / 2, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope="session")
def fitted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    capture = write_capture_folder(folder / "mine")
    result = restage("fit", capture, "--out", folder / "run", "--steps", "10", "--num-splats", "200")
    assert result.returncode == 0, result.stderr
    return folder / "run"


HEAVY = ("torch", "numba", "diffusers", "transformers", "scipy", "matplotlib")
OF_HELP = (*HEAVY, "numpy", "jaxtyping", "PIL")
"""What a page of help does without: together they are a third of a second."""


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], HEAVY),
        (["ls", "RUNS"], HEAVY),
        (["show", "RUN"], HEAVY),
        (["show", "--help"], HEAVY),
        (["doctor"], HEAVY),
        (["verify", "RUN", "--fast"], HEAVY),
        (["show", "RUN", "--profile"], HEAVY),
        (["fit", "CAPTURE", "--out", "RUN", "--steps", "10", "--num-splats", "200"], ("diffusers", "transformers")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_import_nothing_heavy_that_they_do_not_need(
    arguments: list[str], unwanted: tuple[str, ...], scored_run: Path, fitted_run: Path
) -> None:
    places = {"RUN": str(scored_run), "RUNS": str(scored_run.parent), "CAPTURE": str(fitted_run.parent / "mine")}
    program = (
        "import sys\n"
        "from restage.cli import run\n"
        "try:\n"
        f"    code = run({[places.get(word, word) for word in arguments]})\n"
        "except SystemExit as ended:\n"
        "    code = ended.code\n"
        f"heavy = set({unwanted}) & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) >= 1


def test_no_help_and_no_refusal_imports_anything_heavy(tmp_path: Path) -> None:
    refused = [["verify", "none"], ["report", "none"], ["show", "none"], ["bundle", "none", "--out", "b.zip"]]
    program = (
        "import sys\n"
        "from restage.cli import SUMMARIES, run\n"
        f"for words in [*([name, '--help'] for name in SUMMARIES), *{refused}, ['pairs', 'run', '--workers', '0']]:\n"
        "    try:\n"
        "        code = run(words)\n"
        "    except SystemExit as ended:\n"
        "        code = ended.code\n"
        "    assert (code == 0) == ('--help' in words), (words, code)\n"
        f"    heavy = set({OF_HELP} if '--help' in words else {HEAVY}) & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="session")
def scored_run(fitted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a fit and a table of scores, which `show` shows."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(fitted_run, folder)
    result = {"scene": "mine", "edit": "recolour-1", "kind": "recolour", "editor": "edit_model", "seed": 0}
    scores = [Score(**result, method=method, metric="progress", value=0.5) for method in ("idu", "restage")]
    write_scores(folder / "compare" / "scores.parquet", scores)
    assert "| idu |" in restage("show", folder).stdout
    return folder


def test_help_lists_every_command() -> None:
    shown = restage("--help").stdout
    for name in SUMMARIES:
        assert re.search(rf"^  {name} ", shown, re.MULTILINE)


@pytest.mark.parametrize("name", SUMMARIES)
def test_help_of_every_command_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run([name, "--help"])
    assert caught.value.code == 0
    assert f"Example: restage {name}" in capsys.readouterr().out


def test_unknown_command_is_bad_input() -> None:
    assert_is_bad_input(restage("frobnicate"), "frobnicate", "demo")


def test_fit_leaves_a_run_that_says_how_good_it_is(fitted_run: Path) -> None:
    fit = read_json(fitted_run / "scenes" / "mine" / "fit.json")
    assert fit["held_out_psnr_db"] > 0 and fit["seconds"] > 0 and fit["num_held_out"] == 1
    assert read_json(fitted_run / "run.json")["status"] == "done"
    shown = restage("show", fitted_run).stdout
    assert "dB on held-out views" in shown and "scene mine" in shown


def test_second_fit_finds_the_first(fitted_run: Path) -> None:
    capture = fitted_run.parent / "mine"
    before = (fitted_run / "scenes" / "mine" / "splats.ply").read_bytes()
    result = restage("fit", capture, "--out", fitted_run, "--steps", "10", "--num-splats", "200")
    assert result.returncode == 0 and "fitted before" in result.stdout
    assert (fitted_run / "scenes" / "mine" / "splats.ply").read_bytes() == before


def test_fit_with_another_config_is_refused(fitted_run: Path) -> None:
    result = restage("fit", fitted_run.parent / "mine", "--out", fitted_run, "--steps", "11", "--num-splats", "200")
    assert_is_bad_input(result, "another config", "--out")


def test_fitted_scene_is_exported_as_ply(fitted_run: Path, tmp_path: Path) -> None:
    result = restage("export", fitted_run, tmp_path / "mine.ply", "--frame", "upright")
    assert result.returncode == 0 and str(tmp_path / "mine.ply") in result.stdout
    assert (tmp_path / "mine.ply").read_bytes() == (fitted_run / "scenes" / "mine" / "splats.ply").read_bytes()
    assert_is_bad_input(restage("export", fitted_run, tmp_path / "mine.obj"), ".ply")


NO_SPLATS = b"ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nend_header\n"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("none.ply", NO_SPLATS, "is a PLY without any splat"),
        ("cut.ply", b"", "is an empty file"),
        ("cut.splat", b"", "is an empty file"),
        ("cut.spz", b"", "is an empty file"),
        ("other.spz", b"NGSP....", "SPZ (Niantic)"),
    ],
)
def test_a_file_without_splats_that_can_be_read_is_named_on_every_road(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for arguments in (("fit", path), ("edit", path, "make it blue"), ("view", path), ("export", path, "x.ply")):
        assert_is_bad_input(restage(*arguments), f"{path}", expected)
    assert_is_bad_input(restage("show", path), f"{path} is not a run folder")
    assert_is_bad_input(restage("import", path, "--out", tmp_path / "out"), f"{path} is not a folder")
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_scene_whose_splats_are_gone_is_refused(fitted_run: Path, tmp_path: Path) -> None:
    shutil.copytree(fitted_run, tmp_path / "run")
    splats = tmp_path / "run" / "scenes" / "mine" / "splats.ply"
    splats.write_bytes(re.sub(rb"element vertex \d+", b"element vertex 0", splats.read_bytes()))
    for arguments in (("edit", tmp_path / "run", "make it blue"), ("view", tmp_path / "run")):
        assert_is_bad_input(restage(*arguments), f"{splats} is a PLY without any splat")


def test_run_can_be_listed(fitted_run: Path) -> None:
    listed = restage("ls", fitted_run.parent)
    assert listed.returncode == 0 and str(fitted_run) in listed.stdout and "done" in listed.stdout


def test_missing_capture_is_bad_input(tmp_path: Path) -> None:
    result = restage_process("fit", tmp_path / "nothing", "--out", tmp_path / "run")
    assert_is_bad_input(result, "nothing")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ['{"frames": []}', "{}", "[]", "{", ""])
def test_transforms_without_frames_are_bad_input(tmp_path: Path, content: str) -> None:
    folder = write_capture_folder(tmp_path / "capture")
    (folder / "transforms.json").write_text(content)
    assert_is_bad_input(restage("fit", folder, "--out", tmp_path / "run"), "transforms.json")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_corrupt_image_is_bad_input(tmp_path: Path, content: bytes) -> None:
    folder = write_capture_folder(tmp_path / "capture")
    (folder / "images" / "2.png").write_bytes(content)
    assert_is_bad_input(restage("fit", folder, "--out", tmp_path / "run"), "2.png")


def test_cut_off_image_is_bad_input(tmp_path: Path) -> None:
    folder = write_capture_folder(tmp_path / "capture")
    path = folder / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:200])
    assert_is_bad_input(restage("fit", folder, "--out", tmp_path / "run"), "2.png")


@pytest.mark.parametrize("instruction", ["", "   "])
def test_empty_instruction_is_bad_input(fitted_run: Path, instruction: str) -> None:
    assert_is_bad_input(restage("edit", fitted_run, instruction), "instruction is empty")


def test_edit_without_a_scene_is_bad_input(tmp_path: Path) -> None:
    assert_is_bad_input(restage("edit", tmp_path / "nothing", "make it blue"), "fitted scene")


@pytest.mark.parametrize(("flag", "word"), [("--method", "restage"), ("--editor", "exact")])
def test_unknown_method_or_editor_is_bad_input_that_names_the_menu(fitted_run: Path, flag: str, word: str) -> None:
    assert_is_bad_input(restage("edit", fitted_run, "make it blue", flag, "magic"), "magic", word)


def test_edit_with_a_missing_model_is_bad_input(fitted_run: Path, tmp_path: Path) -> None:
    before = sorted(fitted_run.rglob("*"))
    result = restage("edit", fitted_run, "make it blue", "--model", tmp_path / "none")
    assert_is_bad_input(result, "none")
    assert_is_bad_input(restage("edit", fitted_run, "make it blue", "--model", "x" * 5000), "too long")
    assert sorted(fitted_run.rglob("*")) == before


def test_stage_without_its_inputs_is_bad_input(tmp_path: Path) -> None:
    for stage in ("pairs", "train", "compare"):
        assert_is_bad_input(restage(stage, tmp_path / stage), stage)


def test_folder_with_something_else_in_it_is_not_taken_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert_is_bad_input(restage("demo", "--out", tmp_path), "not a run folder")
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_run_says_so_and_goes_on(tmp_path: Path, number: signal.Signals) -> None:
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
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.strip() == "stopped; the same command goes on from here"
    assert read_json(tmp_path / "run" / "run.json")["status"] == "stopped"
    assert not (tmp_path / "run" / "scenes" / "mine" / "fit.json").exists()
    assert restage(*command, "--steps", "3").returncode == 0
    assert read_json(tmp_path / "run" / "run.json")["status"] == "done"


@pytest.mark.parametrize("answer", ["raise SystemError('returned a result with an exception set')", "pass"])
def test_stop_that_compiled_code_turns_into_an_error_or_swallows_is_still_a_stop(tmp_path: Path, answer: str) -> None:
    program = (
        "import os, signal, sys, time\n"
        "import restage.scenes.fit as fit\n"
        "step = fit.SplatFit.step\n"
        "def interrupted_step(self):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(5)\n"
        "    except KeyboardInterrupt:\n"
        f"        {answer}\n"
        "    return step(self)\n"
        "fit.SplatFit.step = interrupted_step\n"
        "sys.argv = ['restage', 'fit', sys.argv[1], '--out', sys.argv[2], '--num-splats', '200', '--steps', '100000']\n"
        "from restage.cli import main; main()\n"
    )
    capture = write_capture_folder(tmp_path / "mine")
    command = [sys.executable, "-c", program, str(capture), str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (result.returncode, result.stderr.strip()) == (130, "stopped; the same command goes on from here")
    assert read_json(tmp_path / "run" / "run.json")["status"] == "stopped"


def test_unexpected_error_keeps_its_traceback_and_marks_the_run_failed(tmp_path: Path) -> None:
    program = (
        "import sys, restage.scenes.stage as fitted\n"
        "def broken(*_, **__): raise RuntimeError('a bug')\n"
        "fitted.SplatFit = broken\n"
        "sys.argv = ['restage', 'fit', sys.argv[1], '--out', sys.argv[2]]\n"
        "from restage.cli import main; main()\n"
    )
    capture = write_capture_folder(tmp_path / "mine")
    command = [sys.executable, "-c", program, str(capture), str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "Traceback" in result.stderr and "RuntimeError: a bug" in result.stderr
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_asks_help_for_options(shell: str) -> None:
    result = restage("--completion", shell)
    assert result.returncode == 0
    assert all(re.search(rf"\b{name}\b", result.stdout) for name in SUMMARIES) and "--help" in result.stdout


def test_completion_of_bash_completes(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    (tmp_path / "restage").write_text("#!/bin/sh\necho '  --steps INT  --size {None}|INT'\n")
    (tmp_path / "restage").chmod(0o755)
    (tmp_path / "complete.sh").write_text(restage("--completion", "bash").stdout)
    for words, expected in (("restage diag", "diagnose"), ("restage fit --s", "--steps --size")):
        line = f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))"
        program = f'PATH="{tmp_path}:$PATH"; . "{tmp_path}/complete.sh"; {line}; _restage; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run([bash, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.split() == expected.split()


def test_completion_of_an_unknown_shell_is_bad_input() -> None:
    assert_is_bad_input(restage("--completion", "csh"), "bash, zsh or fish")


def plain_lines(steps: Iterable[Progress]) -> list[str]:
    lines = PlainLines()
    return [line for step in steps if (line := lines.line_for(step))]


def test_plain_progress_is_about_ten_lines_a_stage() -> None:
    steps = [Progress(stage="fit", done=done, total=1000, note="loss") for done in range(1001)]
    lines = plain_lines(steps)
    assert len(lines) == 11
    assert "1000/1000" in lines[-1] and "loss" in lines[-1]


def test_plain_progress_is_never_silent_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**9, 50))
    monkeypatch.setattr("restage.run.progress.time.monotonic", lambda: next(clock))
    lines = plain_lines(Progress(stage="pairs", done=done, total=1000) for done in range(7))
    assert [line.split()[1] for line in lines] == ["0/1000", "3/1000", "6/1000"]


def test_plain_progress_says_how_long_the_rest_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 10**9, 60))
    monkeypatch.setattr("restage.run.progress.time.monotonic", lambda: next(clock))
    lines = plain_lines(Progress(stage="pairs", done=done, total=1000) for done in (500, 600, 700, 1000))
    assert [", 4 min left" in line for line in lines] == [False, True, False, False]
    assert ", 3 min left" in lines[2] and "left" not in lines[3]
    assert [duration(seconds) for seconds in (3.0, 119.0, 7300.0, 1e6)] == ["3 s", "119 s", "2 h", "12 days"]


def test_time_left_is_never_negative_where_a_stage_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**9, 60))
    monkeypatch.setattr("restage.run.progress.time.monotonic", lambda: next(clock))
    read = [Progress(stage="train", done=done, total=60) for done in (30, 60)]
    trained = [Progress(stage="train", done=done, total=90) for done in (0, 30, 60)]
    lines = plain_lines([*read, *trained])
    assert ", 2 min left" in lines[3] and ", 60 s left" in lines[4]
    assert [", " in line for line in lines] == [False, False, False, True, True]


def test_plain_progress_counts_a_stages_seconds_through_another_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**9, 10))
    monkeypatch.setattr("restage.run.progress.time.monotonic", lambda: next(clock))
    steps = [Progress(stage=stage, done=1, total=3) for stage in ("pairs", "pairs", "estimate", "pairs")]
    assert [line.split()[2] for line in plain_lines(steps)] == ["0.0", "0.0", "30.0"]


def test_a_run_that_was_just_fitted_is_as_it_was_written(fitted_run: Path) -> None:
    result = restage("verify", fitted_run, "--fast")
    assert result.returncode == 0, result.stdout


def test_a_run_that_lost_the_record_of_its_fit_is_missed_by_verify(
    fitted_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(fitted_run, tmp_path / "run")
    (tmp_path / "run" / "scenes" / "mine" / "fit.json").unlink()
    with pytest.raises(SystemExit, match="1"):
        run(["verify", str(tmp_path / "run"), "--fast"])
    assert "  scenes/mine/fit.json: splats.ply is there, after which it is written" in capsys.readouterr().out

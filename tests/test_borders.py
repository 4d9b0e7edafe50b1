"""The fuzzer of the borders finds what is planted, and nothing at the borders that need no image model."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

import pytest

from benchmarks.borders.cases import FILE_BORDERS
from benchmarks.borders.inputs import load_package, made_apart, make_small_inputs
from benchmarks.borders.judge import SECRET_TEXT, Case, Verdict, judge, lay_out
from benchmarks.borders.talks import answers, arguments, names, requests
from restage.records import InputError

NUM_CASES = 24


@pytest.fixture(scope="module")
def apart() -> Iterator[ProcessPoolExecutor]:
    """A process of its own: the kernels that other tests have run here have threads, which forks do not survive."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=load_package) as pool:
        yield pool


@pytest.fixture(scope="module")
def inputs(apart: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return apart.submit(made_apart, make_small_inputs, tmp_path_factory.mktemp("inputs"), start="fork").result()


def failures_of(inputs: Path, place: Path) -> dict[str, str]:
    """Try a sample of the cases: what failed, how, and what was said."""
    small = [border for border in FILE_BORDERS if (inputs / border.given).exists() and "study" not in border.command]
    failed = {}
    for number in range(NUM_CASES):
        case = small[number * 7 % len(small)](place / str(number), Random(number), inputs)
        verdict = judge(case, place / str(number))
        if verdict.faults:
            failed[case.what] = f"{verdict.faults}\n{verdict.output[-500:]}"
    return failed


def test_a_sample_of_spoiled_inputs_is_refused_or_read_right(
    apart: ProcessPoolExecutor, inputs: Path, tmp_path: Path
) -> None:
    assert apart.submit(failures_of, inputs, tmp_path).result() == {}


@pytest.mark.parametrize("border", [answers, arguments, names, requests])
def test_a_sample_of_talks_ends_well(border: Callable[..., Case], inputs: Path, tmp_path: Path) -> None:
    for name in ("paired",):  # only copied, never opened by what is drawn here
        if not (inputs / name).exists():
            shutil.copytree(inputs / "prompted", inputs / name)
    for number in range(3):
        case = border(tmp_path / str(number), Random(number), inputs)
        verdict = judge(case, tmp_path / str(number))
        assert not verdict.faults, (case.what, verdict)


def planted(run: Callable[[], int], place: Path, *, must_refuse: bool = False) -> Verdict:
    lay_out(place)
    return judge(Case(what="planted", run=run, must_refuse=must_refuse), place, wall_s=5)


def raises() -> int:
    raise KeyError("config")


def sleeps() -> int:
    time.sleep(100)
    return 0


def allocates() -> int:
    return len(bytearray(5 << 30)) * 0


def writes(name: str, code: int) -> Callable[[], int]:
    def run() -> int:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("x")
        print("restage fit: no", file=sys.stderr)
        return code

    return run


def says(text: str, code: int) -> Callable[[], int]:
    def run() -> int:
        print(text, file=sys.stderr)
        return code

    return run


def forks() -> int:
    if not os.fork():
        time.sleep(100)
    return 0


PLANTED: dict[str, tuple[str, Callable[[], int]]] = {
    "a traceback": ("tracebacks", raises),
    "a signal": ("tracebacks", lambda: os.kill(os.getpid(), 11) or 0),
    "an exit code without a meaning": ("tracebacks", says("restage fit: no", 7)),
    "an error of two lines": ("tracebacks", says("restage fit: no\nand more", 2)),
    "terminal codes": ("tracebacks", says("restage fit: \x1b[2J", 2)),
    "a hang": ("hangs", sleeps),
    "memory": ("memory", allocates),
    "a secret that is told": ("accepted_wrongly", says(SECRET_TEXT, 0)),
    "a temporary file": ("left_behind", writes("tmp/x", 0)),
    "a temporary file in a good place": ("left_behind", writes("out/.x.tmp", 0)),
    "a file elsewhere": ("left_behind", writes("outside/x", 0)),
    "a run of a refused command": ("left_behind", writes("out/run.json", 2)),
    "a process": ("left_behind", forks),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_counted(name: str, tmp_path: Path) -> None:
    expected, run = PLANTED[name]
    assert expected in planted(run, tmp_path / "case").faults


def test_what_ends_as_agreed_is_not_counted(tmp_path: Path) -> None:
    assert planted(writes("out/run.json", 0), tmp_path / "a").faults == {}
    assert planted(says("restage fit: x.json is not readable", 2), tmp_path / "b", must_refuse=True).faults == {}
    assert planted(lambda: 0, tmp_path / "c", must_refuse=True).faults == {"accepted_wrongly": "accepted"}


def test_a_reader_without_its_check_is_found(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same case fails once the package no longer turns an error into a line."""
    from benchmarks.borders.faults import deep

    border = next(border for border in FILE_BORDERS if border.given == "nerfstudio" and "json" in border.file)
    case = border.spoiled(tmp_path / "a", Random(0), inputs, deep)
    assert judge(case, tmp_path / "a").faults == {}

    def read(content: bytes | str, *_: object, where: object) -> object:
        raise RecursionError(where)

    monkeypatch.setattr("restage.records.parse_json", read)
    case = border.spoiled(tmp_path / "b", Random(0), inputs, deep)
    assert "tracebacks" in judge(case, tmp_path / "b").faults
    assert issubclass(InputError, ValueError)

"""Records of a run are read into types; what does not fit is one line that names file, field, expected and got."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from restage.cli import run as restage
from restage.records import InputError, read_json
from restage.run.layout import EDIT_RECORDS, FITS, RUN_RECORD, STAGE_MARKS
from restage.run.reading import EditRecord, FitRecord, RunRecord, StageMark, read_metrics
from tests.audit.sealed_run import write_sealed_run

KINDS = {RUN_RECORD: RunRecord, STAGE_MARKS: StageMark, FITS: FitRecord, EDIT_RECORDS: EditRecord}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_sealed_run(tmp_path / "run")


@pytest.mark.parametrize(("pattern", "kind"), KINDS.items())
def test_what_stages_write_is_what_readers_expect(run: Path, pattern: str, kind: type) -> None:
    for path in run.glob(pattern):
        record, plain = read_json(path, kind), read_json(path)
        assert all(getattr(record, name) == plain[name] for name in ("id", "seed", "status", "files") if name in plain)


@pytest.mark.parametrize(
    ("pattern", "field", "value", "message"),
    [
        (RUN_RECORD, "seed", "7", "seed: expected int, got str"),
        (RUN_RECORD, "config", [1], "config: expected object, got array"),
        (RUN_RECORD, "sessions", [{"wall_s": "long"}], "sessions[0].wall_s: expected float, got str"),
        ("compare/stage.json", "files", {"a": 3}, "files[...]: expected str, got int"),
        (FITS, "num_splats", None, "num_splats: expected int, got null"),
        (EDIT_RECORDS, "cost", "none", "cost: expected object, got str"),
    ],
)
def test_wrong_types_are_one_line(run: Path, capsys, pattern: str, field: str, value: Any, message: str) -> None:
    path = sorted(run.glob(pattern))[0]
    path.write_text(json.dumps({**read_json(path), field: value}))
    assert restage(["show", str(run)]) == 2
    error = capsys.readouterr().err.strip()
    assert path.name in error and message in error and "\n" not in error


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "[]", "null", '{"id": 1}', "\ufeff", "\x00", '"\\ud800"']
)
def test_no_text_in_a_record_ends_in_a_traceback(run: Path, text: str) -> None:
    for pattern in KINDS:
        path = sorted(run.glob(pattern))[0]
        content = path.read_bytes()
        path.write_text(text)
        assert restage(["show", str(run)]) == 2
        with contextlib.suppress(SystemExit):  # found
            assert restage(["verify", str(run), "--fast"]) == 2
        path.write_bytes(content)


def test_one_broken_run_does_not_hide_the_others(run: Path, capsys) -> None:
    write_sealed_run(run.with_name("other"))
    (run / RUN_RECORD).write_text("{")
    assert restage(["ls", str(run.parent)]) == 0
    out = capsys.readouterr().out
    assert "run  unreadable" in out and "other  done" in out


def test_metrics_end_where_a_kill_cut_them_short(run: Path) -> None:
    assert read_metrics(run) == []
    (run / "train").mkdir()
    path = run / "train" / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5, "noise": 0.25}\n{"step": 2, "lo')
    (step,) = read_metrics(run)
    assert (step.step, step.values) == (1, {"loss": 0.5, "noise": 0.25})
    path.write_text('{"step": 1}\n{"step": 2, "loss": 0.25}\n')
    with pytest.raises(InputError, match="line 1"):
        read_metrics(run)

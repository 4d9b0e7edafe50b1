"""docs/demo.sh says in commands what the demo does: each of its lines is read by the command line's own parser."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from restage import recipes
from restage.cli import run
from restage.edit import stage as edit_stage
from restage.recipes import STAGES, demo_config
from restage.records import Progress
from restage.report import stage as report_stage
from restage.run.folder import RunFolder
from restage.run.models import models_in
from restage.train import stage as train_stage

SCRIPT = Path(__file__).parents[2] / "docs" / "demo.sh"


def commands_of(script: Path, run_folder: Path) -> list[list[str]]:
    lines = script.read_text().replace("\\\n", " ").splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("restage ")]
    return [[str(run_folder) if word == "$run" else word for word in command] for command in commands]


def test_every_line_of_the_demos_script_gives_a_stage_the_config_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: dict[str, Any] = {}
    seeds = set()

    def record(stage: str):
        def run_stage(opened: RunFolder, config: Any, *_: Any, **__: Any) -> Iterator[Progress]:
            called[stage] = config
            seeds.add(opened.seed)
            yield Progress(stage=stage, done=1, total=1)

        return run_stage

    for name, stage in STAGES.items():
        monkeypatch.setitem(STAGES, name, stage._replace(run=record(name)))
    monkeypatch.setattr(report_stage, "run_report", record("report"))
    monkeypatch.setattr(recipes, "make_pairs", record("pairs"))
    monkeypatch.setattr(edit_stage, "run_edit", record("edit"))
    monkeypatch.setattr(train_stage, "run_train", record("train"))

    commands = commands_of(SCRIPT, tmp_path / "run")
    for command in commands:
        assert run(command) == 0, command
    wanted = demo_config(models_in())
    assert list(called) == list(STAGES), "a stage is missing, or out of order"
    for name, config in called.items():
        assert config == getattr(wanted, name), name
    assert seeds == {0}
    assert {field.name for field in dataclasses.fields(wanted)} == {*STAGES, "models_sha256"}

"""What a run's record says of the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from restage.run import environment


def test_the_record_names_processor_and_cores() -> None:
    machine = environment.machine()
    assert machine["processor"] and machine["cpu_count"] >= 1
    assert json.loads(json.dumps(machine)) == machine


def test_gpus_are_named_as_the_driver_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for slot, name in (("0000:01:00.0", "NVIDIA A40"), ("0000:81:00.0", "NVIDIA H100 80GB HBM3")):
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 120\nGPU UUID: \t GPU-1\n")
    (tmp_path / "0000:a1:00.0").mkdir()
    monkeypatch.setattr(environment, "GPU_FOLDER", tmp_path)
    assert environment.machine()["gpus"] == ["NVIDIA A40", "NVIDIA H100 80GB HBM3"]
    monkeypatch.setattr(environment, "GPU_FOLDER", tmp_path / "none")
    assert environment.machine()["gpus"] == []

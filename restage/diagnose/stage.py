"""The stage `diagnose`: from two run folders to `<run B>/diagnose`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from restage.diagnose.diagnosis import DiagnoseConfig, diagnose
from restage.diagnose.parts import RunParts
from restage.diagnose.record import write_diagnosis
from restage.diagnose.words import sentence
from restage.records import InputError, Progress
from restage.run.models import Models
from restage.work.interface import EngineConfig

__all__ = ["run_diagnose"]


def run_diagnose(
    a: Path,
    b: Path,
    config: DiagnoseConfig,
    *,
    models: Models,
    out: Path | None = None,
    cache: Path | None = None,
    engine: EngineConfig | None = None,
) -> Iterator[Progress]:
    """Explain why run B does worse, or better, than run A; what was tried before is not tried again.

    Args:
        a: Folder of the run that is taken for good.
        b: Folder of the run to explain.
        config: How to compare.
        models: The edit model that both runs' training went on from, and the CLIP that pairs are looked at with.
        out: Where the answer goes; default: `diagnose` in B's folder.
        cache: Folder of single trials, to share them between diagnoses; default: in `out`.
        engine: Where trials, trainings and fits are made; in this process by default.

    Raises:
        InputError: one of them is no run, they are the same, or there is nothing to try both on.
    """
    if a.resolve() == b.resolve():
        raise InputError(f"expected two runs, got {a} twice")
    parts = RunParts.open(a, config.method), RunParts.open(b, config.method)
    folder = out or b / "diagnose"
    diagnosis = yield from diagnose(*parts, folder=folder, models=models, config=config, cache=cache, engine=engine)
    write_diagnosis(diagnosis, folder)
    yield Progress(stage="diagnose", done=1, total=1, note=sentence(diagnosis))

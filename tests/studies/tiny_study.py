"""A study that takes seconds, and a process that runs it and is killed when a given file appears."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from restage.compare.config import CompareConfig
from restage.edit.job import EditJob, EditStep
from restage.edit.methods import Nothing, ReplaceOnce
from restage.scenes.config import FitConfig
from restage.studies.scenes import sample_world_scenes
from restage.studies.study import MenuEditor, Study, StudyMethod
from restage.studies.work import PerView, run_study
from restage.world.config import CaptureConfig

CAPTURE = CaptureConfig(num_views=6, held_out_every=3, size=32, num_points=200)


@dataclass(frozen=True, kw_only=True)
class Brighten:
    """A method without an editor."""

    amount: float = 0.3

    def run(self, job: EditJob) -> Iterator[EditStep]:
        yield EditStep(0, 1, 0.0, job.splats.clone(), "before")
        yield EditStep(1, 1, 0.0, replace(job.splats.clone(), sh=job.splats.sh + self.amount), "brighter")


@dataclass(frozen=True, kw_only=True)
class Dying:
    """A method that takes its process with it, once."""

    die_once: str
    """File that is there when it has done so."""

    def run(self, job: EditJob) -> Iterator[EditStep]:
        yield EditStep(0, 1, 0.0, job.splats.clone(), "before")
        if not os.path.exists(self.die_once):
            with contextlib.suppress(OSError):
                open(self.die_once, "w").close()
            os._exit(9)
        yield EditStep(1, 1, 0.0, job.splats.clone(), "after")


@dataclass(frozen=True, kw_only=True)
class Failing:
    """A method that breaks."""

    def run(self, job: EditJob) -> Iterator[EditStep]:
        yield EditStep(0, 1, 0.0, job.splats.clone(), "before")
        raise ValueError("out of paint")


def tiny_study(**changes: object) -> Study:
    """Two scenes, one edit each, five methods, one of which fails."""
    scenes = sample_world_scenes(2, ("recolour",), capture=CAPTURE, fit=FitConfig(steps=20, num_splats=150))
    study = Study(
        name="tiny",
        scenes=scenes,
        methods={
            "nothing": StudyMethod(settings=Nothing()),
            "brighten": StudyMethod(settings=Brighten(), editors=()),
            "failing": StudyMethod(settings=Failing(), editors=()),
            "per_view": StudyMethod(settings=PerView()),
            "replace_once": StudyMethod(settings=ReplaceOnce(num_steps=3), seeds=(0, 1)),
        },
        editors={"exact": MenuEditor(name="exact")},
        compare=CompareConfig(orbit_frames=3),
    )
    return replace(study, **changes)


def run_until(folder: Path, count: int) -> None:
    """Run it until the `count`-th file has its name, then die as by `kill -9`."""
    torch.set_num_threads(1)
    rename, left = os.replace, count

    def rename_and_die(source: str | Path, target: str | Path) -> None:
        nonlocal left
        rename(source, target)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = rename_and_die
    for _ in run_study(tiny_study(), folder):
        pass

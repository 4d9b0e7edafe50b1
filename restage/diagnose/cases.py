"""Which edits of which scenes two runs are tried on, and what their scenes have in common."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from restage.diagnose.parts import read_settings
from restage.edit.work import load_scene, read_case
from restage.records import InputError, file_sha256, read_json
from restage.run.layout import FIT_RECORD, SPLATS
from restage.run.reading import FitRecord
from restage.scenes.fit import FitConfig
from restage.scenes.fitted import capture_sha256
from restage.world.grammar import Description

__all__ = ["Case", "SceneParts", "find_cases"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One edit of one scene with exact truth."""

    scene: str
    edit: str
    folders: Mapping[str, Path]
    """Scene folder of run `A` and of run `B`; the same one where only one run has the scene."""

    @property
    def name(self) -> str:
        """For people and records."""
        return f"{self.scene}/{self.edit}"


@dataclass(frozen=True)
class SceneParts:
    """The parts of a fitted scene, read when they are asked for."""

    folder: Path

    @cached_property
    def _loaded(self):  # noqa: ANN202 - Capture and Splats
        return load_scene(self.folder)

    @cached_property
    def capture_sha256(self) -> str:
        """Hash of pictures, cameras and split."""
        return capture_sha256(self._loaded[0])

    @cached_property
    def splats_sha256(self) -> str:
        """Hash of the fitted splats' file."""
        return file_sha256(self.folder / SPLATS)

    @cached_property
    def fit_config(self) -> FitConfig:
        """The config that it was fitted with."""
        return read_settings(FitConfig, read_json(self.folder / FIT_RECORD, FitRecord).config)

    def differences(self, other: SceneParts) -> tuple[str, ...]:
        """Returns which of cameras, photographs and fit differ between two scenes."""
        if self.folder == other.folder:
            return ()
        found = []
        if self.capture_sha256 != other.capture_sha256:
            first, second = self._loaded[0], other._loaded[0]
            cameras, others = first.cameras, second.cameras
            is_same = (
                cameras.camera_to_world.shape == others.camera_to_world.shape
                and torch.equal(cameras.camera_to_world, others.camera_to_world)
                and torch.equal(cameras.intrinsics, others.intrinsics)
            )
            if not is_same:
                found.append("cameras")
            if is_same or not torch.equal(first.images, second.images):
                found.append("photographs")
        is_same_fit = self.fit_config == other.fit_config
        if not is_same_fit or (not found and self.splats_sha256 != other.splats_sha256):
            found.append("fit")
        return tuple(found)


def find_cases(a: Path, b: Path, max_cases: int) -> list[Case]:
    """Choose edits to try both runs on: those that both have, or else some of each; scenes and kinds in turn.

    Raises:
        InputError: neither has a fitted scene with exact truth.
    """
    found = {side: _list_cases(path) for side, path in (("A", a), ("B", b))}
    shared = [key for key in found["A"] if key in found["B"] and _is_same(found["A"][key], found["B"][key])]
    if shared:
        cases = _in_turn([_case(key, {side: found[side][key] for side in "AB"}) for key in shared])
    else:
        own = [
            _in_turn([_case(key, {"A": path, "B": path}, prefix=side) for key, path in found[side].items()])
            for side in "AB"
        ]
        cases = [case for pair in itertools.zip_longest(*own) for case in pair if case is not None]
    if not cases:
        raise InputError(f"neither {a} nor {b} has a fitted scene with exact truth to try edits on; run: restage world")
    return cases[:max_cases]


def _case(key: tuple[str, str], truths: Mapping[str, Path], *, prefix: str = "") -> Case:
    scene = f"{prefix} {key[0]}".strip()
    return Case(scene=scene, edit=key[1], folders={side: truth.parent.parent for side, truth in truths.items()})


def _list_cases(run: Path) -> dict[tuple[str, str], Path]:
    paths = sorted((run / "scenes").glob("*/truth/*/edit.json"))
    fitted = [path.parent for path in paths if (path.parents[2] / FIT_RECORD).exists()]
    return {(path.parents[1].name, path.name): path for path in fitted if read_case(path).has_truth}


def _is_same(first: Path, second: Path) -> bool:
    """Whether two truth folders are of the same edit of the same scene."""
    descriptions = [truth.parents[1] / "description.json" for truth in (first, second)]
    known = [read_json(path, Description) if path.exists() else None for path in descriptions]
    return read_case(first).id == read_case(second).id and known[0] == known[1]


def _in_turn(cases: list[Case]) -> list[Case]:
    """Scenes in turn, and with them kinds of edit, so that the first few cases differ as much as they can."""
    by_scene: dict[str, list[Case]] = {}
    for case in cases:
        by_scene.setdefault(case.scene, []).append(case)
    turned = []
    for number, group in enumerate(by_scene.values()):
        start = number % len(group)
        turned.append(group[start:] + group[:start])
    longest = max((len(group) for group in turned), default=0)
    return [group[turn] for turn in range(longest) for group in turned if turn < len(group)]

"""What two runs have in common, edits to try both on; and what differs between them on paper."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from restage.audit.show import changed_values, compare_runs
from restage.diagnose.parts import RunParts, noise_settings, other_settings, read_settings
from restage.edit.stage import load_scene, read_case
from restage.records import InputError, file_sha256, read_json, to_plain
from restage.run.layout import FIT_RECORD, SPLATS
from restage.run.reading import FitRecord, flat_items
from restage.scenes.config import FitConfig
from restage.scenes.stage import capture_sha256
from restage.world.grammar import Description

__all__ = ["Case", "Difference", "SceneParts", "describe_part", "find_cases", "list_differences"]


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
    """Choose edits to try both runs on: those that both have, or else some of each; scenes and kinds in turn."""
    truths = {side: sorted(run.glob("scenes/*/truth/*/edit.json")) for side, run in (("A", a), ("B", b))}
    fitted = {side: [p.parent for p in paths if (p.parents[2] / FIT_RECORD).exists()] for side, paths in truths.items()}
    found = {
        side: {(path.parents[1].name, path.name): path for path in paths if read_case(path).has_truth}
        for side, paths in fitted.items()
    }
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


def _is_same(first: Path, second: Path) -> bool:
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


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One value that is not the same in both runs."""

    where: str  # such as `edit.settings.restage.noise_levels` or `torch`
    a: str
    b: str


def list_differences(a: RunParts, b: RunParts, cases: list[Case]) -> list[Difference]:
    """All that differs: settings, versions, machine, hashes of what was made; guidance, pairs, cameras."""
    on_paper = compare_runs(a.path, b.path)
    kinds = (on_paper.config, on_paper.versions, on_paper.machine, on_paper.data, on_paper.weights)
    found = [Difference(where=one.where, a=one.first, b=one.second) for kind in kinds for one in kind]
    found += _compare("guidance", to_plain(a.guidance), to_plain(b.guidance))
    found += _compare("pairs", _pair_facts(a, b), _pair_facts(b, a))
    for folders in {case.scene: case.folders for case in cases}.values():
        if folders["A"] != folders["B"]:
            captures = [load_scene(folders[side])[0] for side in "AB"]
            moved, turned = camera_shift(captures[0].cameras.camera_to_world, captures[1].cameras.camera_to_world)
            if moved or turned:
                where = f"cameras of {folders['A'].name}"
                found.append(Difference(where=where, a="", b=f"moved by {moved:.3f}, turned by {turned:.1f} degrees"))
    return found


def camera_shift(first: Float[Tensor, "n 4 4"], second: Float[Tensor, "m 4 4"]) -> tuple[float, float]:
    """Mean distance in world units and mean angle in degrees between cameras of equal index; 0 if counts differ."""
    if first.shape != second.shape or not len(first):
        return 0.0, 0.0
    moved = (first[:, :3, 3] - second[:, :3, 3]).norm(dim=1).mean()
    # |R - S| = 2 sqrt(2) sin(angle / 2), which unlike the arc cosine is exact for small angles.
    apart = (first[:, :3, :3] - second[:, :3, :3]).double().flatten(1).norm(dim=1) / math.sqrt(8)
    return float(moved), math.degrees(float((2 * apart.clamp(max=1).asin()).mean()))


def describe_part(part: str, a: RunParts, b: RunParts, cases: list[Case]) -> str:
    """Describe how a part differs, in a few words with numbers; empty where only contents differ."""
    if part == "guidance":
        texts = [f"text {run.guidance.text:g}, image {run.guidance.image:g}" for run in (a, b)]
        return " -> ".join(texts)
    if part == "guided_noise":
        return " -> ".join(f"{run.guidance.lowest_noise:g} to {run.guidance.highest_noise:g}" for run in (a, b))
    if part == "noise_range":
        changed = _compare("", noise_settings(a.settings), noise_settings(b.settings))
        return ", ".join(f"{one.where} {one.a} -> {one.b}" for one in changed)
    if part == "method":
        changed = _compare("", other_settings(a.settings), other_settings(b.settings)) if a.method == b.method else []
        return ", ".join(f"{one.where} {one.a} -> {one.b}" for one in changed) or f"{a.method} -> {b.method}"
    if part == "cameras":
        pairs = {case.scene: [load_scene(case.folders[side])[0].cameras for side in "AB"] for case in cases}
        shifts = [camera_shift(one.camera_to_world, two.camera_to_world) for one, two in pairs.values()]
        moved, turned = np.mean(shifts, axis=0)
        return f"moved by {moved:.2g} world units and turned by {turned:.2g} degrees on average"
    if part in ("captions", "selection") and a.pairs is not None and b.pairs is not None:
        facts = (_pair_facts(a, b), _pair_facts(b, a))
        name = "accepted" if part == "selection" else "pairs of the other run with other captions"
        values = [fact[name] for fact in facts]
        return f"{values[0]} accepted -> {values[1]}" if part == "selection" else f"those of {values[0]} pairs"
    return ""


def _pair_facts(run: RunParts, other: RunParts) -> dict[str, Any]:
    if run.pairs is None:
        return {}
    rows = run.pairs.rows
    facts: dict[str, Any] = {"accepted": f"{sum(run.pairs.is_accepted(key) for key in rows)} of {len(rows)}"}
    if other.pairs is not None:
        common = rows.keys() & other.pairs.rows.keys()
        changed = sum(run.pairs.captions(key) != other.pairs.captions(key) for key in common)
        facts["pairs of the other run"] = f"{len(common)} of {len(rows)}"
        facts["pairs of the other run with other captions"] = f"{changed} of {len(common)}"
    return facts


def _compare(where: str, a: Any, b: Any) -> list[Difference]:
    found = changed_values(*(dict(flat_items(value, where)) for value in (a, b)))
    return [Difference(where=one.where, a=one.first, b=one.second) for one in found]

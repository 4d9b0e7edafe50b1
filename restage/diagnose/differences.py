"""What differs between two runs on paper: records, as `restage diff` lists them, and facts of pairs and cameras."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from restage.audit.difference import compare_runs
from restage.diagnose.cases import Case
from restage.diagnose.parts import RunParts, flatten, noise_settings, other_settings
from restage.edit.work import load_scene
from restage.records import to_plain

__all__ = ["Difference", "describe_part", "list_differences"]

MISSING = "(not there)"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One value that is not the same in both runs."""

    where: str
    """Such as `edit.settings.restage.noise_levels` or `torch`."""
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
    flat = [dict(flatten(where, value)) for value in (a, b)]
    names = list(dict.fromkeys([*flat[0], *flat[1]]))
    values = [(name, *(one.get(name, MISSING) for one in flat)) for name in names]
    return [Difference(where=name, a=first, b=second) for name, first, second in values if first != second]

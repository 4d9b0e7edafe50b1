"""Puts runs together from parts of A and of B: trains and fits what no run has, and keeps it.

Asked by `diagnosis` for a setup; `trials` then edits with it.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from restage.diagnose.cases import Case, SceneParts
from restage.diagnose.parts import EDIT_MODEL_PARTS, RunParts, mix_pairs, noise_settings
from restage.diffusion.edit_models import edit_weights_sha256
from restage.diffusion.editor import Guidance
from restage.edit.job import Method
from restage.edit.methods import METHODS
from restage.edit.stage import load_scene
from restage.records import InputError, Progress, content_id, read_json, to_plain, write_json
from restage.run.layout import CAPTURE, TRANSFORMS, TRUTH
from restage.scenes.io.nerfstudio import write_capture
from restage.scenes.stage import fit_capture
from restage.train.stage import load_start, train_edit_model

__all__ = ["SCENE_PARTS", "Mix", "Setup", "Workbench"]

SCENE_PARTS = ("cameras", "photographs", "fit")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All that one edit of one scene depends on."""

    scene: Path  # folder with capture and splats
    scene_id: str
    truth: Path  # truth folder of the edit
    model: Path
    model_id: str
    guidance: Guidance
    method_name: str
    method: Method
    mask_model: Path
    """Edit model whose masks are used; the same as `model` but when masks are swapped."""
    mask_model_id: str


@dataclass(frozen=True, kw_only=True)
class Mix:
    """An edit model or a fitted scene that no run has: parts of both."""

    sides: tuple[tuple[str, str], ...]  # the run that each part comes from, `A` or `B`
    case: Case | None = None
    """The edit that a scene is for; None for an edit model."""

    @property
    def kind(self) -> str:
        """The stage that its progress is shown under."""
        return "retrain" if self.case is None else "refit"

    def __str__(self) -> str:
        what = "edit model" if self.case is None else self.case.scene
        return f"{what} with " + ", ".join(f"{part} of {side}" for part, side in self.sides)


@dataclass(frozen=True)
class _Made:
    seconds: float


@dataclass
class Workbench:
    """Two runs, and what has been put together of them so far; sent elsewhere, it begins with nothing read."""

    runs: Mapping[str, RunParts]  # `A` and `B`
    differing: tuple[str, ...]
    """All parts that differ, those within edit model and scenes included."""
    folder: Path  # folder for what is trained and fitted here
    start: Path  # model that the runs' training went on from
    device: str = "cpu"  # where scenes are fitted
    _weights: dict[Path, str] = field(default_factory=dict)
    _scenes: dict[Path, SceneParts] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        return Workbench, (self.runs, self.differing, self.folder.resolve(), self.start.resolve(), self.device)

    def scene_parts(self, folder: Path) -> SceneParts:
        """A scene, read once."""
        return self._scenes.setdefault(folder, SceneParts(folder))

    def weights_id(self, model: Path) -> str:
        """Hash of an edit model's weights, read once."""
        if model not in self._weights:
            self._weights[model] = edit_weights_sha256(model)
        return self._weights[model]

    def setup(self, case: Case, from_b: frozenset[str]) -> Setup:
        """Put together one edit; what `mixes` says it needs is there.

        From B come the named parts: of `differing`, `edit_model` and `scenes` for all of theirs, and `masks`.
        """
        model, scene = self.folder_of(self.model(from_b)), self.folder_of(self.scene(case, from_b))
        runs = {part: self._run(part, from_b) for part in ("guidance", "guided_noise", "method")}
        interval = runs["guided_noise"].guidance
        guidance = replace(
            runs["guidance"].guidance, lowest_noise=interval.lowest_noise, highest_noise=interval.highest_noise
        )
        mask_model = model
        if "masks" in from_b or "masks of A" in from_b:
            mask_model = self._run("masks", from_b).model
        found = self.scene_parts(scene)
        return Setup(
            scene=scene,
            scene_id=content_id("scene", [found.capture_sha256, found.splats_sha256]),
            truth=case.folders["A"] / TRUTH / case.edit,
            model=model,
            model_id=self.weights_id(model),
            guidance=guidance,
            method_name=runs["method"].method,
            method=self._method(from_b),
            mask_model=mask_model,
            mask_model_id=self.weights_id(mask_model),
        )

    def _run(self, part: str, from_b: frozenset[str]) -> RunParts:
        return self.runs["B" if part in from_b else "A"]

    def _method(self, from_b: frozenset[str]) -> Method:
        run, noise_run = self._run("method", from_b), self._run("noise_range", from_b)
        if run.method != noise_run.method:
            return run.settings
        noise = {name: getattr(noise_run.settings, name) for name in noise_settings(noise_run.settings)}
        own = {name: getattr(run.settings, name) for name in to_plain(run.settings)}
        return METHODS[run.method](**{**own, **noise})

    def mixes(self, case: Case, from_b: frozenset[str]) -> list[Mix]:
        """Returns what a setup needs that has to be trained or fitted."""
        return [found for found in (self.model(from_b), self.scene(case, from_b)) if isinstance(found, Mix)]

    def model(self, from_b: frozenset[str]) -> Path | Mix:
        """The edit model of one run, or one to be trained on pairs and settings of both."""
        sides = _sides(tuple(part for part in EDIT_MODEL_PARTS if part in self.differing), from_b)
        if "edit_model" in from_b or set(sides.values()) == {"B"}:
            return self.runs["B"].model
        if "B" not in sides.values():
            return self.runs["A"].model
        return Mix(sides=tuple({**dict.fromkeys(EDIT_MODEL_PARTS, "A"), **sides}.items()))

    def scene(self, case: Case, from_b: frozenset[str]) -> Path | Mix:
        """The fitted scene of one run, or the capture of one to be fitted as in the other."""
        parts = self.scene_parts(case.folders["A"]).differences(self.scene_parts(case.folders["B"]))
        sides = _sides(parts, from_b)
        if "scenes" in from_b or set(sides.values()) == {"B"}:
            return case.folders["B"]
        if "B" not in sides.values():
            return case.folders["A"]
        return Mix(case=case, sides=tuple({**dict.fromkeys(SCENE_PARTS, "A"), **sides}.items()))

    def folder_of(self, mix: Path | Mix) -> Path:
        """Returns where a model or scene lies, or where a mix will."""
        if isinstance(mix, Path):
            return mix
        sides = dict(mix.sides)
        if mix.case is None:
            known = {"sides": sides, "runs": [run.weights_sha256 for run in self.runs.values()]}
            return self.folder / "models" / content_id("model", known)
        return self.folder / "scenes" / content_id("scene", {"case": mix.case.name, "sides": sides})

    def is_made(self, mix: Mix) -> bool:
        """Whether a mix is there, whole."""
        return (self.folder_of(mix) / "diagnose.json").exists()

    def make(self, mix: Mix) -> Iterator[Progress]:
        """Train or fit a mix, unless it is there."""
        if self.is_made(mix):
            return
        folder, sides, started_s = self.folder_of(mix), dict(mix.sides), time.process_time()
        steps = self._train(folder, sides) if mix.case is None else self._fit(mix.case, folder, sides)
        record = {"sides": sides, **(yield from steps)}
        write_json(folder / "diagnose.json", {**record, "seconds": time.process_time() - started_s})

    def _train(self, folder: Path, sides: Mapping[str, str]) -> Generator[Progress, None, dict[str, Any]]:
        pools = {side: run.pairs for side, run in self.runs.items() if run.pairs is not None}
        config = self.runs[sides["training"]].train_config
        assert config is not None and len(pools) == 2
        mixed = mix_pairs(pools, sides)
        if not mixed.pairs:
            raise InputError(f"there are no pairs for an edit model with {dict(sides)}")
        for step in train_edit_model(mixed.pairs, load_start(self.start), folder, config):
            note = f"training ({step.done}/{step.total})"
            yield Progress(stage="retrain", done=step.done, total=step.total, note=note)
        return {"num_pairs": len(mixed.pairs), "num_missing": mixed.num_missing}

    def _fit(self, case: Case, folder: Path, sides: Mapping[str, str]) -> Generator[Progress, None, dict[str, Any]]:
        captures = {side: load_scene(path)[0] for side, path in case.folders.items()}
        photographs, viewed = captures[sides["photographs"]], captures[sides["cameras"]]
        capture = replace(photographs, cameras=viewed.cameras)
        if sides["cameras"] != sides["photographs"]:
            # The sparse points belong to the cameras that they were found with.
            capture = replace(capture, points=viewed.points, point_colors=viewed.point_colors)
        if not (folder / CAPTURE / TRANSFORMS).exists():
            write_capture(capture, folder / CAPTURE)
        config = self.scene_parts(case.folders[sides["fit"]]).fit_config
        for step in fit_capture(capture, folder, config, device=self.device):
            yield Progress(stage="refit", done=step.done, total=step.total, note=step.note)
        return {"case": case.name}

    def seconds(self) -> float:
        """CPU seconds of all that was trained and fitted here."""
        paths = sorted(self.folder.glob("*/*/diagnose.json"))
        return sum((read_json(path, _Made).seconds for path in paths), 0.0)


def _sides(parts: tuple[str, ...], from_b: frozenset[str]) -> dict[str, str]:
    """The run that each part comes from."""
    return {part: "B" if part in from_b else "A" for part in parts}

"""One edit of one scene with one setup, scored; every trial is kept, so that none is made twice.

Beside the result, a trial scores the edited views that the method asked for: how right each is by itself, and how well
they agree with each other. `DiagnosisWork` is what an engine is given: trials, and what has to be trained or fitted
first.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import restage
from restage.compare.metrics import disagreement, mask_iou, progress, psnr_db, spill
from restage.diagnose.cases import Case
from restage.diagnose.workbench import Mix, Setup, Workbench
from restage.diffusion.editor import EditSettings
from restage.edit.editors import MenuEditor, OpenEditors
from restage.edit.editors.edit_model import ModelEditor
from restage.edit.editors.exact import ExactEditor
from restage.edit.editors.grade import anchors_of
from restage.edit.editors.interface import Edited, Editor, EditorSource, ViewBatch
from restage.edit.editors.referenced import show_references
from restage.edit.job import EditJob
from restage.edit.pictures import quantize, read_image, read_mask
from restage.edit.results import KeptEdits
from restage.edit.sharing import AnchoredNoise, CarriedNoise
from restage.edit.stage import load_scene, read_case
from restage.records import EditRequest, Progress, content_id, derive_seed, read_json, to_plain, write_json
from restage.scenes.capture import Capture
from restage.scenes.fit import psnr, render_views
from restage.scenes.rasterize import rasterize
from restage.scenes.references import read_references
from restage.scenes.splats import Splats
from restage.work.task import Facts, Task
from restage.world.grammar import Description
from restage.world.render import render_view

__all__ = ["Attempt", "DiagnosisWork", "Kind", "Trial", "Trials"]

Kind = Literal["whole", "exact masks", "exact", "single views", "scene"]
"""What is tried: the edit as it is; with the true masks; with true pictures and masks; the editor on held-out views
alone; the unedited scene."""

CODE = ("diffusion", "edit", "scenes", "world", "diagnose/trials.py", "compare/metrics.py")
"""Parts of the package that numbers of a trial come from."""
MAX_REMEMBERED = 100
"""Batches of edited views that are kept in memory."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Numbers of one trial, NaN where there is none; those of `restage.compare.metrics` under their names."""

    numbers: dict[str, float]
    seconds: float  # CPU time


@dataclass(frozen=True)
class _Kept:
    numbers: Mapping[str, float | None]
    seconds: float


class Trials:
    """Makes trials, or reads them back; sent to another process, it begins there with nothing loaded."""

    def __init__(self, folder: Path, seed: int = 0, editor_steps: int = 10, device: str = "cpu") -> None:
        self.folder, self.seed, self.editor_steps, self.device = folder, seed, editor_steps, device
        self.editors = OpenEditors()
        self.used_s: dict[str, float] = {}
        """CPU seconds of each trial that was asked for, made now or before."""
        self._edits = OrderedDict[str, Edited]()

    def __reduce__(self) -> tuple[Any, ...]:
        return Trials, (self.folder.resolve(), self.seed, self.editor_steps, self.device)

    def run(self, setup: Setup, kind: Kind, seed: int) -> Trial:
        """Try a setup; what was tried before is read."""
        path = self.path(setup, kind, seed)
        if not path.exists():
            started_s = time.process_time()
            numbers = self._measure(setup, kind, seed)
            record = {name: None if math.isnan(value) else value for name, value in numbers.items()}
            seconds = time.process_time() - started_s
            write_json(path, {"kind": kind, "setup": _plain(setup), "numbers": record, "seconds": seconds})
        found = read_json(path, _Kept)
        self.used_s[path.stem] = found.seconds
        numbers = {name: math.nan if value is None else value for name, value in found.numbers.items()}
        return Trial(numbers=numbers, seconds=found.seconds)

    def path(self, setup: Setup, kind: Kind, seed: int) -> Path:
        """Returns where a trial is kept once it is made; equal trials of different setups are one."""
        return self.folder / f"{self._id(setup, kind, seed)}.json"

    def _id(self, setup: Setup, kind: Kind, seed: int) -> str:
        """Only what a kind depends on names it, so that equal trials of different setups are one."""
        plain = _plain(setup)
        needed = {
            "scene": ("scene_id",),
            "single views": ("scene_id", "edit", "model_id", "guidance"),
            "exact": ("scene_id", "edit", "method_name", "method"),
            "exact masks": ("scene_id", "edit", "method_name", "method", "model_id", "guidance"),
            "whole": tuple(plain),
        }[kind]
        how = {"kind": kind, "seeds": [self.seed, seed], "steps": self.editor_steps, "code": code_sha256()}
        if self.device != "cpu":
            how["device"] = self.device.partition(":")[0]
        return content_id("trial", {**how, **{name: plain[name] for name in needed}})

    def _measure(self, setup: Setup, kind: Kind, seed: int) -> dict[str, float]:
        scene = _Scene.read(setup, self.device)
        if kind == "scene":
            return scene.measure_unedited()
        request = read_case(setup.truth).request
        seed = derive_seed("diagnose", self.seed, request.instruction, seed)
        if kind == "single views":
            return scene.measure_single_views(self._open(setup.model, setup), request, seed)
        exact = ExactEditor(setup.truth, scene.capture.file_names)
        editor: Editor = exact if kind == "exact" else self._open(setup.model, setup)
        if kind == "exact masks":
            editor = _MasksOf(editor, exact)
        elif kind == "whole" and setup.mask_model_id != setup.model_id:
            editor = _MasksOf(editor, self._open(setup.mask_model, setup))
        return scene.measure_edit(setup, editor, request, seed)

    def _open(self, model: Path, setup: Setup) -> Editor:
        opened = self.editors.open(MenuEditor(name="edit_model", model=model), EditorSource(device=self.device))
        assert isinstance(opened, ModelEditor)
        editor = replace(opened, settings=EditSettings(steps=self.editor_steps, guidance=setup.guidance))
        editor = show_references(editor, read_references(setup.truth.parents[1], read_case(setup.truth).request))
        return _Remembered(editor, content_id("editor", [self.editors.weights_id(model), setup.guidance]), self._edits)


@cache
def code_sha256() -> str:
    """Hash of all code that a trial runs through, so that none is taken over from another version of it."""
    package = Path(restage.__file__).parent
    places = [package / part for part in CODE]
    paths = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*.py")))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _plain(setup: Setup) -> dict[str, Any]:
    case = read_case(setup.truth)
    return {
        "scene_id": setup.scene_id,
        "edit": case.id,
        "model_id": setup.model_id,
        "mask_model_id": setup.mask_model_id,
        "guidance": to_plain(setup.guidance),
        "method_name": setup.method_name,
        "method": to_plain(setup.method),
    }


@dataclass(frozen=True)
class _Remembered:
    """An editor that is asked only once for the same: most swaps leave what the editor sees as it is."""

    editor: Editor
    made_by: str  # id of weights and guidance
    memory: OrderedDict[str, Edited]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.editor, name)  # what else some editors offer to some methods

    def edit(self, batch: ViewBatch) -> Edited:
        if batch.sharing is not None or isinstance(batch.noise_keys, AnchoredNoise | CarriedNoise):
            return self.editor.edit(batch)  # both hold whole tensors, which cost more to name than is ever saved
        views = (batch.views.cpu(), batch.originals.cpu())
        pixels = [hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest() for x in views]
        asked = [batch.request, batch.view_indices, batch.noise_level, batch.seed, batch.noise_keys]
        key = content_id("edits", [self.made_by, pixels, asked])
        if key not in self.memory:
            self.memory[key] = self.editor.edit(batch)
            while len(self.memory) > MAX_REMEMBERED:
                self.memory.popitem(last=False)
        found = self.memory[key]
        return found._replace(images=found.images.clone(), masks=found.masks.clone())


@dataclass(frozen=True)
class _MasksOf:
    """An editor whose masks come from another one."""

    editor: Editor
    masks_from: Editor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.editor, name)

    def edit(self, batch: ViewBatch) -> Edited:
        return self.editor.edit(batch)._replace(masks=self.masks_from.edit(batch).masks)


@dataclass(frozen=True)
class _Scene:
    """A fitted scene with the truth of one edit; splats lie where they are drawn, all that is compared on the CPU."""

    capture: Capture
    splats: Splats
    names: list[str]  # file names of the views' truth
    truth_images: Tensor
    truth_masks: Tensor
    description: Description | None
    """Description of a scene of the miniature world, whose depth is known exactly; None for others."""

    @classmethod
    def read(cls, setup: Setup, device: str) -> _Scene:
        capture, splats = load_scene(setup.scene)
        names = [Path(name).with_suffix(".png").name for name in capture.file_names]
        description = setup.truth.parents[1] / "description.json"
        return cls(
            capture=capture,
            splats=splats.to(device),
            names=names,
            truth_images=torch.stack([read_image(setup.truth / "images" / name) for name in names]),
            truth_masks=torch.stack([read_mask(setup.truth / "masks" / name) for name in names]),
            description=read_json(description, Description) if description.exists() else None,
        )

    def _depths(self, indices: list[int]) -> Tensor:
        """Exact depth at the cameras of the capture, or that of the splats where the scene is not described."""
        cameras = self.capture.cameras
        if self.description is not None:
            return torch.stack(
                [torch.from_numpy(render_view(self.description, cameras[index]).depth) for index in indices]
            )
        return torch.stack([rasterize(self.splats.detach(), cameras[index]).depth.cpu() for index in indices])

    def measure_unedited(self) -> dict[str, float]:
        held_out, train = list(self.capture.held_out_indices), list(self.capture.train_indices)
        renders = render_views(self.splats, self.capture.cameras[held_out]).cpu()
        return {
            "psnr_db": float(psnr(renders, self.capture.images[held_out]).clamp_max(100.0).mean()),
            "disagreement": disagreement(self.capture.images[train], self._depths(train), self.capture.cameras[train]),
        }

    def measure_single_views(self, editor: Editor, request: EditRequest, seed: int) -> dict[str, float]:
        views = list(self.capture.held_out_indices)
        originals, truth, regions = self.capture.images[views], self.truth_images[views], self.truth_masks[views]
        shown = originals.to(self.splats.means.device)
        batch = ViewBatch(shown, shown, request=request, view_indices=tuple(views), noise_level=1.0, seed=seed)
        edited = editor.edit(batch).to("cpu")
        inside, outside = edited.masks > 0.5, regions > 0.5
        union = (inside | outside).sum()
        return {
            "progress": progress(edited.images, originals, truth, regions).mean,
            "spill": spill(edited.images, originals, regions).mean,
            "mask_iou": float((inside & outside).sum() / union) if union else math.nan,
        }

    def measure_edit(self, setup: Setup, editor: Editor, request: EditRequest, seed: int) -> dict[str, float]:
        held_out = list(self.capture.held_out_indices)
        kept = KeptEdits(editor)
        job = EditJob.of(self.splats, self.capture.to(self.splats.means.device), request, kept, seed)
        (last,) = deque(setup.method.run(job), maxlen=1)
        cameras = self.capture.cameras[held_out]
        edited, unedited = (quantize(render_views(splats, cameras).cpu()) for splats in (last.splats, self.splats))
        truth, regions = self.truth_images[held_out], self.truth_masks[held_out]
        source, names = quantize(self.capture.images[held_out]), [self.names[index] for index in held_out]
        case = read_case(setup.truth)
        anchors = anchors_of(case, setup.truth, names, source=source, truth=truth, unedited=unedited)
        return {
            "progress": progress(edited, *anchors, regions).mean,
            "spill": spill(edited, unedited, regions).mean,
            "mask_iou": mask_iou(edited, unedited, source, truth).mean,
            "psnr_db": psnr_db(edited, truth).mean,
            **self._measure_views(kept),
        }

    def _measure_views(self, kept: KeptEdits) -> dict[str, float]:
        """The last edit of each view that the method asked for: right by itself, and agreeing with its neighbour."""
        asked = sorted(kept.images)
        if not asked:
            return {"views_progress": math.nan, "views_disagreement": math.nan}
        images = torch.stack([kept.images[index] for index in asked]).cpu()
        truth, regions = self.truth_images[asked], self.truth_masks[asked]
        cameras, depths = self.capture.cameras[asked], self._depths(asked)
        found, true = (disagreement(pictures, depths, cameras, regions=regions) for pictures in (images, truth))
        return {
            "views_progress": progress(images, self.capture.images[asked], truth, regions).mean,
            "views_disagreement": found - true,
        }


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One trial that is wanted."""

    case: Case
    kind: Kind
    from_b: frozenset[str]  # parts that come from B; see `Workbench.setup`

    def __str__(self) -> str:
        return f"{self.case.name}, {self.kind}, {', '.join(sorted(self.from_b)) or 'nothing'} of B"


@dataclass(frozen=True)
class DiagnosisWork:
    """Bench and trials; both leave behind what they have loaded when they are sent to another process."""

    bench: Workbench
    trials: Trials

    def open(self, device: str) -> DiagnosisWork:
        """Returns itself, for this device: whatever is heavy is loaded when a task needs it."""
        self.bench.device = self.trials.device = device
        return self

    def found(self, task: Task[Any]) -> Facts | None:
        """Nothing but `note` if the model, scene or trial is there."""
        if isinstance(task.item, Mix):
            is_there = self.bench.is_made(task.item)
        else:
            path = self.path(task.item)
            is_there = path is not None and path.exists()
        return {"note": "done before"} if is_there else None

    def work(self, task: Task[Any]) -> Generator[Progress, None, Facts]:
        """Train, fit, or try."""
        if isinstance(task.item, Mix):
            yield from self.bench.make(task.item)
        else:
            self.trial(task.item)
        return {"note": "done"}

    def path(self, attempt: Attempt) -> Path | None:
        """Returns where a trial is kept; None as long as something that it needs is not there."""
        if not all(map(self.bench.is_made, self.bench.mixes(attempt.case, attempt.from_b))):
            return None
        return self.trials.path(self.bench.setup(attempt.case, attempt.from_b), attempt.kind, 0)

    def trial(self, attempt: Attempt) -> Trial:
        """Make a trial, or read it."""
        return self.trials.run(self.bench.setup(attempt.case, attempt.from_b), attempt.kind, 0)

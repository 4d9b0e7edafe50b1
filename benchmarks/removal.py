"""How far does removal get on scenes that nobody has seen, and how far did it get before?

    python -m benchmarks.removal --out runs/removal --num-scenes 6

Prints a line for each scene and JSON: the mean progress on held-out views of `remove` with the exact ids of the world
lifted to the splats (`remove_progress`), of deleting those splats alone (`delete_progress`), and of `restage` with the
edit model, which was how things were removed before (`remove_progress_before`, on the first `scenes_before` scenes).
`ceiling_progress` is that of the scene without those splats, fitted on to the true views with the same settings, and
`remove_share_of_ceiling` the mean of progress as a share of it. What was measured is kept in a file a scene, so that a
stopped benchmark goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch
import tyro

from restage.compare.metrics import fit_error, progress
from restage.edit.direct.operations import Delete
from restage.edit.editors import Editor, EditorSource, MenuEditor, NoEditor
from restage.edit.job import EditJob, Method
from restage.edit.methods import Restage
from restage.edit.methods.remove import Remove
from restage.edit.pictures import write_image
from restage.records import EditRequest, derive_seed, read_json, write_json
from restage.regions.masks import lift_masks
from restage.scenes.capture import Capture
from restage.scenes.config import FitConfig
from restage.scenes.fit import fit_splats, render_views
from restage.scenes.io.splat_files import read_splats, write_splats
from restage.scenes.splats import Splats
from restage.world import grammar
from restage.world.capture import Truth, make_capture, make_truth
from restage.world.config import WorldConfig
from restage.world.kernels import FIRST_OBJECT_ID
from restage.world.render import render_view
from restage.world.stage import sample_scene

__all__ = ["RemovalCase", "cases", "measure"]

NUM_SHOWN = 4
"""Held-out views in a picture: before, truth, and what was made."""
FIT = FitConfig()
MEASURED = ("fit_error", "delete", "remove", "ceiling", "before")


@dataclass(frozen=True)
class RemovalCase:
    """A fitted scene, a thing in it, and what it looks like without."""

    name: str
    request: EditRequest
    capture: Capture
    splats: Splats
    truth: Truth
    weights: torch.Tensor  # of the splats of the thing, by the exact ids of the training views

    def progress_of(self, splats: Splats) -> float:
        """Mean progress on held-out views."""
        views = list(self.capture.held_out_indices)
        shown = render_views(splats, self.capture.cameras[views])
        return progress(shown, self.capture.images[views], self.truth.images[views], self.truth.masks[views]).mean

    def fit_error(self) -> float:
        """What the fit is off already, as a share of what the removal changes."""
        views = list(self.capture.held_out_indices)
        shown = render_views(self.splats, self.capture.cameras[views])
        return fit_error(shown, self.capture.images[views], self.truth.images[views], self.truth.masks[views]).mean


def cases(out: Path, *, num_scenes: int, seed: int, size: int, fit: FitConfig) -> Iterator[RemovalCase]:
    """Make scenes of combinations that no model was trained on; fits are kept in a folder."""
    config = WorldConfig(edit_kinds=("remove",), split="unseen")
    for number in range(num_scenes):
        name = f"removal-{number:03d}"
        description, (edit,) = sample_scene(config, name=name, seed=seed)
        capture = make_capture(description, name=name, seed=derive_seed(seed, name), size=size)
        path = out / f"{name}-{size}-{fit.steps}.ply"
        if not path.exists():
            for step in fit_splats(capture, fit):
                last = step
            write_splats(last.splats.detach(), path)
        splats = read_splats(path)
        (thing,) = [place for place, one in enumerate(description.objects) if one not in edit.after.objects]
        train = list(capture.train_indices)
        ids = [torch.from_numpy(render_view(description, capture.cameras[view]).object_ids) for view in train]
        masks = (torch.stack(ids) == FIRST_OBJECT_ID + thing).float()
        weights = lift_masks(splats, capture.cameras[train], masks)
        truth = make_truth(edit, capture.cameras)
        yield RemovalCase(name, grammar.request_of(edit, seed), capture, splats, truth, weights)


def measure(case: RemovalCase, name: str, out: Path, *, fit: FitConfig) -> float:
    """One of the figures `MEASURED` of a scene; what was made is drawn into a picture."""
    if name == "fit_error":
        return case.fit_error()
    made = Delete().apply(case.splats, case.weights).splats
    if name == "delete":
        splats = made
    elif name == "remove":
        splats = edit(case, Remove(fill="plain"), NoEditor(), case.weights)
    elif name == "before":
        splats = edit(case, Restage(), MenuEditor(name="edit_model").open(EditorSource()), None)
    else:
        for step in fit_splats(replace(case.capture, images=case.truth.images), fit, made):
            last = step
        splats = last.splats.detach()
    views = list(case.capture.held_out_indices)[:NUM_SHOWN]
    rows = [case.capture.images[views], case.truth.images[views], render_views(splats, case.capture.cameras[views])]
    write_image(out / f"{case.name}-{name}.png", torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1))
    return case.progress_of(splats)


def edit(case: RemovalCase, method: Method, editor: Editor, weights: torch.Tensor | None) -> Splats:
    """Run a method to its end."""
    for step in method.run(EditJob.of(case.splats, case.capture, case.request, editor, 0, weights=weights)):
        last = step
    return last.splats


def main(
    out: Path = Path("runs/removal"),
    num_scenes: int = 6,
    seed: int = 7,
    size: int = 128,
    num_before: int = 6,
    fit: FitConfig = FIT,
) -> None:
    """Measure, and write pictures of each scene.

    Args:
        out: Folder for fits and pictures.
        num_scenes: Scenes.
        seed: Seed of scenes and cameras.
        size: Width and height of the views.
        num_before: Scenes, from the first on, on which `restage` is run, too; it takes minutes each on two cores.
        fit: How the scenes are fitted.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[float]] = {}
    for number, case in enumerate(cases(out, num_scenes=num_scenes, seed=seed, size=size, fit=fit)):
        path = out / f"{case.name}-{size}.json"
        found = read_json(path, dict[str, float]) if path.is_file() else {}
        for name in MEASURED:
            if name in found or (name == "before" and number >= num_before):
                continue
            found[name] = measure(case, name, out, fit=fit)
            write_json(path, found)
        print(
            case.name, case.request.instruction, *(f"{name} {value:.3f}" for name, value in found.items()), flush=True
        )
        for name, value in found.items():
            rows.setdefault(name, []).append(value)
    figures = {f"{name}_progress": mean(rows[name]) for name in ("remove", "delete", "ceiling")}
    shares = [got / most for got, most in zip(rows["remove"], rows["ceiling"], strict=True)]
    figures |= {"remove_share_of_ceiling": mean(shares), "fit_error": mean(rows["fit_error"]), "scenes": num_scenes}
    if "before" in rows:
        alike = rows["remove"][: len(rows["before"])]
        figures |= {"remove_progress_before": mean(rows["before"]), "remove_progress_on_those": mean(alike)}
        figures["scenes_before"] = len(rows["before"])
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    tyro.cli(main)

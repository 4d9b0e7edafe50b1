"""How far does removal get on scenes that nobody has seen, and how far did it get before?

    python -m benchmarks.removal --out runs/removal --num-scenes 6

Prints a line for each scene and JSON: the mean progress on held-out views of `remove` with the exact ids of the world
lifted to the splats (`remove_progress`), of deleting those splats alone (`delete_progress`), and of `restage` with the
edit model, which was how things were removed before (`remove_progress_before`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from restage.compare.metrics import fit_error, progress
from restage.edit.direct.operations import Delete
from restage.edit.editors import EditorSource, MenuEditor, NoEditor
from restage.edit.job import EditJob, Method
from restage.edit.methods import Restage
from restage.edit.methods.remove import Remove
from restage.edit.pictures import write_image
from restage.records import EditRequest, derive_seed
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
"""Held-out views in a picture."""


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


def measure(case: RemovalCase, method: Method, *, with_editor: bool = False) -> Splats:
    """Run a method; with an editor that is the edit model, else with the exact region."""
    editor = MenuEditor(name="edit_model").open(EditorSource()) if with_editor else NoEditor()
    weights = None if with_editor else case.weights
    job = EditJob.of(case.splats, case.capture, case.request, editor, 0, weights=weights)
    for step in method.run(job):
        last = step
    return last.splats


def main(
    out: Path = Path("runs/removal"), num_scenes: int = 6, seed: int = 7, size: int = 128, num_before: int = 6
) -> None:
    """Measure, and write a picture of each scene.

    Args:
        out: Folder for fits and pictures.
        num_scenes: Scenes.
        seed: Seed of scenes and cameras.
        size: Width and height of the views.
        num_before: Scenes, from the first on, on which `restage` is run, too; it takes minutes each on two cores.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[float]] = {"remove": [], "delete": [], "before": [], "fit_error": []}
    for number, case in enumerate(cases(out, num_scenes=num_scenes, seed=seed, size=size, fit=FitConfig())):
        made = {"delete": Delete().apply(case.splats, case.weights).splats}
        made["remove"] = measure(case, Remove(fill="plain"))
        if number < num_before:
            made["before"] = measure(case, Restage(), with_editor=True)
        found = {name: case.progress_of(splats) for name, splats in made.items()} | {"fit_error": case.fit_error()}
        for name, value in found.items():
            rows[name].append(value)
        print(
            case.name, case.request.instruction, *(f"{name} {value:.3f}" for name, value in found.items()), flush=True
        )
        views = list(case.capture.held_out_indices)[:NUM_SHOWN]
        pictures = [case.capture.images[views], case.truth.images[views]]
        pictures += [render_views(splats, case.capture.cameras[views]) for splats in made.values()]
        write_image(out / f"{case.name}.png", torch.cat([torch.cat(list(row), dim=2) for row in pictures], dim=1))
    means = {name: sum(values) / len(values) for name, values in rows.items() if values}
    named = {"remove_progress": "remove", "delete_progress": "delete", "remove_progress_before": "before"}
    print(json.dumps({key: round(means[name], 4) for key, name in named.items() if name in means}))


if __name__ == "__main__":
    tyro.cli(main)

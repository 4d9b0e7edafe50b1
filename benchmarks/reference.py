"""How well a picture says what is meant: edits by reference against edits by words, on worlds that no model has seen.

    python -m benchmarks.reference                                   # the shipped model
    python -m benchmarks.reference --model training/miniature/edit_model_tokens \\
        --words-model training/miniature/edit_model_words --scenes 4
    python -m benchmarks.reference --worlds 3 --kinds look           # a first look

Single views: of each world an object is to get the look of a picture (`look`), or to be replaced by the thing in it
(`swap`). Words say the nearest colors that have names. *delta E* is CIEDE2000 inside the object between the edit and
the truth; of the nearest names it is that of their exact render. *copy leak* is the change, outside of the region that
truth changes, when the picture's ground is another; *no-op change* what changes where the picture shows what is there
already. Anchors: one view's truth is handed back as the reference of the others, against words on each alone.
With `--scenes` fitted scenes are edited by three methods, by reference and by words.

Rows are kept in `--folder`, and a run goes on there. The last line is JSON; what was not measured is null.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from torch import Tensor
from torch.nn import functional

from benchmarks.color_difference import delta_e, lab_of
from miniature.probe import Probe, load_probe
from miniature.probe_pictures import FIRST_KIND_CLASS
from restage.compare.config import CompareConfig
from restage.compare.metrics import disagreement, progress, spill
from restage.diffusion.edit_models import edit_weights_sha256
from restage.edit.editors import EditorSource, MenuEditor
from restage.edit.editors.anchored import Anchor, follow_anchor
from restage.edit.editors.edit_model import MUTUAL, ModelEditor, open_edit_model
from restage.edit.editors.interface import Editor, ViewBatch
from restage.edit.methods import METHODS
from restage.edit.pictures import write_image
from restage.records import EditRequest, canonical_json, content_id, derive_seed, read_json
from restage.scenes.config import FitConfig
from restage.scenes.references import ShownPicture
from restage.scores.rows import read_scores
from restage.studies.scenes import WorldScene
from restage.studies.study import Study, StudyMethod
from restage.studies.work import run_study
from restage.world.capture import change_mask, ring_cameras, sample_pictured_edit
from restage.world.config import CaptureConfig
from restage.world.description import COLORS, KINDS, PATTERNS, Edit, SceneObject
from restage.world.kernels import FIRST_OBJECT_ID
from restage.world.looks import color_distance
from restage.world.places import name_of
from restage.world.references import SWAP, render_reference, sample_referenced_edit
from restage.world.render import View, render_view

ASSETS = Path(__file__).parents[1] / "restage" / "assets"
PROBE = Path(__file__).parent / "miniature" / "probe.safetensors"
NUM_VIEWS = 6
"""Views of a world in which one is the anchor."""
SCENE_METHODS = ("restage", "replace_once", "joint")
TOLD = "told"
"""Kind of the edits of fitted scenes that words ask for."""

Row = dict[str, float | str]


def nearest_name(color: str) -> str:
    """Return the color word that looks most like a color."""
    return min(COLORS, key=lambda name: color_distance(name, color))


def changed_object(edit: Edit) -> int:
    """Return the index of the object that an edit changes."""
    return next(i for i, item in enumerate(edit.after.objects) if item not in edit.before.objects)


def named_look(item: SceneObject) -> SceneObject:
    """Return an object in the nearest colors that have names; the two of a pattern stay different ones."""
    first = nearest_name(item.color)
    if not item.pattern:
        return dataclasses.replace(item, color=first)
    others = [name for name in COLORS if name != first]
    second = min(others, key=lambda name: color_distance(name, item.second_color))
    return dataclasses.replace(item, color=first, second_color=second)


def in_words(edit: Edit) -> str:
    """Return how words ask for an edit that a picture asks for, as well as they can."""
    index = changed_object(edit)
    item, name = named_look(edit.after.objects[index]), name_of(edit.before, index)
    look = f"{item.color} and {item.second_color} {item.pattern}" if item.pattern else item.color
    if edit.kind == SWAP:
        return f"turn the {name} into a {look} {item.kind}"
    return f"make the {name} {look}"


class Models(NamedTuple):
    """What is measured."""

    reference: ModelEditor
    words: ModelEditor
    probe: Probe


def _edit(editor: Editor, view: Tensor, instruction: str, shown: ShownPicture | None, seed: int) -> Tensor:
    request = EditRequest(instruction=instruction, source_caption="", target_caption="")
    batch = ViewBatch(
        view[None],
        view[None],
        request=request,
        view_indices=(0,),
        noise_level=1.0,
        seed=seed,
        references=() if shown is None else (shown,),
    )
    return editor.edit(batch).images[0]


def _other_ground(shown: ShownPicture, seed: int) -> ShownPicture:
    """Return a reference with what is around its subject taken from another picture."""
    edit, _ = sample_referenced_edit("look", seed, size=shown.picture.shape[1])
    other = render_reference(edit, seed, size=shown.picture.shape[1]).picture
    assert shown.mask is not None
    return ShownPicture(torch.lerp(other, shown.picture, shown.mask), shown.mask)


def _mean_delta_e(image: Tensor, truth: Tensor, inside: Bool[Array, "h w"]) -> float:
    first, second = (lab_of(x.permute(1, 2, 0).double().numpy()[inside]) for x in (image, truth))
    return float(delta_e(first, second).mean())


def _object_of(view: View, index: int) -> Bool[Array, "h w"]:
    return view.object_ids == FIRST_OBJECT_ID + index


def read_object(probe: Probe, image: Float[Tensor, "3 h w"], inside: Bool[Array, "h w"]) -> tuple[str, str | None]:
    """Return the kind and the pattern that the probe sees in a region; None for a pattern from a probe of none."""
    picture = functional.interpolate(image[None], (128, 128), mode="bilinear", antialias=True)
    weights = functional.adaptive_avg_pool2d(torch.from_numpy(inside).float()[None], (16, 16))[0]
    with torch.no_grad():
        output = probe(picture)
    scores = (output.classes[0].softmax(0)[FIRST_KIND_CLASS:] * weights).sum((1, 2))
    kind = int(scores.argmax())
    pattern = None if output.patterns is None else ("", *PATTERNS)[int(output.patterns[0, kind].argmax())]
    return KINDS[kind], pattern


def measure_view(models: Models, kind: str, index: int, *, seed: int, size: int, folder: Path | None = None) -> Row:
    """Edit one view of one world by a picture and by words."""
    item = derive_seed("reference benchmark", seed, kind, index)
    edit, camera = sample_referenced_edit(kind, item, split="unseen", size=size)
    shown, place = render_reference(edit, item, size=size), changed_object(edit)
    named = (*edit.after.objects[:place], named_look(edit.after.objects[place]), *edit.after.objects[place + 1 :])
    scenes = (edit.before, edit.after, dataclasses.replace(edit.after, objects=named))
    views = [render_view(scene, camera) for scene in scenes]
    before, truth, nearest = (torch.from_numpy(view.image) for view in views)
    region = torch.from_numpy(change_mask(views[0].image, views[1].image))
    inside = _object_of(views[1], place)
    by_reference = _edit(models.reference, before, edit.instruction, shown, item)
    by_words = _edit(models.words, before, in_words(edit), None, item)
    moved = _edit(models.reference, before, edit.instruction, _other_ground(shown, item), item)
    own = ShownPicture(before, torch.from_numpy(_object_of(views[0], place)).float())
    kept = _edit(models.reference, before, edit.instruction, own, item)
    if folder is not None:
        write_image(folder / f"{kind}-{index:03d}.png", torch.cat([shown.picture, before, by_reference, truth], dim=2))

    def share(image: Tensor) -> float:
        return progress(image[None], before[None], truth[None], region[None]).mean

    wanted = edit.after.objects[place]
    seen_kind, seen_pattern = read_object(models.probe, by_reference, inside)
    row: Row = {
        "part": "view",
        "kind": kind,
        "index": index,
        "is_nameable": float(wanted == named_look(wanted)),
        "progress_reference": share(by_reference),
        "progress_words": share(by_words),
        "delta_e_reference": _mean_delta_e(by_reference, truth, inside),
        "delta_e_words": _mean_delta_e(by_words, truth, inside),
        "delta_e_nearest_name": _mean_delta_e(nearest, truth, inside),
        "spill": spill(by_reference[None], before[None], region[None]).mean,
        "copy_leak": spill(moved[None], by_reference[None], region[None]).mean,
        "noop_change": float((kept - before).abs().mean()),
    }
    if kind == SWAP:
        row["kind_right"] = float(seen_kind == wanted.kind)
    if wanted.pattern and seen_pattern is not None:
        row["pattern_right"] = float(seen_pattern == wanted.pattern)
    return row


def measure_anchor(models: Models, index: int, *, seed: int, size: int) -> Row:
    """Edit views of a world alone, and with the true edit of one of them as the reference of the others."""
    item = derive_seed("anchor benchmark", seed, index)
    edit, _ = sample_pictured_edit(("recolour", "pattern")[index % 2], item, split="unseen", size=size)
    cameras = ring_cameras(edit.before, NUM_VIEWS, seed=item, size=size)
    views = [render_view(edit.before, cameras[i]) for i in range(NUM_VIEWS)]
    truths = torch.stack([torch.from_numpy(render_view(edit.after, cameras[i]).image) for i in range(NUM_VIEWS)])
    depths = torch.stack([torch.from_numpy(render_view(edit.after, cameras[i]).depth) for i in range(NUM_VIEWS)])
    originals = torch.stack([torch.from_numpy(view.image) for view in views])
    regions = torch.stack([
        torch.from_numpy(change_mask(view.image, truth.numpy())) for view, truth in zip(views, truths, strict=True)
    ])  # fmt: skip
    first = int(regions.sum((1, 2)).argmax())  # the view that shows most of the edit
    request = EditRequest(instruction=edit.instruction, source_caption="", target_caption="")
    batch = ViewBatch(
        originals, originals, request=request, view_indices=tuple(range(NUM_VIEWS)), noise_level=1.0, seed=item
    )
    anchored = follow_anchor(models.reference, Anchor(first, originals[first], edited=truths[first]), "auto")
    others = [i for i in range(NUM_VIEWS) if i != first and regions[i].any()]
    row: Row = {"part": "anchor", "kind": edit.kind, "index": index}
    for name, editor in (("alone", models.words), ("anchored", anchored)):
        images = editor.edit(batch).images
        row[f"progress_{name}"] = progress(images[others], originals[others], truths[others], regions[others]).mean
        row[f"disagreement_{name}"] = disagreement(images, depths, cameras, regions=regions)
    row["anchor_gain"] = float(row["progress_anchored"]) - float(row["progress_alone"])
    return row


class _Rows:
    """The rows of a folder, one a line, which a run that was stopped goes on from."""

    def __init__(self, path: Path, made_from: str) -> None:
        self.path = path.with_name(f"{path.stem}-{made_from[-8:]}{path.suffix}")
        self.rows: list[Row] = []
        if self.path.exists():
            lines = self.path.read_text().splitlines()
            self.rows = [json.loads(line) for line in lines if line.endswith("}")]
            # A kill may have left half of a line, after which the next one must not be written.
            self.path.write_text("".join(f"{canonical_json(row)}\n" for row in self.rows))

    def get(self, make: Callable[[], Row], **named: str | int) -> Row:
        """Return the row of these names, which is made and written if it is not there."""
        for row in self.rows:
            if all(row[name] == value for name, value in named.items()):
                return row
        row = {name: value for name, value in make().items() if value == value}  # JSON has no NaN
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(f"{canonical_json(row)}\n")
        self.rows.append(row)
        return row


def sample_scenes(count: int, *, seed: int, size: int, num_views: int, fit: FitConfig) -> tuple[WorldScene, ...]:
    """Sample worlds with one look each that is asked for by a picture and by words; every other one has no name."""
    scenes: list[WorldScene] = []
    draw = 0
    while len(scenes) < count:
        item = derive_seed("reference scene", seed, draw)
        draw += 1
        edit, _ = sample_pictured_edit("look", item, split="unseen")
        wanted = edit.after.objects[changed_object(edit)]
        if (wanted == named_look(wanted)) != (len(scenes) % 2 == 0):
            continue
        told = dataclasses.replace(edit, kind=TOLD, instruction=in_words(edit))
        capture = CaptureConfig(num_views=num_views, held_out_every=4, size=size)
        name = f"{'named' if len(scenes) % 2 == 0 else 'nameless'}-{len(scenes):03d}"
        scenes.append(
            WorldScene(
                name=name, description=edit.before, world_edits=(edit, told), seed=item, capture=capture, fit=fit
            )
        )
    return tuple(scenes)


def scene_study(args: argparse.Namespace) -> Study:
    """Return the study of fitted scenes: each method by reference and by words."""
    fit = FitConfig(steps=args.fit_steps)
    scenes = sample_scenes(args.scenes, seed=args.seed, size=args.size, num_views=args.scene_views, fit=fit)
    editors = {
        "reference": MenuEditor(name="edit_model", model=args.model, options=args.options),
        "words": MenuEditor(name="edit_model", model=args.words_model),
    }
    methods = {}
    for name in args.methods:
        for editor, kind in (("reference", "look"), ("words", TOLD)):
            edits = tuple(edit for scene in scenes for edit in scene.edits if edit.startswith(f"{kind}-"))
            methods[f"{name}_{editor}"] = StudyMethod(settings=METHODS[name](), editors=(editor,), edits=edits)
    compare = CompareConfig(orbit_frames=0)
    return Study(name="reference", scenes=scenes, methods=methods, editors=editors, compare=compare, seed=args.seed)


def scene_rows(folder: Path) -> Iterator[Row]:
    """Yield the progress of every result of the study."""
    for score in read_scores(folder / "compare" / "scores.parquet"):
        if score.metric == "progress":
            name, _, by = score.method.rpartition("_")
            is_nameable = float(score.scene.startswith("named-"))
            yield {"part": "scene", "method": name, "by": by, "is_nameable": is_nameable, "progress": score.value}


def _mean(rows: Sequence[Mapping[str, Any]], name: str, **where: Any) -> float | None:
    values = [row[name] for row in rows if name in row and all(row.get(key) == value for key, value in where.items())]
    values = [value for value in values if not math.isnan(value)]
    return float(np.mean(values)) if values else None


def summarize(rows: Sequence[Row]) -> dict[str, float | None]:
    """Return the means that the benchmark is about; None for what was not measured."""
    named = ("progress_reference", "progress_words", "delta_e_reference", "delta_e_nearest_name", "pattern_right")
    # A swap says more than a look does, so that only looks are compared with words.
    found = {name: _mean(rows, name, part="view", kind="look") for name in named}
    found |= {"kind_right": _mean(rows, "kind_right", part="view")}
    found |= {name: _mean(rows, name, part="view") for name in ("spill", "copy_leak", "noop_change")}
    for by in ("reference", "words"):
        found[f"scene_progress_{by}"] = _mean(rows, "progress", part="scene", method="restage", by=by)
        for is_nameable, what in ((1.0, "named"), (0.0, "nameless")):
            where = {"part": "scene", "method": "restage", "by": by, "is_nameable": is_nameable}
            found[f"scene_progress_{by}_{what}"] = _mean(rows, "progress", **where)
    found["progress_swap"] = _mean(rows, "progress_reference", part="view", kind=SWAP)
    names = ("anchor_gain", "progress_alone", "progress_anchored", "disagreement_alone", "disagreement_anchored")
    return found | {name: _mean(rows, name, part="anchor") for name in names}


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ASSETS / "edit_model", help="edit model that looks at pictures")
    parser.add_argument("--words-model", type=Path, help="edit model of words; default: the same")
    parser.add_argument("--worlds", type=int, default=40, help="worlds of each kind")
    parser.add_argument("--kinds", nargs="+", choices=["look", SWAP], default=["look", SWAP])
    parser.add_argument("--anchors", type=int, help="worlds with an anchor; default: half as many")
    parser.add_argument("--scenes", type=int, default=0, help="fitted scenes, half of them with looks without a name")
    parser.add_argument("--methods", nargs="+", default=list(SCENE_METHODS))
    parser.add_argument("--fit-steps", type=int, default=FitConfig().steps)
    parser.add_argument("--scene-views", type=int, default=24)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("runs/reference"))
    args = parser.parse_args(arguments)
    args.words_model = args.words_model or args.model
    args.anchors = args.worlds // 2 if args.anchors is None else args.anchors
    record = args.model / "edit_model.json"
    is_trained = record.is_file() and "references" in read_json(record)
    args.options = () if is_trained else (MUTUAL,)
    return args


def main(arguments: Sequence[str] | None = None) -> dict[str, float | None]:
    """Measure what is not measured yet, and print the summary as JSON."""
    args = read_arguments(arguments)
    source = EditorSource(model=args.model, device=args.device, options=args.options)
    words = EditorSource(model=args.words_model, device=args.device)
    models = Models(open_edit_model(source), open_edit_model(words), load_probe(PROBE))
    weights = [edit_weights_sha256(folder) for folder in (args.model, args.words_model)]
    store = _Rows(args.folder / "rows.jsonl", content_id("rows", [weights, args.options, args.seed, args.size]))
    rows: list[Row] = []
    how = {"seed": args.seed, "size": args.size}
    for index in range(args.worlds):
        for kind in args.kinds:
            named = {"part": "view", "kind": kind, "index": index}
            pictures = args.folder / "pictures" if index < 8 else None
            rows.append(
                store.get(lambda k=kind, i=index, f=pictures: measure_view(models, k, i, folder=f, **how), **named)
            )
            print(f"{kind} {index + 1}/{args.worlds}: {rows[-1].get('progress_reference', math.nan):.3f}", flush=True)
    for index in range(args.anchors):
        rows.append(store.get(lambda i=index: measure_anchor(models, i, **how), part="anchor", index=index))
        print(f"anchor {index + 1}/{args.anchors}: gain {rows[-1].get('anchor_gain', math.nan):.3f}", flush=True)
    if args.scenes:
        for step in run_study(scene_study(args), args.folder / "scenes", device=args.device):
            print(f"scenes {step.done}/{step.total}: {step.note}", flush=True)
        rows += scene_rows(args.folder / "scenes")
    summary = summarize(rows)
    print(json.dumps(summary))
    return summary


if __name__ == "__main__":
    main()

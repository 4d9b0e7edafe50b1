"""How well are regions found by one click and by words, and how far does an edit inside of one spill?

    python -m benchmarks.regions                          # ten unseen scenes, and the bear
    python -m benchmarks.regions --scenes 3 --bear none

*Miniature*: scenes of unseen looks, fitted with the demo's settings (kept in `runs/regions`).
Truth of an object are the splats that show it by the world's exact ids. It is clicked once in a training view, at a
place drawn by chance, at least three pixels from its edge, and named by its phrase ("the small orange ball").
*Second world*: two scenes of the second edition (patterns, things on things), which no model of ours was trained on;
held-out mask IoU of one click a thing with the world's exact masks (`second_click_iou`).
*Bear*: words by the extra `segment`; `bear_iou` is held-out mask IoU with the mask of the boxes of bear_boxes.json,
`bear_hand_iou` with outlines that were drawn by hand in four held-out views (bear_outlines.json), and `boxes_hand_iou`
tells how good the boxes are by those. `bear_spill` is mean |E - B| outside of the region, `bear_hand_spill` outside of
the outlines, of "make it bronze" by `restage` with the editor `grade`. `bear_click_iou` is IoU with the outlines after
one click, the mean of twelve at places drawn by chance inside of them, `bear_two_clicks_iou` after a second click at
what the first took along by mistake. The last line is JSON.

What was measured is kept beside the fits (`measured/`), so that a stopped benchmark goes on; without it all is measured
anew.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from benchmarks.methods_capture import BOXES, SIZE
from restage.compare.config import CompareConfig
from restage.compare.stage import run_compare
from restage.edit.pictures import quantize
from restage.edit.single import EditChoice, open_edit
from restage.records import EditRequest, Progress, read_json, write_json
from restage.regions.files import write_region
from restage.regions.given import region_of_boxes
from restage.regions.growing import grow_from, prepare_graph, seeds_near
from restage.regions.making import Click, RegionMaker, outline_mask
from restage.regions.masks import lift_masks
from restage.regions.region import Region, render_region
from restage.run.folder import open_run, working
from restage.run.layout import SCORES
from restage.run.progress import show_progress
from restage.scenes.config import PHOTOGRAPHS, ScenesConfig
from restage.scenes.fit import render_views
from restage.scenes.io import capture_name
from restage.scenes.io.splat_files import read_splats
from restage.scenes.splats import Splats
from restage.scenes.stage import fit_folder, run_scenes
from restage.scores.rows import read_scores
from restage.world.config import WorldConfig
from restage.world.description import Description
from restage.world.grammar import object_phrase
from restage.world.render import render_view
from restage.world.stage import run_world

OUTLINES = Path(__file__).with_name("bear_outlines.json")
FIRST_OBJECT_ID = 2
MIN_CLICKED_PX, EDGE_PX = 60, 3
MANY = 60_000
NUM_CLICKS = 3
"""In each view with an outline."""


class Found(NamedTuple):
    """How well an object was found."""

    name: str
    click_iou: float
    words_iou: float


def once(folder: Path, name: str, measure: Callable[..., Any], *given: Any) -> Any:
    """Measure, or read what was measured before; plain data."""
    path = folder / "measured" / f"{name}.json"
    if not path.is_file():
        write_json(path, measure(*given))
    return read_json(path)


def iou(found: Tensor, truth: Tensor) -> float:
    """Intersection over union."""
    return float((found & truth).sum() / (found | truth).sum().clamp_min(1))


def make_scenes(out: Path, count: int, edition: int = 1) -> list[Path]:
    """Make and fit the scenes; what is there stays."""
    config = WorldConfig(num_scenes=count, edit_kinds=("remove",), split="unseen", edition=edition)
    with working(open_run(out, seed=34), "world", "scenes") as run:
        show_progress(run_world(run, config))
        show_progress(run_scenes(run, ScenesConfig()))
    return sorted((out / "scenes").glob("scene-*"))


def find_objects(folder: Path, seed: int) -> list[list[Any]]:
    """Click and name each object of a scene; the fields of a `Found` for each."""
    maker = RegionMaker(folder)
    description = Description.from_plain(read_json(folder / "description.json"))
    cameras, rng, found = maker.capture.cameras, np.random.default_rng(seed), []
    ids = np.stack([render_view(description, cameras[view]).object_ids for view in range(len(cameras))])
    for number, item in enumerate(description.objects, start=FIRST_OBJECT_ID):
        lifted = lift_masks(maker.splats, cameras, torch.from_numpy((ids == number).astype(np.float32)))
        truth = lifted >= 0.5
        views = [view for view in maker.capture.train_indices if (ids[view] == number).sum() >= MIN_CLICKED_PX]
        view = int(rng.choice(views))
        click = click_inside(ids[view] == number, str(view), rng)
        phrase = object_phrase(item)
        clicked, named = maker.by_clicks([click]), maker.by_words(f"the {phrase}")
        found.append([phrase, iou(clicked.inside, truth), iou(named.inside, truth)])
    return found


def click_inside(mask: np.ndarray, view: str, rng: np.random.Generator) -> Click:
    """A click at a place inside of a mask, away from its edge."""
    depth = np.asarray(distance_transform_edt(mask))
    row, column = rng.choice(np.argwhere(depth >= min(EDGE_PX, depth.max())))
    return Click(view, (column + 0.5) / mask.shape[1], (row + 0.5) / mask.shape[0])


def click_masks(folder: Path, seed: int) -> list[float]:
    """Held-out mask IoU of one click on each object of a scene with the world's exact masks."""
    maker = RegionMaker(folder)
    description = Description.from_plain(read_json(folder / "description.json"))
    cameras, rng = maker.capture.cameras, np.random.default_rng(seed)
    ids = torch.from_numpy(np.stack([render_view(description, cameras[v]).object_ids for v in range(len(cameras))]))
    held_out, found = list(maker.capture.held_out_indices), []
    for number in range(FIRST_OBJECT_ID, FIRST_OBJECT_ID + len(description.objects)):
        views = [view for view in maker.capture.train_indices if (ids[view] == number).sum() >= MIN_CLICKED_PX]
        view = int(rng.choice(views))
        region = maker.by_clicks([click_inside((ids[view] == number).numpy(), str(view), rng)])
        shown = render_region(region, maker.splats, cameras[held_out]) > 0.5
        found.append(iou(shown, ids[held_out] == number))
    return found


def click_bear(maker: RegionMaker, names: list[str], hand: Tensor) -> dict[str, float]:
    """Click at the bear in views with outlines, and then at what the click took along by mistake."""
    rng, one, two, taken = np.random.default_rng(0), [], [], []
    files = [Path(name).name for name in maker.capture.file_names]
    cameras = maker.capture.cameras[[files.index(name) for name in names]]

    def shown(clicks: list[Click], not_clicks: list[Click]) -> Tensor:
        start_s = time.perf_counter()
        region = maker.by_clicks(clicks, not_clicks=not_clicks)
        taken.append(time.perf_counter() - start_s)
        return render_region(region, maker.splats, cameras) > 0.5

    assert maker.graph  # prepared once, before any click is timed
    for place in np.repeat(np.arange(len(names)), NUM_CLICKS):
        click = click_inside(hand[place].numpy(), names[place], rng)
        found = shown([click], [])
        one.append(iou(found, hand))
        wrong = np.stack([np.asarray(distance_transform_edt(one.numpy())) for one in found & ~hand])
        deepest = int(wrong.max(axis=(1, 2)).argmax())
        if wrong[deepest].max() >= EDGE_PX:
            row, column = np.unravel_index(wrong[deepest].argmax(), wrong[deepest].shape)
            at = Click(names[deepest], (column + 0.5) / cameras.width, (row + 0.5) / cameras.height)
            found = shown([click], [at])
        two.append(iou(found, hand))
        print(f"bear: a click at {click.view}: {one[-1]:.3f}, with a second one {two[-1]:.3f}", flush=True)
    return {
        "bear_click_iou": float(np.mean(one)),
        "bear_click_iou_worst": min(one),
        "bear_two_clicks_iou": float(np.mean(two)),
        "bear_two_clicks_iou_worst": min(two),
        "bear_click_s": float(np.median(taken)),
    }


def time_click(folder: Path) -> dict[str, float]:
    """Seconds on the clock of one click, and of preparing, with 60,000 splats: those of a scene, moved and repeated."""
    maker, generator = RegionMaker(folder), torch.Generator().manual_seed(0)
    chosen = torch.arange(MANY) % len(maker.splats)
    parts = maker.splats[chosen].parameters()
    parts["means"] = parts["means"] + 0.02 * torch.randn(MANY, 3, generator=generator)
    splats = Splats(**parts)
    start_s = time.perf_counter()
    graph = prepare_graph(splats, maker.capture)
    prepared_s = time.perf_counter() - start_s
    taken = []
    for index in torch.randperm(MANY, generator=generator)[:5].tolist():
        start_s = time.perf_counter()
        grow_from(graph, seeds_near(splats, splats.means[index].tolist()))
        taken.append(time.perf_counter() - start_s)
    return {"click_s_60k": float(np.median(taken)), "click_s_60k_longest": max(taken), "prepare_s_60k": prepared_s}


def measure_bear(capture: Path, out: Path) -> dict[str, float]:
    """Fit, find by words, edit inside, score; what is there stays."""
    show_progress(fit_folder(capture, out, PHOTOGRAPHS, size=SIZE))
    folder = out / "scenes" / capture_name(capture)
    maker = RegionMaker(folder)
    splats, views = maker.splats, list(maker.capture.held_out_indices)
    cameras, names = maker.capture.cameras[views], [Path(maker.capture.file_names[view]).name for view in views]
    drawn = read_json(OUTLINES, dict[str, list[tuple[float, float]]])
    chosen = [names.index(name) for name in drawn]
    hand = torch.stack([outline_mask(corners, cameras.width, cameras.height) for corners in drawn.values()]) > 0.5

    def masks(region: Region) -> Tensor:
        return render_region(region, splats, cameras) > 0.5

    bear = maker.by_words("the bear")
    write_region(out, folder.name, "bear", bear)
    shown, boxes = masks(bear), masks(region_of_boxes(BOXES, maker.capture, splats))
    request = EditRequest(instruction="make it bronze", source_caption="", target_caption="")
    with working(open_run(out), "edit", "compare") as run:
        opened = open_edit(run, folder, request=request, choice=EditChoice(editor="grade", region=Path("bear")))
        show_progress(Progress(stage="edit", done=s.step, total=s.num_steps, note=s.note) for s in opened.steps)
        show_progress(run_compare(run, CompareConfig(orbit_frames=0)))
    edit = opened.folder.parents[1].name
    rows = [row for row in read_scores(out / SCORES) if row.edit == edit and row.method == "restage"]
    after = render_held_out(read_splats(opened.folder / "splats.ply"), cameras)[chosen]
    change = (after - render_held_out(splats, cameras)[chosen]).abs().mean(dim=1)
    return {
        "bear_iou": iou(shown, boxes),
        "bear_spill": next(row.value for row in rows if row.metric == "spill"),
        "bear_hand_iou": iou(shown[chosen], hand),
        "boxes_hand_iou": iou(boxes[chosen], hand),
        "bear_hand_spill": float(change[~hand].mean()),
        **click_bear(maker, list(drawn), hand),
    }


def render_held_out(splats: Splats, cameras: Any) -> Float[Tensor, "n 3 h w"]:
    """Views as files hold them."""
    return quantize(render_views(splats, cameras))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("runs/regions"), help="the run of the scenes")
    parser.add_argument("--second", type=int, default=2, help="scenes of the second world; 0 leaves them out")
    parser.add_argument("--bear", default="../shared/data/captures/bear", help="its capture; none leaves it out")
    parser.add_argument("--bear-run", type=Path, default=Path("runs/bear"), help="its run")
    parser.add_argument("--removal", type=Path, help="what benchmarks.removal printed: its figures are added")
    options = parser.parse_args()
    folders = make_scenes(options.folder, options.scenes)
    found: list[Found] = []
    for seed, folder in enumerate(folders):
        rows = once(options.folder, folder.name, find_objects, folder, seed)
        for item in (Found(*row) for row in rows):
            found.append(item)
            print(f"{folder.name}: {item.name}: click {item.click_iou:.3f}, words {item.words_iou:.3f}", flush=True)
    clicks = np.array([item.click_iou for item in found])
    figures: dict[str, Any] = {
        "objects": len(found),
        "click_iou": float(clicks.mean()),
        "click_at_least_0.7": float((clicks >= 0.7).mean()),
        "words_iou": float(np.mean([item.words_iou for item in found])),
        **once(options.folder, "time", time_click, folders[0]),
    }
    second = options.folder.with_name(f"{options.folder.name}-second")
    ious: list[float] = []
    for seed, folder in enumerate(make_scenes(second, options.second, edition=2) if options.second else []):
        rows = once(second, folder.name, click_masks, folder, seed)
        print(f"second world, {folder.name}: clicks", *(f"{value:.3f}" for value in rows), flush=True)
        ious += rows
    if ious:
        figures["second_click_iou"] = float(np.mean(ious))
    if options.removal is not None:
        removal = json.loads(options.removal.read_text().splitlines()[-1])
        figures |= {name: removal[name] for name in ("remove_progress", "remove_progress_before")}
    if options.bear != "none":
        figures |= once(options.bear_run, "bear", measure_bear, Path(options.bear), options.bear_run)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()

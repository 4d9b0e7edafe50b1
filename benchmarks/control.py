"""How well do depth and ids steer the miniature, and what of a control branch does it?

    python -m benchmarks.control --folder training                           # trains every arm, then measures
    python -m benchmarks.control --folder training --branch training/miniature/control --arms none cross_norm

Arms: no control, cross normalization, zero convolution, a copied-encoder ControlNet, the branch alone (the UNet's
output projections stay), and two other places; all with the same steps, data and seed, measured every few steps. Needs
`restage miniature train pictures`, `text-to-image` and `reader`; what is done is kept in --out and not done again.

On unseen worlds. *id IoU*: of sky, ground and each thing, as the reader (`miniature/reader.py`) sees them, mean; its
ceiling is its reading of exact renders. *PSNR*: against the render that caption, depth and ids together describe.
*caption right*: kinds, colors, number, ground and light, by the probe. *mismatch followed*: depth and ids of one scene,
the caption of the same things in other colors, on another ground, at another time; share of pictures with an id IoU of
.7 and the caption right. *orbit*: frames along a path, each under its own depth and ids, with one noise; the worst
frame of each, mean over orbits. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.miniature.held_out import Captioned, captions
from benchmarks.miniature.parts import fits
from benchmarks.miniature.verdicts import judge, seen_in
from miniature.control import RECIPE, base_of, prepare_control
from miniature.pictures import Pictures
from miniature.probe import Probe, load_probe, read_pictures
from miniature.reader import SIZE, Reader, id_iou, load_reader, read_ids
from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.branches import ControlBranch
from restage.diffusion.conditions import NUM_SLOTS, num_channels
from restage.diffusion.config import BranchSource
from restage.diffusion.sampling import sample_images
from restage.records import InputError, Progress, derive_seed, file_sha256, read_json, write_json
from restage.run.progress import show_progress
from restage.scenes.cameras import Cameras
from restage.scenes.fit import psnr
from restage.scenes.io.images import write_png
from restage.train.config import BranchConfig
from restage.train.control import train_branch
from restage.world.capture import sample_camera
from restage.world.clips import sample_clip
from restage.world.description import COLORS, GROUNDS, TIMES, Description
from restage.world.grammar import caption_of
from restage.world.render import View, layout_of, render_view

ARMS = {
    "cross_norm": BranchConfig(),
    "zero_conv": BranchConfig(injection="zero_conv"),
    "controlnet": BranchConfig(arm="controlnet"),
    "branch_only": BranchConfig(arm="branch-only"),
    "down_0": BranchConfig(placement="down_0"),
    "mid": BranchConfig(placement="mid"),
}
NONE = "none"
GOOD_IOU = 0.7
SAMPLED_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Wanted:
    """A picture that is asked for: its caption, and the view that it should be."""

    description: Description
    caption: str
    seed: int
    view: View  # of the scene that caption, depth and ids describe


class Measured(NamedTuple):
    """What pictures are worth, one value for each."""

    id_iou: list[float]
    depth_error: list[float]  # mean absolute difference of inverse depth
    psnr_db: list[float]
    is_right: list[bool]  # whether the caption is followed

    def means(self) -> dict[str, float]:
        """Means over the pictures."""
        return {name: float(np.mean(values)) for name, values in self._asdict().items()}


class Judges(NamedTuple):
    """Who reads pictures."""

    reader: Reader
    probe: Probe


def wanted_worlds(backbone: Backbone, count: int, world_seed: int) -> list[Wanted]:
    """Choose unseen worlds whose captions the tokenizer can hold."""

    def short(item: Captioned) -> bool:
        return fits(backbone.tokenizer, item.caption)

    return [
        Wanted(item.description, item.caption, item.seed, render_view(item.description, camera_of(item)))
        for item in captions(world_seed, count, fits=short)
    ]


def camera_of(item: Captioned | Wanted) -> Cameras:
    """Return the camera that a world is seen by."""
    return sample_camera(item.description, item.seed)


def in_other_colors(item: Wanted) -> Wanted:
    """Return the same things at the same places in other colors, on another ground and at another time."""
    rng = np.random.default_rng(derive_seed("mismatch", item.seed))
    scene = item.description
    colors = rng.permutation([color for color in COLORS if color not in {o.color for o in scene.objects}]).tolist()
    objects = tuple(
        replace(o, color=color, pattern="", second_color="") for o, color in zip(scene.objects, colors, strict=False)
    )
    ground, time_of_day = (
        str(rng.choice([x for x in known if x != now])) for known, now in ((GROUNDS, scene.ground), (TIMES, scene.time))
    )
    changed = replace(scene, objects=objects, ground=ground, time=time_of_day)
    view = render_view(changed, camera_of(item))
    return Wanted(changed, caption_of(changed, item.seed), item.seed, view)


def orbits(worlds: Sequence[Wanted], num_frames: int) -> list[list[Wanted]]:
    """Return the frames of an orbit around each world."""
    found = []
    for item in worlds:
        clip = sample_clip(item.seed, motion="still", moves_camera=True, num_frames=num_frames, scene=item.description)
        views = [render_view(frame, clip.cameras[number]) for number, frame in enumerate(clip.frames)]
        found.append([replace(item, view=view) for view in views])
    return found


def paint(backbone: Backbone, items: Sequence[Wanted], steps: int) -> Float[Tensor, "n 3 128 128"]:
    """Sample a picture of each, under control if the backbone has a branch."""
    parts = []
    for start in range(0, len(items), SAMPLED_AT_ONCE):
        batch = items[start : start + SAMPLED_AT_ONCE]
        model = backbone
        if backbone.branches:
            # Any slots will do: they are drawn, as in training.
            orders = [np.random.default_rng(item.seed).permutation(NUM_SLOTS).tolist() for item in batch]
            used = [order[: len(item.description.objects)] for order, item in zip(orders, batch, strict=True)]
            layouts = [layout_of(item.view, order) for item, order in zip(batch, used, strict=True)]
            model = backbone.steered(layouts)
        seeds = [item.seed for item in batch]
        parts.append(sample_images(model, [item.caption for item in batch], seeds=seeds, steps=steps))
    return torch.cat(parts)


def renders(items: Sequence[Wanted]) -> Float[Tensor, "n 3 128 128"]:
    """Return the exact pictures."""
    return torch.from_numpy(np.stack([item.view.image for item in items]))


@torch.no_grad()
def measure(images: Float[Tensor, "n 3 128 128"], items: Sequence[Wanted], judges: Judges) -> Measured:
    """Judge pictures by what was wanted."""
    found = judges.reader(images)
    ious, errors = [], []
    for row, item in enumerate(items):
        ids = torch.from_numpy(item.view.object_ids).long()[1::2, 1::2]
        assert ids.shape == (SIZE, SIZE)
        ious.append(id_iou(read_ids(found, row, ids), ids))
        errors.append(float((found.inverse_depth[row] - layout_of(item.view)["depth"][0, 1::2, 1::2]).abs().mean()))
    seen = seen_in(read_pictures(judges.probe, images))
    right = [judge(one, item.description).is_all_right for one, item in zip(seen, items, strict=True)]
    return Measured(ious, errors, psnr(images, renders(items)).tolist(), right)


# --- arms -----------------------------------------------------------------------------------------------------------


def drained(steps: Generator[Progress, None, Any]) -> Any:
    """Show the progress of a generator, and return its value."""
    result: list[Any] = []

    def kept() -> Generator[Progress, None, None]:
        result.append((yield from steps))

    show_progress(kept())
    return result[0]


def grow_arm(
    name: str, args: argparse.Namespace, pictures: Pictures, measured: Callable[[Path], dict[str, float]]
) -> dict[str, Any]:
    """Train an arm step by step of the curve, and measure it at each; what was measured before is kept."""
    folder, config = args.out / "arms" / name, ARMS[name]
    path = folder.with_suffix(".json")
    judged_by = file_sha256(args.probe) + file_sha256(reader_of(args))
    record: dict[str, Any] = read_json(path) if path.is_file() else {"curve": {}, "judged_by": judged_by}
    if record.get("judged_by") != judged_by:
        raise InputError(f"{path} was measured by another probe or reader; choose another --out")
    training = replace(RECIPE, num_steps=args.steps, batch_size=args.batch_size, cooldown_share=0.0)
    backbone, data = None, None
    for done in range(args.every, args.steps + 1, args.every):
        if str(done) in record["curve"]:
            continue
        if data is None:
            models = args.folder / "miniature"
            backbone, data = drained(prepare_control(models, pictures, training, config, start=args.start))
        assert backbone is not None
        begun_s, before = time.process_time(), len(record["curve"]) * args.every
        where = {"state": folder / "state", "folder": folder}
        show_progress(train_branch(backbone, data, config, training=replace(training, num_steps=done), **where))
        record["step_s"] = (time.process_time() - begun_s) / max(1, done - before)
        record["curve"][str(done)] = measured(folder)
        write_json(path, record)
        print(f"{name}, step {done}: {record['curve'][str(done)]}", flush=True)
    return record


def reader_of(args: argparse.Namespace) -> Path:
    """Return the file of the reader of ids and depth."""
    return args.folder / "miniature" / "reader" / "reader.safetensors"


def steps_to(record: dict[str, Any] | None) -> int | None:
    """Return the steps after which the id IoU was good; None if it never was."""
    curve = {} if record is None else record["curve"]
    good = [int(done) for done, found in curve.items() if found["id_iou"] >= GOOD_IOU]
    return min(good, default=None)


def num_parameters(model: Any) -> int:
    """Return the number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def time_share(backbone: Backbone, steps: int) -> float:
    """Return the time of a branch over that of the UNet, for four pictures of so many guided steps, in CPU seconds."""
    branch = backbone.branches[0]
    conditions = torch.rand(4, num_channels(branch.conditions), *backbone.picture_size)
    config: Any = backbone.unet.config
    latents = torch.randn(8, config["in_channels"], config["sample_size"], config["sample_size"])
    t, text = torch.full((8,), 500), backbone.encode_prompts(["a red ball"]).expand(8)

    def spent_s(call: Callable[[], Any]) -> float:
        begun_s = time.process_time()
        call()
        return time.process_time() - begun_s

    def of_branch() -> None:
        with torch.no_grad(), backbone.precision():
            encoded = branch.model.encode(conditions) if isinstance(branch.model, ControlBranch) else conditions
            for _ in range(steps):
                if isinstance(branch.model, ControlBranch):
                    branch.model.finish(encoded, t[:4])
                else:
                    branch.residuals(latents, t, conditions, text=text.tokens, added=None)

    def of_unet() -> None:
        for _ in range(steps):
            backbone.predict_noise(latents, t, text)

    both = [(spent_s(of_branch), spent_s(of_unet)) for _ in range(4)]
    ours, whole = (float(np.median([pair[side] for pair in both[1:]])) for side in (0, 1))
    return ours / whole


def draw_sheet(path: Path, columns: Sequence[Float[Tensor, "n 3 h w"]]) -> None:
    """Write pictures side by side, a row for each world."""
    rows = [torch.cat([column[row] for column in columns], dim=2) for row in range(len(columns[0]))]
    write_png(path, torch.cat(rows, dim=1).permute(1, 2, 0))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, measure, print the table and the JSON line; returns what the line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("training"), help="folder of pictures and models")
    parser.add_argument("--out", type=Path, default=Path("runs/control"), help="where arms and pictures go")
    parser.add_argument("--start", type=Path, help="text-to-image model; default: the folder's, or the shipped one")
    parser.add_argument("--branch", type=Path, help="a trained branch to measure; default: the arm cross_norm")
    parser.add_argument("--probe", type=Path, default=Path(__file__).parent / "miniature" / "probe.safetensors")
    parser.add_argument("--arms", nargs="*", choices=(NONE, *ARMS), default=(NONE, *ARMS))
    parser.add_argument("--num-pictures", type=int, default=25_000)
    parser.add_argument("--steps", type=int, default=2000, help="training steps of each arm")
    parser.add_argument("--every", type=int, default=250, help="steps between two points of the curve")
    parser.add_argument("--batch-size", type=int, default=RECIPE.batch_size)
    parser.add_argument("--worlds", type=int, default=96, help="unseen worlds; a third of them for curves and orbits")
    parser.add_argument("--frames", type=int, default=8, help="frames of an orbit")
    parser.add_argument("--sampling-steps", type=int, default=15)
    parser.add_argument("--world-seed", type=int, default=35)
    args = parser.parse_args(arguments)
    base = args.start or base_of(args.folder / "miniature")
    plain, few = load_backbone(base), max(1, args.worlds // 3)
    judges = Judges(load_reader(reader_of(args)), load_probe(args.probe))
    worlds = wanted_worlds(plain, args.worlds, args.world_seed)

    def steered(folder: Path) -> Backbone:
        return load_backbone(base, branches=[BranchSource(folder=folder)])

    def measured(folder: Path) -> dict[str, float]:
        return measure(paint(steered(folder), worlds[:few], args.sampling_steps), worlds[:few], judges).means()

    pictures = Pictures(args.folder / "pictures", args.num_pictures)
    arms = {name: grow_arm(name, args, pictures, measured) for name in args.arms if name != NONE}
    backbone = steered(args.branch or args.out / "arms" / "cross_norm")
    uncontrolled, controlled = (paint(model, worlds, args.sampling_steps) for model in (plain, backbone))
    ceiling = measure(renders(worlds), worlds, judges).means()
    without, with_it = (measure(images, worlds, judges).means() for images in (uncontrolled, controlled))
    others = [in_other_colors(item) for item in worlds]
    mismatched = paint(backbone, others, args.sampling_steps)
    followed = measure(mismatched, others, judges)
    both = [iou >= GOOD_IOU and right for iou, right in zip(followed.id_iou, followed.is_right, strict=True)]
    frames = [
        measure(paint(backbone, path, args.sampling_steps), path, judges).id_iou
        for path in orbits(worlds[:few], args.frames)
    ]
    shown = slice(0, 6)
    columns = [images[shown] for images in (renders(worlds), uncontrolled, controlled, renders(others), mismatched)]
    draw_sheet(args.out / "control.png", columns)
    print_table(arms, plain, measure(uncontrolled[:few], worlds[:few], judges).means(), args)
    line = {
        "id_iou": with_it["id_iou"],
        "id_iou_ceiling": ceiling["id_iou"],
        "id_iou_uncontrolled": without["id_iou"],
        "depth_error": with_it["depth_error"],
        "depth_error_ceiling": ceiling["depth_error"],
        "psnr_db": with_it["psnr_db"],
        "psnr_gain_db": with_it["psnr_db"] - without["psnr_db"],
        "caption_right": with_it["is_right"],
        "caption_right_uncontrolled": without["is_right"],
        "mismatch_followed": float(np.mean(both)),
        "parameter_share": num_parameters(backbone.branches[0].model) / num_parameters(plain.unet),
        "time_share": time_share(backbone, args.sampling_steps),
        "steps_to_iou_cross_norm": steps_to(arms.get("cross_norm")),
        "steps_to_iou_zero_conv": steps_to(arms.get("zero_conv")),
        "orbit_id_iou": float(np.mean([min(path) for path in frames])),
        "num_worlds": len(worlds),
    }
    print(json.dumps({name: round(x, 4) if isinstance(x, float) else x for name, x in line.items()}))
    return line


def print_table(arms: dict[str, Any], plain: Backbone, without: dict[str, float], args: argparse.Namespace) -> None:
    """Print what each arm came to, on the worlds of the curves."""
    print("| arm | parameters | CPU s a step | id IoU | PSNR, dB | caption right | steps to .7 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    rows: list[tuple[str, int, float, dict[str, float], int | None]] = [("no control", 0, 0.0, without, None)]
    for name, record in arms.items():
        source = BranchSource(folder=args.out / "arms" / name)
        model = load_backbone(plain.folder or Path(), branches=[source]).branches[0].model
        last = record["curve"][str(max(map(int, record["curve"])))]
        rows.append((name, num_parameters(model), record["step_s"], last, steps_to(record)))
    for name, count, step_s, last, steps in rows:
        figures = f"{last['id_iou']:.3f} | {last['psnr_db']:.1f} | {last['is_right']:.3f}"
        print(f"| {name} | {count} | {step_s:.2f} | {figures} | {'-' if steps is None else steps} |")


if __name__ == "__main__":
    main()

"""Fits splats to captures and measures held-out views; the last line is JSON.

    python benchmarks/fit.py                             # the bear at 160 and 256, an unseen miniature world
    python benchmarks/fit.py --sizes 160 256 512 1000    # the bear at these sizes alone
    python benchmarks/fit.py --picture docs/pictures/bear_fit.png
    python benchmarks/fit.py --capture FOLDER --size 160 --time-budget 60
    python benchmarks/fit.py --capture FOLDER --size 160 --table
    python benchmarks/fit.py --miniature --table

Without --capture: bear160_psnr_db, bear160_s, bear256_psnr_db, bear256_s, miniature_psnr_db, miniature_s, peak_mb.
With --sizes: bear<size>_psnr_db, bear<size>_s, bear<size>_cpu_s, peak_gb, and of the fit at 512 pixels, or at the
largest size, first_22db_s and first_22db_full_s: seconds, preparation included, until held-out views reach 22 dB at the
size at which the fit then works, and at the full size. The bear's photographs have 512 pixels; above, they are
enlarged, which measures time and memory, but no finer detail. Settings are those of `restage fit` at that size.
With --capture: psnr_db, s, peak_mb. Seconds are wall time of fitting, after a step that compiles the kernels; cpu_s is
what the process used of it. With --table, every setting of ABLATIONS is fitted one after the other: compare cpu_s,
which depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from restage.scenes.capture import Capture
from restage.scenes.config import PHOTOGRAPHS, FitConfig, PhotometricLoss, for_size
from restage.scenes.fit import SplatFit, Targets, fit_splats, psnr, render_views
from restage.scenes.io import read_capture
from restage.scenes.splats import Splats
from restage.world.capture import make_capture
from restage.world.grammar import sample_description

BEAR = Path(__file__).parents[2] / "shared" / "data" / "captures" / "bear"
BEAR_SIZES = (160, 256)
BEAR_SIDE = 512
"""Longer side of the bear's photographs in pixels."""
SOUGHT_DB = 22.0
LOOK_EVERY = 50
"""Steps between looks at held-out views, until they are as good as sought."""
MINIATURE = FitConfig()
MINIATURE_SEEDS = (101, 102, 103, 901)
"""Three worlds that were measured before, and a hard one; no model was trained on them."""
PICTURE_VIEWS = 3
PICTURE_SIDE = 192
MAX_PICTURE_BYTES = 200_000
ABLATIONS = {
    "default": {},
    "SSIM 0": {"loss": PhotometricLoss()},
    "means at one rate": {"has_rates_by_distance": False},
    "shell at 4 scene sizes": {"shell_radius": 4.0},
    "splats as wide as their spacing": {"scale_share": 1.0},
    "half the splats": {"num_splats": PHOTOGRAPHS.num_splats // 2},
    "half size first": {"coarse_share": 0.4},
    "exposures": {"fits_exposure": True},
    "early stop": {"stop_gain": 0.02},
}
"""What is changed of the default, by name; `half the splats` is that of photographs."""


class Measured(NamedTuple):
    """What a fit achieved."""

    psnr_db: float
    train_psnr_db: float
    s: float
    cpu_s: float
    steps: int
    num_splats: int
    peak_mb: float
    first_s: float = math.nan
    first_full_s: float = math.nan


def fit_and_measure(capture: Capture, config: FitConfig, sought_db: float = math.inf) -> tuple[Measured, Splats]:
    """Fit, then render training and held-out views; only fitting is timed.

    With `sought_db`, held-out views are looked at in between as well, until they are as good at the full size.
    """
    list(fit_splats(capture, replace(config, steps=1, num_splats=100)))  # compiles the kernels
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    first = {"first_s": math.nan, "first_full_s": math.nan}
    fit, last = SplatFit(capture, config), None
    while not fit.is_done:
        last = fit.step()
        if last.step % 200 == 0:
            print(f"step {last.step} of {last.num_steps}, loss {last.loss:.4f}", flush=True)
        if last.step % LOOK_EVERY == 0 and math.isnan(first["first_full_s"]) and sought_db < math.inf:
            paused_s, paused_cpu_s = time.perf_counter(), time.process_time()
            sides = {"first_s": fit.current_targets.cameras.width, "first_full_s": capture.cameras.width}
            for name, side in sides.items():
                if math.isnan(first[name]) and _held_out_psnr_at(capture, side, last.splats) >= sought_db:
                    first[name] = paused_s - started_s
            started_s += time.perf_counter() - paused_s
            started_cpu_s += time.process_time() - paused_cpu_s
    assert last is not None
    seconds, cpu_seconds = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # before all views are rendered at once
    measured = Measured(
        psnr_db=_psnr(capture, capture.held_out_indices, last.splats),
        train_psnr_db=_psnr(capture, capture.train_indices, last.splats),
        s=seconds,
        cpu_s=cpu_seconds,
        steps=last.step,
        num_splats=len(last.splats),
        peak_mb=peak_mb,
        **first,
    )
    return measured, last.splats


def _held_out_psnr_at(capture: Capture, width: int, splats: Splats) -> float:
    held_out = capture.select(capture.held_out_indices)
    targets = Targets(held_out.cameras, held_out.images, held_out.masks)
    while targets.cameras.width > width:
        targets = targets.halved()
    return float(psnr(render_views(splats, targets.cameras), targets.images, targets.weights).mean())


def _psnr(capture: Capture, indices: tuple[int, ...], splats: Splats) -> float:
    views = list(indices)
    masks = None if capture.masks is None else capture.masks[views]
    return float(psnr(render_views(splats, capture.cameras[views]), capture.images[views], masks).mean())


def miniature_captures() -> list[Capture]:
    """Unseen worlds, 36 views at 128 x 128 each."""
    return [
        make_capture(sample_description(seed), name=f"world {seed}", seed=seed, num_views=36, size=128)
        for seed in MINIATURE_SEEDS
    ]


def write_picture(path: Path, capture: Capture, splats: Splats) -> None:
    """Held-out renders above the truth, in a palette and small enough for a repository."""
    chosen = capture.held_out_indices[:: max(1, len(capture.held_out_indices) // PICTURE_VIEWS)][:PICTURE_VIEWS]
    views = list(chosen)
    rows = [render_views(splats, capture.cameras[views]), capture.images[views]]
    picture = _to_image(torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1))
    scale = min(1.0, PICTURE_SIDE / max(capture.cameras.width, capture.cameras.height))
    small = picture.resize((round(scale * picture.width), round(scale * picture.height)), Image.Resampling.BOX)
    small.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path}: {size} bytes" + (", TOO LARGE" if size > MAX_PICTURE_BYTES else ""))


def _to_image(image: Float[Tensor, "3 h w"]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray((image.permute(1, 2, 0) * 255).round().byte().numpy()))


def measure_table(captures: list[Capture], config: FitConfig) -> dict[str, float]:
    """Fit every capture with every setting; print a row of Markdown for each."""
    result = {}
    print("| setting | held-out dB | training dB | CPU s | steps | splats |\n| --- | --- | --- | --- | --- | --- |")
    for name, change in ABLATIONS.items():
        found = [fit_and_measure(capture, replace(config, **change))[0] for capture in captures]
        means = {field: sum(getattr(measured, field) for measured in found) / len(found) for field in Measured._fields}
        print(
            f"| {name} | {means['psnr_db']:.2f} | {means['train_psnr_db']:.2f} | {means['cpu_s']:.0f} "
            f"| {means['steps']:.0f} | {means['num_splats']:.0f} |",
            flush=True,
        )
        key = re.sub(r"[^a-z0-9]+", "_", name.lower())
        result |= {f"{key}_{field}": means[field] for field in ("psnr_db", "cpu_s")}
    return result


def measure_all(bear: Path, picture: Path | None) -> dict[str, float]:
    """The figures that the project promises; NaN with a line that says so where there is no bear."""
    result: dict[str, float] = {}
    for size in BEAR_SIZES:
        if not bear.exists():
            print(f"{bear} does not exist: the bear is not measured; name it with --bear")
            result |= {f"bear{size}_psnr_db": float("nan"), f"bear{size}_s": float("nan")}
            continue
        capture = read_capture(bear, size)
        measured, splats = fit_and_measure(capture, for_size(PHOTOGRAPHS, size))
        print(f"bear at {size}: {measured}", flush=True)
        result |= {f"bear{size}_psnr_db": measured.psnr_db, f"bear{size}_s": measured.s}
        if size == 256 and picture is not None:
            write_picture(picture, capture, splats)
    found = [fit_and_measure(capture, MINIATURE)[0] for capture in miniature_captures()]
    for seed, measured in zip(MINIATURE_SEEDS, found, strict=True):
        print(f"miniature world {seed}: {measured}", flush=True)
    result["miniature_psnr_db"] = sum(measured.psnr_db for measured in found) / len(found)
    result["miniature_s"] = sum(measured.s for measured in found) / len(found)
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result


def measure_sizes(bear: Path, sizes: list[int]) -> dict[str, float]:
    """Fit the bear at each size with the settings that `restage fit` takes there."""
    result: dict[str, float] = {"peak_gb": 0.0}
    timed = BEAR_SIDE if BEAR_SIDE in sizes else max(sizes)
    for size in sizes:
        capture = _enlarged(read_capture(bear, min(size, BEAR_SIDE)), size)
        sought_db = SOUGHT_DB if size == timed else math.inf
        measured, _ = fit_and_measure(capture, for_size(PHOTOGRAPHS, size), sought_db)
        print(f"bear at {size}: {measured}", flush=True)
        result |= {f"bear{size}_{name}": getattr(measured, name) for name in ("psnr_db", "s", "cpu_s")}
        result["peak_gb"] = max(result["peak_gb"], measured.peak_mb / 1024)
        if size == timed:
            result |= {"first_22db_s": measured.first_s, "first_22db_full_s": measured.first_full_s}
    return result


def _enlarged(capture: Capture, side: int) -> Capture:
    """The capture with the longer side of its views brought to `side` pixels, if that is more."""
    scale = side / max(capture.cameras.width, capture.cameras.height)
    if scale <= 1:
        return capture
    width, height = round(scale * capture.cameras.width), round(scale * capture.cameras.height)
    images = torch.empty(len(capture.cameras), 3, height, width)
    for index, image in enumerate(capture.images):  # one by one: all at once would be what takes most memory
        larger = torch.nn.functional.interpolate(image[None], size=(height, width), mode="bicubic", antialias=True)
        images[index] = larger[0].clamp(0, 1)
    masks = capture.masks
    if masks is not None:
        masks = torch.nn.functional.interpolate(masks[:, None], size=(height, width), mode="nearest")[:, 0]
    return replace(capture, cameras=capture.cameras.to_size(width=width, height=height), images=images, masks=masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bear", type=Path, default=BEAR, help="folder of the bear capture")
    parser.add_argument("--capture", type=Path, help="any capture, instead of the bear and the miniature")
    parser.add_argument("--sizes", type=int, nargs="+", help="fit the bear at these sizes alone")
    parser.add_argument("--size", type=int, help="longer side in pixels; default: as the images are")
    parser.add_argument("--time-budget", type=float, help="seconds that fitting may take")
    parser.add_argument("--steps", type=int, default=PHOTOGRAPHS.steps)
    parser.add_argument("--num-splats", type=int, default=PHOTOGRAPHS.num_splats)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="PNG of held-out renders above the truth, at most 200 kB")
    parser.add_argument("--table", action="store_true", help="fit with every setting of ABLATIONS")
    parser.add_argument("--miniature", action="store_true", help="with --table: of the miniature worlds")
    options = parser.parse_args()
    if options.sizes:
        print(json.dumps(measure_sizes(options.bear, options.sizes)))
        return
    if options.capture is None and not options.table:
        print(json.dumps(measure_all(options.bear, options.picture)))
        return
    folder = options.capture or options.bear
    config = replace(
        PHOTOGRAPHS,
        steps=options.steps,
        num_splats=options.num_splats,
        time_budget_s=options.time_budget,
        seed=options.seed,
    )
    if options.table:
        captures = miniature_captures() if options.miniature else [read_capture(folder, options.size)]
        print(json.dumps(measure_table(captures, MINIATURE if options.miniature else config)))
        return
    capture = read_capture(folder, options.size)
    measured, splats = fit_and_measure(capture, config)
    if options.picture is not None:
        write_picture(options.picture, capture, splats)
    print(json.dumps(measured._asdict()))


if __name__ == "__main__":
    main()

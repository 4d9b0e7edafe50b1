"""Compares fits with OpenSplat's on the same views, split, points and threads; the last line is JSON.

    python benchmarks/opensplat.py path/to/opensplat --size 160 --steps 2000 --save-every 250

OpenSplat is the CPU build of github.com/pierotofy/OpenSplat. Its CPU renderer reads a strided view of the depths as
flat memory (give `camDepths` a `.contiguous()` in `project_gaussians.cpp` first), and it ignores the principal point:
hence views are cropped here so that it lies in their middle. Both fit the training views alone; held-out views of both
are rendered by our rasterizer. CPU seconds of a process depend least on what else the machine does.

Keys: ours_psnr_db, theirs_psnr_db (best); num_splats, ours_step_ms, theirs_step_ms (CPU), step_ratio: of a step with as
many splats as OpenSplat ends with, since its number grows and ours does not; ours_cpu_s and theirs_cpu_s to its best
picture, equal_ratio; ours_mb, theirs_mb, memory_ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from benchmarks.fit import BEAR
from restage.scenes.cameras import Cameras
from restage.scenes.capture import Capture
from restage.scenes.config import PHOTOGRAPHS, for_size
from restage.scenes.fit import SplatFit, fit_splats, psnr, render_views
from restage.scenes.io import read_capture, write_capture
from restage.scenes.io.splat_files import read_splats
from restage.scenes.splats import Splats

LOOK_EVERY_S = 3.0
"""CPU seconds between looks at our held-out views; looks are not counted."""
TIMED_STEPS = 100


class Look(NamedTuple):
    """How good held-out views were at some moment of a fit."""

    cpu_s: float
    step: int
    psnr_db: float


class Fitted(NamedTuple):
    """A fit as it was watched."""

    looks: list[Look]
    step_ms: float
    peak_mb: float
    splats: Splats


def centered(capture: Capture) -> Capture:
    """Crop all views alike so that the mean principal point is in their middle; what each one is off is dropped."""
    cameras = capture.cameras
    center = cameras.intrinsics[:, :2, 2].mean(0)
    half = torch.minimum(center, torch.tensor([cameras.width, cameras.height]) - center).floor().int().tolist()
    left, top = (int(round(float(center[axis]) - half[axis])) for axis in (0, 1))
    width, height = 2 * half[0], 2 * half[1]
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, :2, 2] = torch.tensor([width / 2, height / 2])
    return replace(
        capture,
        cameras=Cameras(cameras.camera_to_world, intrinsics, width, height),
        images=capture.images[:, :, top : top + height, left : left + width].contiguous(),
        masks=None,
    )


def held_out_psnr_db(capture: Capture, splats: Splats) -> float:
    """Mean over the held-out views."""
    views = list(capture.held_out_indices)
    return float(psnr(render_views(splats, capture.cameras[views]), capture.images[views]).mean())


def fit_ours(capture: Capture, theirs: Splats) -> Fitted:
    """Fit with the settings that `restage fit` takes at this size; a step is timed on OpenSplat's splats."""
    config = for_size(PHOTOGRAPHS, max(capture.cameras.width, capture.cameras.height))
    list(fit_splats(capture, replace(config, steps=1, num_splats=100)))  # compiles the kernels
    looks, started_s = [], time.process_time()
    due_s = LOOK_EVERY_S
    fit = SplatFit(capture, config)
    while not fit.is_done:
        step = fit.step()
        spent_s = time.process_time() - started_s
        if spent_s >= due_s or fit.is_done:
            looks.append(Look(spent_s, step.step, held_out_psnr_db(capture, step.splats)))
            print(f"ours: {looks[-1]}", flush=True)
            due_s = spent_s + LOOK_EVERY_S
            started_s = time.process_time() - spent_s
    peak_mb = psutil.Process().memory_info().rss / 2**20
    same = SplatFit(capture, replace(config, coarse_share=0, quarter_share=0), initial=theirs)
    started_s = time.process_time()
    for _ in range(TIMED_STEPS):
        same.step()
    step_ms = 1000 * (time.process_time() - started_s) / TIMED_STEPS
    return Fitted(looks, step_ms, peak_mb, fit.optimizer.splats)


def fit_theirs(binary: Path, capture: Capture, *, steps: int, save_every: int) -> Fitted:
    """Run OpenSplat on a copy of the capture that holds the training views alone."""
    train = capture.select(capture.train_indices)
    with tempfile.TemporaryDirectory() as place:
        folder, output = Path(place) / "capture", Path(place) / "splat.ply"
        write_capture(train, folder)
        command = [str(binary), str(folder), "--cpu", "--keep-crs", "-n", str(steps), "-o", str(output)]
        command += ["-s", str(save_every), "--num-downscales", "0"]
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        watched, times, peak_mb, line = psutil.Process(child.pid), {}, 0.0, ""
        assert child.stdout is not None
        cpu_s = 0.0
        for line in child.stdout:
            if found := re.search(r"Step (\d+)", line):
                used, memory = watched.cpu_times(), watched.memory_info()
                cpu_s, peak_mb = used.user + used.system, max(peak_mb, memory.rss / 2**20)
                times[int(found[1])] = cpu_s
        if child.wait():
            sys.exit(f"{binary} ended with {child.returncode}: {line}")
        looks = []
        for path in sorted(Path(place).glob("splat_*.ply")):
            step = int(path.stem.rpartition("_")[2])
            before = max((s for s in times if s <= step), default=0)
            looks.append(Look(times.get(before, 0.0), step, held_out_psnr_db(capture, read_splats(path))))
        splats = read_splats(output)
        looks.append(Look(cpu_s, steps, held_out_psnr_db(capture, splats)))
    looks.sort(key=lambda look: look.step)
    for look in looks:
        print(f"OpenSplat: {look}", flush=True)
    timed = [(step, spent_s) for step, spent_s in times.items() if step >= steps - TIMED_STEPS]
    step_ms = 1000 * (timed[-1][1] - timed[0][1]) / (timed[-1][0] - timed[0][0])
    return Fitted(looks, step_ms, peak_mb, splats)


def compare(ours: Fitted, theirs: Fitted) -> dict[str, float]:
    """The figures of two fits and their ratios; above 1 is in our favor, but for memory."""
    best = max(theirs.looks, key=lambda look: look.psnr_db)
    reached_s = next((look.cpu_s for look in ours.looks if look.psnr_db >= best.psnr_db), float("nan"))
    return {
        "ours_psnr_db": ours.looks[-1].psnr_db,
        "theirs_psnr_db": best.psnr_db,
        "num_splats": len(theirs.splats),
        "ours_step_ms": ours.step_ms,
        "theirs_step_ms": theirs.step_ms,
        "step_ratio": theirs.step_ms / ours.step_ms,
        "ours_cpu_s": reached_s,
        "theirs_cpu_s": best.cpu_s,
        "equal_ratio": best.cpu_s / reached_s,
        "ours_mb": ours.peak_mb,
        "theirs_mb": theirs.peak_mb,
        "memory_ratio": ours.peak_mb / theirs.peak_mb,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path, help="OpenSplat's CPU build")
    parser.add_argument("--capture", type=Path, default=BEAR, help="folder of a capture with sparse points")
    parser.add_argument("--size", type=int, default=160, help="longer side of the views in pixels")
    parser.add_argument("--steps", type=int, default=2000, help="OpenSplat's steps")
    parser.add_argument("--save-every", type=int, default=250, help="steps between looks at OpenSplat's splats")
    options = parser.parse_args()
    if not options.binary.is_file():
        parser.error(f"{options.binary} does not exist; build OpenSplat's CPU build and name its binary")
    capture = centered(read_capture(options.capture, options.size))
    theirs = fit_theirs(options.binary, capture, steps=options.steps, save_every=options.save_every)
    print(json.dumps(compare(fit_ours(capture, theirs.splats), theirs)))


if __name__ == "__main__":
    main()

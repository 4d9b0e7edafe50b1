"""Fits splats to a capture and scores held-out views; the last line is JSON: psnr_db, s, peak_mb.

python benchmarks/fit.py --capture FOLDER --size 160 --num-splats 25000 --steps 1200 --strip held_out.png
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from PIL import Image

from restage.scenes.fit import FitConfig, fit_splats, psnr, render_views
from restage.scenes.io import read_capture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capture", type=Path, required=True)
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--steps", type=int, default=FitConfig().steps)
    parser.add_argument("--num-splats", type=int, default=FitConfig().num_splats)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strip", type=Path, default=None, help="picture: held-out renders above the truth")
    options = parser.parse_args()
    capture = read_capture(options.capture, options.size)
    config = FitConfig(steps=options.steps, num_splats=options.num_splats, seed=options.seed)
    held_out = list(capture.held_out_indices)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    splats = None
    for step in fit_splats(capture, config):
        splats = step.splats
        if step.step % 100 == 0:
            print(f"step {step.step} of {step.num_steps}, loss {step.loss:.4f}", flush=True)
    seconds, cpu_seconds = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    assert splats is not None
    renders, truth = render_views(splats, capture.cameras[held_out]), capture.images[held_out]
    if options.strip is not None:
        strip = torch.cat([torch.cat(list(rows[:6]), dim=2) for rows in (renders, truth)], dim=1)
        Image.fromarray((strip.permute(1, 2, 0) * 255).round().byte().numpy()).save(options.strip)
    result = {
        "psnr_db": float(psnr(renders, truth).mean()),
        "s": seconds,
        "cpu_s": cpu_seconds,
        "num_splats": len(splats),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

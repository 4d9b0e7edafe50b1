"""A fit and an edit on the CPU and, where there is one that gsplat draws on, on a GPU: seconds and dB.

    python -m benchmarks.device [--size 128] [--steps 1500] [--splats 6000]

The capture is an unseen miniature world; it is edited by the method restage with the editor `grade`, whose truth is the
graded view. The last line is JSON: `fit_s`, `fit_db` (held-out views), `edit_s` and `edit_db` (held-out views against
the truth) under `cpu` and `cuda`; the latter is null where there is no such GPU, and `gpu` says which it is, or why
there is none. Three steps before, which may compile kernels, are not counted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice

import torch

from restage.edit.editors.grade import GradeEditor, grade_views
from restage.edit.job import EditJob
from restage.edit.methods import Restage
from restage.records import EditRequest, InputError
from restage.scenes.capture import Capture
from restage.scenes.config import FitConfig
from restage.scenes.device import choose_device, describe_device
from restage.scenes.fit import FitStep, SplatFit, psnr, render_views
from restage.world.capture import make_capture
from restage.world.grammar import sample_description

WORLD = 101
REQUEST = EditRequest(instruction="make it golden", source_caption="", target_caption="")


def steps_of(fit: SplatFit) -> Iterator[FitStep]:
    """All steps of a fit."""
    while not fit.is_done:
        yield fit.step()


def measure(capture: Capture, config: FitConfig, device: str) -> dict[str, float]:
    """Seconds and held-out dB of a fit on a device, and of an edit of what it gave."""

    def now_s() -> float:
        if device != "cpu":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    deque(islice(steps_of(SplatFit(capture, config, device=device)), 3), maxlen=0)
    started_s = now_s()
    fit = SplatFit(capture, config, device=device)
    deque[FitStep](steps_of(fit), maxlen=0)
    fit_s = now_s() - started_s
    splats, cameras = fit.optimizer.splats.clone(), capture.cameras[list(capture.held_out_indices)]
    photographs = capture.images[list(capture.held_out_indices)]
    job = EditJob.of(splats, capture.to(device), REQUEST, GradeEditor(), 0)
    started_s = now_s()
    (last,) = deque(Restage().run(job), maxlen=1)
    edit_s = now_s() - started_s
    truth = grade_views(photographs, REQUEST.instruction).images
    return {
        "fit_s": fit_s,
        "fit_db": float(psnr(render_views(splats, cameras).cpu(), photographs).mean()),
        "edit_s": edit_s,
        "edit_db": float(psnr(render_views(last.splats, cameras).cpu(), truth).mean()),
    }


def main() -> None:
    """Measure the CPU, and a GPU where there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--splats", type=int, default=6000)
    arguments = parser.parse_args()
    capture = make_capture(sample_description(WORLD), name="world", seed=WORLD, size=arguments.size)
    config = FitConfig(steps=arguments.steps, num_splats=arguments.splats)
    found = {"cpu": measure(capture, config, "cpu"), "cuda": None}
    try:
        found["cuda"], gpu = measure(capture, config, choose_device("cuda")), describe_device("cuda")
    except InputError as error:
        gpu = f"not measured: {error}"
    print(json.dumps({**found, "gpu": gpu}))


if __name__ == "__main__":
    main()

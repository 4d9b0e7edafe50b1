"""Whether a served editor edits as one in this process, and whether a killed edit pays for anything twice.

`restage serve` runs in a process of its own, the edit model that comes with the package behind it. The views are those
of a scene of the miniature world. Prints JSON: `served_equal` (the share of key views that are the same to 8 bits),
`served_largest_difference` in levels of 255, `edited_scene_equal` (whether the method `restage` ends with the same
splats), `kills`, and `endpoint_requests_repeated_after_kill` (pictures that the server made more than once).

    python -m benchmarks.endpoint --views 24 --kills 20
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from restage.edit.editors import MenuEditor
from restage.edit.editors.interface import Edited, Editor, EditorSource, ViewBatch
from restage.edit.job import EditJob
from restage.edit.methods.restage import Restage
from restage.edit.pictures import quantize
from restage.records import EditRequest
from restage.run.endpoint_config import EndpointConfig
from restage.run.paid import PaidAnswers
from restage.scenes.capture import Capture
from restage.scenes.initial import initial_splats
from restage.world.capture import make_capture
from restage.world.grammar import sample_description

PORT = 18_700


class Quantized(NamedTuple):
    """An editor whose pictures and masks go through the 256 levels of a file, as a server's do."""

    editor: Editor

    def edit(self, batch: ViewBatch) -> Edited:
        edited = self.editor.edit(batch)
        return Edited(quantize(edited.images), quantize(edited.masks))


@contextlib.contextmanager
def served(editor: str) -> Iterator[str]:
    """Serve an editor in another process; gives its address."""
    command = [sys.executable, "-m", "restage.cli", "serve", "--editor", editor, "--port", str(PORT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split(" at ")[1].split(";")[0]
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address.removesuffix('/v1')}/health", timeout=5).close()
                break
            time.sleep(0.1)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def sample_scene(num_views: int) -> tuple[Capture, EditRequest]:
    """Views of a world on the levels of a file, as photographs are, and what is asked for."""
    capture = make_capture(sample_description(3), name="served", seed=3, num_views=num_views, held_out_every=1000)
    request = EditRequest(instruction="turn it to night", source_caption="", target_caption="")
    return replace(capture, images=quantize(capture.images)), request


def pictures_made(address: str) -> int:
    with urllib.request.urlopen(f"{address.removesuffix('/v1')}/metrics", timeout=30) as answer:
        rows = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
    return int(rows["restage_pictures_total"])


def read_levels(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round()


def compare(capture: Capture, request: EditRequest, address: str, folder: Path) -> dict[str, float | bool]:
    """Edit a scene in one process and through the server."""
    splats = initial_splats(capture, 1500, sh_degree=0, shell_share=0.0, seed=0)
    config = EndpointConfig(base_url=address, num_parallel=8)
    ours = Quantized(MenuEditor(name="edit_model").open(EditorSource()))
    theirs = MenuEditor(name="endpoint", endpoint=config).open(EditorSource(answers=folder))
    views, scenes = [], []
    for editor in (ours, theirs):
        job = EditJob.of(splats, capture, request, editor, 5)
        batch = job.batch(range(len(job.view_indices)), noise_level=1.0, seed=3, noise_keys=None)
        views.append(editor.edit(batch))
        method = Restage(num_key_views=8, color_steps=30, shape_steps=10)
        *_, last = method.run(job)
        scenes.append(last.splats)
    difference = (read_levels(views[0].images) - read_levels(views[1].images)).abs().amax(dim=(1, 2, 3))
    pairs = zip(scenes[0].parameters().values(), scenes[1].parameters().values(), strict=True)
    return {
        "served_equal": float((difference == 0).float().mean()),
        "served_largest_difference": float(difference.max()),
        "edited_scene_equal": all(a.shape == b.shape and bool(torch.equal(a, b)) for a, b in pairs),
    }


def kill_often(capture: Capture, request: EditRequest, address: str, folder: Path, num_kills: int) -> dict[str, int]:
    """Kill an edit again and again, until it is through; count what the server made more than once."""
    config = EndpointConfig(base_url=address, num_parallel=3)
    moments, kills = random.Random(0), 0
    num_views = len(capture.train_indices)
    # Each round another instruction, so that kills fall into work and not behind its end.
    before, rounds = pictures_made(address), 0
    while kills < num_kills:
        asked = EditRequest(instruction=f"{request.instruction} {rounds}", source_caption="", target_caption="")
        rounds += 1
        while True:
            child = os.fork()
            if not child:
                with contextlib.suppress(BaseException):
                    editor = MenuEditor(name="endpoint", endpoint=config).open(EditorSource(answers=folder))
                    job = EditJob.of(
                        initial_splats(capture, 10, sh_degree=0, shell_share=0.0, seed=0), capture, asked, editor, 5
                    )
                    editor.edit(job.batch(range(num_views), noise_level=1.0, seed=3))
                    os._exit(0)
                os._exit(1)
            deadline_s = time.monotonic() + moments.uniform(0.2, 1.5)
            done = (0, 0)
            while not done[0] and (kills >= num_kills or time.monotonic() < deadline_s):
                done = os.waitpid(child, os.WNOHANG)
                time.sleep(0.02)
            if done[0]:
                assert done[1] == 0, "an edit failed"
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
    made = pictures_made(address) - before
    return {
        "kills": kills,
        "pictures_needed": rounds * num_views,
        "answers_lost_by_kills": PaidAnswers(folder, suffix=".png").num_lost,
        "endpoint_requests_repeated_after_kill": made - rounds * num_views,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=24)
    parser.add_argument("--kills", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    capture, request = sample_scene(arguments.views)
    with tempfile.TemporaryDirectory() as folder, served("edit_model") as address:
        found = compare(capture, request, address, Path(folder) / "compare")
        found |= kill_often(capture, request, address, Path(folder) / "kills", arguments.kills)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

"""Time of one 128x128 view of the procedural world on one core, for scenes of one, two and three objects.

    python benchmarks/render.py [scenes] [repeats]

The last line is JSON: milliseconds per view, as the mean over scenes of the fastest of some repeats, and for the
slowest scene.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from restage.world.capture import sample_camera
from restage.world.grammar import sample_description
from restage.world.render import render_view

SIZE = 128


def fastest_ms(seed: int, num_objects: int, repeats: int) -> float:
    """Milliseconds of core time of the fastest of some renders of one scene; waiting for a busy core does not count."""
    description = sample_description(seed, num_objects=num_objects)
    camera = sample_camera(description, seed, size=SIZE)
    times_s = []
    for _ in range(repeats):
        start_s = time.thread_time()
        render_view(description, camera)
        times_s.append(time.thread_time() - start_s)
    return 1e3 * min(times_s)


def main(num_scenes: int = 24, repeats: int = 15) -> None:
    """Print a line for each number of objects, then all figures as JSON."""
    fastest_ms(0, 1, 1)
    figures: dict[str, float | int] = {"size_px": SIZE, "scenes": num_scenes, "repeats": repeats}
    for count in (1, 2, 3):
        times_ms = [fastest_ms(seed, count, repeats) for seed in range(num_scenes)]
        figures[f"ms_{count}_objects"] = round(float(np.mean(times_ms)), 2)
        figures[f"ms_{count}_objects_slowest_scene"] = round(max(times_ms), 2)
        print(f"{count} objects: {np.mean(times_ms):.2f} ms a view (slowest scene {max(times_ms):.2f} ms)")
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))

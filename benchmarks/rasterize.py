"""Times the numba rasterizer, forward and backward, against the dense PyTorch twin; the last line is JSON.

Run with NUMBA_NUM_THREADS set to the cores that are free; `thread_speedup` compares all of them with one.
"""

from __future__ import annotations

import json
import statistics
import time

import numba
import torch

from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.rasterize import RASTERIZERS
from restage.scenes.splats import Splats


def random_splats(count: int, log_scale: float) -> Splats:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Splats(
        draw(count, 3) * 0.6, draw(count, 3) * 0.4 + log_scale, draw(count, 4), draw(count), draw(count, 1, 3)
    )


def step_ms(name: str, splats: Splats, size: int, *, repeats: int) -> float:
    """Median time of rendering and of the gradient of all parameters, in milliseconds; the first run is left out."""
    camera = Cameras(orbit(1, 3.0, height=2.0), intrinsics_from_fov(0.8, size, size)[None], size, size)
    parameters = [tensor.requires_grad_() for tensor in splats.clone().parameters().values()]
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        color = RASTERIZERS[name](Splats(*parameters), camera).color
        torch.autograd.grad(color.square().sum(), parameters)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def main() -> None:
    small, large, few = random_splats(5000, -3.6), random_splats(20_000, -4.0), random_splats(500, -3.0)
    num_threads = numba.get_num_threads()
    result = {
        "ms_5k_128": step_ms("numba_cpu", small, 128, repeats=15),
        "ms_20k_256": step_ms("numba_cpu", large, 256, repeats=7),
        "num_threads": num_threads,
    }
    fast, dense = (step_ms(name, few, 64, repeats=5) for name in ("numba_cpu", "reference"))
    result["dense_ratio_500_64"] = dense / fast
    numba.set_num_threads(1)
    result["thread_speedup"] = step_ms("numba_cpu", large, 256, repeats=7) / result["ms_20k_256"]
    numba.set_num_threads(num_threads)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

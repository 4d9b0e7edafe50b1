"""Times the numba rasterizer, forward and backward, against dense PyTorch and, where installed, Mitsuba.

    python benchmarks/rasterize.py [--repeats N] [--dense-splats N]

Run it on a quiet machine with NUMBA_NUM_THREADS set to the cores that are free (default: all). Dense PyTorch needs
splats x pixels of memory, so it runs at `--dense-splats` on 64x64 and the ratio is taken there and, scaled by splats x
pixels, at 5,000 splats on 128x128. The last line is JSON.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numba
import numpy as np
import torch
import tyro

from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.rasterize import kernels, numba_cpu, rasterize_numba
from restage.scenes.rasterize.binning import bin_splats
from restage.scenes.rasterize.kernels import MIN_ALPHA
from restage.scenes.splats import Splats
from tests.scenes.dense_rasterizer import rasterize_dense

FLOPS_FORWARD = 31 + 2
"""Per pixel of an entry's rows: exponent and blending, and a fused multiply-add (2) for each channel beyond that."""
FLOPS_BACKWARD = 46 + 12
"""The same, with six sums of two operations."""
NUM_CHANNELS = 4


def random_splats(count: int, log_scale: float) -> Splats:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Splats(
        draw(count, 3) * 0.6, draw(count, 3) * 0.4 + log_scale, draw(count, 4), draw(count), draw(count, 1, 3)
    )


def camera_of(size: int) -> Cameras:
    return Cameras(orbit(1, 3.0, height=2.0), intrinsics_from_fov(0.8, size, size)[None], size, size)


def median_ms(work: Callable[[], object], repeats: int) -> float:
    """Median time in milliseconds; the first run is left out."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def step_of(name: str, splats: Splats, size: int) -> Callable[[], None]:
    """Rendering and the gradient of all parameters."""
    camera = camera_of(size)
    parameters = [tensor.requires_grad_() for tensor in splats.clone().parameters().values()]

    def step() -> None:
        color = {"numba_cpu": rasterize_numba, "dense": rasterize_dense}[name](Splats(*parameters), camera).color
        torch.autograd.grad(color.square().sum(), parameters)

    return step


def step_ms(name: str, splats: Splats, size: int, *, repeats: int) -> float:
    """Median time of a step in milliseconds."""
    return median_ms(step_of(name, splats, size), repeats)


def set_threads(count: int) -> None:
    """Set the number of threads of both numba and torch."""
    numba.set_num_threads(count)
    torch.set_num_threads(count)


def in_turn_ms(step: Callable[[], None], thread_counts: Sequence[int], *, repeats: int) -> list[list[float]]:
    """Times of a step with each number of threads, five steps each in turn, so that all meet the same conditions."""
    times: list[list[float]] = [[] for _ in thread_counts]
    for _ in range(repeats):
        for count, found in zip(thread_counts, times, strict=True):
            set_threads(count)
            found.append(median_ms(step, 5))
    return times


@numba.njit(error_model="numpy")
def _multiply_add(values, count):
    total = np.zeros(256, np.float32)
    for _ in range(count):
        for i in range(256):
            total[i] = kernels._fma(values[i], total[i], values[i])
    return total


def peak_gflops() -> float:
    """Fused multiply-adds of one thread on 256 floats that stay in the first cache, in 10^9 operations per second."""
    values, count = np.full(256, 0.5, np.float32), 200_000
    return 2 * 256 * count / (median_ms(lambda: _multiply_add(values, count), 5) * 1e6)


def blending_gflop(splats: Splats, size: int) -> float:
    """Arithmetic of blending forward and backward over the rows that entries reach, in 10^9 operations."""
    camera = camera_of(size)
    world_to_camera = camera.world_to_camera[0]
    in_camera = splats.means @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    opacities = torch.sigmoid(splats.opacity_logits)
    view = numba_cpu._view_of(camera, in_camera, opacities)
    arrays = [numba_cpu._array(t) for t in (in_camera, splats.log_scales, splats.rotations, opacities)]
    geometry = numba_cpu.project_forward(*arrays, view.is_seen, view.world_to_camera, view.lens, view.clamps)
    _, _, entry_rows, _, _ = bin_splats(view.order, geometry, size, size, kernels.TILE, MIN_ALPHA, 1)
    pixels = 16 * float((entry_rows[:, 1].astype(int) - entry_rows[:, 0]).sum())
    return pixels * (FLOPS_FORWARD + FLOPS_BACKWARD + 3 * 2 * NUM_CHANNELS) / 1e9


class MitsubaFound(NamedTuple):
    """What Mitsuba's volumetric primitives take for the same step, or why that was not measured."""

    ms: float | None
    difference: float | None
    """Mean absolute difference of its picture from ours, of values in [0, 1]: whether both draw the same scene."""
    reason: str


def measure_mitsuba(splats: Splats, size: int) -> MitsubaFound:
    """Time Mitsuba's `volprim_rf_basic`, one sample per pixel, forward and the gradient of all parameters."""
    try:
        import drjit as dr  # pyright: ignore[reportMissingImports]
        import mitsuba as mi  # pyright: ignore[reportMissingImports]
    except ImportError:
        return MitsubaFound(None, None, "mitsuba is not installed: pip install mitsuba")
    try:
        mi.set_variant("llvm_ad_rgb")
    except ImportError as error:
        return MitsubaFound(None, None, f"Mitsuba finds no LLVM of its own, set DRJIT_LIBLLVM_PATH: {error}")
    dr.set_thread_count(numba.get_num_threads() - 1)  # beside the thread that calls
    camera = camera_of(size)
    pose = camera.camera_to_world[0].numpy() @ np.diag([-1, -1, 1, 1])
    primitives = mi.load_dict(
        {
            "type": "ellipsoids",
            "centers": mi.TensorXf(splats.means.numpy()),
            "scales": mi.TensorXf(splats.log_scales.exp().numpy()),
            "quaternions": mi.TensorXf(torch.nn.functional.normalize(splats.rotations, dim=1).roll(-1, 1).numpy()),
            "opacities": mi.TensorXf(torch.sigmoid(splats.opacity_logits)[:, None].numpy()),
            "sh_coeffs": mi.TensorXf(splats.sh[:, 0].numpy()),
        }
    )
    scene = mi.load_dict(
        {
            "type": "scene",
            "integrator": {"type": "volprim_rf_basic", "max_depth": 512, "srgb_primitives": False},
            "primitives": primitives,
            "sensor": {
                "type": "perspective",
                "fov": float(np.degrees(0.8)),
                "to_world": mi.ScalarTransform4f(pose),
                "film": {"type": "hdrfilm", "width": size, "height": size, "rfilter": {"type": "box"}},
                "sampler": {"type": "independent", "sample_count": 1},
            },
        }
    )
    parameters = mi.traverse(scene)
    keys = [key for key in parameters.keys() if key.endswith((".data", ".sh_coeffs", ".opacities"))]
    assert len(keys) == 3, f"expected three arrays of parameters, got {keys}"

    def step() -> None:
        for key in keys:
            dr.enable_grad(parameters[key])
        image = mi.render(scene, parameters, spp=1)
        dr.backward(dr.sum(image * image))
        for key in keys:
            np.array(dr.grad(parameters[key]))

    ours = rasterize_numba(splats, camera).color.permute(1, 2, 0).numpy()
    theirs = np.array(mi.render(scene, spp=16))[..., :3]
    difference = float(np.abs(np.clip(ours, 0, 1) - np.clip(theirs, 0, 1)).mean())
    return MitsubaFound(median_ms(step, 3), difference, "")


def main(repeats: int = 15, dense_splats: int = 500) -> None:
    """Time the rasterizers.

    Args:
        repeats: Measured runs of each kind; medians are shown.
        dense_splats: How many splats dense PyTorch draws on 64x64.
    """
    num_threads = numba.get_num_threads()
    set_threads(num_threads)
    small, large, few = random_splats(5000, -3.6), random_splats(20_000, -4.0), random_splats(dense_splats, -3.0)
    small_ms = step_ms("numba_cpu", small, 128, repeats=repeats)
    large_ms = step_ms("numba_cpu", large, 256, repeats=repeats)
    result: dict[str, float | None] = {"ms_5k_128": small_ms, "ms_20k_256": large_ms, "num_threads": num_threads}
    dense_ms = step_ms("dense", few, 64, repeats=max(3, repeats // 3))
    result["dense_ratio_few_64"] = dense_ms / step_ms("numba_cpu", few, 64, repeats=repeats)
    scaled_ms = dense_ms * (5000 * 128**2) / (dense_splats * 64**2)
    result["ratio_to_dense"] = scaled_ms / small_ms
    mitsuba = measure_mitsuba(small, 128)
    result["mitsuba_ms"], result["mitsuba_difference"] = mitsuba.ms, mitsuba.difference
    result["ratio_to_mitsuba"] = None if mitsuba.ms is None else mitsuba.ms / small_ms
    if mitsuba.reason:
        print(f"ratio_to_mitsuba is null: {mitsuba.reason}")
    for count in (1250, 5000, 20_000):
        result[f"ms_{count}_splats_128"] = step_ms("numba_cpu", random_splats(count, -3.6), 128, repeats=repeats)
    for size in (64, 256):
        result[f"ms_5k_{size}"] = step_ms("numba_cpu", small, size, repeats=repeats)
    ones, alls = in_turn_ms(step_of("numba_cpu", large, 256), (1, num_threads), repeats=repeats)
    set_threads(1)
    one_ms = result["ms_20k_256_one_thread"] = statistics.median(ones)
    result["thread_speedup"] = statistics.median(one / many for one, many in zip(ones, alls, strict=True))
    limit = result["peak_gflops_one_thread"] = peak_gflops()
    result["share_of_limit"] = blending_gflop(large, 256) / limit * 1000 / one_ms
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}))


if __name__ == "__main__":
    tyro.cli(main)

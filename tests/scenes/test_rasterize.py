"""The numba rasterizer against the dense one, and what holds for both."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restage.records import InputError
from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.rasterize import rasterize_numba, splat_weights
from restage.scenes.rasterize.binning import bin_splats, order_by_depth
from restage.scenes.rasterize.kernels import MIN_ALPHA, TILE
from restage.scenes.splats import SH_C0, Splats
from tests.scenes.dense_rasterizer import rasterize_dense


def random_splats(count: int, *, seed: int = 0, k: int = 1, spread: float = 0.6) -> Splats:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Splats(draw(count, 3) * spread, draw(count, 3) * 0.4 - 3, draw(count, 4), draw(count), draw(count, k, 3))


def one_camera(width: int = 40, height: int = 30) -> Cameras:
    return Cameras(orbit(1, 3.0, height=2.0), intrinsics_from_fov(0.8, width, height)[None], width, height)


def splat_ahead(distance: float, *, side: float = 0.0, logit: float = 2.0, log_scale: float = -2.0) -> Splats:
    """One splat in front of `one_camera`."""
    camera_to_world = one_camera().camera_to_world[0]
    mean = camera_to_world @ torch.tensor([side, 0.0, distance, 1.0])
    return Splats(
        mean[None, :3],
        torch.full((1, 3), log_scale),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.tensor([logit]),
        torch.full((1, 1, 3), 0.3 / SH_C0),
    )


def rendering_and_gradients(rasterizer, splats, camera):
    splats = splats.clone()
    parameters = list(splats.parameters().values())
    device = splats.means.device
    features = torch.rand(len(splats), 2, generator=torch.Generator().manual_seed(7)).to(device)
    inputs = [tensor.requires_grad_() for tensor in (*parameters, features)]
    rendering = rasterizer(splats, camera, features=features)
    generator = torch.Generator().manual_seed(5)
    loss = torch.zeros((), device=device)
    for part in rendering:
        weights = torch.rand(part.shape, generator=generator).to(device)
        loss = loss + (torch.where(torch.isfinite(part), part, 0.0) * weights).sum()
    return rendering, torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize(
    ("count", "width", "height", "k"), [(150, 40, 27, 1), (150, 27, 40, 9), (1, 1, 1, 1), (60, 17, 33, 4)]
)
def test_numba_equals_the_dense_twin_in_values_and_gradients(count, width, height, k):
    splats, camera = random_splats(count, k=k), one_camera(width, height)
    fast, fast_gradients = rendering_and_gradients(rasterize_numba, splats, camera)
    dense, dense_gradients = rendering_and_gradients(rasterize_dense, splats, camera)
    is_hit = torch.isfinite(dense.depth)
    assert torch.equal(torch.isfinite(fast.depth), is_hit)
    torch.testing.assert_close(fast.depth[is_hit], dense.depth[is_hit], rtol=1e-5, atol=1e-5)
    for name in ("color", "alpha", "features"):
        torch.testing.assert_close(getattr(fast, name), getattr(dense, name), rtol=1e-5, atol=1e-5)
    for first, second in zip(fast_gradients, dense_gradients, strict=True):
        assert float((first - second).norm()) <= 1e-4 * float(second.norm()) + 1e-7
    assert float(dense_gradients[0].norm()) > 0 or count == 1


@pytest.mark.parametrize("k", [1, 4])
def test_gradient_of_the_camera_equals_that_of_the_dense_twin(k):
    splats, camera = random_splats(60, k=k), one_camera()
    weights = torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(3))
    gradients = []
    for rasterizer in (rasterize_numba, rasterize_dense):
        pose = camera.camera_to_world.clone().requires_grad_()
        color = rasterizer(splats, Cameras(pose, camera.intrinsics, camera.width, camera.height)).color
        gradients.append(torch.autograd.grad((color * weights).sum(), pose)[0])
    assert float(gradients[1].norm()) > 0
    assert float((gradients[0] - gradients[1]).norm()) <= 1e-4 * float(gradients[1].norm())


def test_a_moved_camera_finds_back_by_its_gradient():
    splats, camera = random_splats(150), one_camera()
    target = rasterize_numba(splats, camera).color
    shift = torch.tensor([0.05, -0.04, 0.03], requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=0.01)
    for _ in range(60):
        pose = camera.camera_to_world.clone()
        pose[0, :3, 3] += shift
        moved = Cameras(pose, camera.intrinsics, camera.width, camera.height)
        loss = (rasterize_numba(splats, moved).color - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(shift.detach().norm()) < 0.01


def test_opaque_splats_stop_both_rasterizers_at_the_same_splat():
    splats = random_splats(120, spread=0.15)
    splats.opacity_logits = torch.full((120,), 4.0)
    fast, fast_gradients = rendering_and_gradients(rasterize_numba, splats, one_camera())
    dense, dense_gradients = rendering_and_gradients(rasterize_dense, splats, one_camera())
    assert float(dense.alpha.detach().max()) > 0.999
    torch.testing.assert_close(fast.color, dense.color, rtol=1e-5, atol=1e-5)
    for first, second in zip(fast_gradients, dense_gradients, strict=True):
        assert float((first - second).norm()) <= 2e-4 * float(second.norm())


def test_gradients_of_the_dense_twin_equal_finite_differences():
    splats = random_splats(6)
    camera = one_camera(12, 9)
    parameters = [tensor.double().requires_grad_() for tensor in splats.parameters().values()]

    def color(*tensors: torch.Tensor) -> torch.Tensor:
        return rasterize_dense(Splats(*tensors), camera).color

    assert torch.autograd.gradcheck(color, parameters, eps=1e-6, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("rasterizer", [rasterize_numba, rasterize_dense], ids=["numba", "dense"])
class TestEveryRasterizer:
    def test_the_order_of_the_splats_does_not_matter(self, rasterizer):
        splats = random_splats(50)
        shuffled = splats[torch.randperm(50, generator=torch.Generator().manual_seed(1))]
        first, second = rasterizer(splats, one_camera()), rasterizer(shuffled, one_camera())
        torch.testing.assert_close(first.color, second.color, rtol=1e-5, atol=1e-6)

    def test_no_splats_give_black(self, rasterizer):
        rendering = rasterizer(random_splats(0), one_camera())
        assert float(rendering.color.abs().max()) == float(rendering.alpha.max()) == 0
        assert torch.isinf(rendering.depth).all()
        assert tuple(rendering.features.shape) == (0, 30, 40)

    def test_one_splat_has_its_closed_form_in_the_middle(self, rasterizer):
        splats = splat_ahead(2.5)
        camera = one_camera(41, 31)
        rendering = rasterizer(splats, camera)
        opacity = 1 / (1 + math.exp(-2.0))
        assert float(rendering.alpha[15, 20]) == pytest.approx(opacity, rel=1e-5)
        assert float(rendering.color[1, 15, 20]) == pytest.approx(0.8 * opacity, rel=1e-5)
        assert float(rendering.depth[15, 20]) == pytest.approx(2.5, rel=1e-5)
        variance = (float(camera.intrinsics[0, 0, 0]) / 2.5 * math.exp(-2.0)) ** 2 + 0.3
        assert float(rendering.alpha[15, 23]) == pytest.approx(opacity * math.exp(-4.5 / variance), rel=1e-4)

    @pytest.mark.parametrize(("distance", "side"), [(-2.0, 0.0), (0.01, 0.0), (2.0, 3.0)])
    def test_splats_behind_near_or_beside_are_not_drawn_and_have_no_gradient(self, rasterizer, distance, side):
        splats = splat_ahead(distance, side=side, log_scale=0.0)
        rendering, gradients = rendering_and_gradients(rasterizer, splats, one_camera())
        assert float(rendering.alpha.detach().max()) == 0
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert float(gradients[0].abs().max()) == 0

    def test_the_nearer_splat_covers_the_farther(self, rasterizer):
        near, far = splat_ahead(2.0, logit=8.0), splat_ahead(3.0, logit=8.0)
        far.sh = -far.sh
        both = Splats(**{n: torch.cat([f, near.parameters()[n]]) for n, f in far.parameters().items()})
        assert float(rasterizer(both, one_camera(41, 31)).color[0, 15, 20]) == pytest.approx(0.8, abs=0.02)

    def test_two_cameras_at_once_are_refused(self, rasterizer):
        camera = one_camera()
        with pytest.raises(InputError, match="one camera"):
            rasterizer(random_splats(2), camera[[0, 0]])


def test_numba_gives_the_same_bits_every_time():
    first, first_gradients = rendering_and_gradients(rasterize_numba, random_splats(200), one_camera())
    second, second_gradients = rendering_and_gradients(rasterize_numba, random_splats(200), one_camera())
    assert torch.equal(first.color, second.color)
    assert all(torch.equal(a, b) for a, b in zip(first_gradients, second_gradients, strict=True))


def test_numba_gives_the_same_bits_with_any_number_of_threads():
    program = (
        "import hashlib, numba, sys, torch\n"
        "from tests.scenes.test_rasterize import one_camera, random_splats, rendering_and_gradients\n"
        "from restage.scenes.rasterize import rasterize_numba\n"
        "for threads in (1, 2, 3):\n"
        "    numba.set_num_threads(threads)\n"
        "    found = rendering_and_gradients(rasterize_numba, random_splats(200), one_camera(70, 50))\n"
        "    bits = b''.join(t.detach().numpy().tobytes() for part in found for t in part)\n"
        "    print(hashlib.sha256(bits).hexdigest())\n"
    )
    environment = {**os.environ, "NUMBA_NUM_THREADS": "3"}
    command = [sys.executable, "-c", program]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    assert len(lines) == 3 and len(set(lines)) == 1


@pytest.mark.slow
def test_freshly_compiled_and_cached_kernels_give_the_same_bits(tmp_path: Path):
    program = (
        "import hashlib, torch\n"
        "from tests.scenes.test_rasterize import one_camera, random_splats, rendering_and_gradients\n"
        "from restage.scenes.rasterize import rasterize_numba\n"
        "found = rendering_and_gradients(rasterize_numba, random_splats(200), one_camera())\n"
        "print(hashlib.sha256(b''.join(t.detach().numpy().tobytes() for part in found for t in part)).hexdigest())\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True, env=environment) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout


@given(
    count=st.integers(0, 40),
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    log_scale=st.floats(-9.0, 1.5),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=40, deadline=None)
def test_both_rasterizers_agree_on_any_splats(count: int, width: int, height: int, log_scale: float, seed: int):
    splats, camera = random_splats(count, seed=seed), one_camera(width, height)
    splats.log_scales = splats.log_scales + 3 + log_scale
    fast, dense = rasterize_numba(splats, camera), rasterize_dense(splats, camera)
    # A splat whose alpha is within rounding of the least that is drawn may be drawn by one and not by the other.
    close = torch.isclose(fast.color, dense.color, rtol=1e-4, atol=1e-4)
    assert float((~close).float().mean()) <= 0.01
    assert float((fast.color - dense.color).abs().max() if close.numel() else 0.0) <= 2.5 / 255 * 3


def test_a_million_tiny_splats_are_drawn():
    generator = torch.Generator().manual_seed(0)
    count = 1_000_000
    splats = Splats(
        torch.rand(count, 3, generator=generator) - 0.5,
        torch.full((count, 3), -7.0),
        torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4).clone(),
        torch.full((count,), -2.0),
        torch.full((count, 1, 3), 0.3 / SH_C0),
    )
    rendering = rasterize_numba(splats, one_camera(64, 48))
    assert torch.isfinite(rendering.color).all()
    assert float(rendering.alpha.max()) > 0.99
    assert float(rendering.color.max()) == pytest.approx(0.8, abs=0.01)


def test_splat_weights_sum_to_alpha_and_follow_the_map():
    splats, camera = random_splats(80), one_camera()
    left_half = torch.zeros(1, 30, 40)
    left_half[:, :, :20] = 1
    weighted, total = splat_weights(splats, camera, left_half)
    alpha = rasterize_dense(splats, camera).alpha
    assert float(total.sum()) == pytest.approx(float(alpha.sum()), rel=1e-4)
    assert float(weighted.sum()) == pytest.approx(float(alpha[:, :20].sum()), rel=1e-4)
    assert (weighted[:, 0] <= total + 1e-5).all()
    with pytest.raises(InputError, match="maps"):
        splat_weights(splats, camera, left_half[:, :5])


def test_rendering_turns_with_the_world():
    angle = 0.7
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0], [0.0, 0.0, 1.0]]
    )
    splats, camera = random_splats(40), one_camera()
    half = torch.tensor([math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)])
    w, x, y, z = splats.rotations.unbind(1)
    rotations = torch.stack(
        [
            half[0] * w - half[3] * z,
            half[0] * x - half[3] * y,
            half[0] * y + half[3] * x,
            half[0] * z + half[3] * w,
        ],
        dim=1,
    )
    turned = Splats(splats.means @ turn.T, splats.log_scales, rotations, splats.opacity_logits, splats.sh)
    moved = camera.camera_to_world.clone()
    moved[:, :3] = turn @ moved[:, :3]
    other = Cameras(moved, camera.intrinsics, camera.width, camera.height)
    torch.testing.assert_close(
        rasterize_numba(splats, camera).color, rasterize_numba(turned, other).color, rtol=1e-3, atol=1e-3
    )


def test_many_splats_get_the_same_bits_however_many_threads_sort_them_into_tiles():
    splats, camera = random_splats(9000), one_camera(90, 70)
    in_camera = splats.means @ camera.world_to_camera[0, :3, :3].T + camera.world_to_camera[0, :3, 3]
    order = order_by_depth(in_camera[:, 2].numpy().copy(), (in_camera[:, 2] > 0.05).numpy())
    geometry = np.random.default_rng(0).random((9000, 6), np.float32)
    geometry[:, :2] *= (90, 70)
    geometry[:, 3] *= 0.1
    found = [bin_splats(order, geometry, 90, 70, TILE, MIN_ALPHA, threads) for threads in (1, 2, 3, 4)]
    assert len(found[0][1]) > 9000
    assert all(np.array_equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True))


@given(seed=st.integers(0, 10_000), count=st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_splats_are_ordered_near_to_far_and_equal_depths_keep_their_order(seed: int, count: int):
    generator = np.random.default_rng(seed)
    depths = np.round(generator.lognormal(0, 4, count), 1).astype(np.float32) + np.float32(0.05)
    is_seen = generator.random(count) < 0.7
    expected = np.nonzero(is_seen)[0][np.argsort(depths[is_seen], kind="stable")]
    assert np.array_equal(order_by_depth(depths, is_seen), expected)

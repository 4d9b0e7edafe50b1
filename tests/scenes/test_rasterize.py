"""The numba rasterizer against the dense one, and what holds for both."""

import math

import pytest
import torch

from restage.records import InputError
from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.rasterize import RASTERIZERS, rasterize_numba, rasterize_reference, splat_weights
from restage.scenes.splats import SH_C0, Splats


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
    features = torch.rand(len(splats), 2, generator=torch.Generator().manual_seed(7))
    background = torch.tensor([0.2, 0.5, 0.7])
    inputs = [tensor.requires_grad_() for tensor in (*parameters, features, background)]
    rendering = rasterizer(splats, camera, background=background, features=features)
    generator = torch.Generator().manual_seed(5)
    loss = torch.zeros(())
    for part in rendering:
        weights = torch.rand(part.shape, generator=generator)
        loss = loss + (torch.where(torch.isfinite(part), part, 0.0) * weights).sum()
    return rendering, torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize(
    ("count", "width", "height", "k"), [(150, 40, 27, 1), (150, 27, 40, 9), (1, 1, 1, 1), (60, 17, 33, 4)]
)
def test_numba_equals_the_dense_twin_in_values_and_gradients(count, width, height, k):
    splats, camera = random_splats(count, k=k), one_camera(width, height)
    fast, fast_gradients = rendering_and_gradients(rasterize_numba, splats, camera)
    dense, dense_gradients = rendering_and_gradients(rasterize_reference, splats, camera)
    is_hit = torch.isfinite(dense.depth)
    assert torch.equal(torch.isfinite(fast.depth), is_hit)
    torch.testing.assert_close(fast.depth[is_hit], dense.depth[is_hit], rtol=1e-5, atol=1e-5)
    for name in ("color", "alpha", "features"):
        torch.testing.assert_close(getattr(fast, name), getattr(dense, name), rtol=1e-5, atol=1e-5)
    for first, second in zip(fast_gradients, dense_gradients, strict=True):
        assert float((first - second).norm()) <= 1e-4 * float(second.norm()) + 1e-7
    assert float(dense_gradients[0].norm()) > 0 or count == 1


def test_opaque_splats_stop_both_rasterizers_at_the_same_splat():
    splats = random_splats(120, spread=0.15)
    splats.opacity_logits = torch.full((120,), 4.0)
    fast, fast_gradients = rendering_and_gradients(rasterize_numba, splats, one_camera())
    dense, dense_gradients = rendering_and_gradients(rasterize_reference, splats, one_camera())
    assert float(dense.alpha.detach().max()) > 0.999
    torch.testing.assert_close(fast.color, dense.color, rtol=1e-5, atol=1e-5)
    for first, second in zip(fast_gradients, dense_gradients, strict=True):
        assert float((first - second).norm()) <= 2e-4 * float(second.norm())


def test_gradients_of_the_dense_twin_equal_finite_differences():
    splats = random_splats(6)
    camera = one_camera(12, 9)
    parameters = [tensor.double().requires_grad_() for tensor in splats.parameters().values()]

    def color(*tensors: torch.Tensor) -> torch.Tensor:
        return rasterize_reference(Splats(*tensors), camera).color

    assert torch.autograd.gradcheck(color, parameters, eps=1e-6, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("rasterizer", RASTERIZERS.values(), ids=RASTERIZERS.keys())
class TestEveryRasterizer:
    def test_the_order_of_the_splats_does_not_matter(self, rasterizer):
        splats = random_splats(50)
        shuffled = splats[torch.randperm(50, generator=torch.Generator().manual_seed(1))]
        first, second = rasterizer(splats, one_camera()), rasterizer(shuffled, one_camera())
        torch.testing.assert_close(first.color, second.color, rtol=1e-5, atol=1e-6)

    def test_no_splats_give_the_background(self, rasterizer):
        rendering = rasterizer(random_splats(0), one_camera(), background=torch.tensor([0.1, 0.2, 0.3]))
        assert torch.allclose(rendering.color[2], torch.tensor(0.3))
        assert float(rendering.alpha.max()) == 0
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


def test_splat_weights_sum_to_alpha_and_follow_the_map():
    splats, camera = random_splats(80), one_camera()
    left_half = torch.zeros(1, 30, 40)
    left_half[:, :, :20] = 1
    weighted, total = splat_weights(splats, camera, left_half)
    alpha = rasterize_reference(splats, camera).alpha
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

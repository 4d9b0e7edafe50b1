"""gsplat's rasterizer: against its own PyTorch code, drawn by a stand-in on another device, and for real on a GPU."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from restage.records import InputError
from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.rasterize import rasterize, rasterize_gsplat, splat_weights
from restage.scenes.rasterize.blending import CLAMP_MARGIN, NEAR, is_in_view, slope_range
from restage.scenes.rasterize.projection import DILATION, project_forward
from restage.scenes.splats import Splats, evaluate_sh
from tests.scenes.dense_rasterizer import rasterize_dense
from tests.scenes.test_rasterize import one_camera, random_splats, rendering_and_gradients, splat_ahead


def gsplat_in_torch() -> ModuleType:
    """gsplat's twins of its kernels, read from the file alone: importing gsplat looks for a CUDA compiler."""
    found = importlib.util.find_spec("gsplat")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs gsplat: pip install gsplat==1.5.3 --no-deps")
    path = Path(found.submodule_search_locations[0]) / "cuda" / "_torch_impl.py"
    spec = importlib.util.spec_from_file_location("gsplat_in_torch", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def off_center() -> Cameras:
    intrinsics = intrinsics_from_fov(0.9, 48, 36)[None].clone()
    intrinsics[0, 0, 2], intrinsics[0, 1, 2], intrinsics[0, 1, 1] = 20.0, 21.0, 40.0
    return Cameras(orbit(1, 2.5, height=1.0), intrinsics, 48, 36)


def test_our_projection_is_that_of_gsplat():
    theirs, splats, cameras = gsplat_in_torch(), random_splats(300), off_center()
    covariances, _ = theirs._quat_scale_to_covar_preci(splats.rotations, splats.log_scales.exp(), compute_preci=False)
    _, centers, depths, conics, _ = theirs._fully_fused_projection(
        splats.means,
        covariances,
        cameras.world_to_camera,
        cameras.intrinsics,
        cameras.width,
        cameras.height,
        eps2d=DILATION,
        near_plane=NEAR,
    )
    world_to_camera = cameras.world_to_camera[0]
    in_camera = splats.means @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    is_seen = is_in_view(in_camera, cameras)
    ours = torch.from_numpy(
        project_forward(
            in_camera.numpy(),
            splats.log_scales.numpy(),
            splats.rotations.numpy(),
            torch.sigmoid(splats.opacity_logits).numpy(),
            is_seen.numpy(),
            world_to_camera.numpy(),
            cameras.intrinsics[0].flatten()[[0, 1, 2, 4, 5]].numpy(),
            torch.tensor(slope_range(cameras, CLAMP_MARGIN)).numpy(),
        )
    )[is_seen]
    assert len(ours) > 200
    torch.testing.assert_close(ours[:, :2], centers[0, is_seen], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours[:, 2:5], conics[0, is_seen], rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(in_camera[is_seen, 2], depths[0, is_seen])


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_our_spherical_harmonics_are_those_of_gsplat(degree: int):
    theirs, generator = gsplat_in_torch(), torch.Generator().manual_seed(0)
    sh = torch.randn(50, (degree + 1) ** 2, 3, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator), dim=1)
    expected = (theirs._spherical_harmonics(degree, directions, sh) + 0.5).clamp_min(0)
    torch.testing.assert_close(evaluate_sh(sh, directions), expected, rtol=1e-4, atol=1e-5)


def test_splats_on_the_cpu_are_refused_with_what_to_do():
    with pytest.raises(InputError, match="got splats on cpu; move them"):
        rasterize_gsplat(random_splats(3), one_camera())


def test_a_device_without_a_rasterizer_is_named():
    splats = random_splats(3).to("meta")
    with pytest.raises(InputError, match="splats lie on meta.*move them to cpu or cuda"):
        rasterize(splats, one_camera())


def test_skew_is_refused_with_what_to_do(elsewhere: str):
    camera = one_camera()
    camera.intrinsics[0, 0, 1] = 1.0
    with pytest.raises(InputError, match="without skew, got 1.0 px; choose --device cpu"):
        rasterize(random_splats(3).to(elsewhere), camera)


@pytest.mark.parametrize(("count", "k"), [(120, 1), (60, 4), (60, 16)])
def test_what_gsplat_is_told_gives_the_picture_of_the_dense_twin(elsewhere: str, count: int, k: int):
    splats = random_splats(count, k=k)
    splats.opacity_logits[::7] = 12.0  # beyond both caps of alpha, which differ by 0.009
    splats.means[::11] *= 4  # far beside the picture, and behind the camera
    found, gradients = rendering_and_gradients(rasterize, splats.to(elsewhere), one_camera())
    expected, expected_gradients = rendering_and_gradients(rasterize_dense, splats, one_camera())
    for part, other in zip(found, expected, strict=True):
        assert part.device.type == elsewhere
        torch.testing.assert_close(part.cpu(), other, rtol=2e-2, atol=1e-2)
    for first, second in zip(gradients, expected_gradients, strict=True):
        assert float((first.cpu() - second).norm()) <= 0.05 * float(second.norm())


def test_a_splat_far_beside_the_picture_is_not_drawn_however_large(elsewhere: str):
    splats = splat_ahead(1.0, side=3.0, log_scale=1.0)
    assert float(rasterize(splats.to(elsewhere), one_camera()).alpha.max()) == 0.0


def test_the_pose_of_the_camera_gets_its_gradient(elsewhere: str):
    found = []
    for device in ("cpu", elsewhere):
        poses = one_camera().camera_to_world.requires_grad_()
        camera = Cameras(poses, one_camera().intrinsics, 40, 30)
        color = rasterize(random_splats(60, k=4).to(device), camera).color
        found.append(torch.autograd.grad(color.square().sum(), [poses])[0][0, :3])
    assert float((found[1].cpu() - found[0]).norm()) <= 0.05 * float(found[0].norm())


def test_weights_of_splats_are_the_same_on_another_device(elsewhere: str):
    splats, maps = random_splats(40), torch.rand(2, 30, 40, generator=torch.Generator().manual_seed(0))
    expected = splat_weights(splats, one_camera(), maps)
    found = splat_weights(splats.to(elsewhere), one_camera(), maps.to(elsewhere))
    for first, second in zip(found, expected, strict=True):
        torch.testing.assert_close(first.cpu(), second, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("k", [1, 4])
def test_gsplat_equals_the_dense_twin_in_values_and_gradients(k: int):
    pytest.importorskip("gsplat")
    camera, results = one_camera(), []
    for rasterizer, device in ((rasterize_gsplat, "cuda"), (rasterize_dense, "cpu")):
        splats = random_splats(80, k=k).to(device)
        parameters = [tensor.requires_grad_() for tensor in splats.parameters().values()]
        color = rasterizer(Splats(*parameters), camera).color
        gradients = torch.autograd.grad(color.square().sum(), parameters)
        results.append([color.detach().cpu(), *(gradient.cpu() for gradient in gradients)])
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-3, atol=1e-3)
    for first, second in zip(results[0][1:], results[1][1:], strict=True):
        assert float((first - second).norm()) <= 1e-2 * float(second.norm())

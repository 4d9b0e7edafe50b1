"""gsplat's rasterizer: what it refuses everywhere, and on a GPU the same pictures as the dense twin."""

import pytest
import torch

from restage.records import InputError
from restage.scenes.rasterize import rasterize_gsplat
from restage.scenes.splats import Splats
from tests.scenes.dense_rasterizer import rasterize_dense
from tests.scenes.test_rasterize import one_camera, random_splats


def test_splats_on_the_cpu_are_refused_with_what_to_do():
    with pytest.raises(InputError, match="got splats on cpu; move them"):
        rasterize_gsplat(random_splats(3), one_camera())


@pytest.mark.gpu
@pytest.mark.parametrize("k", [1, 4])
def test_gsplat_equals_the_dense_twin_in_values_and_gradients(k: int):
    pytest.importorskip("gsplat")
    camera, results = one_camera(), []
    for rasterizer, device in ((rasterize_gsplat, "cuda"), (rasterize_dense, "cpu")):
        splats = Splats(**{n: t.to(device) for n, t in random_splats(80, k=k).parameters().items()})
        parameters = [tensor.requires_grad_() for tensor in splats.parameters().values()]
        color = rasterizer(Splats(*parameters), camera).color
        gradients = torch.autograd.grad(color.square().sum(), parameters)
        results.append([color.detach().cpu(), *(gradient.cpu() for gradient in gradients)])
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-3, atol=1e-3)
    for first, second in zip(results[0][1:], results[1][1:], strict=True):
        assert float((first - second).norm()) <= 1e-2 * float(second.norm())

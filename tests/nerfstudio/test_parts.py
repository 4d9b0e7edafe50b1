# pyright: reportMissingImports=false
from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

pytest.importorskip("nerfstudio", reason="runs in .venv-nerfstudio: make test-nerfstudio")

import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager

from restage.nerfstudio.frames import (
    Similarity,
    from_nerfstudio_cameras,
    similarity_between,
    to_nerfstudio_cameras,
)
from restage.nerfstudio.trainer import NotScored, lpips_or_not_scored
from restage.nerfstudio.views import open_views, soften
from restage.records import InputError
from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit, project_points

pytestmark = pytest.mark.nerfstudio


def _cameras(count: int = 5) -> Cameras:
    intrinsics = intrinsics_from_fov(1.0, 32, 24).repeat(count, 1, 1)
    return Cameras(orbit(count, 2.0, height=1.3), intrinsics, 32, 24)


def _similarity() -> Similarity:
    angle = torch.tensor(0.7)
    rotation = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1.0]])
    return Similarity(rotation, torch.tensor([0.3, -1.0, 0.2]), 0.37)


def test_nerfstudio_sees_a_point_where_restage_sees_it() -> None:
    cameras, similarity = _cameras(), _similarity()
    point = torch.tensor([[0.2, -0.1, 0.4]])
    seen = to_nerfstudio_cameras(cameras, similarity)
    moved = similarity.scale * point @ similarity.rotation.T + similarity.translation
    for index in range(len(cameras)):
        pixel = project_points(point, cameras[index]).pixels[0]
        # nerfstudio's own rays: the one through that pixel has to pass through the moved point.
        ray = seen.generate_rays(index, coords=pixel.flip(0)[None])
        towards = torch.nn.functional.normalize(moved - ray.origins[0], dim=1)
        assert torch.allclose(ray.directions[0], towards[0], atol=1e-5)


def test_cameras_survive_the_way_to_nerfstudio_and_back() -> None:
    cameras = _cameras()
    identity = Similarity(torch.eye(3), torch.zeros(3), 1.0)
    back = from_nerfstudio_cameras(to_nerfstudio_cameras(cameras, identity))
    assert torch.allclose(back.camera_to_world, cameras.camera_to_world, atol=1e-6)
    assert torch.equal(back.intrinsics, cameras.intrinsics)
    assert (back.width, back.height) == (32, 24)


def test_the_similarity_between_two_frames_is_found_from_their_cameras() -> None:
    cameras, similarity = _cameras(), _similarity()
    found = similarity_between(cameras, from_nerfstudio_cameras(to_nerfstudio_cameras(cameras, similarity)))
    assert torch.allclose(found.rotation, similarity.rotation, atol=1e-5)
    assert torch.allclose(found.translation, similarity.translation, atol=1e-5)
    assert math.isclose(found.scale, similarity.scale, rel_tol=1e-5)


def test_frames_that_no_similarity_connects_are_refused() -> None:
    cameras = _cameras()
    bent = cameras.camera_to_world.clone()
    bent[0, 0, 3] += 0.5
    with pytest.raises(InputError, match="cameras of the trained scene"):
        similarity_between(cameras, Cameras(bent, cameras.intrinsics, 32, 24))


@pytest.mark.parametrize("power", [1, 2])
def test_the_error_of_a_pixel_counts_by_its_factor(power: int) -> None:
    predicted = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    factor = torch.linspace(0, 1, 6)[:, None]
    batch = {"image": torch.full((6, 3), -0.2), "error_factor": factor}
    (soften(predicted, batch) - batch["image"]).abs().pow(power).sum().backward()
    softened = predicted.grad
    predicted.grad = None
    (factor**power * (predicted - batch["image"]).abs().pow(power)).sum().backward()
    assert softened is not None and predicted.grad is not None
    assert torch.allclose(softened, predicted.grad, atol=1e-6)


def _datamanager(count: int = 4) -> VanillaDataManager:
    """A datamanager of which only the cache is there, in shuffled order as nerfstudio fills it."""
    order = torch.tensor([2, 0, 3, 1])
    images = torch.arange(count).float()[:, None, None, None].expand(count, 6, 5, 3) / 10
    manager = VanillaDataManager.__new__(VanillaDataManager)
    torch.nn.Module.__init__(manager)
    batch = {"image": images[order].clone(), "image_idx": order}
    manager.train_image_dataloader = SimpleNamespace(cached_collated_batch=batch)
    return manager


def test_a_replaced_view_is_what_training_samples_and_no_other() -> None:
    manager = _datamanager()
    views = open_views(manager)
    assert [round(float(views.image(index)[0, 0, 0]), 1) for index in range(4)] == [0.0, 0.1, 0.2, 0.3]
    views.replace(2, torch.ones(3, 6, 5), torch.full((6, 5), 0.25))
    views.keep_only([1, 2])
    views.replace(1, torch.full((3, 6, 5), 0.5))
    batch = manager.train_image_dataloader.cached_collated_batch
    assert batch["image_idx"].tolist() == [1, 2]
    assert batch["image"][:, 0, 0, 0].tolist() == [0.5, 1.0]
    assert batch["error_factor"][:, 0, 0, 0].tolist() == [1.0, 0.5]  # its square is the weight


def test_lpips_without_weights_is_not_scored(monkeypatch) -> None:
    from torchmetrics.image import lpip

    def refuse(*args: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", refuse)
    with lpips_or_not_scored():
        metric = lpip.LearnedPerceptualImagePatchSimilarity(normalize=True)
    assert isinstance(metric, NotScored)
    assert math.isnan(float(metric(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))))
    assert lpip.LearnedPerceptualImagePatchSimilarity is refuse

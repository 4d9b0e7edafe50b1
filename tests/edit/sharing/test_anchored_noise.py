import math

import pytest
import torch

from restage.edit.sharing import AnchoredNoise, DepthMaps
from restage.scenes.cameras import Cameras, intrinsics_from_fov, look_at, project_points, unproject_depth

SIZE, GRID, CHANNELS = 64, 8, 3
SHAPE = (CHANNELS, GRID, GRID)


def above_a_floor(angles_rad: list[float]) -> DepthMaps:
    """Views around a floor at z = 0, with its true depth; above the horizon there is nothing."""
    poses = [
        look_at(torch.tensor([2 * math.cos(a), 2 * math.sin(a), 1.6]), torch.tensor([0.0, 0.0, 0.2]))
        for a in angles_rad
    ]
    intrinsics = intrinsics_from_fov(math.radians(50), SIZE, SIZE).expand(len(poses), 3, 3).contiguous()
    cameras = Cameras(torch.stack(poses), intrinsics, SIZE, SIZE)
    ones = torch.ones(SIZE, SIZE)
    drops = torch.stack(
        [unproject_depth(ones, cameras[view])[..., 2] - cameras.positions[view, 2] for view in range(len(poses))]
    )
    depths = torch.where(drops < -0.05, -cameras.positions[:, 2, None, None] / drops, torch.inf)
    return DepthMaps(cameras, depths)


def test_the_noise_of_a_view_is_standard_normal_and_independent_between_pixels_and_channels():
    maps = above_a_floor([0.0, 0.15])
    noise, many = AnchoredNoise(maps), 10 * CHANNELS  # ten draws in one, each of channels of its own
    at_once = torch.stack([noise.draw((many, GRID, GRID), seed) for seed in range(150)]).double()
    draws = at_once.unflatten(2, (10, CHANNELS)).transpose(1, 2).flatten(0, 1)
    for view in range(2):
        flat = draws[:, view].flatten(1)
        covariance = flat.T @ flat / len(flat)
        error = (covariance - torch.eye(covariance.shape[0])).abs()
        assert error.max() < 6 / math.sqrt(1500)  # variances are known to sqrt(2 / n), covariances to sqrt(1 / n)
        assert float(covariance.diagonal().mean()) == pytest.approx(1, abs=0.015)
        assert float(flat.mean(dim=0).abs().max()) < 5 / math.sqrt(1500)
        assert float((flat**4).mean()) == pytest.approx(3, abs=0.1)


def test_views_that_show_the_same_point_start_from_the_same_noise_there():
    maps = above_a_floor([0.0, 0.0, 0.4, math.pi])
    noise = AnchoredNoise(maps)
    draws = torch.stack([noise.draw(SHAPE, seed) for seed in range(200)])
    assert torch.equal(draws[:, 0], draws[:, 1])
    apart = _correlation_at_same_points(maps, draws, 0, 2)
    assert apart > 0.35
    assert float((draws[:, 0] * draws[:, 2]).mean()) < 0.2  # at the same place of the picture
    assert float((draws[:, 0] * draws[:, 3]).mean()) < 0.05


def _correlation_at_same_points(maps: DepthMaps, draws: torch.Tensor, first: int, second: int) -> float:
    small = maps.depths[first, 4 :: SIZE // GRID, 4 :: SIZE // GRID]
    points = unproject_depth(maps.depths[first], maps.cameras[first])[4 :: SIZE // GRID, 4 :: SIZE // GRID]
    is_floor = torch.isfinite(small)
    pixels = project_points(points[is_floor], maps.cameras[second]).pixels
    column, row = (pixels / (SIZE // GRID)).floor().long().unbind(1)
    inside = (column >= 0) & (column < GRID) & (row >= 0) & (row < GRID)
    ours = draws[:, first][:, :, is_floor][:, :, inside]
    return float((ours * draws[:, second][:, :, row[inside], column[inside]]).mean())


def test_noise_depends_on_seed_and_scene_alone_and_not_on_the_other_views_of_a_batch():
    maps = above_a_floor([0.0, 0.3])
    both = AnchoredNoise(maps).draw(SHAPE, 5)
    assert torch.equal(both, AnchoredNoise(maps).draw(SHAPE, 5))
    assert not torch.equal(both, AnchoredNoise(maps).draw(SHAPE, 6))
    assert both.shape == (2, *SHAPE)
    assert both.dtype == torch.float32


def test_a_scene_that_shows_nothing_still_gives_finite_noise():
    maps = above_a_floor([0.0])
    empty = DepthMaps(maps.cameras, torch.full_like(maps.depths, torch.inf))
    assert torch.isfinite(AnchoredNoise(empty).draw(SHAPE, 0)).all()

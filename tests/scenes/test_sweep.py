"""Points found by a plane sweep lie where they should, or are not found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from restage.scenes.cameras import Cameras, intrinsics_from_fov, look_at
from restage.scenes.capture import Capture
from restage.scenes.config import FitConfig
from restage.scenes.fit import SplatFit
from restage.scenes.initial import initial_splats, surroundings_of, with_points
from restage.scenes.sweep import swept_points

SIDE = 48
NUM_VIEWS = 8


def colors_at(points):
    """A pattern that differs from place to place at every scale that the views show."""
    waves = torch.tensor([[3.1, 1.7], [-2.3, 4.1], [7.9, -6.1], [5.3, 8.7], [13.1, -3.7]])
    phases = points[..., :2] @ waves.T
    return torch.stack([0.5 + 0.09 * (phases + shift).sin().sum(-1) for shift in (0.0, 0.4, 0.8)], dim=-1)


def make_capture(num_views: int = NUM_VIEWS) -> Capture:
    """Cameras above a patterned ground at z = 0, which fills their pictures; no sparse points."""
    eyes = [torch.tensor([0.8 * index - 1.6, -4.0 + 0.3 * (index % 2), 5.0]) for index in range(num_views)]
    poses = torch.stack([look_at(eye, torch.zeros(3)) for eye in eyes])
    cameras = Cameras(poses, intrinsics_from_fov(0.6, SIDE, SIDE).repeat(num_views, 1, 1), SIDE, SIDE)
    rows, columns = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    pixels = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1)
    images = []
    for view in range(num_views):
        rays = pixels @ torch.linalg.inv(cameras.intrinsics[view]).T @ poses[view, :3, :3].T
        ground = poses[view, :3, 3] - rays * (poses[view, 2, 3] / rays[..., 2:])
        images.append(colors_at(ground).permute(2, 0, 1))
    return Capture(
        name="ground",
        cameras=cameras,
        images=torch.stack(images),
        file_names=tuple(f"{index}.png" for index in range(num_views)),
        points=torch.zeros(0, 3),
        point_colors=torch.zeros(0, 3),
        train_indices=tuple(range(num_views)),
        held_out_indices=(),
    )


def sweep(capture: Capture):
    return swept_points(capture, *surroundings_of(capture.cameras))


def test_points_of_a_patterned_ground_lie_on_it_with_its_colors():
    found = sweep(make_capture())
    assert 0.5 * SIDE**2 < len(found.positions) < 2 * SIDE**2  # each place once, not once a view
    heights = found.positions[:, 2].abs()
    assert float(heights.median()) < 0.05
    assert float(heights.quantile(0.95)) < 0.3
    assert float((found.colors - colors_at(found.positions)).abs().mean()) < 0.02


def test_pixels_that_do_not_count_give_no_points():
    capture = make_capture()
    masks = torch.ones(NUM_VIEWS, SIDE, SIDE)
    masks[:, :, SIDE // 2 :] = 0
    found, whole = sweep(replace(capture, masks=masks)), sweep(capture)
    assert 0.3 < len(found.positions) / len(whole.positions) < 0.6


@pytest.mark.parametrize("spoil", ["flat", "unlike", "few"])
def test_views_that_agree_on_nothing_give_no_points(spoil):
    capture = make_capture(2 if spoil == "few" else NUM_VIEWS)
    if spoil == "flat":
        capture = replace(capture, images=torch.full_like(capture.images, 0.4))
    elif spoil == "unlike":
        noise = torch.rand(capture.images.shape, generator=torch.Generator().manual_seed(0))
        capture = replace(capture, images=noise)
    assert len(sweep(capture).positions) < 0.01 * capture.images[:, 0].numel()


def test_a_fit_without_sparse_points_starts_at_swept_ones():
    splats = initial_splats(with_points(make_capture(), 500), 500, sh_degree=0, shell_share=0.0, seed=0)
    assert len(splats) == 500
    assert float((splats.means[:, 2].abs() < 0.3).float().mean()) > 0.9


def test_a_fit_that_finds_no_points_at_all_says_so():
    (*_, note) = with_points(make_capture(2), 500).notes
    assert note.startswith("ground: ") and "random depths" in note
    assert SplatFit(make_capture(2), FitConfig(num_splats=500)).notes == (note,)
    assert not with_points(make_capture(), 500).notes

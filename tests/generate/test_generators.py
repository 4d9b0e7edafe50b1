from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from restage.diffusion.schedule import Schedule
from restage.generate.generators import GENERATORS, Blob, Ism, Sds, make_generator
from restage.generate.generators.distilled import Draw, view_words
from restage.generate.rig import Rig, azimuth_rad, rays_of
from restage.records import InputError
from restage.scenes.cameras import Cameras, project_points
from restage.scenes.fit import render_views
from restage.world.capture import camera_at

SCHEDULE = Schedule.from_config({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000})


def knows(picture: Tensor):
    """The best denoiser there is if all pictures in the world were this one."""

    def predict(latents: Tensor, timestep: int) -> Tensor:
        signal, sigma = SCHEDULE.coefficients(torch.tensor([timestep]), latents)
        return (latents - signal * picture) / sigma

    return predict


def draw(render: Tensor, wanted: Tensor, timestep: int) -> Draw:
    noise = torch.randn(render.shape, generator=torch.Generator().manual_seed(5))
    return Draw(render, noise, timestep, SCHEDULE, knows(wanted), knows(render))


@pytest.mark.parametrize("timestep", [40, 250, 480])
def test_the_gradient_of_sds_leads_from_the_render_to_what_the_model_knows(timestep: int) -> None:
    render, wanted = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))[:, 0:1].unbind(0)
    kept = float(SCHEDULE.alphas_cumprod[timestep])
    found = Sds()._gradient(draw(render, wanted, timestep))
    expected = (1 - kept) * math.sqrt(kept / (1 - kept)) * (render - wanted)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("timestep", [30, 250, 480])
def test_ism_of_a_model_that_knows_the_render_draws_no_noise_and_leads_to_the_caption(timestep: int) -> None:
    render, wanted = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))[:, 0:1].unbind(0)
    first = Ism()._gradient(draw(render, wanted, timestep))
    # Inversion by a model that sees the render itself in it finds one line of noise, whatever the interval is.
    kept = float(SCHEDULE.alphas_cumprod[timestep])
    expected = 0.1 * (render - wanted)
    torch.testing.assert_close(first, expected, rtol=1e-3, atol=1e-3 * math.sqrt(1 / kept))
    other = draw(render, wanted, timestep)._replace(noise=torch.zeros_like(render))
    assert torch.equal(Ism()._gradient(other), first)
    assert not Ism()._gradient(draw(render, render, timestep)).abs().max() > 1e-3


def test_the_cloud_stands_on_its_ground_before_a_sky_in_every_view() -> None:
    rig = Rig()
    start = Blob().make(rig, 0)
    cameras = rig.ring(4, size=32)
    assert float(start.splats[start.num_around :].means[:, 2].min()) >= 0
    around = start.splats[: start.num_around]
    white = around.clone()
    white.sh.fill_(1.8)
    assert float(render_views(white, cameras).min()) > 0.8  # nothing is left bare
    assert torch.equal(Blob().make(rig, 0).splats.means, start.splats.means)
    assert not torch.equal(Blob().make(rig, 1).splats.means, start.splats.means)


def test_sides_are_named_as_the_cameras_stand() -> None:
    sides = [view_words(camera_at(math.radians(angle), 0.3, 3.0, 16)) for angle in (0, 40, 90, 140, 180, -80, -30)]
    assert sides == ["front view", "front view", "side view", "back view", "back view", "side view", "front view"]


def test_rays_do_not_depend_on_where_a_scene_lies_how_it_is_turned_and_how_large_its_units_are() -> None:
    ring = Rig().ring(5, size=32, start_rad=0.4)
    angle, scale = 1.1, 2.5
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    poses = turn @ ring.camera_to_world
    poses[:, :3, 3] = scale * poses[:, :3, 3] + torch.tensor([3.0, -1.0, 0.5])
    moved = Cameras(poses, ring.intrinsics, ring.width, ring.height)
    rays = rays_of(ring, 8)
    torch.testing.assert_close(rays_of(moved, 8), rays, atol=1e-4, rtol=1e-4)
    assert rays.shape == (5, 6, 8, 8) and not torch.allclose(rays_of(ring[[1, 0, 2, 3, 4]], 8)[0], rays[1], atol=1e-2)


def test_two_views_of_a_point_have_rays_that_meet_there() -> None:
    ring = Rig().ring(4, size=64)
    point = torch.tensor([[0.3, -0.2, 0.9]])
    rays = rays_of(ring, 64)
    found = []
    for view in range(4):
        column, row = project_points(point, ring[view]).pixels[0].floor().long().tolist()
        found.append(rays[view, :, row, column])
    # Lines d, m and d', m' meet where d . m' + d' . m = 0 (Plücker).
    for view in range(1, 4):
        (d, m), (e, n) = (ray.split(3) for ray in (found[0], found[view]))
        assert abs(float(d @ n + e @ m)) < 0.03
    assert abs(float(found[0][:3] @ rays[2, 3:, 5, 5] + rays[2, :3, 5, 5] @ found[0][3:])) > 0.05


def test_a_ring_goes_all_around_within_the_elevations() -> None:
    ring = Rig().ring(8, size=16)
    angles = [azimuth_rad(ring[view]) % math.tau for view in range(8)]
    assert angles == pytest.approx([math.tau * view / 8 for view in range(8)], abs=1e-4)
    heights = ring.positions[:, 2] - 0.5
    elevations = torch.asin(heights / 3.2)
    assert float(elevations.min()) > math.radians(10) and float(elevations.max()) < math.radians(27)


def test_the_menu_refuses_what_is_not_on_it() -> None:
    assert all(isinstance(make_generator(name), cls) for name, cls in GENERATORS.items())
    published = make_generator("sds", "sd15")
    assert isinstance(published, Sds) and published.guidance == 100 and published.says_view
    with pytest.raises(InputError, match="choose from ism, refined, sds, views"):
        make_generator("zero123")
    for name, preset in (("views", "sd15"), ("sds", "sdxl")):
        with pytest.raises(InputError, match="sd15 for sds and ism"):
            make_generator(name, preset)


@pytest.mark.parametrize(
    "settings", [{"num_steps": 0}, {"means_decay": 0.0}, {"lowest_noise": 0.9, "highest_noise": 0.1}]
)
def test_distillation_refuses_settings_that_make_no_sense(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected"):
        Sds(**settings)  # pyright: ignore[reportArgumentType]

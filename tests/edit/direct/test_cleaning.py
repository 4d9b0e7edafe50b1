"""Planted floaters and haze are found, and hardly anything else; what photographs show stays."""

from dataclasses import replace

import torch

from restage.edit.direct.cleaning import draw_found, find_floaters
from restage.scenes.fit import psnr, render_views
from restage.scenes.splats import Splats
from tests.edit.methods.test_remove import BallOnGround, splats_at


def planted(scene: BallOnGround) -> tuple[Splats, torch.Tensor]:
    """The scene's splats with floaters before the cameras and veils around the ball, and which those are."""
    generator = torch.Generator().manual_seed(1)
    eyes = scene.cameras.positions[torch.arange(60) % 12]
    on_the_way = eyes.lerp(
        0.6 * torch.randn(60, 3, generator=generator), 0.3 + 0.3 * torch.rand(60, 1, generator=generator)
    )
    on_the_way[:, 2].clamp_(min=0.5)
    floaters = splats_at(on_the_way, torch.rand(60, 3, generator=generator), [0.03, 0.03, 0.03])
    floaters.opacity_logits = torch.rand(60, generator=generator) * 2 - 1
    veils = splats_at(
        torch.randn(10, 3, generator=generator) * 0.3 + torch.tensor([0.0, 0, 1.5]),
        torch.rand(10, 3, generator=generator),
        [0.5, 0.5, 0.5],
    )
    veils.opacity_logits = torch.full((10,), -3.0)
    parts = (scene.splats, floaters, veils)
    splats = Splats(**{name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0].parameters()})
    return splats, torch.arange(len(splats)) >= len(scene.splats)


def test_planted_floaters_and_haze_are_found_and_hardly_anything_else():
    scene = BallOnGround()
    splats, is_planted = planted(scene)
    found = find_floaters(splats, scene.capture)
    share = float(found.is_found[is_planted].float().mean())
    lost = float(found.is_found[~is_planted].float().mean())
    assert share > 0.9 and lost < 0.01
    before, after = (
        psnr(render_views(one, scene.cameras), scene.capture.images).mean() for one in (splats, splats[~found.is_found])
    )
    assert after > before + 3
    picture = draw_found(splats, found, scene.capture)
    assert picture.shape == (3, 3 * 72, 3 * 72)


def test_of_a_clean_scene_next_to_nothing_goes():
    scene = BallOnGround()
    found = find_floaters(scene.splats, scene.capture)
    assert float(found.is_found.float().mean()) < 0.005
    after = render_views(scene.splats[~found.is_found], scene.cameras)
    assert float((after - scene.capture.images).abs().mean()) < 1e-3


def test_a_single_splat_is_looked_at_too():
    scene = BallOnGround()
    assert len(find_floaters(scene.splats[:1], scene.capture).is_found) == 1


def test_what_masks_of_photographs_leave_out_keeps_no_floater():
    scene = BallOnGround()
    splats, is_planted = planted(scene)
    scene.capture.images[:] = render_views(splats, scene.cameras)  # photographs that show the floaters
    needed = find_floaters(splats, scene.capture).is_found[is_planted].float().mean()
    masks = torch.zeros_like(scene.capture.images[:, 0])
    masked = replace(scene.capture, masks=masks)
    assert float(find_floaters(splats, masked).is_found[is_planted].float().mean()) > float(needed) + 0.3

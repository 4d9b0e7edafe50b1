import dataclasses
import math

import pytest
import torch

from restage.edit.methods.renewal import (
    Births,
    Deaths,
    KeyViews,
    color_spreads,
    fade,
    find_gone,
    join_splats,
    seed_splats,
)
from restage.records import InputError
from restage.regions.masks import lift_masks
from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.fit import render_views
from restage.scenes.splats import SH_C0, Splats

SIZE = 48


def blob(center: tuple[float, float, float], color: tuple[float, float, float], *, count: int = 150) -> Splats:
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    return Splats(
        means=0.3 * directions + torch.tensor(center),
        log_scales=torch.full((count, 3), math.log(0.06)),
        rotations=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        opacity_logits=torch.full((count,), 4.0),
        sh=((torch.tensor(color) - 0.5) / SH_C0).repeat(count, 1, 1),
    )


def floor() -> Splats:
    """A checked floor, so that what lies behind a thing differs from view to view."""
    side = torch.linspace(-1.4, 1.4, 29)
    x, y = (grid.flatten() for grid in torch.meshgrid(side, side, indexing="ij"))
    is_dark = ((x * 2).floor() + (y * 2).floor()).remainder(2)
    return Splats(
        means=torch.stack([x, y, torch.zeros_like(x)], dim=1),
        log_scales=torch.tensor([0.06, 0.06, 0.02]).log().repeat(len(x), 1),
        rotations=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(len(x), 1),
        opacity_logits=torch.full((len(x),), 4.0),
        sh=((0.75 - 0.5 * is_dark - 0.5) / SH_C0)[:, None, None].repeat(1, 1, 3),
    )


@pytest.fixture(scope="module")
def cameras() -> Cameras:
    intrinsics = intrinsics_from_fov(math.radians(50), SIZE, SIZE).expand(10, 3, 3).contiguous()
    return Cameras(orbit(10, 2.4, height=1.4, target=torch.tensor([0.0, 0.0, 0.2])), intrinsics, SIZE, SIZE)


def views_of(before: Splats, after: Splats, cameras: Cameras) -> KeyViews:
    first, second = render_views(before, cameras), render_views(after, cameras)
    return KeyViews(cameras, first, second, ((second - first).abs().amax(dim=1) > 3 / 255).float())


BALL = (0.2, 0.1, 0.35)


def test_splats_are_born_on_the_surface_of_what_is_added(cameras):
    before = floor()
    key_views = views_of(before, join_splats(before, blob(BALL, (0.8, 0.2, 0.2))), cameras)
    born = seed_splats(Births(), before, key_views, max_count=400)
    assert len(born) > 40
    distances = (born.means - torch.tensor(BALL)).norm(dim=1)
    # The ball shows as far as two standard deviations of its splats, 0.42; a hull of ten views is a little larger.
    assert ((distances > 0.25) & (distances < 0.5)).float().mean() > 0.9
    assert (0.5 + SH_C0 * born.sh[:, 0]).mean(dim=0) == pytest.approx(torch.tensor([0.8, 0.2, 0.2]), abs=0.08)
    closer = (render_views(join_splats(before, born), cameras) - key_views.edited).abs().mean()
    assert closer < 0.4 * (key_views.unedited - key_views.edited).abs().mean()


def test_no_more_splats_are_born_than_asked_for(cameras):
    before = floor()
    key_views = views_of(before, join_splats(before, blob(BALL, (0.8, 0.2, 0.2))), cameras)
    for count in (0, 1, 20):
        assert len(seed_splats(Births(), before, key_views, max_count=count)) <= count


def test_nothing_is_born_where_the_edit_covers_all(cameras):
    before = floor()
    night = dataclasses.replace(before, sh=before.sh - 0.3 / SH_C0)
    key_views = views_of(before, night, cameras)._replace(masks=torch.ones(len(cameras), SIZE, SIZE))
    assert len(seed_splats(Births(), before, key_views, max_count=400)) == 0


def test_nothing_is_born_where_views_disagree_on_the_place(cameras):
    before = floor()
    key_views = views_of(before, join_splats(before, blob((0.0, 0.8, 0.35), (0.8, 0.2, 0.2))), cameras)
    order = torch.tensor([4, 9, 0, 7, 2, 5, 1, 8, 6, 3])
    mixed = key_views._replace(edited=key_views.edited[order], masks=key_views.masks[order])
    agreed = seed_splats(Births(), before, key_views, max_count=400)
    assert len(seed_splats(Births(), before, mixed, max_count=400)) < 0.1 * len(agreed)


def test_nothing_is_born_where_views_disagree_on_a_colour(cameras):
    before = join_splats(floor(), blob(BALL, (0.5, 0.5, 0.5)))
    key_views = views_of(before, join_splats(floor(), blob(BALL, (0.4, 0.4, 0.8))), cameras)
    shades = 0.25 * torch.where(torch.arange(len(cameras)) % 2 == 0, 1.0, -1.0)[:, None, None, None]
    key_views = key_views._replace(edited=(key_views.edited + shades * key_views.masks[:, None]).clamp(0, 1))
    painted = join_splats(floor(), blob(BALL, (0.4, 0.4, 0.8)))
    bold = Births(color_limit=1.0)
    assert len(seed_splats(dataclasses.replace(bold, min_gain=-1.0), painted, key_views, max_count=400)) > 20
    assert len(seed_splats(bold, painted, key_views, max_count=400)) < 3


def gone_share(before: Splats, after: Splats, painted: Splats, cameras: Cameras) -> tuple[float, float]:
    """Share of ball and of floor that is found gone, among splats that views see."""
    key_views = views_of(before, after, cameras)
    is_ball = torch.arange(len(before)) >= len(floor())
    lifted = lift_masks(before, cameras, key_views.masks)
    gone = find_gone(Deaths(), painted, key_views, lifted=lifted)
    is_seen = lift_masks(before, cameras, torch.ones_like(key_views.masks)) > 0
    return float(gone[is_ball & is_seen].float().mean()), float(gone[~is_ball].float().mean())


def test_the_splats_of_what_is_removed_are_gone_and_the_floor_stays(cameras):
    before = join_splats(floor(), blob(BALL, (0.8, 0.2, 0.2)))
    painted = join_splats(floor(), blob(BALL, (0.5, 0.5, 0.5)))
    ball, ground = gone_share(before, floor(), painted, cameras)
    assert ball > 0.8
    assert ground < 0.02


def test_nothing_is_gone_where_colours_change(cameras):
    before = join_splats(floor(), blob(BALL, (0.8, 0.2, 0.2)))
    after = join_splats(floor(), blob(BALL, (0.2, 0.3, 0.8)))
    assert gone_share(before, after, after, cameras) == (0, 0)


def test_views_that_disagree_on_a_colour_let_nothing_go(cameras):
    before = join_splats(floor(), blob(BALL, (0.8, 0.2, 0.2)))
    after = join_splats(floor(), blob(BALL, (0.2, 0.3, 0.8)))
    key_views = views_of(before, after, cameras)
    shades = 0.2 * torch.randn(len(cameras), 3, 1, 1, generator=torch.Generator().manual_seed(0))
    key_views = key_views._replace(edited=(key_views.edited + shades * key_views.masks[:, None]).clamp(0, 1))
    lifted = lift_masks(before, cameras, key_views.masks)
    is_ball = torch.arange(len(before)) >= len(floor())
    spreads = color_spreads(before, cameras, key_views.edited) - color_spreads(before, cameras, key_views.unedited)
    assert (spreads[is_ball & (lifted > 0.8)] > Deaths().spread).float().mean() > 0.5  # the spread alone would not do
    assert find_gone(Deaths(), after, key_views, lifted=lifted).float().mean() < 0.01


def test_the_spread_of_a_colour_that_all_views_agree_on_is_zero(cameras):
    splats = blob(BALL, (0.8, 0.2, 0.2))
    spreads = color_spreads(splats, cameras, torch.full((len(cameras), 3, SIZE, SIZE), 0.3))
    assert spreads.max() < 1e-3
    half = torch.where(torch.arange(len(cameras)) % 2 == 0, 0.2, 0.6)[:, None, None, None].expand(-1, 3, SIZE, SIZE)
    seen = color_spreads(splats, cameras, half.contiguous())
    assert seen.max() == pytest.approx(0.2, abs=0.02)


def test_a_faded_splat_can_hardly_be_seen_and_the_others_stay_as_they_were(cameras):
    before = join_splats(floor(), blob(BALL, (0.8, 0.2, 0.2)))
    is_ball = torch.arange(len(before)) >= len(floor())
    faded = fade(before, is_ball)
    assert (render_views(faded, cameras) - render_views(floor(), cameras)).abs().max() < 0.05
    assert torch.equal(faded.opacity_logits[~is_ball], before.opacity_logits[~is_ball])
    assert float(before.opacity_logits[is_ball].min()) == 4.0


def test_settings_of_births_and_deaths_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="spacing"):
        Births(spacing_px=0.0)
    with pytest.raises(InputError, match="counts"):
        Births(num_depths=0)
    with pytest.raises(InputError, match="spread"):
        Deaths(spread=0.0)

"""Direct edits do exactly what they say to the splats of a region, from every direction, and nothing to the others."""

import math
from typing import Any

import pytest
import torch

from restage.edit.direct.colors import LUMINANCE, mean_color, read_color
from restage.edit.direct.operations import (
    OPERATIONS,
    Changed,
    Delete,
    Duplicate,
    Move,
    Operation,
    Recolor,
    Rotate,
    Scale,
    Transform,
    carry_weights,
    region_center,
)
from restage.records import InputError
from restage.scenes.fit import render_views
from restage.scenes.splats import Splats, evaluate_sh, rotation_matrices
from tests.scenes.test_capture import turned
from tests.scenes.tiny_captures import small_capture


def some_splats(k: int = 16, count: int = 80) -> Splats:
    """Splats around the origin whose colors stay well inside of [0, 1] from every side."""
    generator = torch.Generator().manual_seed(k)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    sh = 0.02 * draw(count, k, 3).clamp(-2, 2)
    sh[:, 0] = draw(count, 3).clamp(-2, 2) * 0.3
    return Splats(draw(count, 3) * 0.5, draw(count, 3) * 0.4 - 2, draw(count, 4), draw(count), sh)


def half_of(splats: Splats) -> torch.Tensor:
    return (torch.arange(len(splats)) < len(splats) // 2).float()


def colors_from_all_sides(splats: Splats) -> torch.Tensor:
    """Colors of shape (20, n, 3)."""
    sides = torch.nn.functional.normalize(torch.randn(20, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    return torch.stack([evaluate_sh(splats.sh, side.expand(len(splats), 3)) for side in sides])


def rows_of(splats: Splats, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: tensor[rows] for name, tensor in splats.parameters().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


ONE_OF_EACH: dict[str, Operation] = {
    "recolor": Recolor(towards="gold"),
    "delete": Delete(),
    "duplicate": Duplicate(by=(1.0, 0.0, 0.0)),
    "move": Move(by=(0.5, 0.0, -0.25)),
    "rotate": Rotate(degrees=30.0),
    "scale": Scale(factor=1.5),
    "transform": Transform(
        matrix=((0.0, -2.0, 0.0, 1.0), (2.0, 0.0, 0.0, 0.0), (0.0, 0.0, 2.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    ),
}


def test_every_operation_of_the_menu_is_tested():
    assert set(ONE_OF_EACH) == set(OPERATIONS)


@pytest.mark.parametrize("name", list(ONE_OF_EACH))
def test_splats_outside_of_the_region_stay_bit_for_bit_and_the_input_as_it_was(name: str):
    splats = some_splats()
    before, weights = splats.clone(), half_of(splats)
    changed = ONE_OF_EACH[name].apply(splats, weights)
    assert_same(splats.parameters(), before.parameters())
    outside = (changed.origins >= 0) & (carry_weights(weights, changed.origins) == 0)
    if name == "duplicate":
        assert len(changed.splats) == len(splats) + 40 and int((changed.origins < 0).sum()) == 40
    assert int(outside.sum()) == len(splats) // 2
    assert_same(rows_of(changed.splats, outside), rows_of(before, changed.origins[outside]))


@pytest.mark.parametrize("k", [1, 4, 9, 16])
def test_turning_the_hue_by_a_third_exchanges_channels_from_every_side(k: int):
    splats = some_splats(k)
    changed = Recolor(hue=120.0).apply(splats, torch.ones(len(splats))).splats
    expected = colors_from_all_sides(splats)[:, :, [2, 0, 1]]  # green was red, blue was green, red was blue
    torch.testing.assert_close(colors_from_all_sides(changed), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [1, 4, 9, 16])
def test_of_a_color_that_is_replaced_no_hue_remains_from_any_side(k: int):
    splats = some_splats(k)
    changed = Recolor(towards="#c09060").apply(splats, torch.ones(len(splats))).splats
    goal, luminance = torch.tensor(read_color("#c09060")), torch.tensor(LUMINANCE)
    colors = colors_from_all_sides(changed)
    shading = (colors @ luminance)[..., None] / (goal @ luminance)
    assert float(shading.std()) > 0.05
    torch.testing.assert_close(colors, shading * goal, atol=1e-4, rtol=0)
    torch.testing.assert_close(mean_color(changed, torch.ones(len(splats))), goal, atol=0.01, rtol=0)


def test_a_dark_thing_becomes_white_and_a_light_one_black_with_some_shading_left():
    splats = some_splats(1)
    splats.sh.mul_(0.05).sub_(1.5)
    weights = torch.ones(len(splats))
    white = Recolor(towards="white").apply(splats, weights).splats
    torch.testing.assert_close(mean_color(white, weights), torch.full((3,), 0.75), atol=0.05, rtol=0)
    black = Recolor(towards="black").apply(white, weights).splats
    assert float(mean_color(black, weights).max()) < 0.05
    assert float(colors_from_all_sides(black).std()) > 1e-4


def test_a_bright_color_is_reached_where_the_thing_is_lit_and_hardly_cut_off():
    splats = some_splats()
    changed = Recolor(towards="gold").apply(splats, torch.ones(len(splats))).splats
    red = colors_from_all_sides(changed)[..., 0]
    assert float(red.quantile(0.9)) > 0.85 and float((red > 1).float().mean()) < 0.1


def test_saturation_brightness_and_tint_are_what_they_say_from_every_side():
    splats = some_splats()
    weights, colors = torch.ones(len(splats)), colors_from_all_sides(splats)

    def recolored(**parameters: Any) -> torch.Tensor:
        return colors_from_all_sides(Recolor(**parameters).apply(splats, weights).splats)

    grey = (colors @ torch.tensor(LUMINANCE))[..., None].expand_as(colors)
    torch.testing.assert_close(recolored(saturation=0.0), grey, atol=1e-5, rtol=0)
    torch.testing.assert_close(recolored(brightness=0.5), 0.5 * colors, atol=1e-5, rtol=0)
    torch.testing.assert_close(recolored(tint="#ff0000"), colors * torch.tensor([1.0, 0, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(recolored(brightness=0.5, amount=0.5), 0.75 * colors, atol=1e-5, rtol=0)


def test_a_soft_weight_changes_a_color_by_its_share_and_an_opacity_too():
    splats = some_splats()
    weights = torch.full((len(splats),), 0.5)
    colors = colors_from_all_sides(splats)
    changed = Recolor(brightness=0.0).apply(splats, weights).splats
    torch.testing.assert_close(colors_from_all_sides(changed), 0.5 * colors, atol=1e-5, rtol=0)
    left = Delete().apply(splats, weights)
    before = splats.opacity_logits.sigmoid()[left.origins]
    torch.testing.assert_close(left.splats.opacity_logits.sigmoid(), 0.5 * before, atol=1e-5, rtol=0)


def test_what_is_deleted_is_gone_and_the_rest_keeps_its_order():
    splats = some_splats()
    weights = half_of(splats)
    changed = Delete().apply(splats, weights)
    assert_same(changed.splats.parameters(), splats[weights == 0].parameters())
    assert changed.origins.tolist() == list(range(40, 80))
    gone = Delete().apply(splats, torch.ones(80))
    assert len(gone.splats) == 0


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_a_turned_scene_looks_as_it_does_to_a_camera_that_turned(axis: Any):
    capture, splats = small_capture(), some_splats()
    degrees = 40.0
    changed = Rotate(axis=axis, degrees=degrees, about=(0.0, 0.0, 0.0)).apply(splats, torch.ones(len(splats))).splats
    vector = torch.tensor([float(axis == name) for name in "xyz"], dtype=torch.float64)
    cross = torch.linalg.cross(vector.expand(3, 3), torch.eye(3, dtype=torch.float64)).T
    turn = torch.linalg.matrix_exp(math.radians(degrees) * cross)
    found = render_views(changed, turned(capture, turn).cameras)
    expected = render_views(splats, capture.cameras)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_a_region_turns_and_grows_about_its_center_and_comes_back():
    splats = some_splats()
    weights = half_of(splats)
    inside = weights > 0
    for there, back in ((Rotate(degrees=50.0), Rotate(degrees=-50.0)), (Scale(factor=2.0), Scale(factor=0.5))):
        changed = there.apply(splats, weights).splats
        torch.testing.assert_close(region_center(changed, weights), region_center(splats, weights), atol=1e-5, rtol=0)
        assert float((changed.means - splats.means)[inside].norm(dim=1).min()) > 1e-3
        again = back.apply(changed, weights).splats
        torch.testing.assert_close(again.means, splats.means, atol=1e-5, rtol=0)
        torch.testing.assert_close(again.sh, splats.sh, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            rotation_matrices(again.rotations), rotation_matrices(splats.rotations), atol=1e-5, rtol=0
        )
    grown = Scale(factor=2.0).apply(splats, weights).splats
    torch.testing.assert_close(grown.log_scales.exp()[inside], 2 * splats.log_scales.exp()[inside])


def test_a_move_changes_positions_alone():
    splats = some_splats()
    changed = Move(by=(0.5, 0.0, -0.25)).apply(splats, torch.ones(len(splats))).splats
    torch.testing.assert_close(changed.means, splats.means + torch.tensor([0.5, 0, -0.25]))
    for name in ("log_scales", "rotations", "opacity_logits", "sh"):
        assert torch.equal(getattr(changed, name), getattr(splats, name)), name


def test_only_whole_splats_move():
    splats = some_splats()
    weights = torch.linspace(0, 1, len(splats))
    changed = Move(by=(1.0, 0.0, 0.0)).apply(splats, weights).splats
    moved = (changed.means - splats.means).norm(dim=1) > 0
    assert torch.equal(moved, weights >= 0.5)


def test_a_copy_is_a_second_one_elsewhere_and_belongs_to_no_region():
    splats = some_splats()
    weights = half_of(splats)
    changed = Duplicate(by=(3.0, 0.0, 0.0)).apply(splats, weights)
    expected = Move(by=(3.0, 0.0, 0.0)).apply(splats, weights).splats[weights > 0]
    assert_same(rows_of(changed.splats, changed.origins < 0), expected.parameters())
    assert float(carry_weights(weights, changed.origins).sum()) == 40


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Recolor(), "which color"),
        (lambda: Recolor(towards="goldd"), "'goldd'"),
        (lambda: Recolor(hue=10.0, amount=2.0), "amount in"),
        (lambda: Recolor(saturation=math.inf), "amount in"),
        (lambda: Recolor(brightness=math.nan), "amount in"),
        (lambda: Scale(factor=0.0), "above 0"),
        (lambda: Delete().apply(some_splats(), torch.zeros(80)), "holds no splats"),
        (lambda: Delete().apply(some_splats(), torch.ones(79)), "79 weights"),
        (lambda: Transform(matrix=((1.0, 0.0, 0.0, 0.0),)).apply(some_splats(), torch.ones(80)), "4 x 4"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: Any, message: str):
    with pytest.raises(InputError, match=message):
        wrong()


def test_a_change_says_where_each_splat_came_from():
    splats = some_splats()
    weights = half_of(splats)
    for operation in ONE_OF_EACH.values():
        changed = operation.apply(splats, weights)
        assert isinstance(changed, Changed) and len(changed.origins) == len(changed.splats)


def test_what_a_faint_weight_leaves_of_an_opaque_splat_is_a_finite_opacity():
    splats = some_splats()
    splats.opacity_logits[:] = 20.0
    weights = torch.full((80,), 1e-9)
    weights[:40] = 1.0
    left = Delete().apply(splats, weights).splats.opacity_logits
    assert len(left) == 40 and bool((left == 20.0).all())


def test_a_rotation_of_length_0_which_is_drawn_as_none_turns_with_its_region():
    splats = some_splats()
    plain = splats.clone()
    splats.rotations[:] = 0.0
    plain.rotations[:] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    turn = Rotate(degrees=90.0)
    turned, expected = (turn.apply(one, torch.ones(80)).splats.rotations for one in (splats, plain))
    assert torch.equal(turned, expected) and bool((splats.rotations == 0).all())

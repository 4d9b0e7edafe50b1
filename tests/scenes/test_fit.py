"""Fitting and refining: it learns, repeats itself, resumes, and leaves alone what it must."""

import math
from collections.abc import Generator
from typing import cast

import pytest
import torch

from restage.records import InputError, Progress, read_json
from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.capture import Capture
from restage.scenes.fit import (
    FitConfig,
    RefineConfig,
    SplatFit,
    Targets,
    fit_splats,
    is_floating,
    psnr,
    refine_splats,
    render_views,
    view_at,
)
from restage.scenes.fitted import fit_capture
from restage.scenes.initial import initial_splats, surroundings_of
from restage.scenes.io.ply import read_splats
from restage.scenes.optimizer import LearningRates, SplatOptimizer
from restage.scenes.splats import Splats

SIZE = 24
SMALL = FitConfig(steps=30, num_splats=150, cull_every=10, seed=3)


def ball_of_splats(count: int = 80) -> Splats:
    generator = torch.Generator().manual_seed(0)
    means = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1) * 0.6
    return Splats(
        means,
        torch.full((count, 3), -1.9),
        torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        torch.full((count,), 2.0),
        means[:, None, :] * 1.5,
    )


def ring(count: int) -> Cameras:
    intrinsics = intrinsics_from_fov(0.9, SIZE, SIZE).expand(count, 3, 3)
    return Cameras(orbit(count, 2.2, height=0.8), intrinsics, SIZE, SIZE)


@pytest.fixture(scope="module")
def capture() -> Capture:
    splats, cameras = ball_of_splats(), ring(8)
    return Capture(
        name="ball",
        cameras=cameras,
        images=render_views(splats, cameras),
        file_names=tuple(f"{index}.png" for index in range(8)),
        points=splats.means + 0.02,
        point_colors=torch.full_like(splats.means, 0.5),
        train_indices=(0, 1, 2, 4, 5, 6),
        held_out_indices=(3, 7),
    )


def run(steps):
    return list(steps)[-1]


def equal(first: Splats, second: Splats) -> bool:
    pairs = zip(first.parameters().values(), second.parameters().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_fit_gets_closer_on_held_out_views(capture):
    held_out = list(capture.held_out_indices)
    config = FitConfig(steps=150, num_splats=120, shell_share=0.0)
    start = initial_splats(capture, 120, sh_degree=0, shell_share=0.0, seed=0)
    before = psnr(render_views(start, capture.cameras[held_out]), capture.images[held_out]).mean()
    last = run(fit_splats(capture, config))
    after = psnr(render_views(last.splats, capture.cameras[held_out]), capture.images[held_out]).mean()
    assert last.step == last.num_steps == 150
    assert float(after) > float(before) + 5


def test_held_out_views_do_not_influence_a_fit(capture):
    images = capture.images.clone()
    images[list(capture.held_out_indices)] = 1.0
    other = Capture(**{**vars(capture), "images": images})
    assert equal(run(fit_splats(capture, SMALL)).splats, run(fit_splats(other, SMALL)).splats)


def test_the_seed_decides_the_fit(capture):
    first = run(fit_splats(capture, SMALL)).splats
    assert equal(first, run(fit_splats(capture, SMALL)).splats)
    assert not torch.equal(
        first.means[:5], run(fit_splats(capture, FitConfig(steps=30, num_splats=150, seed=4))).splats.means[:5]
    )


def test_a_fit_without_points_starts_where_the_cameras_look(capture):
    bare = Capture(**{**vars(capture), "points": torch.zeros(0, 3), "point_colors": torch.zeros(0, 3)})
    splats = initial_splats(bare, 60, sh_degree=1, shell_share=0.5, seed=0)
    assert len(splats) == 60
    assert tuple(splats.sh.shape) == (60, 4, 3)
    distances = (splats.means - surroundings_of(bare.cameras).center).norm(dim=1)
    assert float(distances[:30].max()) < 6
    assert float(distances[30:].min()) > 8


def test_the_surroundings_of_a_ring_are_its_middle():
    found = surroundings_of(ring(6))
    torch.testing.assert_close(found.center, torch.zeros(3), atol=0.05, rtol=0)
    assert found.size == pytest.approx(math.hypot(2.2, 0.8), rel=0.05)


def test_splats_right_before_a_camera_are_floaters():
    cameras = ring(4)
    position = cameras.camera_to_world[0, :3, 3] + 0.2 * cameras.camera_to_world[0, :3, 2]
    splats = ball_of_splats(3)
    splats.means[1] = position
    splats.opacity_logits[2] = -9.0
    floats = is_floating(splats, cameras, surroundings_of(cameras), 0.25)
    assert floats.tolist() == [False, True, True]


def test_every_pass_sees_every_view_once_in_another_order():
    passes = [tuple(view_at(1, 10 * turn + step, 10) for step in range(10)) for turn in range(3)]
    assert all(sorted(order) == list(range(10)) for order in passes)
    assert len(set(passes)) == 3


def test_frozen_splats_and_frozen_groups_stay_bit_for_bit(capture):
    splats = ball_of_splats()
    trainable = (torch.arange(len(splats)) % 2).float()
    config = RefineConfig(steps=10, rates=LearningRates(log_scales=0.0))
    last = run(refine_splats(splats, Targets(capture.cameras, 1 - capture.images), config=config, trainable=trainable))
    assert equal(last.splats[0::2], splats[0::2])
    assert torch.equal(last.splats.log_scales, splats.log_scales)
    assert not torch.equal(last.splats.sh[1::2], splats.sh[1::2])
    assert equal(splats, ball_of_splats())


def test_pixels_without_weight_pull_nothing(capture):
    weights = torch.zeros(8, SIZE, SIZE)
    splats = ball_of_splats()
    targets = Targets(capture.cameras, 1 - capture.images, weights)
    assert equal(run(refine_splats(splats, targets, config=RefineConfig(steps=3))).splats, splats)


def test_targets_replaced_in_between_take_effect(capture):
    def refined(replace: bool) -> Splats:
        targets = Targets(capture.cameras, capture.images)
        last = None
        for last in refine_splats(ball_of_splats(), targets, config=RefineConfig(steps=9)):
            if replace and last.step == 1:
                for view in range(8):
                    targets.replace(view, 1 - capture.images[view], weights=torch.full((SIZE, SIZE), 0.5))
        assert last is not None
        return last.splats

    assert not equal(refined(True), refined(False))
    assert equal(refined(False), refined(False))


def test_refining_in_segments_equals_refining_at_once(capture):
    targets = Targets(capture.cameras, 1 - capture.images)
    whole = run(refine_splats(ball_of_splats(), targets, config=RefineConfig(steps=12))).splats
    optimizer = SplatOptimizer(ball_of_splats(), RefineConfig().rates, scene_size=surroundings_of(capture.cameras).size)
    for _ in range(3):
        part = run(refine_splats(ball_of_splats(), targets, config=RefineConfig(steps=4), optimizer=optimizer)).splats
    assert equal(whole, part)


def test_psnr_has_its_closed_form():
    truth = torch.zeros(2, 3, 4, 4)
    assert psnr(truth + 0.1, truth).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert math.isinf(float(psnr(truth, truth)[0]))


def test_a_stopped_fit_ends_like_an_undisturbed_one(capture, tmp_path, monkeypatch):
    monkeypatch.setattr("restage.scenes.fitted.SAVE_EVERY_S", 0.0)
    run(fit_capture(capture, tmp_path / "whole", SMALL))
    steps = cast(Generator[Progress], fit_capture(capture, tmp_path / "stopped", SMALL))
    for _ in range(14):
        next(steps)
    steps.close()
    assert (tmp_path / "stopped" / "fit_state.pt").exists()
    assert not (tmp_path / "stopped" / "fit.json").exists()
    resumed = list(fit_capture(capture, tmp_path / "stopped", SMALL))
    assert resumed[0].done in (14, 15)
    assert equal(read_splats(tmp_path / "whole" / "splats.ply"), read_splats(tmp_path / "stopped" / "splats.ply"))
    whole, stopped = (read_json(tmp_path / name / "fit.json") for name in ("whole", "stopped"))
    assert {**whole, "seconds": 0} == {**stopped, "seconds": 0}
    assert len(whole["held_out_psnr_db_by_view"]) == 2
    assert (tmp_path / "whole" / "held_out.png").exists()
    assert not list(tmp_path.glob("*/*.pt"))
    assert [step.note for step in fit_capture(capture, tmp_path / "whole", SMALL)] == ["fitted before"]
    with pytest.raises(InputError, match="another config"):
        next(fit_capture(capture, tmp_path / "whole", FitConfig(steps=31)))


def test_a_broken_state_is_named(capture, tmp_path):
    (tmp_path / "fit_state.pt").write_bytes(b"not a state")
    with pytest.raises(InputError, match="delete it"):
        next(fit_capture(capture, tmp_path, SMALL))


def test_a_saved_fit_goes_on_with_its_moments(capture):
    whole = SplatFit(capture, SMALL)
    for _ in range(6):
        whole.step()
    half = SplatFit(capture, SMALL)
    for _ in range(3):
        half.step()
    resumed = SplatFit(capture, SMALL)
    resumed.optimizer.load_state(half.optimizer.state())
    for _ in range(3):
        resumed.step()
    assert equal(whole.optimizer.splats, resumed.optimizer.splats)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"sh_degree": 3}, {"near_share": 2.0}, {"num_splats": -1}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError):
        FitConfig(**settings)
    with pytest.raises(InputError):
        LearningRates(means=-1.0)

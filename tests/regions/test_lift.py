import torch

from restage.regions.masks import lift_masks, render_masks


def test_masks_of_an_object_lift_to_its_splats_and_not_to_those_behind(tiny_scene):
    views = list(tiny_scene.capture.train_indices)
    lifted = lift_masks(tiny_scene.splats, tiny_scene.capture.cameras[views], tiny_scene.truth_masks[views])
    assert lifted[tiny_scene.is_ball].mean() > 0.9
    # Splats of the disc that look out beside the ball: most of what they show lies outside the masks.
    far = (tiny_scene.splats.means[:, :2].norm(dim=1) > 0.7) & ~tiny_scene.is_ball
    assert lifted[far].mean() < 0.1


def test_a_splat_that_no_view_sees_gets_zero(tiny_scene):
    splats = tiny_scene.splats.clone()
    splats.means[0] = torch.tensor([0.0, 0.0, 50.0])
    lifted = lift_masks(splats, tiny_scene.capture.cameras[0], torch.ones(1, 32, 32))
    assert lifted[0] == 0
    assert lifted.max() <= 1


def test_a_full_mask_lifts_to_one_where_seen_and_an_empty_one_to_zero(tiny_scene):
    cameras = tiny_scene.capture.cameras
    full = lift_masks(tiny_scene.splats, cameras, torch.ones(len(cameras), 32, 32))
    assert torch.allclose(full[full > 0], torch.ones(()), atol=1e-5)
    assert (full > 0).float().mean() > 0.8
    assert lift_masks(tiny_scene.splats, cameras, torch.zeros(len(cameras), 32, 32)).max() == 0


def test_half_a_mask_value_lifts_to_half(tiny_scene):
    cameras = tiny_scene.capture.cameras
    lifted = lift_masks(tiny_scene.splats, cameras, torch.full((len(cameras), 32, 32), 0.5))
    assert torch.allclose(lifted[lifted > 0], torch.tensor(0.5), atol=1e-5)


def test_lifted_masks_render_back_to_about_the_masks(tiny_scene):
    cameras = tiny_scene.capture.cameras
    rendered = render_masks(tiny_scene.splats, cameras, tiny_scene.is_ball.float())
    assert rendered[tiny_scene.truth_masks == 1].mean() > 0.6
    assert rendered[tiny_scene.truth_masks == 0].max() < 0.05


def test_values_of_zero_render_to_nothing_and_of_one_to_the_whole_scene(tiny_scene):
    cameras, num_splats = tiny_scene.capture.cameras[0], len(tiny_scene.splats)
    assert render_masks(tiny_scene.splats, cameras, torch.zeros(num_splats)).max() == 0
    assert render_masks(tiny_scene.splats, cameras, torch.ones(num_splats)).max() > 0.9


def test_a_splat_that_is_hardly_seen_counts_as_unseen(tiny_scene, monkeypatch):
    weights = torch.tensor([0.0009, 0.0011, 2.0])
    monkeypatch.setattr("restage.regions.masks.splat_weights", lambda *_: (0.5 * weights[:, None], weights))
    lifted = lift_masks(tiny_scene.splats[:3], tiny_scene.capture.cameras[0], torch.ones(1, 32, 32))
    torch.testing.assert_close(lifted, torch.tensor([0.0, 0.5, 0.5]))

import pytest
import torch

from restage.edit.editors.change import MAX_FLOOR, change_masks, noise_floor
from restage.regions.masks import join_masks


def edited_square(noise: float, strength: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    originals = 0.3 + 0.2 * torch.rand(2, 3, 12, 12, generator=generator).repeat_interleave(4, 2).repeat_interleave(
        4, 3
    )
    edited = originals + noise * torch.randn(originals.shape, generator=generator)
    truth = torch.zeros(2, 48, 48)
    truth[:, 10:30, 12:34] = 1
    return edited + strength * truth[:, None], originals, truth


def iou(masks: torch.Tensor, truth: torch.Tensor) -> float:
    return float(((masks > 0.5) & (truth > 0.5)).sum() / ((masks > 0.5) | (truth > 0.5)).sum())


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.04])
def test_a_change_is_found_above_the_editors_own_noise(noise):
    edited, originals, truth = edited_square(noise, strength=0.25)
    assert iou(change_masks(edited, originals), truth) > 0.85
    unedited, _, _ = edited_square(noise, strength=0.0)
    assert change_masks(unedited, originals).mean() < 0.01


def test_the_floor_grows_with_the_noise_and_is_bounded():
    floors = [float(noise_floor(*edited_square(noise, 0.3)[:2]).mean()) for noise in (0.0, 0.01, 0.03, 0.5)]
    assert (
        floors[0] == pytest.approx(0, abs=1e-6) and floors[0] < floors[1] < floors[2] <= floors[3] <= MAX_FLOOR + 1e-6
    )


def test_a_weak_piece_counts_where_it_hangs_on_a_strong_one_and_not_alone():
    originals = torch.full((1, 3, 48, 48), 0.5)
    edited = originals.clone()
    edited[:, :, 4:16, 4:40] += 0.06
    edited[:, :, 4:16, 4:10] += 0.2
    edited[:, :, 30:42, 4:40] += 0.06
    mask = change_masks(edited, originals)[0]
    assert mask[6:14, 14:38].min() > 0.2 and not mask[28:44].any()


def test_masks_are_joined_by_what_most_views_agree_on(tiny_scene):
    cameras, truth = tiny_scene.capture.cameras, tiny_scene.truth_masks.clone()
    wrong = truth.clone()
    wrong[0], wrong[3] = 0.0, 0.0
    wrong[5, :6, :6] = 1.0
    joined = join_masks(tiny_scene.splats, cameras, wrong)
    assert iou(joined[[0, 3]], truth[[0, 3]]) > 0.5  # what two views missed, the others saw
    assert joined[5, :6, :6].max() < 0.2  # what one view alone shows is not there
    assert torch.equal(join_masks(tiny_scene.splats, cameras[0], wrong[:1]), wrong[:1])

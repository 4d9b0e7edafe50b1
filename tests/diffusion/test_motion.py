from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import MotionAdapter, UNetMotionModel

from restage.diffusion.motion import build_motion, load_motion, max_frames, moving
from restage.records import InputError

FRAMES = 4
SD_SHAPED: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 2,
}
"""Blocks as those of Stable Diffusion 1.5, where the lowest resolution has no attention."""


def unet_of(**more: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    given = {"sample_size": 8, "cross_attention_dim": 12, "norm_num_groups": 4, "attention_head_dim": 2, **more}
    return UNet2DConditionModel(**given).eval()


def adapter_of(unet: UNet2DConditionModel, *, has_middle: bool = True) -> MotionAdapter:
    torch.manual_seed(1)
    config: Any = unet.config
    motion = MotionAdapter(
        block_out_channels=config["block_out_channels"],
        motion_layers_per_block=config["layers_per_block"],
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        motion_max_seq_length=8,
        use_motion_mid_block=has_middle,
    )
    return motion.eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(2, FRAMES, 4, 8, 8, generator=generator),
        torch.tensor([300, 300]),
        torch.randn(2, 5, 12, generator=generator),
    )


@torch.no_grad()
def ours(unet: Any, motion: MotionAdapter) -> torch.Tensor:
    latents, t, text = inputs()
    frames = {"encoder_hidden_states": text.repeat_interleave(FRAMES, dim=0)}
    with moving(unet, motion, FRAMES):
        return unet(latents.flatten(0, 1), t.repeat_interleave(FRAMES), **frames).sample.unflatten(0, (2, FRAMES))


@pytest.mark.parametrize("has_middle", [True, False])  # the third version of AnimateDiff has none
def test_a_unet_with_an_adapter_is_the_motion_model_of_diffusers(has_middle: bool) -> None:
    unet = unet_of(**SD_SHAPED)
    motion = adapter_of(unet, has_middle=has_middle)
    make: Any = UNetMotionModel
    theirs = make.from_unet2d(unet, motion).eval()
    latents, t, text = inputs()
    frames = {"encoder_hidden_states": text.repeat_interleave(FRAMES, dim=0)}
    with torch.no_grad():
        expected = theirs(latents.transpose(1, 2), t, **frames).sample.transpose(1, 2)
    torch.testing.assert_close(ours(unet, motion), expected, atol=2e-5, rtol=1e-4)


def test_untrained_it_changes_nothing_and_hooks_are_gone_afterwards() -> None:
    unet = unet_of(**SD_SHAPED)
    latents, t, text = inputs()
    frames = {"encoder_hidden_states": text.repeat_interleave(FRAMES, dim=0)}
    with torch.no_grad():
        plain = unet(latents.flatten(0, 1), t.repeat_interleave(FRAMES), **frames).sample.unflatten(0, (2, FRAMES))
    assert torch.equal(ours(unet, build_motion(unet)), plain)
    assert not torch.allclose(ours(unet, adapter_of(unet)), plain, atol=1e-3)
    assert not any(module._forward_hooks for module in unet.modules())


def test_frames_see_each_other_and_clips_do_not() -> None:
    unet = unet_of(**SD_SHAPED)
    motion = adapter_of(unet)
    before = ours(unet, motion)
    changed = inputs()[0]
    changed[0, 1] += 1.0
    _, t, text = inputs()
    with torch.no_grad(), moving(unet, motion, FRAMES):
        frames = {"encoder_hidden_states": text.repeat_interleave(FRAMES, dim=0)}
        after = unet(changed.flatten(0, 1), t.repeat_interleave(FRAMES), **frames).sample.unflatten(0, (2, FRAMES))
    assert not torch.allclose(after[0, 3], before[0, 3], atol=1e-4)
    torch.testing.assert_close(after[1], before[1])


def test_an_adapter_is_saved_and_loaded_as_diffusers_does(tmp_path: Path) -> None:
    unet = unet_of(**SD_SHAPED)
    motion = adapter_of(unet)
    motion.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(ours(unet, load_motion(tmp_path / "theirs", unet)), ours(unet, motion))
    build_motion(unet, num_frames=16).save_pretrained(tmp_path / "ours")
    make: Any = MotionAdapter
    assert max_frames(make.from_pretrained(tmp_path / "ours")) == 16


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    unet = unet_of(**SD_SHAPED)
    motion = adapter_of(unet)
    motion.save_pretrained(tmp_path / "motion")
    other = unet_of(**{**SD_SHAPED, "block_out_channels": (8, 8, 8)})
    deeper = unet_of(**{**SD_SHAPED, "layers_per_block": 1})
    for wrong in (other, deeper):
        with pytest.raises(InputError, match="another UNet|other blocks or widths"):
            load_motion(tmp_path / "motion", wrong)
    with pytest.raises(InputError, match="1 to 8 frames"), moving(unet, motion, 9):
        pass

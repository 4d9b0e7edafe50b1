from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
from diffusers.models.unets.unet_motion_model import MotionAdapter
from PIL import Image

from restage.diffusion.backbone import load_backbone
from restage.diffusion.motion import build_motion
from restage.generate.clips import clip_paths, generate_clips
from restage.generate.config import PicturesConfig
from restage.records import InputError
from restage.scenes.io.films import open_film
from tests.tiny_models import write_tiny_models

CAPTIONS = ["a red cube", "a blue ball"]


def test_clips_of_captions_are_written_and_kept(tmp_path: Path) -> None:
    backbone = load_backbone(write_tiny_models(tmp_path / "models") / "text_to_image")
    motion, config = build_motion(backbone.unet), PicturesConfig(steps=2)
    steps = list(generate_clips(backbone, motion, CAPTIONS, config, out=tmp_path / "clip.mp4", num_frames=3))
    assert [step.done for step in steps] == [1, 2, 3, 4] and steps[-1].total == 4
    paths = clip_paths(tmp_path / "clip.mp4", 2)
    assert [path.name for path in paths] == ["clip-000.mp4", "clip-001.mp4"]
    assert imageio_ffmpeg.count_frames_and_secs(str(paths[0])) == (3, pytest.approx(0.375, abs=0.02))
    before = paths[1].read_bytes()
    again = list(generate_clips(backbone, motion, CAPTIONS, config, out=tmp_path / "clip.mp4", num_frames=3))
    assert [step.note for step in again] == [f"{path.name} is there" for path in paths]
    assert paths[1].read_bytes() == before


@pytest.mark.parametrize("suffix", [".gif", ".webm"])
def test_other_forms_are_written_too(tmp_path: Path, suffix: str) -> None:
    backbone = load_backbone(write_tiny_models(tmp_path / "models") / "text_to_image")
    out = tmp_path / f"clip{suffix}"
    list(generate_clips(backbone, build_motion(backbone.unet), CAPTIONS[:1], PicturesConfig(steps=1), out=out))
    if suffix == ".gif":
        with Image.open(out) as picture:
            assert getattr(picture, "n_frames", 0) > 1
    else:
        with open_film(out) as film:
            assert film.head["codec"].startswith("vp9")


def test_too_many_frames_are_refused(tmp_path: Path) -> None:
    backbone = load_backbone(write_tiny_models(tmp_path / "models") / "text_to_image")
    motion = build_motion(backbone.unet, num_frames=4)
    for count in (1, 5):
        with pytest.raises(InputError, match="2 to 4 frames"):
            list(generate_clips(backbone, motion, CAPTIONS, PicturesConfig(), out=tmp_path / "a.mp4", num_frames=count))


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_a_clip_made_from_something_else_is_neither_kept_nor_overwritten(tmp_path: Path, suffix: str) -> None:
    backbone = load_backbone(write_tiny_models(tmp_path / "models") / "text_to_image")
    motion, out = build_motion(backbone.unet), tmp_path / f"clip{suffix}"
    odd = 'a "red" café; = # \\ 雪'

    def made(motion: MotionAdapter = motion, caption: str = odd, **how: Any) -> list[str]:
        config = PicturesConfig(steps=how.pop("steps", 1))
        how = {"num_frames": 2, **how}
        return [step.note for step in generate_clips(backbone, motion, [caption], config, out=out, **how)]

    assert made() == [out.name]
    before = out.read_bytes()
    assert made() == [f"{out.name} is there"]
    other = build_motion(backbone.unet, seed=1)
    changes: list[dict[str, Any]] = [{"caption": "a ball"}, {"seed": 1}, {"steps": 2}, {"num_frames": 3}]
    for change in [*changes, {"motion": other}]:
        with pytest.raises(InputError, match="made from something else"):
            made(**change)
    assert out.read_bytes() == before


def test_every_clip_is_asked_for_before_one_is_made(tmp_path: Path) -> None:
    backbone = load_backbone(write_tiny_models(tmp_path / "models") / "text_to_image")
    (tmp_path / "clip-001.mp4").write_bytes(b"mine")
    steps = generate_clips(
        backbone, build_motion(backbone.unet), CAPTIONS, PicturesConfig(steps=1), out=tmp_path / "clip.mp4"
    )
    with pytest.raises(InputError, match="clip-001.mp4 is there"):
        list(steps)
    assert not (tmp_path / "clip-000.mp4").exists()

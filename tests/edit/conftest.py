import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from restage.edit.pictures import write_image, write_mask
from restage.records import EditCase, EditRequest, write_json
from restage.scenes.cameras import Cameras, intrinsics_from_fov, orbit
from restage.scenes.capture import Capture
from restage.scenes.fit import render_views
from restage.scenes.io.nerfstudio import write_capture
from restage.scenes.io.splat_files import write_splats
from restage.scenes.splats import SH_C0, Splats

SIZE = 32
NUM_VIEWS = 8
HELD_OUT = (2, 6)


@dataclass(frozen=True)
class TinyScene:
    """A red ball of splats on a gray disc, and the same with a blue ball."""

    splats: Splats
    recolored: Splats
    is_ball: torch.Tensor
    capture: Capture
    truth_images: torch.Tensor
    truth_masks: torch.Tensor

    request = EditRequest(instruction="make it blue", source_caption="a red ball", target_caption="a blue ball")

    def write(self, folder: Path, edit: str = "blue") -> Path:
        """Write it as the scenes stage would; return the truth folder."""
        write_capture(self.capture, folder / "capture")
        write_splats(self.splats, folder / "splats.ply")
        truth = folder / "truth" / edit
        for name, image, mask in zip(self.capture.file_names, self.truth_images, self.truth_masks, strict=True):
            write_image(truth / "images" / name, image)
            write_mask(truth / "masks" / name, mask)
        case = EditCase(scene=folder.name, kind="recolour", request=self.request, has_truth=True)
        write_json(truth / "edit.json", case)
        return truth


def _splats() -> tuple[Splats, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(80, 3, generator=generator), dim=1)
    ball = 0.35 * directions + torch.tensor([0.0, 0.0, 0.4])
    angles, radii = torch.rand(2, 120, generator=generator)
    disc = torch.stack([radii.sqrt() * (angles * math.tau).cos(), radii.sqrt() * (angles * math.tau).sin()], dim=1)
    means = torch.cat([ball, torch.cat([disc, torch.zeros(120, 1)], dim=1)])
    colors = torch.cat([torch.tensor([0.8, 0.2, 0.2]).expand(80, 3), torch.tensor([0.5, 0.5, 0.5]).expand(120, 3)])
    splats = Splats(
        means=means,
        log_scales=torch.full((200, 3), math.log(0.09)),
        rotations=torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(200, 4).contiguous(),
        opacity_logits=torch.full((200,), 3.0),
        sh=((colors - 0.5) / SH_C0)[:, None].contiguous(),
    )
    return splats, torch.arange(200) < 80


@pytest.fixture(scope="session")
def tiny_scene() -> TinyScene:
    splats, is_ball = _splats()
    sh = splats.sh.clone()
    sh[is_ball] = ((torch.tensor([0.2, 0.3, 0.85]) - 0.5) / SH_C0)[None]
    recolored = replace(splats, sh=sh)
    poses = orbit(NUM_VIEWS, 2.2, height=1.3, target=torch.tensor([0.0, 0.0, 0.2]))
    intrinsics = intrinsics_from_fov(math.radians(55), SIZE, SIZE).expand(NUM_VIEWS, 3, 3).contiguous()
    cameras = Cameras(poses, intrinsics, SIZE, SIZE)
    before, after = render_views(splats, cameras).clamp(0, 1), render_views(recolored, cameras).clamp(0, 1)
    capture = Capture(
        name="tiny",
        cameras=cameras,
        images=before,
        file_names=tuple(f"view_{index}.png" for index in range(NUM_VIEWS)),
        points=torch.zeros(0, 3),
        point_colors=torch.zeros(0, 3),
        train_indices=tuple(index for index in range(NUM_VIEWS) if index not in HELD_OUT),
        held_out_indices=HELD_OUT,
    )
    masks = ((after - before).abs().amax(dim=1) > 3 / 255).float()
    return TinyScene(splats, recolored, is_ball, capture, after, masks)

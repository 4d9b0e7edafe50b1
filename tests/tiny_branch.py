"""An untrained control branch for a tiny model, which acts all the same."""

from __future__ import annotations

from pathlib import Path

import torch

from restage.diffusion.backbone import load_backbone
from restage.diffusion.branches import BranchRecord, build_branch, save_branch

__all__ = ["write_tiny_branch"]


def write_tiny_branch(text_to_image: Path, folder: Path) -> Path:
    """Write a branch for depth and ids; the same weights each time."""
    unet = load_backbone(text_to_image).unet
    with torch.random.fork_rng():
        torch.manual_seed(0)
        branch = build_branch(unet, ("depth", "ids"), width=16)
    save_branch(branch, folder, BranchRecord(conditions=("depth", "ids"), near=1.5), {})
    return folder

"""What nerfstudio's environment may lack: checkpoints that its torch reads, and the weights of LPIPS."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from restage.records import InputError

__all__ = ["NotScored", "allow_checkpoints", "latest_checkpoint", "lpips_or_not_scored", "read_checkpoint"]


def allow_checkpoints() -> None:
    """Let `torch.load` read numpy's numbers, here and in nerfstudio's own commands.

    Since 2.6 torch loads weights only; the checkpoints that nerfstudio 1.1.5 writes hold learning rates as numpy
    scalars, so that with such a torch it cannot read what it wrote. Scalars hold no code.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    types: list[Any] = [scalar, np.dtype, type(np.dtype(np.float64))]
    torch.serialization.add_safe_globals(types)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ns-train onto the CPU, without running code out of it."""
    allow_checkpoints()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch.load raises whatever the broken file brings about
        raise InputError(f"{path} is not readable as a checkpoint: {str(error).splitlines()[0]}") from None
    if not isinstance(state, dict) or not {"step", "pipeline"} <= set(state):
        raise InputError(f"{path}: expected a checkpoint of ns-train with step and pipeline")
    return state


def latest_checkpoint(folder: Path | None, step: int | None = None) -> Path:
    """Checkpoint of a step in a folder `nerfstudio_models`, the last one by default."""
    found = sorted(folder.glob("step-*.ckpt")) if folder is not None and folder.is_dir() else []
    if step is not None:
        found = [path for path in found if int(path.stem.removeprefix("step-")) == step]
    if not found:
        raise InputError(f"{folder} holds no checkpoint step-*.ckpt{'' if step is None else f' of step {step}'}")
    return found[-1]


class NotScored(nn.Module):
    """Stands where a metric would stand and says NaN."""

    def forward(self, *pictures: Tensor) -> Tensor:
        """NaN, whatever the pictures are."""
        return torch.tensor(torch.nan)


@contextlib.contextmanager
def lpips_or_not_scored() -> Iterator[None]:
    """Within it, a model that builds LPIPS gets a stand-in if the weights are neither here nor can be downloaded.

    Everything else of the model works without it; the metric then reads NaN, and a line on the screen says why.
    """
    from torchmetrics.image import lpip  # pyright: ignore[reportMissingImports]

    original = lpip.LearnedPerceptualImagePatchSimilarity

    def build(*args: Any, **options: Any) -> nn.Module:
        try:
            return original(*args, **options)
        except (OSError, RuntimeError) as error:
            print(f"LPIPS is not scored, since its weights could not be loaded: {error}")
            return NotScored()

    lpip.LearnedPerceptualImagePatchSimilarity = build  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        lpip.LearnedPerceptualImagePatchSimilarity = original

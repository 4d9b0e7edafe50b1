"""nerfstudio's trainer for edits: starts from a trained scene with new optimizers, and says bad input in one line.

Besides, what nerfstudio's environment may lack: checkpoints that its torch reads, and the weights of LPIPS.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from torch import Tensor, nn

from restage.records import InputError

__all__ = ["EditTrainer", "EditTrainerConfig", "NotScored", "allow_checkpoints", "latest_checkpoint"]
__all__ += ["lpips_or_not_scored", "read_checkpoint", "read_config"]


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


@dataclass
class EditTrainerConfig(TrainerConfig):
    """Training that goes on from `--load-dir`, the folder `nerfstudio_models` of a finished `ns-train`."""

    _target: type = field(default_factory=lambda: EditTrainer)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Bad input ends the process with exit code 2 and one line instead of a traceback."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


class EditTrainer(Trainer):
    """Goes on from a trained scene.

    The model's settings and the dataparser's are taken from the trained run, since its weights fit no others. The
    optimizers start anew: an edit is another task, and nerfstudio's own way of going on leaves a splatfacto with
    optimizers of parameters that loading has replaced.
    """

    config: EditTrainerConfig

    def __init__(self, config: EditTrainerConfig, **options: Any) -> None:
        with _one_line_errors():
            if not getattr(config.pipeline, "instruction", "").strip():
                raise InputError(
                    'the instruction is empty; say what to change, such as --pipeline.instruction "make the cube blue"'
                )
            if config.load_dir is None and config.load_checkpoint is None:
                raise InputError(
                    "an edit starts from a trained scene; give the folder nerfstudio_models of a finished "
                    "ns-train with --load-dir (make one with: ns-train restage-fit --data FOLDER)"
                )
            self._load_path = config.load_checkpoint or latest_checkpoint(config.load_dir, config.load_step)
            _adopt_trained_settings(config, self._load_path)
            config.save_config()
        super().__init__(config, **options)

    def setup(self, test_mode: Any = "val") -> None:
        """Set up everything and load the trained scene."""
        with _one_line_errors():
            super().setup(test_mode)

    def train(self) -> None:
        """Train to the end."""
        with _one_line_errors():
            super().train()

    def _load_checkpoint(self) -> None:
        state = read_checkpoint(self._load_path)
        self._start_step = state["step"] + 1
        self.pipeline.load_pipeline(state["pipeline"], state["step"])
        self.optimizers = self.setup_optimizers()


def read_config(path: Path) -> TrainerConfig:
    """Read the `config.yml` that ns-train writes; only of runs that you trust, since YAML of this kind runs code."""
    try:
        config = yaml.load(path.read_text(), Loader=yaml.Loader)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the config.yml that ns-train wrote") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not readable as a nerfstudio config: {error}") from None
    if not isinstance(config, TrainerConfig):
        raise InputError(f"{path}: expected the config.yml of ns-train, got {type(config).__name__}")
    return config


def _adopt_trained_settings(config: EditTrainerConfig, checkpoint: Path) -> None:
    """Take model and dataparser settings from the config beside the checkpoint's folder, if it is there."""
    path = checkpoint.parent.parent / "config.yml"
    if not path.exists():
        return
    trained = read_config(path)
    found, expected = trained.pipeline.model, config.pipeline.model
    if not isinstance(found, type(expected)):
        raise InputError(
            f"{path}: {config.method_name} expects a {type(expected).__name__}, got a {type(found).__name__}; "
            "use the method with -splatfacto for splats, the one without for a nerfacto"
        )
    config.pipeline.model = trained.pipeline.model
    dataparser = config.pipeline.datamanager.dataparser
    config.pipeline.datamanager.dataparser = trained.pipeline.datamanager.dataparser
    config.pipeline.datamanager.dataparser.data = dataparser.data
    if config.pipeline.datamanager.data is None:
        config.pipeline.datamanager.data = trained.pipeline.datamanager.data
    if hasattr(config.pipeline.model, "num_downscales"):
        config.pipeline.model.num_downscales = 0  # an edit asks for pictures at their full size from its first step

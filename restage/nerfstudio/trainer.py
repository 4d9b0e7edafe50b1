"""nerfstudio's trainer for edits: starts from a trained scene with new optimizers, and says bad input in one line."""

# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from nerfstudio.engine.trainer import Trainer, TrainerConfig

from restage.nerfstudio.compatibility import latest_checkpoint, read_checkpoint
from restage.records import InputError

__all__ = ["EditTrainer", "EditTrainerConfig", "read_config"]


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

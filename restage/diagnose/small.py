"""Runs made small for a diagnosis, where two configs are to be compared and not two runs: JSON files of what to change.

A file such as `{"edit.settings.restage.noise_levels": [0.35]}` names settings of the stages by their path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from restage.diagnose.parts import read_settings
from restage.diffusion.config import SamplerConfig, TrainingConfig
from restage.edit.config import EditConfig
from restage.edit.methods import METHODS, Restage
from restage.pairs.config import GenerateConfig, PairsConfig
from restage.prompts.config import PromptsConfig
from restage.recipes import RULE, STAGES
from restage.records import InputError, Progress, read_json, to_plain
from restage.run.folder import RunFolder, working
from restage.run.models import Models
from restage.scenes.config import FitConfig, ScenesConfig
from restage.train.config import LossWeights, TrainConfig
from restage.world.config import CaptureConfig, WorldConfig

__all__ = ["SmallConfig", "changed", "make_run", "read_changes"]

MADE_STAGES = ("prompts", "pairs", "train", "world", "scenes")
"""Stages that a diagnosis needs of a run; it edits by itself."""


def _edits() -> EditConfig:
    method = Restage(num_key_views=6, noise_levels=(1.0,), color_steps=40, shape_steps=50)
    return EditConfig(methods=("restage",), editors=("edit_model",), settings={"restage": method})


@dataclass(frozen=True, kw_only=True)
class SmallConfig:
    """A run of some minutes: enough to see what a setting does to edits, not how good they can be."""

    prompts: PromptsConfig = field(default_factory=lambda: PromptsConfig(num_prompts=96))
    pairs: PairsConfig = field(
        default_factory=lambda: PairsConfig(
            generate=GenerateConfig(sampler=SamplerConfig(num_steps=8), guidance=3.0), rule=RULE, pairs_per_shard=32
        )
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            training=TrainingConfig(
                num_steps=70, batch_size=16, learning_rate=2e-4, num_warmup_steps=10, ema_decay=0.9
            ),
            weights=LossWeights(mask=0.1, changed=1.0),
        )
    )
    world: WorldConfig = field(
        default_factory=lambda: WorldConfig(
            num_scenes=8, num_objects=1, edit_kinds=("ground", "time"), capture=CaptureConfig(num_views=15)
        )
    )
    scenes: ScenesConfig = field(default_factory=lambda: ScenesConfig(fit=FitConfig(steps=400, num_splats=2000)))
    edit: EditConfig = field(default_factory=_edits)


def read_changes(path: Path) -> dict[str, Any]:
    """Read a config file: an object such as `{"pairs.rule.min_change": 0.01}`."""
    return read_json(path, dict[str, Any])


def changed(config: SmallConfig, changes: Mapping[str, Any]) -> SmallConfig:
    """Return the config with other values at some paths; refuses unknown paths, and values that a stage refuses."""
    plain = to_plain(config)
    for path, value in changes.items():
        *parents, name = path.split(".")
        place = plain
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict) or name not in place:
            raise InputError(f"there is no setting {path!r}; paths are such as train.training.num_steps")
        place[name] = value
    methods = plain["edit"].pop("settings")
    read = read_settings(SmallConfig, plain)
    settings = {name: read_settings(METHODS[name], values) for name, values in methods.items()}
    return replace(read, edit=replace(read.edit, settings=settings))


def make_run(
    folder: Path, config: SmallConfig, models: Models, *, seed: int = 0, stages: tuple[str, ...] = MADE_STAGES
) -> Iterator[Progress]:
    """Go through the stages that a diagnosis needs; what is done is left as it is."""
    with working(RunFolder.open(folder, config, seed=seed), *stages) as run:
        for name in stages:
            yield from STAGES[name].run(run, getattr(config, name), models)

"""The whole demo at a small size, with random models and few steps, and a process of it that dies at a given file."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from restage.compare.config import CompareConfig
from restage.diffusion.config import SamplerConfig, TrainingConfig
from restage.edit.config import EditConfig
from restage.edit.methods import Idu, ReplaceOnce, Restage
from restage.pairs.config import GenerateConfig, PairRule, PairsConfig
from restage.prompts.config import PromptsConfig
from restage.recipes import DemoConfig, demo
from restage.records import Progress
from restage.report.stage import ReportConfig
from restage.run.models import Models, models_in
from restage.scenes.config import FitConfig, ScenesConfig
from restage.train.config import TrainConfig
from restage.world.config import CaptureConfig, WorldConfig

# Random models make pictures that no rule would accept.
ACCEPT_ALL = PairRule(
    min_image_similarity=-2.0,
    min_direction_similarity=-2.0,
    min_text_similarity=-2.0,
    min_change=0.0,
    min_mask_share=0.0,
)


def tiny_demo_config(models: Models) -> DemoConfig:
    """Return the config of a demo that takes seconds."""
    return DemoConfig(
        prompts=PromptsConfig(num_prompts=6),
        pairs=PairsConfig(
            generate=GenerateConfig(sampler=SamplerConfig(num_steps=2), batch_size=2),
            rule=ACCEPT_ALL,
            pairs_per_shard=2,
        ),
        train=TrainConfig(
            training=TrainingConfig(num_steps=4, batch_size=2, num_warmup_steps=1, checkpoint_every_s=0.0)
        ),
        world=WorldConfig(
            num_objects=1,
            edit_kinds=("recolour",),
            capture=CaptureConfig(num_views=6, held_out_every=5, num_points=400),
        ),
        scenes=ScenesConfig(fit=FitConfig(steps=40, num_splats=300)),
        edit=EditConfig(
            settings={
                "replace_once": ReplaceOnce(num_steps=3),
                "idu": Idu(num_steps=4, edit_every=2),
                "restage": Restage(num_key_views=2, color_steps=2, shape_steps=2),
            }
        ),
        compare=CompareConfig(orbit_frames=4),
        report=ReportConfig(max_views=1),
        models_sha256=models.sha256(),
    )


def run_tiny_demo(folder: Path, models_folder: Path) -> list[Progress]:
    """Run the demo to its end, or go on with one that was killed."""
    models = models_in(models_folder)
    return list(demo(folder, tiny_demo_config(models), models))


def run_until(folder: Path, models_folder: Path, pattern: str, count: int) -> None:
    """Run it until the `count`-th file that matches the pattern has its name, then die as by `kill -9`.

    Every file of a run gets its name by `os.replace`, so this hits the moment right after it, every time.
    """
    replace, left = os.replace, count

    def replace_and_die(source: str | Path, target: str | Path) -> None:
        nonlocal left
        replace(source, target)
        left -= Path(target).match(pattern)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace_and_die
    run_tiny_demo(folder, models_folder)

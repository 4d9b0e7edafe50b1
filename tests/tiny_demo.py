"""The whole demo in miniature: random models, few steps; run as a program, it can be killed.

Usage: python -m tests.tiny_demo RUN_FOLDER MODELS_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from restage.compare.protocol import CompareConfig
from restage.diffusion.sampler import LocalBlend
from restage.diffusion.training import TrainingConfig
from restage.edit import Idu, ReplaceOnce, Restage
from restage.edit.stage import EditConfig
from restage.pairs.generate import GenerateConfig
from restage.pairs.score import PairRule
from restage.pairs.stage import PairsConfig
from restage.prompts.stage import PromptsConfig
from restage.recipes import DemoConfig, Models, demo
from restage.report.page import ReportConfig
from restage.scenes.fit import FitConfig
from restage.scenes.stage import ScenesConfig, WorldEdit, WorldScene
from restage.train.edit_model import TrainConfig

# Random models make pictures that no rule would accept.
ACCEPT_ALL = PairRule(
    min_image_similarity=-2, min_direction_similarity=-2, min_text_similarity=-2, min_change=0, min_mask_share=0
)


def tiny_demo_config(models: Models) -> DemoConfig:
    """A demo of seconds."""
    return DemoConfig(
        prompts=PromptsConfig(num_prompts=6),
        pairs=PairsConfig(
            generate=GenerateConfig(num_steps=2, batch_size=2, blend=LocalBlend()), rule=ACCEPT_ALL, pairs_per_shard=2
        ),
        train=TrainConfig(training=TrainingConfig(num_steps=4, batch_size=2, num_warmup_steps=1, checkpoint_every_s=0)),
        scenes=ScenesConfig(
            worlds=(WorldScene(seed=0, edits=(WorldEdit(kind="recolour"),)),),
            num_views=6,
            num_points=400,
            fit=FitConfig(steps=20, num_splats=300),
        ),
        edit=EditConfig(
            settings={
                "replace_once": ReplaceOnce(num_steps=3),
                "idu": Idu(num_steps=4, edit_every=2),
                "restage": Restage(num_key_views=2, color_steps=2, shape_steps=2),
            }
        ),
        compare=CompareConfig(),
        report=ReportConfig(max_views=1),
        models_sha256=models.sha256(),
    )


def main() -> None:
    from restage.recipes import models_in

    folder, models = Path(sys.argv[1]), models_in(Path(sys.argv[2]))
    for step in demo(folder, tiny_demo_config(models), models):
        print(step.stage, step.done, step.total, step.note, flush=True)


if __name__ == "__main__":
    main()

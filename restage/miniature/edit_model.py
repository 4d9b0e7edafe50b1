"""The miniature's edit model: trained on Prompt-to-Prompt pairs that the miniature's own text-to-image model makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from restage.diffusion.backbone import load_backbone
from restage.diffusion.clip import load_clip
from restage.diffusion.editor import Guidance, load_edit_model, save_edit_model
from restage.diffusion.training import TrainingConfig
from restage.pairs.generate import GenerateConfig
from restage.pairs.score import PairRule
from restage.pairs.stage import PairsConfig, run_pairs
from restage.pairs.store import read_pairs
from restage.prompts.stage import PromptsConfig, run_prompts
from restage.records import Progress, RunFolder
from restage.train.batches import LossWeights
from restage.train.edit_model import TrainConfig, train_edit_model

__all__ = ["PAIRS", "RECIPE", "RULE", "EditModelRecipe", "train_edit"]


@dataclass(frozen=True, kw_only=True)
class EditModelRecipe:
    """From how many pairs, and how long."""

    prompts: PromptsConfig
    pairs: PairsConfig
    train: TrainConfig
    seed: int = 0


RULE = PairRule(min_image_similarity=0.25, min_direction_similarity=0.3, min_text_similarity=0.5)
"""Set from what the miniature's CLIP says of 70 exact rendered pairs, with room below: pictures at least 0.31 alike,
texts at least 0.75; directions at least 0.5, but for reshape and resize, which it hardly sees. Published CLIPs need
other thresholds."""

PAIRS = PairsConfig(generate=GenerateConfig(num_steps=14), rule=RULE, pairs_per_shard=32)
"""How the miniature's pairs are made, here and in the demo."""

GUIDANCE = Guidance(text=1.5, image=1.5)
"""Best of nine settings by progress on single rendered views; more text guidance makes colours too strong."""

RECIPE = EditModelRecipe(
    prompts=PromptsConfig(num_prompts=720),
    pairs=PAIRS,
    train=TrainConfig(
        training=TrainingConfig(num_steps=700, batch_size=32, learning_rate=3e-4, num_warmup_steps=60, ema_decay=0.99),
        weights=LossWeights(mask=0.1, changed=1.0),
    ),
)


def train_edit(folder: Path, recipe: EditModelRecipe = RECIPE) -> Iterator[Progress]:
    """Make pairs with `<folder>/text_to_image` and `<folder>/clip`, train on them, and save `<folder>/edit_model`.

    Its `edit_model.json` names the text-to-image folder beside it for the parts that both share.
    Command: `restage miniature train edit-model`. Figures and cost: docs/log.md.
    """
    made_from = {"prompts": recipe.prompts, "pairs": recipe.pairs}
    run = RunFolder.open(folder / "state" / "edit_model_pairs", made_from, seed=recipe.seed)
    yield from run_prompts(run, recipe.prompts)
    backbone = load_backbone(folder / "text_to_image")
    yield from run_pairs(run, recipe.pairs, backbone, load_clip(folder / "clip"))
    state = folder / "state" / "edit_model"
    pairs = read_pairs(run.path / "pairs")
    yield from train_edit_model(pairs, backbone, state, recipe.train, text_to_image=folder / "text_to_image")
    model = replace(load_edit_model(state), guidance=GUIDANCE)
    save_edit_model(model, folder / "edit_model", text_to_image=folder / "text_to_image")
    run.close("done")

"""The miniature's edit model: trained on Prompt-to-Prompt pairs that the miniature's own text-to-image model makes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from restage.diffusion.backbone import load_backbone
from restage.diffusion.clip import load_clip
from restage.diffusion.editor import Guidance
from restage.diffusion.editor_folder import load_edit_model, save_edit_model
from restage.diffusion.pair_sampler import SamplerConfig
from restage.diffusion.training import TrainingConfig
from restage.pairs.generate import GenerateConfig
from restage.pairs.score import PairRule
from restage.pairs.stage import PairsConfig, run_pairs
from restage.pairs.store import read_pairs, read_rows
from restage.prompts.grammar import sample_grammar_edit
from restage.prompts.stage import PromptsConfig, run_prompts
from restage.records import InputError, Progress, RunFolder, derive_seed
from restage.train.batches import LossWeights
from restage.train.edit_model import TrainConfig, train_edit_model
from restage.train.examples import ExactPair
from restage.world.capture import change_mask, sample_camera
from restage.world.grammar import EDIT_KINDS, prompt_pair_of
from restage.world.render import render_view

__all__ = [
    "NO_RULE",
    "PAIRS",
    "RECIPE",
    "RULE",
    "EditModelRecipe",
    "PairSet",
    "VersionName",
    "render_pairs",
    "train_edit",
]


VersionName = Literal["filtered", "unfiltered", "exact"]


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """The pairs that are made."""

    prompts: PromptsConfig
    pairs: PairsConfig
    seed: int


@dataclass(frozen=True, kw_only=True)
class EditModelRecipe:
    """From which pairs, and how long."""

    made: PairSet
    num_pairs: int
    """Pairs to train on, the same number for each version: the first that are accepted."""
    train: TrainConfig


RULE = PairRule(min_image_similarity=0.25, min_direction_similarity=0.3, min_text_similarity=0.5)
"""Set from what the miniature's CLIP says of 70 exact rendered pairs, with room below: pictures at least 0.31 alike,
texts at least 0.75; directions at least 0.5, but for reshape and resize, which it hardly sees. Published CLIPs need
other thresholds."""

PAIRS = PairsConfig(
    generate=GenerateConfig(sampler=SamplerConfig(num_steps=14), guidance=3.0), rule=RULE, pairs_per_shard=32
)
"""How the miniature's pairs are made, here and in the demo; more guidance makes colours too strong."""

GUIDANCE = Guidance(text=1.5, image=1.5)
"""Best of nine settings by progress on single rendered views; more text guidance makes colours too strong."""

NO_RULE = PairRule(
    min_image_similarity=-2.0,
    min_direction_similarity=-2.0,
    min_text_similarity=-2.0,
    min_change=0.0,
    min_mask_share=0.0,
)
"""Accepts every pair whose scores are numbers."""

# Another seed than the demo's, whose pairs would else be these.
RECIPE = EditModelRecipe(
    made=PairSet(prompts=PromptsConfig(num_prompts=4200), pairs=PAIRS, seed=101),
    num_pairs=3000,
    train=TrainConfig(
        training=TrainingConfig(
            num_steps=4500, batch_size=32, learning_rate=5e-4, num_warmup_steps=100, ema_decay=0.998
        ),
        weights=LossWeights(mask=0.3, changed=1.0),
        noise_shift=2.0,
        train_text_encoder=True,
    ),
)


def train_edit(
    folder: Path, recipe: EditModelRecipe = RECIPE, *, version: VersionName = "filtered"
) -> Iterator[Progress]:
    """Make pairs with `<folder>/text_to_image` and `<folder>/clip`, train on them, and save an edit model.

    The version `filtered` is the one that ships, in `<folder>/edit_model`; the others, trained alike on as many pairs,
    tell what pair maker and filter cost, in `<folder>/edit_model_<version>`. Each `edit_model.json` names the
    text-to-image folder beside it for the parts that both share; UNet and text encoder are its own.
    Command: `restage miniature train edit-model --compile [--version exact]`. 22 minutes on two cores for the pairs, 50
    on one for the training; on single views progress 0.65 of recolour, ground and time, 0.12 of reshape, add and
    remove; 0.69 and 0.20 with exact pairs and `noise_shift` 1 (docs/log.md).

    Args:
        folder: Of the models.
        recipe: From which pairs, and how long.
        version: Which pairs: those that the rule accepts, all that were made, or rendered ones, which are exact.

    Raises:
        InputError: fewer pairs were accepted than the recipe asks for.
    """
    backbone, clip = load_backbone(folder / "text_to_image"), load_clip(folder / "clip")
    name = "edit_model" if version == "filtered" else f"edit_model_{version}"
    if version == "exact":
        pairs = render_pairs(recipe.num_pairs, seed=recipe.made.seed)
    else:
        config = recipe.made.pairs if version == "filtered" else replace(recipe.made.pairs, rule=NO_RULE)
        run = RunFolder.open(folder / "state" / f"{name}_pairs", recipe.made, seed=recipe.made.seed)
        yield from run_prompts(run, recipe.made.prompts)
        yield from run_pairs(run, config, backbone, clip)
        run.close("done")
        found = sum(row["accepted"] for row in read_rows(run.path / "pairs"))
        if found < recipe.num_pairs:
            raise InputError(f"expected at least {recipe.num_pairs} accepted pairs, got {found}; ask for more prompts")
        pairs = itertools.islice(read_pairs(run.path / "pairs"), recipe.num_pairs)
    state = folder / "state" / name
    yield from train_edit_model(pairs, backbone, state, recipe.train, text_to_image=folder / "text_to_image")
    model = replace(load_edit_model(state), guidance=GUIDANCE)
    save_edit_model(model, folder / name, text_to_image=folder / "text_to_image")


def render_pairs(count: int, *, seed: int) -> Iterator[ExactPair]:
    """Render exact pairs, kinds of edit in turn, each seen by one camera that shows the scene before well."""
    for index in range(count):
        item = derive_seed("exact pair", seed, index)
        edit = sample_grammar_edit(EDIT_KINDS[index % len(EDIT_KINDS)], item)
        camera = sample_camera(edit.before, item)
        before, after = render_view(edit.before, camera).image, render_view(edit.after, camera).image
        mask = torch.from_numpy(change_mask(before, after))
        yield ExactPair(torch.from_numpy(before), torch.from_numpy(after), mask, prompt_pair_of(edit, item))

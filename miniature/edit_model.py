"""The miniature's edit model: trained on Prompt-to-Prompt pairs that the miniature's own text-to-image model makes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from miniature.rendered_pairs import render_pairs, render_referenced_pairs, write_pictured_prompts
from miniature.text_to_image import build_text_encoder, copy_text_encoder
from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.clip import load_clip
from restage.diffusion.config import TrainingConfig
from restage.diffusion.edit_models import load_edit_model, save_edit_model
from restage.diffusion.editor import EditModel, Guidance
from restage.pairs.clip_rule import rule_for
from restage.pairs.config import PAIRS, CampaignConfig, PairRule, PairsConfig
from restage.pairs.score import judge, score_pairs
from restage.pairs.stage import run_campaign
from restage.pairs.store import read_pairs
from restage.pairs.tasks import ModelMaker
from restage.prompts.config import PromptsConfig
from restage.prompts.rejects import TokenLimits
from restage.prompts.stage import run_prompts
from restage.records import InputError, Progress, content_id, read_json, write_json
from restage.run.folder import RunFolder
from restage.run.models import folder_sha256
from restage.train.config import LossWeights, TrainConfig
from restage.train.examples import TrainingPair
from restage.train.stage import load_start, train_edit_model

__all__ = [
    "NO_RULE",
    "RECIPE",
    "REFERENCE_RECIPE",
    "EditModelRecipe",
    "PairSet",
    "VersionName",
    "train_edit",
    "train_with_references",
]


VersionName = Literal["filtered", "unfiltered", "exact"]
ReferenceArm = Literal["words", "beside", "tokens"]


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """The pairs that are made: of rendered pictures, the same scenes as the exact pairs of this seed."""

    num_prompts: int
    pairs: PairsConfig
    seed: int


@dataclass(frozen=True, kw_only=True)
class EditModelRecipe:
    """Which pairs the edit model is trained on, and for how long."""

    made: PairSet
    """All of them are kept, so that the versions `filtered` and `unfiltered` share them."""
    rule: PairRule = PairRule()
    """Which of them the version `filtered` takes; thresholds that it does not name are those of `<folder>/clip`."""
    num_pairs: int
    """Pairs to train on, the same number for each version: the first that are accepted."""
    train: TrainConfig


GUIDANCE = Guidance(text=1.5, image=1.5)
"""On single views no better than none, which is a third of the work and better for `restage`; but idu, which starts
from noised renders, needs it (docs/log/2026-11-27-edit-model.md)."""

PICTURE_GUIDANCE = 2.0
"""Of pairs made from pictures: nearest to the exact picture after the edit, but for reshapes, which like 3."""

NO_RULE = PairRule(
    min_image_similarity=-2.0,
    min_direction_similarity=-2.0,
    min_text_similarity=-2.0,
    min_change=0.0,
    min_mask_share=0.0,
)
"""Accepts every pair whose scores are numbers."""

SCORED_AT_ONCE = 64

# Another seed than the demo's, whose pairs would else be these.
RECIPE = EditModelRecipe(
    made=PairSet(
        num_prompts=11_000,  # of the first edition, 7,275 of 8,400 were accepted
        pairs=replace(PAIRS, rule=NO_RULE, generate=replace(PAIRS.generate, guidance=PICTURE_GUIDANCE)),
        seed=203,
    ),
    num_pairs=7200,
    train=TrainConfig(
        training=TrainingConfig(
            num_steps=9000, batch_size=32, learning_rate=1e-3, num_warmup_steps=100, ema_decay=0.998
        ),
        weights=LossWeights(mask=0.3, changed=1.0),
        noise_shift=2.0,
        train_text_encoder=True,
    ),
)


REFERENCE_RECIPE = EditModelRecipe(
    made=replace(RECIPE.made, num_prompts=0, seed=211),
    rule=NO_RULE,
    num_pairs=9600,
    train=replace(
        RECIPE.train,
        training=TrainingConfig(
            num_steps=6000, batch_size=32, learning_rate=5e-4, num_warmup_steps=100, ema_decay=0.998
        ),
    ),
)
"""Trains an edit model on, from pairs of which every other refers to a picture. All are rendered, so none is made."""


def train_with_references(
    folder: Path,
    arm: ReferenceArm,
    recipe: EditModelRecipe = REFERENCE_RECIPE,
    *,
    start: Path | None = None,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Train an edit model that looks at a reference, by one of the arms, and save it as `<folder>/edit_model_<arm>`.

    Each arm sees the same pairs in the same order; `words` sees no picture, which the others are measured against.
    Command: `restage miniature train edit-model --references tokens --compile`, as what ships was trained, from the
    edit model of the first edition. Each start first renders the pairs, in 7 minutes on one core; the first one encodes
    them, in 9 more.

    Args:
        folder: Of the models.
        arm: How it looks at references; see `restage.diffusion.references`.
        recipe: How many rendered pairs, and how it is trained.
        start: An edit model that training goes on from; None for `<folder>/edit_model`, or else the text-to-image one.
        device: Where the model is trained, such as `cuda`.
    """
    own = folder / "edit_model"
    start = start or (own if own.is_dir() else folder / "text_to_image")
    config = replace(recipe.train, references=arm)
    pairs = render_referenced_pairs(recipe.num_pairs, seed=recipe.made.seed)
    state, shared = folder / "state" / f"edit_model_{arm}", folder / "text_to_image"
    # What arms encode alike they encode once: files of the cache are named by their content.
    (folder / "state" / "reference_cache").mkdir(parents=True, exist_ok=True)
    state.mkdir(exist_ok=True)
    if not (state / "cache").exists():
        (state / "cache").symlink_to(Path("..", "reference_cache"), target_is_directory=True)
    first = _with_parts_of(load_backbone(shared, device), load_start(start, device))
    yield from train_edit_model(pairs, first, state, config, text_to_image=shared)
    model = replace(load_edit_model(state), guidance=GUIDANCE)
    save_edit_model(model, folder / f"edit_model_{arm}", text_to_image=shared)


def train_edit(
    folder: Path,
    recipe: EditModelRecipe = RECIPE,
    *,
    version: VersionName = "filtered",
    start: Path | None = None,
    engine: CampaignConfig | None = None,
    device: str = "cpu",
) -> Iterator[Progress]:
    """Make pairs with `<folder>/text_to_image` and `<folder>/clip`, train on them, and save an edit model.

    The version `filtered` goes to `<folder>/edit_model`; the others, trained alike on as many pairs,
    show what the pair maker and the filter cost, in `<folder>/edit_model_<version>`. Each `edit_model.json` names the
    text-to-image folder beside it for the parts that both share; UNet and text encoder are its own.
    Command: `restage miniature train edit-model --compile [--version exact]`. On two cores of an EPYC with bfloat16,
    105 minutes for the pairs and 100 for the training; on an older Xeon without it two and three times that. In the
    world's first edition, in the mean of four worlds, single views then have progress 0.75 of recolour, ground and
    time, 0.23 of reshape, add and remove, spill 0.009, mask IoU 0.60; after `--num-steps 4800`, with two seeds, 0.73
    and 0.72, 0.20 and 0.19, 0.009 and 0.010, 0.57 and 0.56. What ships went on from such a model, by
    `train_with_references` (docs/miniature.md).

    Args:
        folder: Of the models.
        recipe: Which pairs the edit model is trained on, and for how long.
        version: Which pairs: those that the rule accepts, all that were made, or rendered ones, which are exact.
        start: An edit model that training goes on from, on the same autoencoder, also one that reads other tokens; None
            for `<folder>/text_to_image`, whose UNet is widened.
        engine: Where pairs are made; in this process by default.
        device: Where the model is trained, such as `cuda`.

    Raises:
        InputError: fewer pairs were accepted than the recipe asks for, or there is no model to start from.
    """
    backbone = load_backbone(folder / "text_to_image", device)
    name = "edit_model" if version == "filtered" else f"edit_model_{version}"
    if version == "exact":
        pairs = render_pairs(recipe.num_pairs, seed=recipe.made.seed)
    else:
        is_filtered = version == "filtered"
        pairs = yield from _generate_pairs(folder, recipe, engine or CampaignConfig(), is_filtered=is_filtered)
    state = folder / "state" / name
    first = backbone if start is None else _with_parts_of(backbone, load_start(start, device))
    yield from train_edit_model(pairs, first, state, recipe.train, text_to_image=folder / "text_to_image")
    model = replace(load_edit_model(state), guidance=GUIDANCE)
    save_edit_model(model, folder / name, text_to_image=folder / "text_to_image")


def _with_parts_of(backbone: Backbone, start: Backbone | EditModel) -> Backbone | EditModel:
    """Let an edit model of an earlier edition of the world read the tokens of the one that is trained."""
    if isinstance(start, Backbone) or start.backbone.tokenizer.get_vocab() == backbone.tokenizer.get_vocab():
        return start
    text_encoder = build_text_encoder(backbone.tokenizer).eval().requires_grad_(False)
    copy_text_encoder(start.backbone, backbone.tokenizer, text_encoder)
    text_encoder.to(backbone.unet.device)  # pyright: ignore[reportArgumentType]
    return replace(start, backbone=replace(backbone, text_encoder=text_encoder), has_own_text_encoder=True)


def _generate_pairs(
    folder: Path, recipe: EditModelRecipe, engine: CampaignConfig, *, is_filtered: bool
) -> Generator[Progress, None, Iterator[TrainingPair]]:
    """Make the pairs of both versions, or go on making them, and choose those to train on.

    They are scored again when they are chosen: a CLIP that was trained again judges pairs that were made before it.
    """
    run = RunFolder.open(folder / "state" / "edit_model_pairs", recipe.made, seed=recipe.made.seed)
    if not (run.path / "prompts" / "stage.json").exists():  # whose config names a path: the folder may be moved
        prompts = folder / "state" / "edit_model_prompts"
        yield from write_pictured_prompts(prompts, recipe.made.num_prompts, seed=recipe.made.seed)
        limits = TokenLimits((folder / "text_to_image", folder / "clip"))
        yield from run_prompts(run, PromptsConfig(path=prompts / "prompts.jsonl"), limits=limits)
    config = recipe.made.pairs
    maker = ModelMaker.of(folder / "text_to_image", folder / "clip", config.generate)
    maker = replace(maker, num_pairs=recipe.made.num_prompts)
    yield from run_campaign(run, config, maker, engine)
    run.close("done")
    chosen = yield from _choose_pairs(run, recipe, folder / "clip", is_filtered=is_filtered)
    return (pair for index, pair in enumerate(read_pairs(run.path / "pairs")) if index in chosen)


def _choose_pairs(
    run: RunFolder, recipe: EditModelRecipe, clip_folder: Path, *, is_filtered: bool
) -> Generator[Progress, None, frozenset[int]]:
    """Return the numbers of the pairs to train on, which are kept: a training that goes on need not score all anew."""
    rule = rule_for(recipe.rule, clip_folder)
    why = content_id("chosen", [rule, folder_sha256(clip_folder), recipe.num_pairs, is_filtered])
    path = run.path / f"{why}.json"
    if path.exists():
        return frozenset(read_json(path))
    clip, chosen = load_clip(clip_folder), list[int]()
    numbered = enumerate(read_pairs(run.path / "pairs"))
    while batch := list(islice(numbered, SCORED_AT_ONCE)):
        reasons = [""] * len(batch)
        if is_filtered:
            sources, edited = (torch.stack([getattr(p, side) for _, p in batch]) for side in ("source", "edited"))
            masks = torch.stack([pair.mask for _, pair in batch])
            prompts = [pair.prompt for _, pair in batch]
            scores = score_pairs(clip, prompts, sources=sources, edited=edited, masks=masks)
            reasons = [judge(score, rule) for score in scores]
        chosen += [index for (index, _), reason in zip(batch, reasons, strict=True) if not reason]
        done = min(len(chosen), recipe.num_pairs)
        yield Progress(stage="filter", done=done, total=recipe.num_pairs, note=f"{len(chosen)} of {batch[-1][0] + 1}")
    if len(chosen) < recipe.num_pairs:
        raise InputError(
            f"expected at least {recipe.num_pairs} accepted pairs, got {len(chosen)}; ask for more prompts"
        )
    write_json(path, chosen[: recipe.num_pairs])
    return frozenset(chosen[: recipe.num_pairs])

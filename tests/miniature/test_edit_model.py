"""Versions of the miniature's edit model, each trained by one command."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from miniature import edit_model
from restage.diffusion.clip import load_clip
from restage.diffusion.config import SamplerConfig
from restage.diffusion.edit_models import load_edit_model
from restage.diffusion.references import PictureTokens
from restage.diffusion.training import read_metrics
from restage.pairs.config import GenerateConfig
from restage.records import InputError
from restage.run.models import models_in
from tests.tiny_models import write_tiny_models


def _short_recipe() -> edit_model.EditModelRecipe:
    """Four prompts, three pairs, one step of training."""
    recipe = edit_model.RECIPE
    generate = GenerateConfig(sampler=SamplerConfig(num_steps=2))
    made = replace(recipe.made, num_prompts=4, pairs=replace(recipe.made.pairs, generate=generate))
    training = replace(recipe.train.training, num_steps=1, batch_size=2)
    return replace(recipe, made=made, num_pairs=3, train=replace(recipe.train, training=training))


def test_an_edit_model_can_be_trained_on(tmp_path: Path) -> None:
    shipped = models_in()
    (tmp_path / "text_to_image").symlink_to(shipped.text_to_image)
    list(edit_model.train_edit(tmp_path, _short_recipe(), version="exact", start=shipped.edit_model))
    before, after = load_edit_model(shipped.edit_model), load_edit_model(tmp_path / "edit_model_exact")
    assert isinstance(before.reader, PictureTokens)
    before.reader.fold(before.unet)  # these pairs have no pictures, so that it is trained on without that part
    for name in ("unet", "text_encoder"):  # one step of a warm-up changes next to nothing
        old, new = (getattr(m if name == "unet" else m.backbone, name).state_dict() for m in (before, after))
        assert all(float((old[key].float() - new[key].float()).abs().max()) < 1e-3 for key in old)
        assert any(not torch.equal(old[key], new[key]) for key in old)
    with pytest.raises(InputError, match="holds no model to start from"):
        list(edit_model.train_edit(tmp_path, _short_recipe(), version="exact", start=tmp_path))


def test_versions_of_the_edit_model_are_trained_alike_on_other_pairs(tmp_path: Path) -> None:
    models = models_in()
    for name in ("text_to_image", "clip"):
        shutil.copytree(getattr(models, name), tmp_path / name)
    recipe = _short_recipe()
    for version in ("unfiltered", "exact"):
        list(edit_model.train_edit(tmp_path, recipe, version=version))
        assert load_edit_model(tmp_path / f"edit_model_{version}").has_mask_output
        assert len(read_metrics(tmp_path / "state" / f"edit_model_{version}")) == 1
    made_once = {path.name for path in (tmp_path / "state").iterdir() if path.name.endswith("_pairs")}
    assert made_once == {"edit_model_pairs"}
    direction = replace(edit_model.NO_RULE, min_direction_similarity=2.0)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    with pytest.raises(InputError, match="at least 3 accepted pairs, got 0"):  # of those that were made before
        list(edit_model.train_edit(moved, replace(recipe, rule=direction), version="filtered"))


def test_shipped_models_load_and_keep_within_their_size() -> None:
    models = models_in()
    root = models.text_to_image.parent
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) <= 57e6
    assert load_edit_model(models.edit_model).has_mask_output
    image = torch.from_numpy(np.full((1, 3, 128, 128), 0.5, np.float32))
    assert load_clip(models.clip).encode_images(image).norm() == pytest.approx(1.0, abs=1e-5)


def test_an_edit_model_learns_to_look_at_pictures_by_one_command(tmp_path: Path) -> None:
    models = write_tiny_models(tmp_path / "miniature")
    recipe = edit_model.REFERENCE_RECIPE
    training = replace(recipe.train.training, num_steps=2, batch_size=4)
    recipe = replace(recipe, num_pairs=8, train=replace(recipe.train, training=training))
    for arm in ("beside", "tokens"):
        list(edit_model.train_with_references(models, arm, recipe))
        trained = load_edit_model(models / f"edit_model_{arm}")
        assert trained.reader.name == arm and trained.guidance == edit_model.GUIDANCE
    assert (models / "edit_model_tokens" / "picture_tokens.safetensors").is_file()

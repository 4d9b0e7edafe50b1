"""Pairs whose layout is held by their source's depth or edges."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DPTConfig, DPTForDepthEstimation

from restage.diffusion.backbone import load_backbone
from restage.diffusion.depth import load_depth_model
from restage.pairs.config import GenerateConfig
from restage.pairs.generate import generate_pairs, layouts_of, make_jobs
from restage.pairs.tasks import LoadedMaker, ModelMaker
from restage.records import InputError, PromptPair
from tests.tiny_branch import write_tiny_branch
from tests.tiny_models import write_tiny_models

PROMPT = PromptPair(
    source="a red cube on the grass",
    target="a blue cube on the grass",
    instruction="make the cube blue",
    kind="recolour",
    swaps=(("red", "blue"),),
    words=("cube",),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_models(tmp_path_factory.mktemp("models"))
    write_tiny_branch(folder / "text_to_image", folder / "branch")
    config: Any = DPTConfig
    settings = config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=16,
        is_hybrid=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DPTForDepthEstimation(settings).eval().save_pretrained(folder / "depth")
    return folder


def config_for(models: Path, **changes: Any) -> GenerateConfig:
    plain = GenerateConfig()
    sampler = dataclasses.replace(plain.sampler, num_steps=2)
    held = {"held_by": ("depth",), "branch": (str(models / "branch"),), "depth_model": models / "depth"}
    return dataclasses.replace(plain, sampler=sampler, **held, **changes)


def test_depth_is_read_by_a_model_and_edges_are_found(models: Path) -> None:
    depth = load_depth_model(models / "depth")
    pictures = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    pictures[1, :, :, 32:] = 1 - pictures[1, :, :, 32:].round()
    found = layouts_of(pictures, ("depth", "canny"), depth)
    for conditions in found:
        assert conditions["depth"].shape == conditions["canny"].shape == (1, 48, 64)
        assert conditions["depth"].amin() == 0 and abs(float(conditions["depth"].amax()) - 1) < 1e-5
    alone = layouts_of(pictures[1:], ("depth",), depth)[0]["depth"]
    torch.testing.assert_close(alone, found[1]["depth"])


def test_both_pictures_of_a_pair_are_held_by_the_depth_of_the_source(models: Path) -> None:
    config = config_for(models)
    maker = ModelMaker.of(models / "text_to_image", models / "clip", config)
    opened = maker.open("cpu")
    assert isinstance(opened, LoadedMaker)
    jobs = make_jobs([PROMPT], config, samples_per_prompt=1, run_seed=0)
    (held,) = opened.make(jobs).pairs.sources
    free = dataclasses.replace(config, held_by=(), branch=(), depth_model=None)
    plain = generate_pairs(load_backbone(models / "text_to_image"), jobs, free)
    assert (held - plain.sources[0]).abs().mean() > 1e-4
    assert maker.id != ModelMaker.of(models / "text_to_image", models / "clip", free).id


def test_the_ids_of_pairs_that_nothing_holds_are_what_they_were() -> None:
    plain = GenerateConfig()
    same = dataclasses.replace(plain, held_by=(), branch=(), depth_model=None)
    (first,), (second,) = (make_jobs([PROMPT], c, samples_per_prompt=1, run_seed=0) for c in (plain, same))
    assert first.id == second.id
    (held,) = make_jobs(
        [PROMPT], dataclasses.replace(plain, held_by=("canny",), branch=("x",)), samples_per_prompt=1, run_seed=0
    )
    assert held.id != first.id and held.seed == first.seed


@pytest.mark.parametrize(
    "changes",
    [
        {"held_by": ("canny",)},
        {"branch": ("x",)},
        {"held_by": ("depth",), "branch": ("x",)},
        {"held_by": ("canny",), "branch": ("x",), "depth_model": Path("d")},
        {"held_by": ("ids",), "branch": ("x",)},
    ],
)
def test_what_holds_pairs_must_be_complete(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--control"):
        GenerateConfig(**changes)


def test_a_model_that_reads_no_depth_is_refused(models: Path) -> None:
    with pytest.raises(InputError, match="expected a model of depth"):
        load_depth_model(models / "clip")

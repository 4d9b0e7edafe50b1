"""Pairs whose layout is held by their source's depth, ids or edges."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    DPTConfig,
    DPTForDepthEstimation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
)

from restage.diffusion.backbone import load_backbone
from restage.diffusion.branches import BranchRecord, build_branch, save_branch
from restage.diffusion.conditions import NUM_SLOTS
from restage.diffusion.depth import load_depth_model
from restage.diffusion.ids import IdsModel, LayoutReaders, load_ids_model
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
        for name, model in segmenters().items():
            model.eval().save_pretrained(folder / name)
    return folder


NAMES = dict(enumerate(["sky-other-merged", "earth, ground", "bear", "house", "car"]))


def segmenters() -> dict[str, Any]:
    """A model of each family, of random weights."""
    named: dict[str, Any] = {"id2label": NAMES, "label2id": {name: number for number, name in NAMES.items()}}
    config: Any = SegformerConfig
    widths = {"hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}
    segformer = SegformerForSemanticSegmentation(config(depths=[1, 1, 1, 1], **widths, **named))
    config = SwinConfig
    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = config(image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, out_features=stages)
    config = Mask2FormerConfig
    sizes = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim"), 32)
    layers = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 9, "num_attention_heads": 2}
    masks = config(backbone_config=swin, dim_feedforward=16, **sizes, **layers, **named)
    return {"segformer": segformer, "mask2former": Mask2FormerForUniversalSegmentation(masks)}


def config_for(models: Path, **changes: Any) -> GenerateConfig:
    plain = GenerateConfig()
    sampler = dataclasses.replace(plain.sampler, num_steps=2)
    held = {"held_by": ("depth",), "branch": (str(models / "branch"),), "depth_model": models / "depth"}
    return dataclasses.replace(plain, sampler=sampler, **held, **changes)


def test_depth_is_read_by_a_model_and_edges_are_found(models: Path) -> None:
    depth = load_depth_model(models / "depth")
    pictures = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    pictures[1, :, :, 32:] = 1 - pictures[1, :, :, 32:].round()
    found = layouts_of(pictures, ("depth", "canny"), LayoutReaders(depth))
    for conditions in found:
        assert conditions["depth"].shape == conditions["canny"].shape == (1, 48, 64)
        assert conditions["depth"].amin() == 0 and abs(float(conditions["depth"].amax()) - 1) < 1e-5
    alone = layouts_of(pictures[1:], ("depth",), LayoutReaders(depth))[0]["depth"]
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


def test_pairs_are_held_by_the_branch_beside_the_model_where_none_is_named(models: Path, tmp_path: Path) -> None:
    folder, config = shutil.copytree(models / "text_to_image", tmp_path / "text_to_image"), config_for(models)
    unnamed = dataclasses.replace(config, branch=())
    with pytest.raises(InputError, match="comes without a control branch"):
        ModelMaker.of(folder, models / "clip", unnamed)
    shutil.copytree(models / "branch", tmp_path / "control")
    jobs = make_jobs([PROMPT], config, samples_per_prompt=1, run_seed=0)
    makers = [ModelMaker.of(folder, models / "clip", one) for one in (unnamed, config)]
    first, second = (next(iter(maker.open("cpu").make(jobs).pairs.sources)) for maker in makers)
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["segformer", "mask2former"])
def test_ids_are_read_by_a_model_whose_classes_say_what_is_sky_and_ground(models: Path, name: str) -> None:
    model = load_ids_model(models / name)
    assert model.kinds.tolist() == [0, 1, 2, 2, 2]
    pictures = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    for conditions in layouts_of(pictures, ("ids",), LayoutReaders(ids=model)):
        assert conditions["ids"].shape == (2 + NUM_SLOTS, 48, 64) and bool((conditions["ids"].sum(0) == 1).all())


class _Masks:
    """Says of nine squares what is in them; what is said last is sure to be nothing."""

    device = torch.device("cpu")

    def __call__(self, pixel_values: torch.Tensor) -> Any:
        masks = torch.full((1, 10, 6, 6), -20.0)
        for number in range(9):
            row, column = divmod(number, 3)
            masks[0, number, 2 * row : 2 * row + 2, 2 * column : 2 * column + (1 if number == 4 else 2)] = 20.0
        masks[0, 9] = 20.0
        classes = torch.full((1, 10, 6), -20.0)
        for number, label in enumerate((0, 1, *[2] * 7, 5)):
            classes[0, number, label] = 20.0
        return type("Output", (), {"class_queries_logits": classes, "masks_queries_logits": masks})


def test_each_thing_has_its_id_and_the_smallest_of_too_many_are_ground(models: Path) -> None:
    real = load_ids_model(models / "mask2former")
    (ids,) = IdsModel(_Masks(), real.preparation, real.kinds).read(torch.rand(1, 3, 6, 6))
    # Of seven things the fifth square's is the smallest.
    assert ids[::2, ::2].tolist() == [[0, 1, 2], [3, 1, 4], [5, 6, 7]]


@pytest.mark.parametrize("held_by", [("ids",), ("depth", "ids"), ("depth", "ids", "canny")])
def test_pairs_are_held_by_ids_and_by_several_controls_at_once(models: Path, held_by: tuple[str, ...]) -> None:
    edges = build_branch(load_backbone(models / "text_to_image").unet, ("canny",), width=16)
    save_branch(edges, models / "edges", BranchRecord(conditions=("canny",)), {})
    branch = [str(models / "branch")] + ([str(models / "edges")] if "canny" in held_by else [])
    read = {f"{name}_model": models / folder for name, folder in (("depth", "depth"), ("ids", "segformer"))}
    read = {name: folder for name, folder in read.items() if name.removesuffix("_model") in held_by}
    free = dataclasses.replace(config_for(models), held_by=(), branch=(), depth_model=None)
    config = dataclasses.replace(free, held_by=held_by, branch=tuple(branch), **read)
    maker = ModelMaker.of(models / "text_to_image", models / "clip", config)
    opened = maker.open("cpu")
    assert isinstance(opened, LoadedMaker)
    jobs = make_jobs([PROMPT], config, samples_per_prompt=1, run_seed=0)
    (held,) = opened.make(jobs).pairs.sources
    plain = generate_pairs(load_backbone(models / "text_to_image"), jobs, free)
    assert (held - plain.sources[0]).abs().mean() > 1e-4
    assert maker.id != ModelMaker.of(models / "text_to_image", models / "clip", config_for(models)).id


def test_what_no_branch_takes_is_refused(models: Path) -> None:
    config = dataclasses.replace(config_for(models), held_by=("depth", "canny"))
    with pytest.raises(InputError, match="no control branch takes canny"):
        ModelMaker.of(models / "text_to_image", models / "clip", config).open("cpu")


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
        {"branch": ("x",)},
        {"held_by": ("depth",), "branch": ("x",)},
        {"held_by": ("canny",), "branch": ("x",), "depth_model": Path("d")},
        {"held_by": ("ids",), "branch": ("x",)},
        {"held_by": ("canny",), "branch": ("x",), "ids_model": Path("d")},
        {"held_by": ("pose",), "branch": ("x",)},
    ],
)
def test_what_holds_pairs_must_be_complete(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--control"):
        GenerateConfig(**changes)


def test_a_model_that_reads_no_depth_is_refused(models: Path) -> None:
    with pytest.raises(InputError, match="expected a model of depth"):
        load_depth_model(models / "clip")
    with pytest.raises(InputError, match="expected a model of segmentation"):
        load_ids_model(models / "clip")

"""Scenes by models laid out as Stable Diffusion 1, 2 and XL: tiny, random, saved by diffusers' pipelines."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from restage.diffusion.backbone import load_backbone, save_half
from restage.diffusion.view_attention import build_view_attention
from restage.generate.generators import Blob, GenerateJob, Ism, Refined, Sds, Views, make_generator
from restage.generate.view_sampler import ViewSampler
from tests.diffusion.test_stable_diffusion_shapes import make_pipeline

SMALL = Blob(num_splats=60, num_ground=60, num_sky=20)
SAMPLER = ViewSampler(num_steps=2)


@pytest.fixture(scope="module", params=["1", "2", "XL"])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GenerateJob:
    folder = tmp_path_factory.mktemp(f"stable-diffusion-{request.param}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make_pipeline(request.param).save_pretrained(folder / "model")
    backbone = load_backbone(folder / "model")
    save_half(build_view_attention(backbone.unet, num_views=4), folder / "views")
    return GenerateJob("a red cone", backbone, 3, folder / "views")


def published(name: str) -> Any:
    generator: Any = make_generator(name, "sd15")
    return replace(generator, num_steps=3, blob=SMALL)


@pytest.mark.parametrize("name", ["sds", "ism", "views", "refined"])
def test_every_generator_works_with_stable_diffusion(
    name: str, job: GenerateJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_scene = partial(Sds, num_pictures=1, blob=SMALL)
    monkeypatch.setattr("restage.generate.generators.refined.Sds", first_scene)
    generators = {
        "sds": published("sds"),
        "ism": published("ism"),
        "views": Views(num_steps=3, num_views=4, sampler=SAMPLER, blob=SMALL),
        "refined": Refined(num_steps=2, noise_levels=(0.3,), num_views=2, steps_per_round=2, sampler=SAMPLER),
    }
    if name in ("sds", "ism"):
        assert isinstance(generators[name], Sds | Ism) and generators[name].says_view
    first = last = None
    for last in generators[name].run(replace(job, views=None) if name == "refined" else job):
        first = last.splats.sh.clone() if first is None else first
    assert last is not None and first is not None and last.step == last.num_steps
    for parameter, value in last.splats.parameters().items():
        assert bool(torch.isfinite(value).all()), parameter
    assert not torch.equal(last.splats.sh, first)

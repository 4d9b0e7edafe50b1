"""A random text-to-image model, a stand-in for CLIP, and a run with prompt pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from restage.diffusion.backbone import Backbone
from restage.diffusion.config import SamplerConfig
from restage.pairs.config import CampaignConfig, GenerateConfig, PairRule, PairsConfig
from restage.pairs.stage import run_campaign
from restage.pairs.tasks import LoadedMaker
from restage.prompts.store import write_prompts
from restage.records import Progress, PromptPair
from restage.run.folder import RunFolder
from tests.diffusion.tiny import tiny_unet
from tests.train.tiny import tiny_backbone

PROMPTS = [
    PromptPair(
        source=f"a {old} cube on the grass{end}",
        target=f"a {new} cube on the grass{end}",
        instruction=f"make it {new}",
        kind="recolour",
        swaps=((old, new),),
        words=("cube",),
    )
    for old, new, end in (("red", "blue", ""), ("blue", "orange", ""), ("orange", "red", " at night"))
] + [
    PromptPair(source="a ball at noon", target="a ball at night", instruction="make it night", kind="time"),
    PromptPair(
        source="a ball", target="a ball and a big cube", instruction="add a big cube", kind="add", words=("cube",)
    ),
    PromptPair(
        source="a red cube and a blue ball",
        target="a blue cube and a red ball",
        instruction="exchange their colours",
        kind="recolour",
        swaps=(("red", "blue"), ("blue", "red")),
        words=("cube", "ball"),
    ),
]
"""In the last one both captions have the same letters, so that `WordlessClip` sees no step between them."""


def tiny_model() -> Backbone:
    return dataclasses.replace(tiny_backbone(), unet=tiny_unet(channels=(32, 64)))


class WordlessClip:
    """Embeds pictures and texts by fixed random projections: unit norm, and nothing more."""

    def encode_images(self, images: Tensor) -> Tensor:
        small = F.adaptive_avg_pool2d(images, 4).flatten(1)
        return F.normalize(small @ torch.randn(48, 8, generator=torch.Generator().manual_seed(0)), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        counts = torch.stack([torch.bincount(torch.tensor(list(text.encode())), minlength=128) for text in texts])
        projection = torch.randn(128, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)
        return F.normalize(counts.double() @ projection, dim=-1)


LENIENT = PairRule(
    min_image_similarity=-2.0,
    min_direction_similarity=-2.0,
    min_text_similarity=-2.0,
    min_change=0.0,
    min_mask_share=0.0,
)
"""Accepts whatever can be scored: a threshold that pictures of a random model meet depends on the machine."""


def tiny_config(**changes) -> PairsConfig:
    generate = GenerateConfig(sampler=SamplerConfig(num_steps=2), batch_size=2)
    return PairsConfig(**{"generate": generate, "rule": LENIENT, "pairs_per_shard": 2, **changes})


def open_run(path: Path, prompts: list[PromptPair] = PROMPTS) -> RunFolder:
    run = RunFolder.open(path, {}, seed=7)
    write_prompts(run.folder("prompts") / "prompts.jsonl", prompts)
    return run


def run_pairs(run: RunFolder, config: PairsConfig, backbone: Backbone, clip) -> Iterator[Progress]:
    """Make the image pairs of a run with models that are in memory, in this process."""
    return run_campaign(run, config, LoadedMaker(backbone, clip, config.generate), CampaignConfig())

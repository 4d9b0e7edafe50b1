"""A stand-in for the generator: noise from the pair's seed, at once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from restage.pairs.config import GenerateConfig, PairRule, PairsConfig
from restage.pairs.generate import GeneratedPairs, PairJob
from restage.pairs.score import PairScores
from restage.pairs.tasks import Made
from restage.prompts.store import write_prompts
from restage.records import InputError, PromptPair
from restage.run.folder import RunFolder

RULE = PairRule(min_image_similarity=0.3, min_direction_similarity=0.3, min_text_similarity=0.3, min_change=0.0)


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """Makes noise pictures; can be told to be slow, to fail, or to kill its process."""

    id: str = "stand-in"
    size: int = 8
    seconds_per_batch: float = 0.0
    fails_at: str = ""
    """Word in the source caption of a pair that cannot be made."""
    dies_at: str = ""
    """Word in the source caption of a pair over which the process ends, if `die_once` is not there yet."""
    die_once: str = ""
    """File that is made when the process dies, so that it does so once."""
    is_missing: bool = False

    def open(self, device: str) -> StandIn:
        if self.is_missing:
            raise InputError("no models here")
        return self

    def check(self, job: PairJob) -> None:
        if "impossible" in job.prompt.source:
            raise InputError(f"{job.prompt.source!r} is impossible")

    def make(self, jobs: Sequence[PairJob]) -> Made:
        time.sleep(self.seconds_per_batch)
        for job in jobs:
            if self.fails_at and self.fails_at in job.prompt.source:
                raise ValueError(f"cannot make {job.prompt.source!r}")
            if self.dies_at and self.dies_at in job.prompt.source and not Path(self.die_once).exists():
                Path(self.die_once).touch()
                import os

                os._exit(9)
        made = [self._pictures(job) for job in jobs]
        pictures = torch.stack(made)
        pairs = GeneratedPairs(
            sources=pictures[:, :3],
            edited=pictures[:, 3:6],
            masks=(pictures[:, 6] > 0.5).float(),
            controls=tuple("replace" for _ in jobs),
            steps=tuple(1 for _ in jobs),
        )
        return Made(pairs, [self._scores(job) for job in jobs])

    def _pictures(self, job: PairJob) -> torch.Tensor:
        generator = torch.Generator().manual_seed(job.seed % 2**62)
        return torch.randint(256, (7, self.size, self.size), generator=generator) / 255

    def _scores(self, job: PairJob) -> PairScores:
        digest = hashlib.sha256(f"{job.prompt.source}, sample {job.sample}".encode()).digest()  # whatever the config
        image, direction, source, target = (byte / 255 for byte in digest[:4])
        return PairScores(image, direction, source, target, change=0.1, mask_share=0.5)


def make_prompts(count: int) -> list[PromptPair]:
    return [
        PromptPair(
            source=f"thing {number}", target=f"other thing {number}", instruction=f"change {number}", kind="recolour"
        )
        for number in range(count)
    ]


def stand_in_config(**changes) -> PairsConfig:
    return PairsConfig(**{"generate": GenerateConfig(batch_size=2), "rule": RULE, "pairs_per_shard": 4, **changes})


def open_run(path: Path, count: int = 40) -> RunFolder:
    run = RunFolder.open(path, {}, seed=7)
    write_prompts(run.folder("prompts") / "prompts.jsonl", make_prompts(count))
    return run

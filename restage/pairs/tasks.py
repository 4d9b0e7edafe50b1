"""A run's pairs cut into tasks of fixed composition: a task is a shard, whoever makes it.

`TaskPlan` builds a task when it is asked for, so that a plan of a million tasks takes no more memory than its prompts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restage.pairs.files import Files
from restage.pairs.generate import GenerateConfig, PairJob, make_jobs
from restage.pairs.score import PairRule
from restage.records import InputError, PromptPair, canonical_json, content_id, parse_json, seal, to_plain
from restage.work.task import Task

__all__ = ["PairTask", "PairsConfig", "TaskPlan"]

PLAN_FILE = "plan.json"


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """How a run makes its image pairs."""

    generate: GenerateConfig = GenerateConfig()
    """How they are sampled."""
    rule: PairRule = PairRule()
    """Which are accepted."""
    samples_per_prompt: int = 1
    """Pairs that are made of each prompt pair, each from its own noise."""
    pairs_per_shard: int = 16
    """Pairs in a shard, accepted or not: what a kill costs at most. In a campaign: a few minutes' worth."""

    def __post_init__(self) -> None:
        if self.samples_per_prompt < 1 or self.pairs_per_shard < 1:
            raise InputError(
                f"samples_per_prompt and pairs_per_shard must be at least 1, got {self.samples_per_prompt}, "
                f"{self.pairs_per_shard}"
            )


PairTask = Task[tuple[PairJob, ...]]
"""One shard to make. Its content id holds its pairs, how they are sampled, and what makes them; not the rule that
judges them."""


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """What a `plan.json` says of the shards beside it."""

    id: str
    maker: str | None = None
    """Id of what makes the pairs; the content id in each mark is derived from it."""
    num_tasks: int | None = None
    """Number of shards."""
    generate: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskPlan(Sequence[PairTask]):
    """All tasks of a run, built one at a time."""

    prompts: Sequence[PromptPair]
    config: PairsConfig
    run_seed: int
    maker_id: str
    """Content id of what makes the pairs; empty if it is not known."""
    folder: Path | None = None
    """Where the pictures of prompt pairs are; their file names hold their content."""

    @property
    def num_pairs(self) -> int:
        """Number of pairs in all tasks."""
        return len(self.prompts) * self.config.samples_per_prompt

    def __len__(self) -> int:
        return -(-self.num_pairs // self.config.pairs_per_shard)

    def num_jobs(self, index: int) -> int:
        """Number of pairs in one task."""
        size = self.config.pairs_per_shard
        return min(size, self.num_pairs - index * size)

    def __getitem__(self, index: int) -> PairTask:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(index)
        samples = self.config.samples_per_prompt
        start = index * self.config.pairs_per_shard
        stop = start + self.num_jobs(index)
        first = start // samples
        jobs = make_jobs(
            self.prompts[first : -(-stop // samples)],
            self.config.generate,
            samples_per_prompt=samples,
            run_seed=self.run_seed,
            folder=self.folder,
        )[start - first * samples : stop - first * samples]
        content = {"pairs": [job.id for job in jobs], "maker": self.maker_id}  # a pair's id holds how it is sampled
        return Task(index=index, content=content_id("shard", content), item=tuple(jobs))

    @functools.cached_property
    def id(self) -> str:
        """Content id of everything that shards depend on but the rule, which may change."""
        return content_id(
            "plan",
            {
                "prompts": [prompt.id for prompt in self.prompts],
                "generate": self.config.generate,
                "samples_per_prompt": self.config.samples_per_prompt,
                "pairs_per_shard": self.config.pairs_per_shard,
                "run_seed": self.run_seed,
                "maker": self.maker_id,
            },
        )

    def record(self, files: Files) -> bool:
        """Write `plan.json` beside the shards, or check that the one there is this one.

        Returns:
            Whether it was there already.

        Raises:
            InputError: the shards there are of another plan.
        """
        found = read_plan_id(files)
        if found not in (None, self.id):
            raise InputError(
                f"{files.where()} holds shards of other prompts, models or another config; choose another --out"
            )
        if found is None:
            facts = {"num_tasks": len(self), "num_pairs": self.num_pairs, "generate": to_plain(self.config.generate)}
            record = seal({"id": self.id, "maker": self.maker_id, **facts})
            files.write(PLAN_FILE, (canonical_json(record) + "\n").encode())
        return found is not None


def read_plan_id(files: Files) -> str | None:
    """Returns the id of the plan that a folder's shards are made by; None where there is none.

    Raises:
        InputError: the plan cannot be read.
    """
    found = read_plan(files)
    return found.id if found else None


def read_plan(files: Files) -> PlanRecord | None:
    """Return what the plan of a folder's shards says; None where there is none.

    Raises:
        InputError: the plan cannot be read.
    """
    if not files.exists(PLAN_FILE):
        return None
    return parse_json(files.read(PLAN_FILE), PlanRecord, where=files.where(PLAN_FILE))

"""A run's pairs cut into tasks of fixed composition, and how one is made: a task is a shard, whoever makes it.

`TaskPlan` builds a task when it is asked for, so that a plan of a million tasks takes no more memory than its prompts.
A `Maker` is small and can be sent to another machine; `open` loads what is heavy onto a device.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from restage.diffusion.hardware import keep_freed_memory
from restage.pairs.config import GenerateConfig, PairRule, PairsConfig
from restage.pairs.encoding import (
    PREVIEW,
    EncodedPair,
    ImagePair,
    decode_reference,
    encode_pair,
    make_preview,
    pixel_sha256,
)
from restage.pairs.files import Files, open_files
from restage.pairs.generate import GeneratedPairs, PairJob, generate_pairs, make_control, make_jobs
from restage.pairs.score import ImageTextModel, PairScores, judge, rule_id, score_pairs
from restage.pairs.store import prompt_columns, read_mark, write_shard
from restage.records import InputError, Progress, PromptPair, canonical_json, content_id, parse_json, seal, to_plain
from restage.run.models import ASSETS, folder_sha256
from restage.run.profile import timed
from restage.work.task import Facts, Task

if TYPE_CHECKING:
    from restage.diffusion.backbone import Backbone
    from restage.diffusion.ids import LayoutReaders

__all__ = ["LoadedMaker", "Maker", "ModelMaker", "PairTask", "ShardWork", "TaskPlan", "read_plan"]

PACKAGE = "package:"
"""Prefix of a path within `restage/assets`, wherever that lies on a machine."""


class Made(NamedTuple):
    """A batch of pairs with their scores, in the order of their jobs."""

    pairs: GeneratedPairs
    scores: list[PairScores]


@runtime_checkable
class OpenMaker(Protocol):
    """Makes pairs on one device."""

    def check(self, job: PairJob) -> None:
        """Refuse a pair that cannot be made."""
        ...

    def make(self, jobs: Sequence[PairJob]) -> Made:
        """Make one batch; the same jobs give the same pictures."""
        ...


@runtime_checkable
class Maker(Protocol):
    """Describes what makes pairs, and opens it."""

    @property
    def id(self) -> str:
        """Content id of all that the pictures depend on besides the jobs; empty if it is not known."""
        ...

    def open(self, device: str) -> OpenMaker:
        """Load it onto a device."""
        ...


@dataclass(frozen=True)
class LoadedMaker:
    """Models that are in memory, for work inside this process."""

    backbone: Backbone
    clip: ImageTextModel
    generate: GenerateConfig
    id: str = ""
    readers: LayoutReaders | None = None  # read what pairs are held by from their sources

    def open(self, device: str) -> LoadedMaker:
        """Return itself, since its models are loaded."""
        # Batch after batch has the same sizes: memory given back to the system would only be asked for again.
        if self.backbone.device.type == "cpu":
            keep_freed_memory()
        return self

    def check(self, job: PairJob) -> None:
        """Refuse a pair whose attention cannot be controlled."""
        make_control(self.backbone, job, self.generate)

    def make(self, jobs: Sequence[PairJob]) -> Made:
        """Make one batch."""
        made = generate_pairs(self.backbone, jobs, self.generate, self.readers)
        prompts = [job.prompt for job in jobs]
        with timed("score"):
            scores = score_pairs(self.clip, prompts, sources=made.sources, edited=made.edited, masks=made.masks)
        return Made(made, scores)


@dataclass(frozen=True, kw_only=True)
class ModelMaker:
    """Models named by their folders; a worker that has different files there is turned away."""

    text_to_image: str
    clip: str
    generate: GenerateConfig
    id: str
    num_pairs: int = 0  # number of pairs of the run, for what pays off only in long runs

    @classmethod
    def of(cls, text_to_image: Path, clip: Path, generate: GenerateConfig) -> ModelMaker:
        """Describe the models in two folders; folders inside the package are found on every machine."""
        models_id = content_id("models", _hashes(text_to_image, clip, generate))
        return cls(text_to_image=_portable(text_to_image), clip=_portable(clip), generate=generate, id=models_id)

    def open(self, device: str) -> OpenMaker:
        """Load the models onto a device, after comparing their files with the id."""
        from restage.diffusion.backbone import load_backbone
        from restage.diffusion.clip import load_clip

        text_to_image, clip = _here(self.text_to_image), _here(self.clip)
        found = content_id("models", _hashes(text_to_image, clip, self.generate))
        if found != self.id:
            raise InputError(f"the models in {text_to_image} and {clip} are not those of the campaign; copy those here")
        backbone = load_backbone(text_to_image, device, branches=self.generate.branches_for(text_to_image))
        generate, readers = self.generate.for_run(self.num_pairs), None
        taken = {name for branch in backbone.branches for name in branch.conditions}
        if lost := [name for name in generate.held_by if name not in taken]:
            raise InputError(f"no control branch takes {' and '.join(lost)}; name one with --branch")
        if generate.depth_model is not None or generate.ids_model is not None:
            from restage.diffusion.ids import open_readers

            readers = open_readers(generate.depth_model, generate.ids_model, device)
        return LoadedMaker(backbone, load_clip(clip, device), generate, self.id, readers).open(device)


def _hashes(text_to_image: Path, clip: Path, generate: GenerateConfig) -> list[str]:
    more = [] if generate.depth_model is None else [folder_sha256(generate.depth_model)]
    if generate.held_by:
        from restage.diffusion.branches import branch_sha256

        more += [branch_sha256(source.folder) for source in generate.branches_for(text_to_image)]
    more += [] if generate.ids_model is None else [folder_sha256(generate.ids_model)]
    return [folder_sha256(text_to_image), folder_sha256(clip), *more]


def _portable(folder: Path) -> str:
    if folder.resolve().is_relative_to(ASSETS):
        return PACKAGE + folder.resolve().relative_to(ASSETS).as_posix()
    return str(folder.resolve())


def _here(folder: str) -> Path:
    return ASSETS / folder.removeprefix(PACKAGE) if folder.startswith(PACKAGE) else Path(folder)


PLAN_FILE = "plan.json"


PairTask = Task[tuple[PairJob, ...]]
"""One shard to make. Its content id holds its pairs, how they are sampled, and what makes them; not the rule that
judges them."""


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """What a `plan.json` says of the shards beside it."""

    id: str
    maker: str | None = None
    """Id of what makes the pairs; the content id in each mark is derived from it."""
    num_tasks: int | None = None  # number of shards
    generate: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskPlan(Sequence[PairTask]):
    """All tasks of a run, built one at a time."""

    prompts: Sequence[PromptPair]
    config: PairsConfig
    run_seed: int
    maker_id: str  # content id of what makes the pairs; empty if it is not known
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

    def record(self, files: Files) -> None:
        """Write `plan.json` beside the shards, or check that the one there is this one."""
        found = read_plan(files)
        if found is not None and found.id != self.id:
            raise InputError(
                f"{files.where()} holds shards of other prompts, models or another config; choose another --out"
            )
        if found is None:
            facts = {"num_tasks": len(self), "num_pairs": self.num_pairs, "generate": to_plain(self.config.generate)}
            record = seal({"id": self.id, "maker": self.maker_id, **facts})
            files.write(PLAN_FILE, (canonical_json(record) + "\n").encode())


def read_plan(files: Files) -> PlanRecord | None:
    """Return what the plan of a folder's shards says; None where there is none."""
    if not files.exists(PLAN_FILE):
        return None
    return parse_json(files.read(PLAN_FILE), PlanRecord, where=files.where(PLAN_FILE))


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """Shards as a kind of work: what every worker of a campaign is told."""

    folder: str  # where shards go: a path that all machines see, or a URL
    plan_id: str
    rule: PairRule
    batch_size: int  # pairs made at once; part of what the results depend on
    maker: Maker

    @property
    def modules(self) -> tuple[str, ...]:
        """What loads models, if they are to be loaded: seconds that no worker is to spend again."""
        return ("restage.diffusion.backbone", "restage.diffusion.clip") if isinstance(self.maker, ModelMaker) else ()

    def open(self, device: str) -> OpenShards:
        """Load the models."""
        plan = read_plan(open_files(self.folder))
        if plan is None or plan.id != self.plan_id:
            raise InputError(f"{self.folder} is not the campaign's folder on {socket.gethostname()}")
        return OpenShards(self, self.maker.open(device))


@dataclass(frozen=True)
class OpenShards:
    """Makes shards on one device."""

    settings: ShardWork
    maker: OpenMaker

    def found(self, task: PairTask) -> Facts | None:
        """Counts of the task's shard if it is there, whole and made of the same pairs."""
        try:
            mark = read_mark(open_files(self.settings.folder), task.index)
        except (FileNotFoundError, InputError):
            return None
        return _counts(mark) if mark.get("content") == task.content else None

    def work(self, task: PairTask) -> Generator[Progress, None, Facts]:
        """Make and write one shard; yields how many of its pairs are made, batch by batch; returns its counts."""
        jobs, settings = task.item, self.settings
        pairs: list[EncodedPair] = []
        rows: list[dict[str, Any]] = []
        for start in range(0, len(jobs), settings.batch_size):
            batch = jobs[start : start + settings.batch_size]
            for pair, row in _judged(batch, self.maker.make(batch), settings.rule):
                rows.append(row)
                if row["accepted"]:
                    with timed("save"):
                        pairs.append(encode_pair(pair))  # at once: files take a tenth of the memory
            if len(rows) < len(jobs):
                yield Progress(stage="pairs", done=len(rows), total=len(jobs))
        facts = {"content": task.content, "rule": rule_id(settings.rule)}
        with timed("save"):
            return _counts(write_shard(settings.folder, task.index, pairs=pairs, rows=rows, facts=facts))


def _judged(jobs: tuple[PairJob, ...], made: Made, rule: PairRule) -> Iterator[tuple[ImagePair, dict[str, Any]]]:
    """Yield the pairs of a batch with the rows of the sidecar."""
    for index, (job, scores) in enumerate(zip(jobs, made.scores, strict=True)):
        source, edited, mask = made.pairs.sources[index], made.pairs.edited[index], made.pairs.masks[index]
        control, steps = made.pairs.controls[index], made.pairs.steps[index]
        facts = {
            **{"sample": job.sample, "seed": job.seed, "self_share": job.self_share},
            **{"control": control, "steps": steps, "rule_version": rule.version},
        }
        # JSON has no NaN: what could not be scored is null there, with the reason beside it.
        plain = {name: value if value == value else None for name, value in scores._asdict().items()}
        stored = {**facts, "scores": plain}
        reference = decode_reference(job.reference, job.reference_mask) if job.reference else None
        shown = {"source": source, "edited": edited, "mask": mask, "reference": reference}
        pair = ImagePair(id=job.id, prompt=job.prompt, facts=stored, **shown)
        reason = judge(scores, rule)
        yield (
            pair,
            {
                **prompt_columns(pair),
                **facts,
                **scores._asdict(),
                "accepted": not reason,
                "reason": reason,
                "pixel_sha256": pixel_sha256(source, edited, mask),
                PREVIEW: make_preview(source, edited, mask),
            },
        )


def _counts(mark: Mapping[str, Any]) -> dict[str, int]:
    counts = {name: mark[name] for name in ("num_pairs", "num_accepted")}
    return {**counts, "num_bytes": sum(mark.get("num_bytes", {}).values())}

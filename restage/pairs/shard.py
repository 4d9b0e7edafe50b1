"""What one task of the pairs stage is: make its pairs batch by batch, score and judge them, write the shard."""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from restage.pairs.encoding import EncodedPair, ImagePair, encode_pair, pixel_sha256
from restage.pairs.files import open_files
from restage.pairs.generate import PairJob
from restage.pairs.makers import Made, Maker, OpenMaker
from restage.pairs.score import PairRule, PairScores, judge
from restage.pairs.sheet import make_preview
from restage.pairs.store import PREVIEW, read_mark, write_shard
from restage.pairs.tasks import PairTask, read_plan_id
from restage.pairs.verdicts import rule_id
from restage.records import InputError, Progress
from restage.work.task import Facts

__all__ = ["OpenShards", "ShardWork"]


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """Shards as a kind of work: what every worker of a campaign is told."""

    folder: str
    """Where shards go: a path that all machines see, or a URL."""
    plan_id: str
    rule: PairRule
    batch_size: int
    """Pairs made at once; part of what the results depend on."""
    maker: Maker

    def open(self, device: str) -> OpenShards:
        """Load the models.

        Raises:
            InputError: the folder is not the campaign's on this machine, or its models are not.
        """
        if read_plan_id(open_files(self.folder)) != self.plan_id:
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
                    pairs.append(encode_pair(pair))  # at once: files take a tenth of the memory
            if len(rows) < len(jobs):
                yield Progress(stage="pairs", done=len(rows), total=len(jobs))
        facts = {"content": task.content, "rule": rule_id(settings.rule)}
        return _counts(write_shard(settings.folder, task.index, pairs=pairs, rows=rows, facts=facts))


def _row(pair: ImagePair, scores: PairScores, reason: str, job: PairJob) -> dict[str, Any]:
    return {
        "id": pair.id,
        "prompt_id": job.prompt.id,
        "kind": job.prompt.kind,
        "instruction": job.prompt.instruction,
        "source_caption": job.prompt.source,
        "target_caption": job.prompt.target,
        "form": job.prompt.form,
        **{name: pair.facts[name] for name in ("sample", "seed", "self_share", "control", "steps", "rule_version")},
        **scores._asdict(),
        "accepted": not reason,
        "reason": reason,
        "pixel_sha256": pixel_sha256(pair.source, pair.edited, pair.mask),
        PREVIEW: make_preview(pair.source, pair.edited, pair.mask),
    }


def _judged(jobs: tuple[PairJob, ...], made: Made, rule: PairRule) -> Iterator[tuple[ImagePair, dict[str, Any]]]:
    for index, (job, scores) in enumerate(zip(jobs, made.scores, strict=True)):
        facts = {
            "sample": job.sample,
            "seed": job.seed,
            "self_share": job.self_share,
            "control": made.pairs.controls[index],
            "steps": made.pairs.steps[index],
            "rule_version": rule.version,
            # JSON has no NaN: what could not be scored is null there, with the reason beside it.
            "scores": {name: value if value == value else None for name, value in scores._asdict().items()},
        }
        pair = ImagePair(
            id=job.id,
            source=made.pairs.sources[index],
            edited=made.pairs.edited[index],
            mask=made.pairs.masks[index],
            prompt=job.prompt,
            facts=facts,
        )
        yield pair, _row(pair, scores, judge(scores, rule), job)


def _counts(mark: Mapping[str, Any]) -> dict[str, int]:
    counts = {name: mark[name] for name in ("num_pairs", "num_accepted")}
    return {**counts, "num_bytes": sum(mark.get("num_bytes", {}).values())}

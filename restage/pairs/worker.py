"""What one worker does with one task: make its pairs batch by batch, score and judge them, write the shard, report.

The same code runs in this process, in a process per device and in a Ray actor (`executors`).
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import socket
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from restage.pairs.encoding import EncodedPair, ImagePair, encode_pair, pixel_sha256
from restage.pairs.files import open_files
from restage.pairs.generate import PairJob
from restage.pairs.idle import DeviceWatch
from restage.pairs.makers import Made, Maker, OpenMaker
from restage.pairs.score import PairRule, PairScores, judge
from restage.pairs.sheet import make_preview
from restage.pairs.store import PREVIEW, read_mark, write_shard
from restage.pairs.tasks import PairTask, read_plan_id
from restage.pairs.verdicts import rule_id
from restage.records import InputError

__all__ = ["Status", "TaskReport", "Worker", "WorkerSettings", "make_shard", "package_versions"]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors that no other attempt and no other worker will mend."""

PACKAGES = ("restage", "torch", "diffusers", "transformers", "numpy", "pillow", "pyarrow")
"""Packages that what is made depends on."""

Status = Literal["done", "found", "failed", "busy", "gave way", "stopped", "disk full", "unfit"]
"""What became of a task: made; already there; an error of its own; not begun since someone else uses the device; given
up for someone else; given up since the worker is to stop; the disk is full; this worker cannot make any."""


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """What a worker says of a task."""

    index: int
    status: Status
    worker: str
    device: str = ""
    seconds: float = 0.0
    num_pairs: int = 0
    num_accepted: int = 0
    num_bytes: int = 0
    reason: str = ""
    """The error in one line, if there was one."""
    details: str = ""
    """Its traceback."""


def package_versions() -> dict[str, str]:
    """Versions of the packages that results depend on, without local parts such as `+cpu`."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in PACKAGES}


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What every worker of a campaign is told."""

    folder: str
    """Where shards go: a path that all machines see, or a URL."""
    plan_id: str
    rule: PairRule
    batch_size: int
    """Pairs made at once; part of what the results depend on."""
    maker: Maker
    threads: int | None = None
    """CPU threads of the worker; None leaves torch's own choice."""
    is_polite: bool = False
    """Leave a device that someone else uses."""
    versions: dict[str, str] = field(default_factory=package_versions)


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


def make_shard(settings: WorkerSettings, task: PairTask, maker: OpenMaker) -> Generator[int, None, dict[str, Any]]:
    """Make and write one shard; yields the number of its pairs that are made, batch by batch; returns its mark."""
    pairs: list[EncodedPair] = []
    rows: list[dict[str, Any]] = []
    for start in range(0, len(task.jobs), settings.batch_size):
        batch = task.jobs[start : start + settings.batch_size]
        for pair, row in _judged(batch, maker.make(batch), settings.rule):
            rows.append(row)
            if row["accepted"]:
                pairs.append(encode_pair(pair))  # at once: files take a tenth of the memory
        if len(rows) < len(task.jobs):
            yield len(rows)
    facts = {"content": task.content, "rule": rule_id(settings.rule)}
    mark = write_shard(settings.folder, task.index, pairs=pairs, rows=rows, facts=facts)
    yield len(rows)
    return mark


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def _never() -> bool:
    return False


class Worker:
    """Works through tasks on one device; loads its models at the first task that it is free for."""

    def __init__(
        self, settings: WorkerSettings, device: str = "cpu", *, is_stopping: Callable[[], bool] = _never
    ) -> None:
        """Prepare; nothing heavy is loaded yet.

        Args:
            settings: of the campaign.
            device: such as `cpu` or `cuda:0`.
            is_stopping: asked between batches.
        """
        self.settings, self.device, self.is_stopping = settings, device, is_stopping
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.watch = DeviceWatch(device, num_own_threads=settings.threads or 1)
        self.maker: OpenMaker | None = None

    def open(self) -> OpenMaker:
        """Load the models, if that has not been done.

        Raises:
            InputError: this machine is not set up as the one that leads the campaign.
        """
        if self.maker is None:
            if package_versions() != self.settings.versions:
                raise InputError(f"packages here are {package_versions()}, the campaign's {self.settings.versions}")
            if read_plan_id(open_files(self.settings.folder)) != self.settings.plan_id:
                raise InputError(f"{self.settings.folder} is not the campaign's folder on {socket.gethostname()}")
            if self.settings.threads is not None:
                import torch

                torch.set_num_threads(self.settings.threads)
            self.watch.before_load()
            self.maker = self.settings.maker.open(self.device)
            self.watch.after_load()
        return self.maker

    def work(self, task: PairTask) -> TaskReport:
        """Do one task; whatever goes wrong is in the report."""
        if self.settings.is_polite and not self.watch.is_free():
            return self._report(task, "busy")
        try:
            maker = self.open()
        except Exception as error:
            return self._report(task, "unfit", error)
        started_s = time.monotonic()
        try:
            found = self.found(task)
            if found is not None:
                return found
            steps = make_shard(self.settings, task, maker)
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    return self.done(task, end.value, seconds=time.monotonic() - started_s)
                if self.is_stopping():
                    return self._report(task, "stopped")
                if self.settings.is_polite and not self.watch.is_free():
                    return self._report(task, "gave way")
        except Exception as error:
            is_full = isinstance(error, OSError) and error.errno in DISK_FULL
            return self._report(task, "disk full" if is_full else "failed", error)

    def found(self, task: PairTask) -> TaskReport | None:
        """A report of the task's shard if it is there: made before a worker was lost, or by another driver."""
        try:
            mark = read_mark(open_files(self.settings.folder), task.index)
        except (FileNotFoundError, InputError):
            return None
        return self._report(task, "found", counts=_counts(mark)) if mark.get("content") == task.content else None

    def done(self, task: PairTask, mark: Mapping[str, Any], *, seconds: float) -> TaskReport:
        """A report of a shard that was made now."""
        return self._report(task, "done", seconds=seconds, counts=_counts(mark))

    def _report(
        self,
        task: PairTask,
        status: Status,
        error: Exception | None = None,
        *,
        seconds: float = 0.0,
        counts: Mapping[str, int] | None = None,
    ) -> TaskReport:
        return TaskReport(
            index=task.index,
            status=status,
            worker=self.name,
            device=self.device,
            seconds=seconds,
            reason=_in_one_line(error) if error else "",
            details="".join(traceback.format_exception(error)) if error else "",
            **(counts or {}),
        )


def _counts(mark: Mapping[str, Any]) -> dict[str, int]:
    counts = {name: mark[name] for name in ("num_pairs", "num_accepted")}
    return {**counts, "num_bytes": sum(mark.get("num_bytes", {}).values())}

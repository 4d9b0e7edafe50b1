"""All pairs of a run, made on any engine: estimate, progress, resume, failures; the driver behind `restage pairs`.

Two drivers on one folder do no harm, see `work.engine`: a shard counts only when it is whole, and before it says that
it is done a driver looks at what is on disk.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restage.pairs.campaign_status import Estimate, Tally, bytes_text
from restage.pairs.files import Files, LocalFiles
from restage.pairs.makers import Maker, OpenMaker
from restage.pairs.shard import ShardWork
from restage.pairs.store import done_indices
from restage.pairs.tasks import TaskPlan
from restage.records import InputError, Progress, canonical_json, to_plain, write_json
from restage.work.engine import TasksSetAside, WorkStopped, run_tasks, settings_for
from restage.work.interface import EngineConfig, Event, Shared, Stepped, Tick, WorkerLost
from restage.work.queue import MAX_BUNDLE, SetAside, TaskQueue
from restage.work.task import Report
from restage.work.worker import WorkerSettings

__all__ = ["CampaignConfig", "check_prompts", "make_missing"]

MAX_CHECKED = 10_000
"""Prompt pairs that are checked before the first pair is made, 0.8 ms each; later ones when their task comes."""
STATUS_S = 5.0
"""Seconds between two states of `campaign.json`, and between looks at the disk."""
MIN_FREE_BYTES = 50_000_000
"""Free room below which nothing is begun."""


@dataclass(frozen=True, kw_only=True)
class CampaignConfig(EngineConfig):
    """Where pairs are made, and what is to be said of it beforehand."""

    cost_per_hour: float = 0.0
    """Cost of one worker in any currency, from which the estimate says what an accepted pair costs."""
    estimate_only: bool = False
    """Stop after the estimate; the probe it is made from stays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cost_per_hour < 0:
            raise InputError(f"cost_per_hour must be at least 0, got {self.cost_per_hour}")


def check_prompts(plan: TaskPlan, maker: OpenMaker) -> None:
    """Refuse prompt pairs that cannot be made before anything is.

    Raises:
        InputError: one does not fit the model.
    """
    num_checked = 0
    for index in range(len(plan)):
        for job in plan[index].item:
            if job.sample == 0 or num_checked == 0:
                maker.check(job)
                num_checked += 1
        if num_checked >= MAX_CHECKED:
            return


def make_missing(
    folder: Path, files: Files, plan: TaskPlan, maker: Maker, config: CampaignConfig
) -> Iterator[Progress]:
    """Make every shard of the plan that is not there; afterwards all are, whatever else happened meanwhile.

    Args:
        folder: The run's pairs folder, for `campaign.json`.
        files: Where the shards lie.
        plan: What to make.
        maker: Makes and scores them.
        config: Where they are made.

    Raises:
        WorkStopped: tasks failed again and again (all others are made), the disk is full, or no worker works.
        InputError: the folder holds shards of another plan.
    """
    plan.record(files)
    # Workers may start in another working directory.
    place = str(files.path.resolve()) if isinstance(files, LocalFiles) else files.where()
    while True:
        done = set(done_indices(files))
        if done - set(range(len(plan))):
            raise InputError(f"{files.where()} holds shard {max(done)}, of {len(plan)} planned; choose another --out")
        missing = [index for index in range(len(plan)) if index not in done]
        if not missing:
            return
        session = _Session(folder, files, plan, config, missing)
        work = ShardWork(
            folder=place,
            plan_id=plan.id,
            rule=plan.config.rule,
            batch_size=plan.config.generate.batch_size,
            maker=maker,
        )
        yield from session.run(settings_for(work, config))
        if config.estimate_only:
            return


@dataclass
class _Session:
    """One go at the missing tasks, as the user sees it."""

    folder: Path
    files: Files
    plan: TaskPlan
    config: CampaignConfig
    missing: Sequence[int]

    def __post_init__(self) -> None:
        attempts = self.config.max_attempts
        self.queue = TaskQueue(self.plan, self.missing, max_attempts=attempts, max_bundle=MAX_BUNDLE)
        num_done = len(self.plan) - len(self.missing)
        self.tally = Tally(
            num_tasks=len(self.plan),
            num_pairs=self.plan.num_pairs,
            done_tasks=num_done,
            done_pairs=self.plan.num_pairs - sum(self.plan.num_jobs(index) for index in self.missing),
        )
        self.num_workers = 0
        self.shown_s = time.monotonic()
        self.free_bytes: int | None = None
        self.estimated: Estimate | None = None
        # A campaign that goes on needs no probe: that its shards find room is known.
        self.queue.is_probing = not num_done or self.config.estimate_only

    def run(self, settings: WorkerSettings) -> Iterator[Progress]:
        """Make the missing tasks.

        Raises:
            WorkStopped: some cannot be made.
        """
        self.look_at_disk()
        events = run_tasks(self.queue, settings, self.config)
        try:
            for event in events:
                yield from self.hear(event)
                if self.config.estimate_only and self.estimated is not None:
                    return
        finally:
            events.close()
            self.show("stopped" if self.queue.waiting or self.queue.at_work else "ended")
        if self.queue.set_aside:
            raise TasksSetAside(self.explain())

    def look_at_disk(self) -> None:
        """See how much room is left.

        Raises:
            WorkStopped: hardly any.
        """
        self.free_bytes = self.files.free_bytes()
        if self.free_bytes is not None and self.free_bytes < MIN_FREE_BYTES:
            raise WorkStopped(
                f"{self.files.where()} has {bytes_text(self.free_bytes)} free; make room first, then run this again"
            )

    def hear(self, event: Event) -> Iterator[Progress]:
        """Take in what happened, and say what a user wants to know of it."""
        if isinstance(event, Tick):
            self.num_workers = event.num_workers
        elif isinstance(event, WorkerLost):
            self.tally.num_lost_workers += 1
            yield self.progress(f"{event.worker}: {event.reason}")
        elif isinstance(event, Stepped):
            yield self.progress("", num_more=event.progress.done)
        elif isinstance(event, SetAside):
            self.write_failure(event)
            yield self.progress(f"task {event.index} is set aside: {event.reason}")
        elif isinstance(event, Shared):
            yield self.progress("another driver works on this folder, too; the two share the work")
        else:
            yield from self.hear_report(event)
        if self.config.engine != "inline" and time.monotonic() - self.shown_s >= STATUS_S:
            self.shown_s = time.monotonic()
            self.look_at_disk()
            self.show("running")
            yield self.progress("")

    def hear_report(self, report: Report) -> Iterator[Progress]:
        """Count a report; the first task that is done is the probe of the estimate."""
        self.tally.add(report)
        if report.is_over:
            if self.estimated is None and report.status == "done":
                self.queue.is_probing = False
                yield from self.estimate(report)
            yield self.progress("")

    def estimate(self, probe: Report) -> Iterator[Progress]:
        """Say what the rest takes, from the first task.

        Raises:
            WorkStopped: the disk has not room for it.
        """
        self.queue.mean_task_s = probe.seconds
        num_probed = max(probe.facts["num_pairs"], 1)
        num_pairs = self.plan.num_pairs - self.tally.done_pairs
        num_workers = max(self.num_workers, self.config.workers or 1)
        self.free_bytes = self.files.free_bytes()
        found = Estimate(
            num_tasks=len(self.plan) - self.tally.done_tasks,
            num_pairs=num_pairs,
            num_workers=num_workers,
            seconds=num_pairs * probe.seconds / num_probed / num_workers,
            num_bytes=round(num_pairs * probe.facts["num_bytes"] / num_probed),
            free_bytes=self.free_bytes,
            acceptance=probe.facts["num_accepted"] / num_probed,
            cost_per_hour=self.config.cost_per_hour,
        )
        self.estimated = found
        if self.config.engine != "inline" or self.config.estimate_only:
            yield Progress(stage="estimate", done=1, total=1, note=str(found))
        if not found.has_room:
            raise WorkStopped(
                f"{self.files.where()} has {bytes_text(found.free_bytes or 0)} free, the {found.num_tasks} tasks left "
                f"need about {bytes_text(found.num_bytes)} and a tenth to spare; make room or use --store"
            )

    def progress(self, news: str, *, num_more: int = 0) -> Progress:
        """Returns where the campaign stands, or a piece of news."""
        done = self.tally.done_pairs + num_more
        if self.config.engine == "inline" and not news:
            news = self.plan.prompts[max(done - 1, 0) // self.plan.config.samples_per_prompt].instruction
        note = news or self.tally.note(self.num_workers, self.free_bytes)
        return Progress(stage="pairs", done=done, total=self.plan.num_pairs, note=note)

    def show(self, status: str) -> None:
        """Write `campaign.json`, which `restage show` reads."""
        if self.config.engine != "inline":  # which says it all in its progress
            facts: dict[str, Any] = {"status": status, "workers": self.num_workers, **self.tally.record()}
            write_json(self.folder / "campaign.json", {**facts, "free_bytes": self.free_bytes})

    def write_failure(self, failure: SetAside) -> None:
        """Keep the traceback of a task that was set aside."""
        jobs = [{"id": job.id, "prompt": job.prompt.id} for job in self.plan[failure.index].item]
        record = {**to_plain(failure), "pairs": jobs}
        self.files.write(f"failures/task-{failure.index:05d}.json", (canonical_json(record) + "\n").encode())

    def explain(self) -> str:
        """Returns why not all tasks are made."""
        failures = sorted(self.queue.set_aside.values(), key=lambda failure: failure.index)
        return (
            f"{len(failures)} of {len(self.plan)} tasks are set aside after {self.config.max_attempts} attempts, all "
            f"others are made; the first: task {failures[0].index}, {failures[0].reason}; tracebacks are in "
            f"{self.files.where('failures')}; the same command tries them again"
        )

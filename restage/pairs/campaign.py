"""All pairs of a run, made on any engine: estimate, progress, resume, failures; the driver behind `restage pairs`.

Two drivers on one folder do no harm, see `work.engine`: a shard counts only when it is whole, and before it says that
it is done a driver looks at what is on disk. Times are of the monotonic clock, which nobody sets.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restage.pairs.config import CampaignConfig
from restage.pairs.files import Files, LocalFiles
from restage.pairs.store import done_indices
from restage.pairs.tasks import Maker, OpenMaker, ShardWork, TaskPlan
from restage.records import InputError, Progress, canonical_json, to_plain, write_json
from restage.work.engine import TasksSetAside, WorkStopped, run_tasks, settings_for
from restage.work.task import MAX_BUNDLE, Event, Report, SetAside, Stepped, TaskQueue, Tick, WorkerLost
from restage.work.worker import WorkerSettings

__all__ = ["Estimate", "Tally", "check_prompts", "make_missing"]


def seconds_text(seconds: float) -> str:
    """A time as a person says it: `40 s`, `12 min`, `2 h 10 min`, `3 days 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def bytes_text(count: int) -> str:
    """A size as a person says it: `12 MB`, `3.4 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the rest of a campaign will take, from a measured probe."""

    num_tasks: int  # tasks still to be made
    num_pairs: int
    num_workers: int
    seconds: float
    """Time at the pace of the worker that was measured, shared by the workers that are there."""
    num_bytes: int
    free_bytes: int | None
    """Room in the store; None where it cannot be known."""
    acceptance: float
    cost_per_hour: float

    MARGIN = 1.1

    @property
    def cost(self) -> float:
        """Cost of all worker hours, in the currency of `cost_per_hour`."""
        return self.num_workers * self.seconds / 3600 * self.cost_per_hour

    @property
    def has_room(self) -> bool:
        """Whether the store has room for the missing shards, with a tenth to spare."""
        return self.free_bytes is None or self.free_bytes >= self.MARGIN * self.num_bytes

    def __str__(self) -> str:
        accepted = self.acceptance * self.num_pairs
        room = "" if self.free_bytes is None else f" of {bytes_text(self.free_bytes)} free"
        text = (
            f"{self.num_tasks} tasks, {self.num_pairs} pairs: {seconds_text(self.seconds)} "
            f"with {self.num_workers} worker{'s' if self.num_workers != 1 else ''}, "
            f"{bytes_text(self.num_bytes)}{room}, {self.acceptance:.0%} accepted"
        )
        if self.cost_per_hour:
            each = f"{self.cost / accepted:.4f} an accepted pair" if accepted else "none accepted in the probe"
            text += f", cost {self.cost:.2f} ({each})"
        return text


@dataclass
class Tally:
    """Counts of a campaign, report by report; its size does not grow with the number of tasks."""

    num_tasks: int
    num_pairs: int
    done_tasks: int = 0
    done_pairs: int = 0  # pairs that are done, those of earlier sessions included
    made_pairs: int = 0  # pairs that were made in this session
    judged_pairs: int = 0  # pairs whose verdicts were reported in this session
    accepted_pairs: int = 0  # those of them that were accepted
    made_tasks: int = 0
    num_lost_workers: int = 0
    failures: collections.Counter[str] = field(default_factory=collections.Counter)
    by_device: dict[str, list[float]] = field(default_factory=dict)
    """Pairs and seconds by machine and device."""
    resting: set[str] = field(default_factory=set)  # workers whose device someone else uses
    started_s: float = field(default_factory=time.monotonic)  # when the first task was begun

    def add(self, report: Report) -> None:
        """Count a report."""
        if report.status in ("busy", "gave way"):
            self.resting.add(report.worker)
        else:
            self.resting.discard(report.worker)
        if report.is_over:
            self.done_tasks += 1
            self.done_pairs += report.facts["num_pairs"]
            self.judged_pairs += report.facts["num_pairs"]
            self.accepted_pairs += report.facts["num_accepted"]
        if report.status == "done":
            if not self.made_tasks:
                self.started_s = time.monotonic() - report.seconds  # models are loaded: only now is it work
            self.made_tasks += 1
            self.made_pairs += report.facts["num_pairs"]
            device = self.by_device.setdefault(f"{report.worker.partition(':')[0]} {report.device}", [0.0, 0.0])
            device[0] += report.facts["num_pairs"]
            device[1] += report.seconds
        if report.reason:
            kind = report.reason.partition(":")[0] if len(self.failures) > 50 else report.reason
            self.failures[kind] += 1

    @property
    def acceptance(self) -> float:
        """Share of accepted pairs among those this session has seen."""
        return self.accepted_pairs / max(self.judged_pairs, 1)

    @property
    def pairs_per_s(self) -> float:
        """Pace of all workers together in this session."""
        return self.made_pairs / max(time.monotonic() - self.started_s, 1e-9)

    @property
    def left_s(self) -> float:
        """Time left at this pace."""
        return (self.num_pairs - self.done_pairs) / self.pairs_per_s if self.made_pairs else float("nan")

    def note(self, num_workers: int, free_bytes: int | None) -> str:
        """Returns the state in one line."""
        parts = [f"{self.acceptance:.0%} accepted", f"{self.pairs_per_s:.2g} pairs/s of {num_workers} workers"]
        if self.made_pairs and self.done_pairs < self.num_pairs:
            parts.append(f"{seconds_text(self.left_s)} left")
        if free_bytes is not None:
            parts.append(f"{bytes_text(free_bytes)} free")
        if self.resting:
            parts.append(f"{len(self.resting)} rest while others use their device")
        if self.num_lost_workers:
            parts.append(f"{self.num_lost_workers} workers lost")
        parts += [f"{count} x {reason[:60]}" for reason, count in self.failures.most_common(2)]
        return ", ".join(parts)

    def record(self) -> Mapping[str, Any]:
        """Returns the state as JSON values."""
        return {
            "tasks": {"all": self.num_tasks, "done": self.done_tasks},
            "pairs": {"all": self.num_pairs, "done": self.done_pairs, "made_now": self.made_pairs},
            "acceptance": round(self.acceptance, 4),
            "pairs_per_s": round(self.pairs_per_s, 4),
            "hours_left": round(self.left_s / 3600, 3) if self.made_pairs else None,
            "workers_resting": len(self.resting),
            "workers_lost": self.num_lost_workers,
            "failures": dict(self.failures),
            "pairs_per_s_by_device": {
                name: round(pairs / max(seconds, 1e-9), 4) for name, (pairs, seconds) in sorted(self.by_device.items())
            },
        }


MAX_CHECKED = 10_000
"""Prompt pairs that are checked before the first pair is made, 0.8 ms each; later ones when their task comes."""
STATUS_S = 5.0
"""Seconds between two states of `campaign.json`, and between looks at the disk."""
MIN_FREE_BYTES = 50_000_000
"""Free room below which nothing is begun."""


def check_prompts(plan: TaskPlan, maker: OpenMaker) -> None:
    """Refuse prompt pairs that cannot be made before anything is."""
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
    """Make every shard of the plan that is not there; afterwards all are, whatever else happened meanwhile."""
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
        batch_size = plan.config.generate.batch_size
        work = ShardWork(folder=place, plan_id=plan.id, rule=plan.config.rule, batch_size=batch_size, maker=maker)
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
        max_attempts = self.config.max_attempts
        self.queue = TaskQueue(self.plan, self.missing, max_attempts=max_attempts, max_bundle=MAX_BUNDLE)
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
        """Make the missing tasks."""
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
            failures = sorted(self.queue.set_aside.values(), key=lambda failure: failure.index)
            raise TasksSetAside(
                f"{len(failures)} of {len(self.plan)} tasks are set aside after {self.config.max_attempts} attempts, "
                f"all others are made; the first: task {failures[0].index}, {failures[0].reason}; tracebacks are in "
                f"{self.files.where('failures')}; the same command tries them again"
            )

    def look_at_disk(self) -> None:
        """See how much room is left."""
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
            jobs = [{"id": job.id, "prompt": job.prompt.id} for job in self.plan[event.index].item]
            content = (canonical_json({**to_plain(event), "pairs": jobs}) + "\n").encode()
            self.files.write(f"failures/task-{event.index:05d}.json", content)
            yield self.progress(f"task {event.index} is set aside: {event.reason}")
        else:
            self.tally.add(event)
            if event.is_over:
                if self.estimated is None and event.status == "done":  # the first one is the probe
                    self.queue.is_probing = False
                    yield from self.estimate(event)
                yield self.progress("")
        if self.config.engine != "inline" and time.monotonic() - self.shown_s >= STATUS_S:
            self.shown_s = time.monotonic()
            self.look_at_disk()
            self.show("running")
            yield self.progress("")

    def estimate(self, probe: Report) -> Iterator[Progress]:
        """Say what the rest takes, from the first task."""
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

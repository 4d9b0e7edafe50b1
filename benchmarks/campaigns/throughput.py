"""Tasks per second through Ray, memory of driver and workers, overhead per task, two workers against one."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.campaigns.faults import actors
from restage.pairs.config import PAIRS, CampaignConfig, PairsConfig
from restage.pairs.stage import make_plan, run_campaign
from restage.pairs.store import done_shards, read_rows
from restage.pairs.tasks import Maker, ModelMaker, ShardWork
from restage.prompts.config import PromptsConfig
from restage.prompts.stage import run_prompts
from restage.records import read_json
from restage.run.folder import RunFolder, open_run
from restage.run.models import models_in
from restage.work.worker import Worker, WorkerSettings
from tests.pairs.stand_in import StandIn, stand_in_config
from tests.pairs.stand_in import open_run as open_stand_in_run

__all__ = ["measure"]

PAIRS_PER_TASK = 2
SAMPLES = 60
"""Looks at the memory."""
WARM_TASKS = 4
ROUNDS = 3
"""Of timings in turn; ratios are taken within a round and their median counts, since the machine's speed drifts."""


def bare_loop(run: RunFolder, config: PairsConfig, maker: Maker, threads: int | None) -> Callable[[], float]:
    """The work of a campaign and nothing else: each task made and written, one after the other."""
    plan = make_plan(run, config, maker)
    folder = run.folder("pairs")
    work = ShardWork(
        folder=str(folder),
        plan_id=plan.id,
        rule=config.rule,
        batch_size=config.generate.batch_size,
        maker=maker,
    )
    settings = WorkerSettings(work=work, threads=threads)

    def loop() -> float:
        from restage.pairs.files import LocalFiles

        plan.record(LocalFiles(folder))
        worker = Worker(settings)
        worker.open()
        started_s = time.perf_counter()
        for index in range(len(plan)):
            report = worker.work(plan[index])
            assert report.status == "done", report
        return time.perf_counter() - started_s

    return loop


def slope(values: list[tuple[int, float]]) -> float:
    """MB per 100,000 tasks over the second half of the looks, when everything is loaded."""
    late = np.array(values[len(values) // 2 :])
    return float(np.polyfit(late[:, 0], late[:, 1], 1)[0] * 1e5)


def memory_mb(processes: list[psutil.Process]) -> float:
    return sum(process.memory_info().rss for process in processes if process.is_running()) / 2**20


def many_tasks(folder: Path, num_tasks: int) -> dict[str, Any]:
    """All tasks through Ray with two workers and the stand-in."""
    shutil.rmtree(folder, ignore_errors=True)
    run = open_stand_in_run(folder, PAIRS_PER_TASK * num_tasks)
    config = stand_in_config(pairs_per_shard=PAIRS_PER_TASK)
    engine = CampaignConfig(engine="ray", workers=2)
    own = psutil.Process()
    driver: list[tuple[int, float]] = []
    workers: list[tuple[int, float]] = []
    first_s = last_s = None
    num_first = 0
    for step in run_campaign(run, config, StandIn(), engine):
        done = step.done // PAIRS_PER_TASK
        if step.stage != "pairs" or not done:
            continue
        if first_s is None:
            first_s, num_first = time.perf_counter(), done
        if done < num_tasks:
            last_s, num_last = time.perf_counter(), done
        if done >= len(driver) * num_tasks / SAMPLES:
            found = actors()
            driver.append((done, memory_mb([own])))
            workers.append((done, memory_mb(found) / max(len(found), 1)))
            print(f"{done} tasks, driver {driver[-1][1]:.0f} MB, worker {workers[-1][1]:.0f} MB", flush=True)
    assert first_s is not None and last_s is not None
    seconds = last_s - first_s
    started_s = time.perf_counter()
    marks = done_shards(folder / "pairs")
    listing_s = time.perf_counter() - started_s
    ids = [row["id"] for row in read_rows(folder / "pairs")] if num_tasks <= 300_000 else []
    return {
        "tasks": num_tasks,
        "lost": num_tasks - len(marks) + PAIRS_PER_TASK * num_tasks - len(set(ids)),
        "repeated": len(ids) - len(set(ids)),
        "tasks_per_s": round((num_last - num_first) / seconds, 1),
        "memory_slope_mb_per_100k_tasks": {
            "driver": round(slope(driver), 1),
            "worker": round(slope(workers), 1),
            "driver_mb_at_end": round(driver[-1][1]),
        },
        "seconds_to_read_all_marks": round(listing_s, 2),
    }


def stand_in_overhead(folder: Path, num_tasks: int) -> float:
    """How many seconds longer a tiny task takes with one Ray worker than in the bare loop."""
    config = stand_in_config(pairs_per_shard=PAIRS_PER_TASK)
    shutil.rmtree(folder, ignore_errors=True)
    bare_s = bare_loop(open_stand_in_run(folder / "bare", PAIRS_PER_TASK * num_tasks), config, StandIn(), 1)()
    ray_s = timed(
        lambda: open_stand_in_run(folder / "ray", PAIRS_PER_TASK * num_tasks), config, StandIn(), "ray", workers=1
    )
    return (ray_s - bare_s) / num_tasks


def timed(open_it: Callable[[], RunFolder], config: PairsConfig, maker: Maker, engine: str, *, workers: int) -> float:
    """Seconds that all tasks take at the pace of those after the first few, when each worker has loaded."""
    run = open_it()
    started_s = finished_s = None
    chosen = CampaignConfig(engine=engine, workers=workers, threads=1)  # pyright: ignore[reportArgumentType]
    num_first, total = 0, 0
    for step in run_campaign(run, config, maker, chosen):
        if step.stage == "pairs" and step.done:
            if started_s is None and step.done >= WARM_TASKS * config.pairs_per_shard:
                started_s, num_first = time.perf_counter(), step.done
            total = step.total
            finished_s = finished_s or (time.perf_counter() if step.done == step.total else None)
    assert started_s is not None and finished_s is not None
    return (finished_s - started_s) * total / (total - num_first)


def share_outside_tasks(folder: Path) -> float:
    """Time of a campaign of one worker in which no task was made, as a share of that in which one was."""
    status = read_json(folder / "pairs" / "campaign.json")
    (busy,) = status["pairs_per_s_by_device"].values()
    return busy / status["pairs_per_s"] - 1


def miniature(folder: Path, num_pairs: int) -> dict[str, Any]:
    """Overhead with the real generator, and two workers against one; equal tasks, one thread each."""
    models = models_in()
    sampler = dataclasses.replace(PAIRS.generate.sampler, num_steps=4)
    generate = dataclasses.replace(PAIRS.generate, sampler=sampler, batch_size=8)
    config = dataclasses.replace(PAIRS, generate=generate, pairs_per_shard=8)
    maker = ModelMaker.of(models.text_to_image, models.clip, generate)

    def fresh() -> RunFolder:
        shutil.rmtree(folder, ignore_errors=True)
        run = open_run(folder)
        list(run_prompts(run, PromptsConfig(num_prompts=num_pairs)))
        return run

    times: dict[str, list[float]] = {"bare": [], "one": [], "two": []}
    outside: list[float] = []
    for _ in range(ROUNDS):
        times["bare"].append(bare_loop(fresh(), config, maker, 1)())
        times["one"].append(timed(fresh, config, maker, "local", workers=1))
        outside.append(share_outside_tasks(folder))
        times["two"].append(timed(fresh, config, maker, "local", workers=2))
        print({name: [round(value, 2) for value in values] for name, values in times.items()}, flush=True)
    overheads = [one / bare - 1 for one, bare in zip(times["one"], times["bare"], strict=True)]
    speedups = [one / two for one, two in zip(times["one"], times["two"], strict=True)]
    return {
        "overhead_share": round(statistics.median(outside), 4),
        "overhead_share_against_bare_loop_by_round": [round(value, 3) for value in overheads],
        "speedup_2_workers": round(statistics.median(speedups), 2),
        "speedup_2_workers_by_round": [round(value, 2) for value in speedups],
    }


def measure(folder: Path, num_tasks: int, num_pairs: int) -> dict[str, Any]:
    """Measure all of it."""
    real = miniature(folder / "miniature", num_pairs) if num_pairs else {}
    overhead_s = stand_in_overhead(folder / "overhead", max(200, num_tasks // 100))
    print(f"overhead with the stand-in: {1e3 * overhead_s:.2f} ms a task", flush=True)
    tiny = many_tasks(folder / "many", num_tasks)
    return {**tiny, "overhead_ms_per_tiny_task": round(1e3 * overhead_s, 2), **real}

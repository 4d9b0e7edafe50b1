"""One driver of a stand-in campaign, as a process that can be killed: what `restage pairs` does, without models."""

from __future__ import annotations

import argparse
import itertools
import os
import time
from pathlib import Path

from restage.pairs.config import CampaignConfig
from restage.pairs.stage import run_campaign
from restage.run.progress import stop_on_signals
from tests.pairs.stand_in import StandIn, open_run, stand_in_config

__all__ = ["CLOCK_JUMP_S", "config"]

CLOCK_JUMP_S = 86_400.0
SLOW_SYNC_S = 0.05


def config():
    """Tasks of four pairs in two batches."""
    return stand_in_config()


def let_clock_jump() -> None:
    """Turn the wall clock a day forward and back at every look."""
    clock, calls = time.time, itertools.count()
    time.time = lambda: clock() + (-1) ** next(calls) * CLOCK_JUMP_S


def slow_disk_down() -> None:
    """Let every sync wait, as a busy server does."""
    sync = os.fsync

    def slow(number: int) -> None:
        time.sleep(SLOW_SYNC_S)
        sync(number)

    os.fsync = slow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--engine", default="inline")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--address")
    parser.add_argument("--batch-s", type=float, default=0.0)
    parser.add_argument("--slow-disk", action="store_true")
    parser.add_argument("--clock-jumps", action="store_true")
    options = parser.parse_args()
    stop_on_signals()
    if options.clock_jumps:
        let_clock_jump()
    if options.slow_disk:
        slow_disk_down()
    run = open_run(options.folder, 4 * options.tasks)
    engine = CampaignConfig(engine=options.engine, workers=options.workers, address=options.address, grace_s=2.0)
    for step in run_campaign(run, config(), StandIn(seconds_per_batch=options.batch_s), engine):
        print(step.done, step.note, flush=True)


if __name__ == "__main__":
    main()

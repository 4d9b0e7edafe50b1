"""Kills at random moments, full and slow disks, a jumping clock, two drivers: what is lost, what is repeated.

After each round the folder is compared, byte by byte, with that of an undisturbed run, and verified.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.flips import check
from benchmarks.flips import measure_flips as flip_bytes
from restage.pairs.store import read_rows

__all__ = ["measure", "measure_flips"]

VOLATILE = ("campaign.json", "failures")
TASKS = 250
BATCH_S = 0.02
SEED = 0
RAY_SHARE = 0.15
"""Of the kills; those of processes on this machine are quicker to recover from."""


def drive(folder: Path, *options: str, tasks: int = TASKS) -> subprocess.Popen[bytes]:
    log = (folder.parent / f"{folder.name}.log").open("ab")
    command = [sys.executable, "-m", "benchmarks.campaigns.drive", str(folder), "--tasks", str(tasks), *options]
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def finish(folder: Path, *options: str, tasks: int = TASKS) -> None:
    """Let the same command go on until all is done, without any fault."""
    process = drive(folder, *options, tasks=tasks)
    if process.wait(timeout=600):
        raise SystemExit(f"the driver failed; see {folder.parent / folder.name}.log")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in (folder / "pairs").iterdir() if path.is_file())
    return {path.name: path.read_bytes() for path in files if path.name not in VOLATILE and ".tmp" not in path.name}


class Judge:
    """Compares what a round left with what an undisturbed run leaves."""

    def __init__(self, undisturbed: Path) -> None:
        self.expected = contents(undisturbed)
        self.ids = {row["id"] for row in read_rows(undisturbed / "pairs")}

    def __call__(self, name: str, folder: Path, kills: int = 0) -> dict[str, Any]:
        found = [row["id"] for row in read_rows(folder / "pairs")]
        files = contents(folder)
        differing = [file for file in {*files, *self.expected} if files.get(file) != self.expected.get(file)]
        result = {
            "round": name,
            "kills": kills,
            "lost": len(self.ids - set(found)),
            "repeated": len(found) - len(set(found)),
            "differing_files": len(differing),
            "findings": len(check(folder / "pairs").findings),
        }
        print(json.dumps(result), flush=True)
        return result


def workers_of(driver: psutil.Process) -> list[psutil.Process]:
    """Worker processes of a local driver: all below it, but for Python's own resource tracker."""
    with contextlib.suppress(psutil.NoSuchProcess):
        below = driver.children(recursive=True)
        return [process for process in below if "resource_tracker" not in " ".join(process.cmdline())]
    return []


def actors() -> list[psutil.Process]:
    """Actors of the cluster that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ray::ActorWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def has_begun(folder: Path, num_done: int) -> bool:
    """Whether more shards are done than before: earlier kills would only kill imports."""
    return sum(1 for _ in (folder / "pairs").glob("*.done")) > num_done


def rounds_of_kills(
    folder: Path, options: list[str], num_kills: int, kill: Callable[[subprocess.Popen[bytes], random.Random], str]
) -> Iterator[tuple[Path, int, Counter[str]]]:
    """Campaigns that are killed at random moments until they are done; yields each with its number of kills."""
    draw = random.Random(SEED)
    total = number = 0
    while total < num_kills:
        target, number, kinds = folder / f"{options[1]}-{number}", number + 1, Counter[str]()
        driver, num_done = drive(target, *options), 0
        while total + kinds.total() < num_kills and driver.poll() is None:
            deadline_s = time.monotonic() + 120
            while not has_begun(target, num_done) and driver.poll() is None and time.monotonic() < deadline_s:
                time.sleep(0.02)
            time.sleep(draw.uniform(0.0, 0.3))
            if driver.poll() is None:
                num_done = sum(1 for _ in (target / "pairs").glob("*.done"))
                kinds[kill(driver, draw)] += 1
            if driver.poll() is not None and not (target / "pairs" / "stage.json").exists():
                driver = drive(target, *options)
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(timeout=600)
        if not (target / "pairs" / "stage.json").exists():
            finish(target, *options)
        total += kinds.total()
        yield target, kinds.total(), kinds


def kill_local(driver: subprocess.Popen[bytes], draw: random.Random) -> str:
    workers = workers_of(psutil.Process(driver.pid))
    if draw.random() < 0.1 or not workers:
        driver.kill()
        driver.wait()
        return "driver"
    with contextlib.suppress(psutil.NoSuchProcess):
        draw.choice(workers).kill()
    return "worker"


class RayKiller:
    """Kills actors, nodes and the driver of a cluster of three nodes; a killed node comes back."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        self.cluster = Cluster(initialize_head=True, head_node_args={**self.node, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(**self.node) for _ in range(2)]
        self.turn = 0

    def __call__(self, driver: subprocess.Popen[bytes], draw: random.Random) -> str:
        self.turn += 1
        if self.turn % 5 == 3:
            self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)
            self.nodes.append(self.cluster.add_node(**self.node))
            return "node"
        found = actors()
        if self.turn % 5 == 0 or not found:
            driver.kill()
            driver.wait()
            return "driver"
        with contextlib.suppress(psutil.NoSuchProcess):
            draw.choice(found).kill()
        return "actor"


def full_disk(folder: Path, judge: Judge) -> dict[str, Any]:
    """A small disk that fills up; afterwards the run is moved to a larger one and continued."""
    disk = folder / "small-disk"
    disk.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        raise SystemExit("a small disk needs the right to mount a tmpfs")
    target = folder / "full-disk"
    environment = "import benchmarks.campaigns.drive as d, restage.pairs.campaign as c; c.MIN_FREE_BYTES = 0; d.main()"
    command = [sys.executable, "-c", environment, str(disk / "run"), "--tasks", str(TASKS), "--engine", "local"]
    try:
        # The estimate would refuse to begin: that it does is the first half, that a disk may fill anyway the second.
        refused = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True)
        says_so = "make room" in refused.stderr
        anyway = environment.replace("d.main()", "c.Estimate.MARGIN = 0.0; d.main()")
        filled = subprocess.run([*command[:2], anyway, *command[3:], "--workers", "2"], capture_output=True, text=True)
        is_full = "is full" in filled.stderr or "No space left" in filled.stderr
        shutil.copytree(disk / "run", target)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    print(json.dumps({"refused": says_so, "filled": is_full, "says": filled.stderr.strip()[-300:]}), flush=True)
    finish(target)
    return judge("full disk", target)


def two_drivers(folder: Path, judge: Judge) -> dict[str, Any]:
    target = folder / "two-drivers"
    options = ("--engine", "local", "--workers", "1", "--batch-s", str(BATCH_S))
    drivers = [drive(target, *options) for _ in range(2)]
    codes = [driver.wait(timeout=600) for driver in drivers]
    if any(codes):
        raise SystemExit(f"a driver failed: {codes}; see {target}.log")
    return judge("two drivers", target)


def measure(folder: Path, num_kills: int) -> dict[str, Any]:
    """All faults; returns the counts that must be zero, and how many kills of which kind."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    finish(folder / "undisturbed")
    judge, results, kinds = Judge(folder / "undisturbed"), [], Counter[str]()
    num_ray = round(RAY_SHARE * num_kills)
    local = ["--engine", "local", "--workers", "2", "--batch-s", str(BATCH_S)]
    for target, kills, found in rounds_of_kills(folder, local, num_kills - num_ray, kill_local):
        kinds.update({f"local {name}": count for name, count in found.items()})
        results.append(judge(target.name, target, kills))
    for name, options in (("slow disk", "--slow-disk"), ("clock jumps", "--clock-jumps")):
        finish(folder / name.replace(" ", "-"), options)
        results.append(judge(name, folder / name.replace(" ", "-")))
    results.append(full_disk(folder, judge))
    results.append(two_drivers(folder, judge))
    if num_ray:
        killer = RayKiller()
        ray_options = ["--engine", "ray", "--address", killer.cluster.address, "--batch-s", str(BATCH_S)]
        for target, kills, found in rounds_of_kills(folder, ray_options, num_ray, killer):
            kinds.update({f"ray {name}": count for name, count in found.items()})
            results.append(judge(target.name, target, kills))
        killer.cluster.shutdown()
    sums = {
        name: sum(result[name] for result in results)
        for name in ("kills", "lost", "repeated", "differing_files", "findings")
    }
    return {**sums, "by_kind": dict(kinds), "rounds": len(results)}


def measure_flips(folder: Path, num_flips: int) -> dict[str, Any]:
    """Flipped bytes that verify has to find, in a stand-in campaign's folder."""
    if not (folder / "pairs" / "stage.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        finish(folder, tasks=40)
    return flip_bytes(folder / "pairs", num_flips)

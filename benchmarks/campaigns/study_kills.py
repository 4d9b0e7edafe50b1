"""A study on two local Ray nodes, killed at random moments: workers, nodes and the driver; are its rows the same?

    python -m benchmarks.campaigns.study_kills [--kills 10] [--seed 0] [--folder runs/study-kills]

The rows are compared with those of the same study, undisturbed, in one process. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
MAX_DELAY_S = 2.0
"""Longest wait for a kill after something new was made: an edit of this study takes about as long."""
KINDS = ("worker", "worker", "driver", "worker", "node")
"""Kinds of kills in turn; which worker, which node and when is drawn."""


def kill_study() -> Any:
    """A study of six scenes with seven results each: enough that ten kills fall into it, on a quiet machine as well."""
    from restage.edit.methods import ReplaceOnce
    from restage.studies.scenes import sample_world_scenes
    from restage.studies.study import StudyMethod
    from tests.studies.tiny_study import CAPTURE, tiny_study

    study = tiny_study()
    fit = replace(study.scenes[0].fit, steps=150)
    slow = StudyMethod(settings=ReplaceOnce(num_steps=150), seeds=(0, 1, 2))
    scenes = sample_world_scenes(6, ("recolour",), capture=CAPTURE, fit=fit)
    return replace(study, name="kills", scenes=scenes, methods={**study.methods, "replace_once": slow})


def drive(folder: Path, address: str | None) -> None:
    """Run the study in a process that can be killed."""
    from restage.run.progress import stop_on_signals
    from restage.studies.work import run_study
    from restage.work.task import EngineConfig

    stop_on_signals()
    engine = EngineConfig(engine="ray", address=address, grace_s=2.0) if address else EngineConfig()
    for step in run_study(kill_study(), folder, engine=engine):
        print(f"{step.stage} {step.done}/{step.total} {step.note}", flush=True)


def start(folder: Path, address: str | None = None) -> subprocess.Popen[bytes]:
    """Start a driver; its output goes to a log beside the folder."""
    log = (folder.parent / f"{folder.name}.log").open("ab")
    command = [sys.executable, "-m", "benchmarks.campaigns.study_kills", "--drive", str(folder)]
    command += ["--address", address] if address else []
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=REPOSITORY)


def made(folder: Path) -> int:
    """Scenes, results and scores that are whole."""
    patterns = ("scenes/*/fit.json", "edit/*/*/*/*/record.json", "compare/results/*.json")
    return sum(1 for pattern in patterns for _ in folder.glob(pattern))


def is_done(folder: Path) -> bool:
    """Whether the study has its tables."""
    return (folder / "compare" / "stage.json").exists()


def rows(folder: Path) -> list[str]:
    """All rows apart from costs, as text, since NaN is not equal to itself."""
    from restage.scores.rows import read_scores, read_view_scores

    scores = [row for row in read_scores(folder / "compare" / "scores.parquet") if not row.is_cost]
    return [repr(row) for row in [*scores, *read_view_scores(folder / "compare" / "views.parquet")]]


def workers() -> list[psutil.Process]:
    """Actors on the nodes that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ray::ActorWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def killed(folder: Path, num_kills: int, seed: int) -> Counter[str]:
    """Run the study until it has been killed so often, and then to its end."""
    from ray.cluster_utils import Cluster

    draw, kinds, began_s = random.Random(seed), Counter[str](), time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    driver = start(folder, cluster.address)
    try:
        while kinds.total() < num_kills:
            before, deadline_s = made(folder), time.monotonic() + 300
            while made(folder) == before and driver.poll() is None:
                if time.monotonic() > deadline_s:
                    raise SystemExit(f"nothing new in 300 s; see {folder}.log")
                time.sleep(0.05)
            time.sleep(draw.uniform(0.0, MAX_DELAY_S))
            if driver.poll() is not None:
                raise SystemExit(f"the study ended after {kinds.total()} kills; see {folder}.log")
            kind, found = KINDS[kinds.total() % len(KINDS)], workers()
            if kind == "worker" and found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    draw.choice(found).kill()
            elif kind == "node":
                cluster.remove_node(nodes.pop(draw.randrange(len(nodes))), allow_graceful=False)
                nodes.append(cluster.add_node(**NODE))
            else:
                kind = "driver"
                driver.kill()
                driver.wait()
                driver = start(folder, cluster.address)
            kinds[kind] += 1
            print(f"{time.monotonic() - began_s:6.1f} s  {kind} killed with {made(folder)} things made", flush=True)
        if driver.wait(timeout=1200) or not is_done(folder):
            raise SystemExit(f"the driver failed; see {folder}.log")
    finally:
        if driver.poll() is None:
            driver.kill()
        cluster.shutdown()
    return kinds


def measure(folder: Path, num_kills: int, seed: int) -> dict[str, Any]:
    """Make both runs, and say how their rows differ."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started_s = time.monotonic()
    if start(folder / "undisturbed").wait() or not is_done(folder / "undisturbed"):
        raise SystemExit(f"the undisturbed study failed; see {folder}/undisturbed.log")
    undisturbed_s, started_s = time.monotonic() - started_s, time.monotonic()
    kinds = killed(folder / "killed", num_kills, seed)
    killed_s = time.monotonic() - started_s
    expected, found = rows(folder / "undisturbed"), rows(folder / "killed")
    again = start(folder / "killed")  # nothing is left to do, and nothing is done
    before = made(folder / "killed")
    if again.wait():
        raise SystemExit(f"the finished study does not go on; see {folder}/killed.log")
    return {
        "kills": kinds.total(),
        "by_kind": dict(kinds),
        "nodes": 2,
        "rows": len(expected),
        "missing": len(set(expected) - set(found)),
        "differing": sum(a != b for a, b in zip(expected, found, strict=False)),
        "repeated": len(found) - len(set(found)),
        "made_again_when_done": made(folder / "killed") - before,
        "killed_s": round(killed_s, 1),
        "undisturbed_s": round(undisturbed_s, 1),
        "seed": seed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="chooses what is killed, and when")
    parser.add_argument("--folder", type=Path, default=Path("runs/study-kills"), help="where the studies go")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options.drive, options.address)
    else:
        print(json.dumps(measure(options.folder.resolve(), options.kills, options.seed)))


if __name__ == "__main__":
    main()

"""The miniature's pairs on a Ray cluster of three nodes, one killed and one joining, against an undisturbed local run.

Fewer sampling steps than the demo's: what is tested is the campaign. Equal means: the same ids in the same order with
the same verdicts and the same hashes of pixels.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from restage.pairs.config import PAIRS, CampaignConfig
from restage.prompts.config import PromptsConfig
from restage.prompts.stage import run_prompts
from restage.recipes import make_pairs
from restage.run.folder import open_run
from restage.run.models import models_in

__all__ = ["measure"]

SAMPLER = dataclasses.replace(PAIRS.generate.sampler, num_steps=4)
CONFIG = dataclasses.replace(PAIRS, generate=dataclasses.replace(PAIRS.generate, sampler=SAMPLER))
ACCEPTANCE = 0.62
"""Lower than what was measured with four steps, so that there are enough prompts."""
COLUMNS = ["id", "accepted", "reason", "pixel_sha256"]


def start(folder: Path, num_prompts: int) -> Any:
    run = open_run(folder, seed=3)
    list(run_prompts(run, PromptsConfig(num_prompts=num_prompts)))
    return run


def manifest(folder: Path) -> list[dict[str, Any]]:
    return pq.ParquetFile(folder / "pairs" / "manifest.parquet").read(columns=COLUMNS).to_pylist()


def measure(folder: Path, num_accepted: int) -> dict[str, Any]:
    """Make the pairs twice, and compare."""
    import ray
    from ray.cluster_utils import Cluster

    num_prompts = round(num_accepted / ACCEPTANCE)
    shutil.rmtree(folder / "ray", ignore_errors=True)
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    nodes = [cluster.add_node(**node) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    run = start(folder / "ray", num_prompts)
    events, started_s = [], time.monotonic()
    for step in make_pairs(run, CONFIG, models_in(), engine=CampaignConfig(engine="ray", threads=1)):
        share, shown = step.done / max(step.total, 1), time.monotonic() - started_s
        print(f"{shown:7.1f} s  {step.stage} {step.done}/{step.total}  {step.note}", flush=True)
        if step.stage == "pairs" and share > 0.25 and len(events) == 0:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            events.append(f"node killed at {shown:.0f} s")
        if step.stage == "pairs" and share > 0.4 and len(events) == 1:
            cluster.add_node(**node)
            events.append(f"node joined at {shown:.0f} s")
    ray_s = time.monotonic() - started_s
    ray.shutdown()
    cluster.shutdown()
    print("; ".join(events), flush=True)
    started_s = time.monotonic()
    local = start(folder / "local", num_prompts)  # a local run that is there is gone on with
    for step in make_pairs(local, CONFIG, models_in(), engine=CampaignConfig(engine="local", workers=2, threads=1)):
        print(f"{time.monotonic() - started_s:7.1f} s  {step.stage} {step.done}/{step.total}  {step.note}", flush=True)
    found, expected = manifest(folder / "ray"), manifest(folder / "local")
    return {
        "pairs": len(found),
        "accepted": sum(row["accepted"] for row in found),
        "differing": sum(a != b for a, b in zip(found, expected, strict=True)),
        "repeated": len(found) - len({row["id"] for row in found}),
        "nodes_killed": sum("killed" in event for event in events),
        "nodes_joined": sum("joined" in event for event in events),
        "ray_s": round(ray_s, 1),
        "local_s": round(time.monotonic() - started_s, 1),
    }

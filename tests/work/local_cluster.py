"""A Ray cluster of several nodes on this machine, whose workers import this repository."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@contextlib.contextmanager
def local_cluster(num_nodes: int) -> Iterator[Any]:
    """A cluster that this process is connected to."""
    import ray
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ.update(PYTHONPATH=os.getcwd(), RAY_USAGE_STATS_ENABLED="0")
    found = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        for _ in range(num_nodes - 1):
            found.add_node(**NODE)
        ray.init(address=found.address, log_to_driver=False)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)

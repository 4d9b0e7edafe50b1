"""Where pairs are made: in this process, in a process per device, on a Ray cluster. The same worker code in all."""

from __future__ import annotations

from collections.abc import Mapping

from restage.pairs.executors.inline import run_inline
from restage.pairs.executors.interface import Executor
from restage.pairs.executors.local import run_local
from restage.pairs.executors.ray_cluster import run_ray

__all__ = ["EXECUTORS"]

EXECUTORS: Mapping[str, Executor] = {"inline": run_inline, "local": run_local, "ray": run_ray}

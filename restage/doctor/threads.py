"""Starts the threads of torch and numba and prints what they are: run as a program, by `machine.query_threads`.

It is a process of its own so that a torch that does not start, or takes its process with it, is a finding.
"""

import importlib
import importlib.util
import json
import os
import re
from pathlib import Path

__all__ = ["numba_layers", "openmp_pools"]


def openmp_pools() -> list[str]:
    """OpenMP runtimes that this process has loaded after torch and numba started their threads."""
    import numba.np.ufunc.parallel as parallel
    import torch

    torch.get_num_threads()
    parallel._launch_threads()
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return []
    paths = set(re.findall(r"/\S*/lib(?:gomp|omp|iomp5)[^/\s]*\.so[^\s]*", maps.read_text()))
    return sorted({os.path.realpath(path) for path in paths})


def numba_layers() -> list[str]:
    """Threading layers that numba can load here, the one that it prefers first."""
    usable = []
    for name in ("tbb", "omp"):
        module = f"numba.np.ufunc.{name}pool"
        if importlib.util.find_spec(module):
            try:
                importlib.import_module(module)
                usable.append(name)
            except ImportError:
                continue  # its runtime library is not on this machine
    return [*usable, "workqueue"]


if __name__ == "__main__":
    print(json.dumps({"pools": openmp_pools(), "layers": numba_layers()}))

"""Restage edits 3D scenes by text, and shows how well."""

import os

from restage.run.limits import allowed_cores, num_usable_cores

__version__ = "0.1.0"

# OpenMP reads these when torch loads it. By default its threads spin while they wait for each other: two pools, or one
# beside other busy processes, then take turns at doing nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")
# Numba would prefer TBB wherever some other software has installed it, and so share no pool with torch.
os.environ.setdefault("NUMBA_THREADING_LAYER_PRIORITY", "omp tbb workqueue")
if num_usable_cores() < len(allowed_cores()):  # OpenMP heeds affinity, but no container's quota
    os.environ.setdefault("OMP_NUM_THREADS", str(num_usable_cores()))

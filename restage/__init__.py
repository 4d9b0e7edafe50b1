"""Restage edits 3D scenes by text, and shows how well."""

import os

__version__ = "0.1.0"

# OpenMP reads these when torch loads it. By default its threads spin while they wait for each other: two pools, or one
# beside other busy processes, then take turns at doing nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")

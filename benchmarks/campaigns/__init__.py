"""The parts of `benchmarks/campaign.py`: throughput, faults, a cluster that changes while it works."""

from __future__ import annotations

__all__: list[str] = []

"""Checks whether the image pairs of a run are what was written: `shards`, `examine`, `whole`, `check`, `repair`."""

from __future__ import annotations

__all__: list[str] = []

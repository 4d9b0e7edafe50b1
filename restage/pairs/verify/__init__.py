"""Checks whether the image pairs of a run are what was written, and show what they say.

In the order of the work: `shards` (what can be wrong; hashes, tar against sidecar), `examine` (what hashes cannot tell
of a shard), `whole` (the set), `check` (all of them, and the folder); `repair` takes out what is bad, and shows it.
"""

from __future__ import annotations

__all__: list[str] = []

"""Image pairs from prompt pairs.

In the order in which data flows: `generate` (pictures and masks), `score` (accept or reject), `store` (shards and
manifest), `sheet` (the contact sheet); `stage.run_pairs` runs them all.
"""

from __future__ import annotations

__all__: list[str] = []

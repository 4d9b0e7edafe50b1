"""Image pairs from prompt pairs.

In the order in which data flows: `generate` (pictures and masks), `score` (accept or reject), `tasks` (pairs cut into
shards, and what makes one), `encoding`, `files` and `store` (shards and manifest), `campaign` (all tasks, by an engine
of `work`); `stage.run_campaign` is the stage.
"""

from __future__ import annotations

__all__: list[str] = []

"""Image pairs from prompt pairs.

In the order in which data flows: `tasks` (pairs cut into shards), `makers` (what makes a batch), `generate` (pictures
and masks), `score` (accept or reject), `shard` (a task from its pairs to its shard), `encoding`, `files` and `store`
(shards and manifest), `sheet` (the contact sheet). `campaign` has all tasks made by an engine of `work`; `rejudge`
changes the rule afterwards; `stage.run_campaign` is the stage.
"""

from __future__ import annotations

__all__: list[str] = []

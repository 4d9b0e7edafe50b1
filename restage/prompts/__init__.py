"""Prompt pairs: two captions that differ by one edit, and the instruction between them.

`WRITERS` is the menu of who writes them; `stage.run_prompts` fills a run with them, `store` reads and writes files.
"""

from __future__ import annotations

from restage.prompts.grammar import GrammarWriter
from restage.prompts.llm import LlmWriter
from restage.prompts.orders import Writer

__all__ = ["WRITERS"]

WRITERS: dict[str, type[Writer]] = {"grammar": GrammarWriter, "llm": LlmWriter}
"""Writers by name."""

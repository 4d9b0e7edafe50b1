"""The menu of who writes prompt pairs."""

from __future__ import annotations

from restage.prompts.grammar import GrammarWriter
from restage.prompts.llm import LlmWriter
from restage.prompts.orders import Writer

__all__ = ["WRITERS"]

WRITERS: dict[str, type[Writer]] = {"grammar": GrammarWriter, "llm": LlmWriter}
"""Writers by name."""

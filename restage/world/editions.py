"""The editions of the world's grammar: modules that sample scenes and edits and put them into words."""

from __future__ import annotations

from types import ModuleType

from restage.world import grammar, second

__all__ = ["EDITIONS"]

EDITIONS: dict[int, ModuleType] = {1: grammar, 2: second}
"""Each has `sample_description`, `possible_kinds`, `sample_edit`, `caption_of` and `prompt_pair_of`."""

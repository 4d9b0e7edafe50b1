"""The settings of the stage `edit`, apart from the methods and editors that they name, which load torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from restage.records import InputError, did_you_mean

__all__ = ["EditConfig"]


@dataclass(frozen=True, kw_only=True)
class EditConfig:
    """The edits to make; the resolved settings of every method are part of it, and so of its id."""

    methods: tuple[str, ...] = ("nothing", "replace_once", "idu", "restage")
    """Names on the menu `METHODS`."""
    editors: tuple[str, ...] = ("edit_model", "exact")
    """Names that `check_editor` knows; every method that needs an editor runs with each."""
    scenes: tuple[str, ...] = ()
    """Names of scenes; empty for all that have edits."""
    edits: tuple[str, ...] = ()
    """Names of edits; empty for all."""
    seeds: tuple[int, ...] = (0,)
    """Each edit is made once with each."""
    settings: Mapping[str, Any] = field(default_factory=dict)  # `Method`, which would load torch
    """Settings of a method by its name, where they are not the defaults."""

    def __post_init__(self) -> None:
        from restage.edit.editors import check_editor  # what is on the menus needs torch
        from restage.edit.methods import METHODS

        unknown = sorted(set(self.methods) - set(METHODS))
        if unknown:
            hint = did_you_mean(unknown[0], METHODS)
            raise InputError(f"unknown method {', '.join(unknown)}; {hint}choose from {', '.join(METHODS)}")
        for editor in self.editors:
            check_editor(editor)
        if not self.methods or not self.editors or not self.seeds:
            raise InputError("expected at least one method, one editor and one seed")
        unused = sorted(set(self.settings) - set(self.methods))
        if unused:
            raise InputError(f"there are settings for {', '.join(unused)}, which is not among the methods to run")
        resolved = {name: self.settings.get(name, METHODS[name]()) for name in self.methods}
        object.__setattr__(self, "settings", resolved)

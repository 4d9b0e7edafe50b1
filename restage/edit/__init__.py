"""Edits a splat scene by text: methods, editors of single views, masks, and the stage that runs them.

`restage.edit(scene, "make it bronze")` is `restage.api.edit`: see there.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = []  # pyright: ignore[reportUnknownVariableType]


class _Callable(ModuleType):
    """This package as a module that can be called, since one name stands for the package and for what it does."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return import_module("restage.api").edit(*arguments, **options)


sys.modules[__name__].__class__ = _Callable

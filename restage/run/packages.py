"""Packages that can be called as the function of their name in `restage.api`, since one name stands for both."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["make_callable"]


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        function = getattr(import_module("restage.api"), self.__name__.rpartition(".")[2])
        return function(*arguments, **options)


def make_callable(package: str) -> None:
    """Let a package under `restage` be called."""
    sys.modules[package].__class__ = _Callable

"""Reads a settings dataclass back from the JSON form that a run's records hold; the inverse of `records.to_plain`."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from restage.records import InputError

__all__ = ["from_plain"]

Settings = TypeVar("Settings")


def from_plain(kind: type[Settings], plain: Mapping[str, Any]) -> Settings:
    """Make a dataclass from JSON values; fields that are not there take their defaults.

    Args:
        kind: A dataclass whose fields are numbers, texts, paths, tuples, mappings and dataclasses.
        plain: Its fields by name.

    Raises:
        InputError: there is a field that the dataclass does not know, such as from another version.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(typing.cast(Any, kind))}
    unknown = sorted(set(plain) - fields)
    if unknown:
        raise InputError(f"{kind.__name__} has no {', '.join(unknown)}; was this run made with another version?")
    return kind(**{name: _value(hints[name], value) for name, value in plain.items()})


def _value(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _value(arguments[0], value)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _value(next(a for a in arguments if a is not type(None)), value)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_plain(typing.cast(type, hint), value)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        return tuple(_value(kind, item) for kind, item in zip(kinds, value, strict=True))
    if hint is Path:
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value

"""A form for the settings of an edit method, made from the fields of its dataclass."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from restage.edit.job import Method
from restage.edit.methods import METHODS
from restage.records import InputError

__all__ = ["SettingsForm", "field_hints", "parse_numbers"]


class SettingsForm:
    """Inputs for the settings of one method at a time; settings of kinds that have no input keep their defaults."""

    def __init__(self, gui: Any, folder: Any) -> None:
        """Make a form in a folder of a `viser` GUI."""
        self._gui, self._folder = gui, folder
        self._method = ""
        self._inputs: dict[str, Any] = {}

    def load(self, method: str) -> None:
        """Show the settings of a method at their defaults."""
        for shown in self._inputs.values():
            shown.remove()
        defaults: Any = METHODS[method]()
        hints = field_hints(METHODS[method])
        self._method, self._inputs = method, {}
        with self._folder:
            for field in dataclasses.fields(defaults):
                added = self._add(field.name, getattr(defaults, field.name), hints.get(field.name))
                if added is not None:
                    self._inputs[field.name] = added

    def _add(self, name: str, value: object, hint: str | None) -> Any:
        label = name.removeprefix("is_").replace("_", " ")
        if isinstance(value, bool):
            return self._gui.add_checkbox(label, value, hint=hint)
        if isinstance(value, int):
            return self._gui.add_number(label, value, step=1, hint=hint)
        if isinstance(value, float):
            return self._gui.add_number(label, value, step=0.01, hint=hint)
        if isinstance(value, str):
            return self._gui.add_text(label, value, hint=hint)
        if isinstance(value, tuple) and value and all(isinstance(item, float) for item in value):
            return self._gui.add_text(label, ", ".join(f"{item:g}" for item in value), hint=hint)
        return None

    def read(self) -> Method:
        """The settings as they stand.

        Raises:
            InputError: the method refuses one.
        """
        defaults: Any = METHODS[self._method]()
        values = {}
        for name, shown in self._inputs.items():
            default = getattr(defaults, name)
            value = parse_numbers(name, shown.value) if isinstance(default, tuple) else type(default)(shown.value)
            values[name] = value
        return dataclasses.replace(defaults, **values)


def parse_numbers(name: str, text: str) -> tuple[float, ...]:
    """Read numbers with commas between.

    Raises:
        InputError: a part is not a number.
    """
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"{name}: expected numbers with commas between, such as 1.0, 0.6, got {text!r}") from None


def field_hints(record: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass, by field name; without those that have none."""
    names = "|".join(field.name for field in dataclasses.fields(record))  # pyright: ignore[reportArgumentType]
    source = "".join(inspect.getsource(kind) for kind in reversed(record.__mro__) if dataclasses.is_dataclass(kind))
    found = re.findall(rf'^    ({names}):[^\n]*\n    """(.+?)"""', source, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in found}

"""Prompt pairs on disk: one JSON object a line, as the prompts stage writes it or as a user brings it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from restage.records import InputError, PromptPair, canonical_json, to_plain, write_atomically

__all__ = ["iterate_prompts", "prompt_line", "read_prompts", "write_prompts"]

_FIELDS = {field.name: field for field in fields(PromptPair)}
_REQUIRED = [name for name, field in _FIELDS.items() if field.default is MISSING]


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _check(record: Any) -> None:
    """Refuse a line whose fields are wrong.

    Raises:
        InputError: a field is missing, unknown, or of the wrong type.
    """
    if not isinstance(record, dict):
        raise InputError(f"expected a JSON object, got {type(record).__name__}")
    if missing := [name for name in _REQUIRED if name not in record]:
        raise InputError(f"needs the fields {', '.join(_REQUIRED)}; {missing[0]!r} is missing")
    if unknown := [name for name in record if name not in _FIELDS and name != "id"]:
        raise InputError(f"unknown field {unknown[0]!r}; known: {', '.join(_FIELDS)}")
    for name, value in record.items():
        if name == "swaps":
            is_right = isinstance(value, list) and all(_is_text_list(swap) and len(swap) == 2 for swap in value)
        elif name == "words":
            is_right = _is_text_list(value)
        else:
            is_right = isinstance(value, str)
        if not is_right:
            expected = {"swaps": "a list of [old, new]", "words": "a list of texts"}.get(name, "a text")
            raise InputError(f"field {name!r} must be {expected}, got {value!r}")


def _read_line(line: str) -> PromptPair:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error}") from None
    _check(record)
    given_id = record.pop("id", None)
    pair = PromptPair.from_plain(record)
    if given_id not in (None, pair.id):
        raise InputError(f"its id {given_id!r} is not that of its content; remove 'id' after a change by hand")
    return pair


def iterate_prompts(path: Path) -> Iterator[PromptPair]:
    """Read prompt pairs one by one; blank lines are skipped, and equal pairs are all given.

    Raises:
        InputError: the file is missing, or has a line that is not a pair; the message names the line.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    pair = _read_line(line) if line.strip() else None
                except InputError as error:
                    raise InputError(f"{path}, line {number}: {error}") from None
                if pair is not None:
                    yield pair
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected prompt pairs there, one JSON object a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable as text: {error}") from None


def read_prompts(path: Path) -> tuple[PromptPair, ...]:
    """Read prompt pairs; blank lines are skipped, and of equal pairs the first one is kept.

    Raises:
        InputError: the file is missing, holds no pair, or has a line that is not one; the message names the line.
    """
    pairs: dict[str, PromptPair] = {}
    for pair in iterate_prompts(path):
        pairs.setdefault(pair.id, pair)
    if not pairs:
        raise InputError(f"{path} holds no prompt pair; expected one JSON object a line")
    return tuple(pairs.values())


def prompt_line(pair: PromptPair) -> str:
    """Write a prompt pair with its id as a line of the file, line end included."""
    return canonical_json({"id": pair.id, **to_plain(pair)}) + "\n"


def write_prompts(path: Path, pairs: Iterable[PromptPair]) -> None:
    """Write prompt pairs, each with its id, atomically; equal pairs give equal bytes."""
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(prompt_line(pair) for pair in pairs)

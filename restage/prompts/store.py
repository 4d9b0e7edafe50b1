"""Prompt pairs on disk: one JSON object a line, as the prompts stage writes it or as a user brings it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from restage.records import InputError, PromptPair, canonical_json, to_plain, write_atomically

__all__ = ["iterate_prompts", "open_lines", "pair_of_record", "prompt_line", "read_prompts", "write_prompts"]

_FIELDS = {field.name: field for field in fields(PromptPair)}
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Those of UTF-32 come first, since one of them begins like one of UTF-16."""
MAX_LINE = 100_000
"""Number of characters that a line may have; a caption or a record needs far fewer."""
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


def pair_of_record(record: Any) -> PromptPair:
    """Make a prompt pair of what was read as JSON.

    Raises:
        InputError: a field is missing, unknown, of the wrong type, or no text that can be written.
    """
    _check(record)
    try:
        canonical_json(record).encode()
    except ValueError:
        raise InputError("it holds half of a character, which is no text") from None
    return PromptPair.from_plain({name: value for name, value in record.items() if name != "id"})


def _of_others(record: Any) -> Any:
    """Bring a row of InstructPix2Pix's generated prompts (input, edit, output) into our form."""
    if not isinstance(record, dict) or not {"input", "edit", "output"} <= set(record):
        return record
    texts = {"source": record["input"], "target": record["output"], "instruction": record["edit"]}
    return {**texts, "kind": "other", "form": "foreign", "writer": "foreign"}


def _read_line(line: str) -> PromptPair:
    try:
        record = _of_others(json.loads(line))
    except RecursionError:
        raise InputError("not JSON: it is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"not JSON: {str(error).partition(';')[0]}") from None
    given_id = record.get("id") if isinstance(record, dict) else None
    pair = pair_of_record(record)
    if not (pair.source.strip() and pair.target.strip()):
        raise InputError("it has no captions, which pictures are made from")
    if given_id not in (None, pair.id):
        raise InputError(f"its id {given_id!r} is not that of its content; remove 'id' after a change by hand")
    return pair


def open_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file in UTF-8, or in what its byte-order mark says; the mark itself is no text.

    Raises:
        InputError: the file is missing, is not text, or has a line that no caption or record needs.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a file; expected a text file")
        with path.open("rb") as file:
            start = file.read(4)
        encoding = next((name for mark, name in BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8")
        with path.open(encoding=encoding) as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise InputError(f"{path}, line {number}: expected at most {MAX_LINE} characters")
                yield line
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected a text file") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a null byte in the name, or bytes that are no text
        raise InputError(f"{path} is not readable as text: {error}; expected UTF-8") from None


def iterate_prompts(path: Path) -> Iterator[PromptPair]:
    """Read prompt pairs one by one; blank lines are skipped, and equal pairs are all given.

    Raises:
        InputError: the file is missing, or has a line that is not a pair; the message names the line.
    """
    for number, line in enumerate(open_lines(path), start=1):
        try:
            pair = _read_line(line) if line.strip() else None
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        if pair is not None:
            yield pair


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

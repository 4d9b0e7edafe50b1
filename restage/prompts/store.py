"""Prompt pairs on disk: one JSON object a line, as the prompts stage writes it or as a user brings it.

The pictures that a user's pairs name are checked and copied beside the run's prompts, each named by its content: a run
holds all that it is made from, and a picture that changes is another picture.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from restage.records import (
    InputError,
    Progress,
    PromptPair,
    canonical_json,
    file_sha256,
    from_plain,
    parse_json,
    to_plain,
    write_atomically,
)

__all__ = ["PICTURES", "copy_pictures", "iterate_prompts", "open_lines", "pair_of_record", "prompt_line"]
__all__ += ["read_prompts", "write_prompts"]

_FIELDS = tuple(field.name for field in fields(PromptPair))
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


def pair_of_record(record: Any, *, where: object = "the prompt pair") -> PromptPair:
    """Make a prompt pair of what was read as JSON; refuses missing, unknown and wrong fields, and says `where`."""
    if isinstance(record, dict) and (unknown := [name for name in record if name not in (*_FIELDS, "id")]):
        raise InputError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(_FIELDS)}")
    pair = from_plain(record, PromptPair, where=where)
    try:
        canonical_json(record).encode()
    except ValueError:
        raise InputError(f"{where}: it holds half of a character, which is no text") from None
    return pair


def _of_others(record: Any) -> Any:
    """Bring a row of InstructPix2Pix's generated prompts (input, edit, output) into our form."""
    if not isinstance(record, dict) or not {"input", "edit", "output"} <= set(record):
        return record
    texts = {"source": record["input"], "target": record["output"], "instruction": record["edit"]}
    return {**texts, "kind": "other", "form": "foreign", "writer": "foreign"}


def _read_line(line: str, where: str) -> PromptPair:
    record = _of_others(parse_json(line, where=where))
    pair = pair_of_record(record, where=where)
    if not (pair.source.strip() and pair.target.strip()):
        raise InputError(f"{where}: it has no captions, which pictures are made from")
    if (given := record.get("id")) not in (None, pair.id):
        raise InputError(f"{where}: its id {given!r} is not that of its content; remove 'id' after a change by hand")
    return pair


def open_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file in UTF-8, or in what its byte-order mark says; the mark itself is no text."""
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
    """Read prompt pairs one by one; blank lines are skipped, and equal pairs are all given."""
    for number, line in enumerate(open_lines(path), start=1):
        if line.strip():
            yield _read_line(line, f"{path}, line {number}")


def read_prompts(path: Path) -> tuple[PromptPair, ...]:
    """Read prompt pairs, of equal ones the first; refuses a file without any, and one with a line that is none."""
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


PICTURES = "pictures"
"""Folder beside `prompts.jsonl`."""


def copy_pictures(
    pairs: Sequence[PromptPair], folder: Path, *, to: Path
) -> Iterator[Progress | tuple[PromptPair, ...]]:
    """Copy the pictures, which lie in or below `folder`; yields progress, and last the pairs with the copies' names."""
    from restage.scenes.io.images import path_inside, read_image  # loads torch, which prompts alone do not need

    names: dict[str, str] = {"": ""}
    asked = sorted({name for pair in pairs for name in (pair.picture, pair.reference, pair.reference_mask)} - {""})
    for done, name in enumerate(asked, start=1):
        path = path_inside(folder, name, "the picture of a prompt pair")
        if not path.is_file():
            raise InputError(f"{path} does not exist, though a prompt pair names it as its picture")
        read_image(path)
        names[name] = f"{PICTURES}/{file_sha256(path)[:16]}{path.suffix.lower()}"
        copy = to / names[name]
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(copy) as temporary:
                temporary.write_bytes(path.read_bytes())
        yield Progress(stage="pictures", done=done, total=len(asked))
    parts = ("picture", "reference", "reference_mask")
    yield tuple(replace(pair, **{part: names[getattr(pair, part)] for part in parts}) for pair in pairs)

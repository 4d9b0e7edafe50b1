"""A pair as somebody else's data set holds it, and the names that data sets give to its parts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from restage.pairs.encoding import MAX_FILE_BYTES
from restage.records import InputError

__all__ = [
    "ALIASES",
    "PICTURES",
    "TEXTS",
    "ForeignPair",
    "Names",
    "files_in",
    "find_names",
    "json_or_none",
    "read_file",
    "texts_of",
]

ALIASES: Mapping[str, tuple[str, ...]] = {
    "source": (
        *("original_image", "source_image", "input_image", "source_img", "input_img"),
        *("image_before", "before", "original", "input", "source", "image"),
    ),
    "edited": (
        *("edited_image", "target_image", "output_image", "target_img", "output_img"),
        *("image_after", "after", "edited", "output", "target"),
    ),
    "mask": ("mask_image", "mask_img", "mask"),
    "source_caption": (
        *("original_prompt", "source_caption", "source_prompt", "input_caption", "input_prompt", "caption"),
        *("input", "source"),
    ),
    "target_caption": (
        *("edited_prompt", "target_caption", "target_prompt", "output_caption", "edited_caption", "output", "target"),
    ),
    "instruction": ("edit_prompt", "instruction", "edit_instruction", "edit", "edit_text", "prompt"),
    "undo": ("inverse_edit", "inverse_instruction", "undo"),
    "kind": ("kind", "edit_type", "task"),
    "id": ("id", "key"),
}
"""Parts of a pair and what data sets call them; the first name that is there is taken."""
PICTURES = ("source", "edited", "mask")
TEXTS = tuple(part for part in ALIASES if part not in PICTURES)
NEEDED = ("source", "edited", "instruction")
"""Parts without which nothing can be learned; captions are for generating, and training does without."""


class ForeignPair(NamedTuple):
    """A pair that is not ours yet; nothing in it has been checked."""

    where: str
    """File and row, for people."""
    source: bytes | None
    """Content of a picture file; None if there is none."""
    edited: bytes | None
    mask: bytes | None
    texts: Mapping[str, str]
    """Those of `TEXTS` that there are."""
    row: Mapping[str, Any]
    """Everything that the data set says of the pair, such as scores."""
    mask_is: str = ""
    """What the layout says of the mask's edited region, such as `white`; empty if it says nothing."""
    remark: str = ""
    """How the parts were found, if that was guessed; for people."""


class Names(NamedTuple):
    """The names that a data set uses."""

    by_part: dict[str, str]
    remark: str
    """What was guessed, for people; empty if all names are known ones."""


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_").replace(" ", "_")


def find_names(pictures: Iterable[str], texts: Iterable[str], where: str, *, needed: Iterable[str] = NEEDED) -> Names:
    """Find the names that a data set uses, by part.

    Names that are not known are guessed if only one reading is left: two pictures are before and after in their order,
    and a single text is the instruction.

    Args:
        pictures: names of columns or fields that hold pictures, in their order.
        texts: names of those that hold texts.
        where: place for the message.
        needed: parts that must be there.

    Raises:
        InputError: a part that is needed cannot be found.
    """
    names: dict[str, str] = {}
    free: dict[bool, list[str]] = {}
    for is_picture, present, parts in ((True, list(pictures), PICTURES), (False, list(texts), TEXTS)):
        known = {_plain(name): name for name in reversed(present)}
        for part in parts:
            found = next((known[alias] for alias in ALIASES[part] if alias in known), None)
            if found is not None and found not in names.values():
                names[part] = found
        free[is_picture] = [name for name in present if name not in names.values()]
    guessed = dict(zip([part for part in ("source", "edited") if part not in names], free[True], strict=False))
    if len(guessed) != len(free[True]):
        guessed = {}
    if "instruction" not in names and len(free[False]) == 1:
        guessed["instruction"] = free[False][0]
    names |= guessed
    for part in needed:
        if part not in names:
            present = ", ".join(sorted({*free[True], *free[False], *names.values()})) or "nothing"
            raise InputError(
                f"{where}: no {part.replace('_', ' ')}; it has {present}; rename what holds it to {ALIASES[part][0]!r}"
            )
    return Names(names, ", ".join(f"{name!r} was taken as the {part}" for part, name in guessed.items()))


def texts_of(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """Return the texts of a row by part, without empty ones and values that are no texts."""
    found = {part: row.get(names[part]) for part in TEXTS if part in names}
    return {part: value for part, value in found.items() if isinstance(value, str) and value.strip()}


def json_or_none(content: bytes | str | None) -> Any:
    """Read JSON that others have written; None for whatever is not JSON, or too deep or too long to be read."""
    try:
        return json.loads(content or b"null")
    except (ValueError, RecursionError):
        return None


def files_in(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder that match a pattern, sorted; hidden ones are left out.

    Raises:
        InputError: one is a link that leaves the folder.
    """
    found = sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))
    for path in found:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{path} is a link that leaves {folder}; put the file itself there")
    return found


def read_file(folder: Path, name: str) -> bytes | None:
    """Read a file that a data set names; None if there is none of that name inside the folder, links included."""
    try:
        path = (folder / name).resolve()
        is_there = path.is_relative_to(folder.resolve()) and path.is_file()
        return path.read_bytes() if is_there and path.stat().st_size <= MAX_FILE_BYTES else None
    except (OSError, ValueError, RuntimeError):  # a name too long, a null byte, a circle of links
        return None

"""A pair as somebody else's data set holds it, and the names that data sets give to its parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from restage.records import InputError

__all__ = ["ForeignPair", "find_names", "texts_of"]

_SOURCE = ("original_image", "source_image", "input_image", "source_img", "input_img", "original", "input", "source")
_EDITED = ("edited_image", "target_image", "output_image", "target_img", "output_img", "edited", "output", "target")
_BEFORE = ("original_prompt", "source_caption", "source_prompt", "input_caption", "input_prompt", "caption")
ALIASES: Mapping[str, tuple[str, ...]] = {
    "source": _SOURCE,
    "edited": _EDITED,
    "mask": ("mask_image", "mask_img", "mask"),
    "source_caption": _BEFORE,
    "target_caption": ("edited_prompt", "target_caption", "target_prompt", "output_caption", "edited_caption"),
    "instruction": ("edit_prompt", "instruction", "edit_instruction", "edit"),
    "kind": ("kind", "edit_type", "task"),
    "id": ("id", "key"),
}
"""Parts of a pair and what data sets call them; the first name that is there is taken."""
NEEDED = ("source", "edited", "source_caption", "target_caption", "instruction")


class ForeignPair(NamedTuple):
    """A pair that is not ours yet; nothing in it has been checked."""

    where: str
    """File and row, for people."""
    source: bytes | None
    """Content of a picture file; None if there is none."""
    edited: bytes | None
    mask: bytes | None
    texts: Mapping[str, str]
    """Those of source_caption, target_caption, instruction, kind and id that there are."""
    row: Mapping[str, Any]
    """Everything that the data set says of the pair, such as scores."""


def find_names(present: Iterable[str], where: str, needed: Iterable[str] = NEEDED) -> dict[str, str]:
    """Find the names that a data set uses, by part.

    Args:
        present: names of its columns or fields.
        where: for the message.
        needed: parts that must be there.

    Raises:
        InputError: pictures, captions or instruction have no name that is known.
    """
    known = set(present)
    names = {part: next((name for name in aliases if name in known), "") for part, aliases in ALIASES.items()}
    for part in needed:
        if not names[part]:
            raise InputError(
                f"{where}: no {part.replace('_', ' ')}; it has {', '.join(sorted(known)) or 'nothing'}; "
                f"rename what holds it to {ALIASES[part][0]!r}"
            )
    return {part: name for part, name in names.items() if name}


def texts_of(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """Return the texts of a row by part, without empty ones and values that are no texts."""
    parts = ("source_caption", "target_caption", "instruction", "kind", "id")
    found = {part: row.get(names[part]) for part in parts if part in names}
    return {part: value for part, value in found.items() if isinstance(value, str) and value.strip()}

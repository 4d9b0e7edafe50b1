"""What the menu holds of a form of data sets: how it is read and written, and the pairs that pass on the way.

A `ForeignPair` is a pair as somebody else's data set holds it; a `PairSet` is what an export writes from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from restage.pairs.encoding import MAX_FILE_BYTES, MEMBERS, PairRecord
from restage.pairs.files import Place, open_files
from restage.pairs.store import NO_SHARD, TEXT_COLUMNS, PairReader, done_shards, shard_name
from restage.records import InputError, Progress, content_id, from_plain, parse_json

__all__ = ["ALIASES", "ForeignPair", "ExportedPair", "PairFormat", "PairSet", "find_names", "open_set"]

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
    "reference": ("reference_image", "reference_img", "reference", "garment", "cloth"),
    "reference_mask": ("reference_mask_image", "reference_mask", "cloth_mask"),
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
PICTURES = ("source", "edited", "mask", "reference", "reference_mask")
TEXTS = tuple(part for part in ALIASES if part not in PICTURES)
NEEDED = ("source", "edited", "instruction")
"""Parts without which nothing can be learned; captions are for generating, and training does without."""


class ForeignPair(NamedTuple):
    """A pair that is not ours yet; nothing in it has been checked."""

    where: str  # file and row, for people
    source: bytes | None
    """Content of a picture file; None if there is none."""
    edited: bytes | None
    mask: bytes | None
    texts: Mapping[str, str]  # those of `TEXTS` that there are
    row: Mapping[str, Any]  # everything that the data set says of the pair, such as scores
    mask_is: str = ""
    """What the layout says of the mask's edited region, such as `white`; empty if it says nothing."""
    remark: str = ""  # how the parts were found, if that was guessed; for people
    reference: bytes | None = None
    """Content of the picture that the instruction refers to."""
    reference_mask: bytes | None = None


class Names(NamedTuple):
    """The names that a data set uses."""

    by_part: dict[str, str]
    remark: str  # what was guessed, for people; empty if all names are known ones


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_").replace(" ", "_")


def find_names(pictures: Iterable[str], texts: Iterable[str], where: str, *, needed: Iterable[str] = NEEDED) -> Names:
    """Find the names that a data set uses, by part.

    Names that are not known are guessed if only one reading is left: two pictures are before and after in their order,
    and a single text is the instruction.
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


def pair_of_row(
    where: str, row: Mapping[str, Any], names: Names, pictures: Iterable[bytes | None], **texts: str
) -> ForeignPair:
    """Return the pair of a data set's row, with its `PICTURES`, and texts from elsewhere."""
    found = {**texts_of(row, names.by_part), **texts}
    return ForeignPair(where, **dict(zip(PICTURES, pictures, strict=True)), texts=found, row=row, remark=names.remark)


def json_or_none(content: bytes | str | None) -> Any:
    """Read JSON that others have written; None for whatever is not JSON, or too deep or too long to be read."""
    try:
        return json.loads(content or b"null")
    except (ValueError, RecursionError):
        return None


def files_in(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder that match a pattern, sorted; hidden ones are left out."""
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


class ExportedPair(NamedTuple):
    """An accepted pair, with its files as they were stored."""

    id: str
    parts: Mapping[str, bytes]  # `source.png`, `edited.png`, `mask.png`, `json`, those of a reference
    row: Mapping[str, Any]  # row of the sidecar, without preview

    @property
    def record(self) -> dict[str, Any]:
        """The stored record with id, prompt and facts, as JSON values."""
        record: dict[str, Any] = parse_json(self.parts["json"], dict[str, Any], where=self.id)
        from_plain(record, PairRecord, where=self.id)
        return record


@dataclass(frozen=True)
class PairSet:
    """The accepted pairs of a folder as readers see them."""

    reader: PairReader
    marks: Mapping[int, Mapping[str, Any]]

    @property
    def id(self) -> str:
        """Content id of everything that an export depends on."""
        hashes = [mark["sha256"] for mark in self.marks.values()]
        return content_id("set", {"shards": hashes, "left_out": self.reader.left_out, "rule": self.reader.rule})

    @property
    def has_references(self) -> bool:
        """Whether any pair refers to a picture."""
        return any(mark.get("num_references") for mark in self.marks.values())

    def rows(self, index: int) -> list[dict[str, Any]]:
        """Read the rows of a shard, accepted or not."""
        table = self.reader.rows(index, self.marks[index], has_previews=False)
        if missing := [name for name in TEXT_COLUMNS if name not in table.column_names]:
            where = self.reader.files.where(shard_name(index, "parquet"))
            raise InputError(f"{where}: expected a column {missing[0]!r}, got {', '.join(table.column_names)}")
        return table.to_pylist()

    def pairs(self, index: int) -> Iterator[ExportedPair]:
        """Yield the accepted pairs of a shard, in order."""
        rows = {row["id"]: row for row in self.rows(index)}
        for pair_id, parts in self.reader.members(index, self.marks[index]):
            if pair_id not in rows or not set(MEMBERS) <= set(parts):
                where = self.reader.files.where(shard_name(index, "tar"))
                raise InputError(f"{where}: {pair_id[:100]} has no row, or not all of {', '.join(MEMBERS)}")
            yield ExportedPair(pair_id, parts, rows[pair_id])


def open_set(place: Place) -> PairSet:
    """Open the pairs of a run's folder, or of a URL."""
    files = open_files(place)
    marks = done_shards(files)
    if not marks:
        raise InputError(f"{files.where()} {NO_SHARD}")
    return PairSet(PairReader.open(files), marks)


@dataclass(frozen=True, kw_only=True)
class PairFormat:
    """A form of pair data sets; each is a file of its own, and a line in the menu `FORMATS`."""

    description: str  # what lies where, in a sentence for the data card
    read: Callable[[Path], Iterator[ForeignPair]]
    """Yields the pairs of a folder as they are; `bring_in` checks them."""
    is_in: Callable[[Path], bool] | None = None
    """Tells whether a folder looks like this form; None if the form has to be named."""
    export: Callable[[PairSet, Path], Iterator[Progress]] | None = None
    """Writes a set into a folder, where a file that is there already is whole and stays; None if it is only read."""
    card_header: tuple[str, ...] = ()  # lines for the YAML header of the data card

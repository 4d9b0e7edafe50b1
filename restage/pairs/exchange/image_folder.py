"""Image folders: pictures as files, and rows that name them in `metadata.jsonl`, `metadata.csv` or `edit_turns.json`.

The first two are what `load_dataset` takes as an "imagefolder", where columns with pictures are called `file_name` or
`*_file_name`; the last is the folder in which MagicBrush is given out, with pictures in `images/<id>/`.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from restage.pairs.exchange import foreign
from restage.prompts.store import open_lines
from restage.records import InputError
from restage.scenes.io.images import IMAGE_SUFFIXES

__all__ = ["IMAGE_FOLDER"]

METADATA = ("metadata.jsonl", "metadata.csv", "edit_turns.json")
PICTURE_ENDINGS = ("_file_name", "_filename", "_file", "_path", "file_name")
NUM_LOOKED_AT = 20
"""Number of rows by which columns of pictures are told from those of texts."""


def _metadata(folder: Path) -> list[Path]:
    return sorted(path for name in METADATA for path in foreign.files_in(folder, f"**/{name}"))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a metadata file; a line that is no row becomes an empty one, which is then rejected."""
    if path.suffix == ".csv":
        try:
            yield from csv.DictReader(open_lines(path))
        except csv.Error as error:
            raise InputError(f"{path} is not readable as CSV: {error}") from None
        return
    if path.suffix == ".json":
        found = foreign.json_or_none(foreign.read_file(path.parent, path.name))
        rows: Iterable[Any] = found if isinstance(found, list) else ()
    else:
        rows = (foreign.json_or_none(line) for line in open_lines(path) if line.strip())
    for row in rows:
        yield row if isinstance(row, dict) else {}


def _is_picture(value: Any) -> bool:
    return isinstance(value, str) and value.lower().endswith(IMAGE_SUFFIXES)


def _part_name(column: str) -> str:
    """The name of a column without what says that it holds the name of a file; `file_name` alone is the source."""
    lower = column.lower()
    ending = next((ending for ending in PICTURE_ENDINGS if lower.endswith(ending)), "")
    return lower.removesuffix(ending) or "source"


def _read_picture(folder: Path, place: Path, name: Any) -> bytes | None:
    """Read a picture beside the metadata, below the data set, or where MagicBrush has it."""
    if not isinstance(name, str) or not name:
        return None
    below = (f"{place.relative_to(folder).as_posix()}/{name}", name)
    magic_brush = f"{place.relative_to(folder).as_posix()}/images/{name.partition('-')[0]}/{name}"
    return next(
        (found for path in (*below, magic_brush) if (found := foreign.read_file(folder, path)) is not None), None
    )


def _captions(path: Path) -> Mapping[str, str]:
    """Captions by the name of the picture, which MagicBrush gives in a file of their own."""
    found = foreign.json_or_none(foreign.read_file(path.parent, "global_descriptions.json"))
    groups = found.values() if isinstance(found, dict) else ()
    return {name: text for group in groups if isinstance(group, dict) for name, text in group.items()}


def _read(folder: Path) -> Iterator[foreign.ForeignPair]:
    """Read the pairs that the metadata files of a folder name, in their order."""
    paths = _metadata(folder)
    if not paths:
        raise InputError(f"{folder} holds no {', '.join(METADATA[:-1])} or {METADATA[-1]}")
    for path in paths:
        rows = _rows(path)
        first = list(itertools.islice(rows, NUM_LOOKED_AT))
        columns = dict.fromkeys(itertools.chain(*first))
        pictures = {_part_name(name): name for name in columns if any(_is_picture(row.get(name)) for row in first)}
        texts = [name for name in columns if any(isinstance(row.get(name), str) for row in first)]
        names = foreign.find_names(pictures, [name for name in texts if name not in pictures.values()], str(path))
        captions = _captions(path)
        for number, row in enumerate(itertools.chain(first, rows), start=1):
            files = [row.get(pictures.get(names.by_part.get(part, ""), "")) for part in foreign.PICTURES]
            found = (_read_picture(folder, path.parent, name) for name in files)
            given = zip(("source_caption", "target_caption"), (captions.get(str(name)) for name in files), strict=False)
            texts = {part: text for part, text in given if isinstance(text, str)}
            yield foreign.pair_of_row(
                f"{path.relative_to(folder).as_posix()}, row {number}", row, names, found, **texts
            )


IMAGE_FOLDER = foreign.PairFormat(
    description="Pictures as files, and a row for each pair in metadata.jsonl.",
    read=_read,
    is_in=lambda folder: bool(_metadata(folder)),
)

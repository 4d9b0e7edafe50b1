"""Hugging Face datasets: parquet files with pictures inside, which `load_dataset(folder)` reads as they are.

Columns are named as in InstructPix2Pix's own data set on the hub, so that published training scripts take them. pyarrow
alone writes and reads this: the library `datasets` needs nothing but a schema's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from restage.pairs.encoding import MAX_FILE_BYTES
from restage.pairs.exchange import foreign
from restage.pairs.score import PairScores
from restage.pairs.store import open_parquet
from restage.records import InputError, Progress, canonical_json, write_atomically

__all__ = ["HUGGINGFACE"]

FILE_MB = 256
"""Size at which a new file is begun; the hub recommends files of a few hundred MB."""
PICTURE_COLUMNS = {"original_image": "source.png", "edited_image": "edited.png", "mask_image": "mask.png"}
REFERENCE_COLUMNS = {"reference_image": "reference.png", "reference_mask": "reference_mask.png"}
"""Columns of sets in which pairs refer to pictures."""
TEXT_COLUMNS = {
    "id": "id",
    "original_prompt": "source_caption",
    "edit_prompt": "instruction",
    "edited_prompt": "target_caption",
    "kind": "kind",
    "prompt_id": "prompt_id",
}
"""Columns with texts, and their names in the sidecar."""
READ_ROWS = 16
"""Number of rows that are unpacked at once: a small file may name one large picture in each."""


def _schema(pictures: Mapping[str, str]) -> pa.Schema:
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [(name, picture) for name in pictures]
    fields += [(name, pa.string()) for name in TEXT_COLUMNS]
    fields += [(name, pa.float64()) for name in PairScores._fields]
    features: dict[str, Any] = {name: {"_type": "Image"} for name in pictures}
    features |= {name: {"dtype": "string", "_type": "Value"} for name in (*TEXT_COLUMNS, "record")}
    features |= {name: {"dtype": "float64", "_type": "Value"} for name in PairScores._fields}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([*fields, ("record", pa.string())], metadata=metadata)


def _row(pair: foreign.ExportedPair, columns: Mapping[str, str]) -> dict[str, Any]:
    pictures = {
        column: {"bytes": pair.parts[name], "path": f"{pair.id}.{name}"} if name in pair.parts else None
        for column, name in columns.items()
    }
    texts = {column: pair.row.get(name, "") for column, name in TEXT_COLUMNS.items()}
    scores = {name: pair.row.get(name) for name in PairScores._fields}
    return {**pictures, **texts, **scores, "record": canonical_json(pair.record)}


def _groups(pair_set: foreign.PairSet) -> list[list[int]]:
    """Groups the shards that go into one file."""
    groups, size = [[]], 0
    for index, mark in pair_set.marks.items():
        num_bytes = mark.get("num_bytes", {}).get("tar", 0)
        if groups[-1] and size + num_bytes > FILE_MB * 1e6:
            groups.append([])
            size = 0
        groups[-1].append(index)
        size += num_bytes
    return groups


def _export(pair_set: foreign.PairSet, folder: Path) -> Iterator[Progress]:
    """Write `data/train-<n>-of-<m>.parquet`; a shard's pairs are one row group."""
    columns = PICTURE_COLUMNS | (REFERENCE_COLUMNS if pair_set.has_references else {})
    groups, schema = _groups(pair_set), _schema(columns)
    done = 0
    for number, group in enumerate(groups):
        path = folder / "data" / f"train-{number:05d}-of-{len(groups):05d}.parquet"
        if not path.exists():
            with write_atomically(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
                for index in group:
                    rows = [_row(pair, columns) for pair in pair_set.pairs(index)]
                    if rows:
                        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                    done += 1
                    yield Progress(stage="export", done=done, total=len(pair_set.marks), note=path.name)
        else:
            done += len(group)


def _parquet_files(folder: Path) -> list[Path]:
    return foreign.files_in(folder, "**/*.parquet")


def _read(folder: Path) -> Iterator[foreign.ForeignPair]:
    """Read the pairs of a folder of parquet files with pictures, in order of their names."""
    paths = _parquet_files(folder)
    if not paths:
        raise InputError(f"{folder} holds no parquet file; expected a data set as load_dataset takes it")
    for path in paths:
        try:
            yield from _read_file(path, folder)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is not readable as parquet: {error}") from None


def _read_file(path: Path, folder: Path) -> Iterator[foreign.ForeignPair]:
    file = open_parquet(path, str(path))
    schema = file.schema_arrow
    # A column without any value has no type, and its name alone tells what it would hold.
    by_name = {alias for part in foreign.PICTURES for alias in foreign.ALIASES[part]}
    pictures = [
        field.name
        for field in schema
        if _holds_pictures(field.type) or (pa.types.is_null(field.type) and field.name in by_name)
    ]
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    names = foreign.find_names(pictures, texts, str(path))
    number = 0
    for batch in file.iter_batches(batch_size=READ_ROWS):
        for row in batch.to_pylist():
            found = (_bytes_of(row.get(names.by_part.get(part, "")), folder) for part in foreign.PICTURES)
            yield foreign.pair_of_row(f"{path.name}, row {number}", row, names, found)
            number += 1


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _bytes_of(value: Any, folder: Path) -> bytes | None:
    """The bytes of a picture, which a column holds as such, in a struct, or in a file that the struct names."""
    if isinstance(value, Mapping):
        content, name = value.get("bytes"), value.get("path")
        value = content or (foreign.read_file(folder, name) if isinstance(name, str) else None)
    return value if isinstance(value, bytes) and len(value) <= MAX_FILE_BYTES else None


HUGGINGFACE = foreign.PairFormat(
    description="Columns: original_image, edited_image, mask_image (pictures), original_prompt, edited_prompt, "
    "edit_prompt (the instruction), kind, id, prompt_id, scores, and record (JSON of everything stored of the pair).",
    read=_read,
    is_in=lambda folder: bool(_parquet_files(folder)),
    export=_export,
    card_header=(
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: data/train-*.parquet",
    ),
)

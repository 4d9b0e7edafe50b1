"""Rows of results as parquet: one for each number (`Score`), one for each number and view (`ViewScore`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_type_hints

from restage.records import InputError, Score, check_is_no_pipe, from_plain, write_atomically

__all__ = ["ViewScore", "read_scores", "read_view_scores", "write_scores", "write_view_scores"]


@dataclass(frozen=True, kw_only=True)
class ViewScore:
    """One number of one held-out view of one result: a row of `compare/views.parquet`."""

    scene: str
    edit: str
    kind: str
    method: str
    editor: str
    seed: int
    metric: str
    view: str
    """File name of the view; `orbit-007` for the pair of frames 7 and 8 of the orbit (consistency only)."""
    value: float  # NaN where this view cannot be scored; `reason` says why
    reason: str = ""


Row = TypeVar("Row", Score, ViewScore)


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Write rows of Score as parquet, atomically."""
    _write(path, scores, Score)


def write_view_scores(path: Path, scores: Sequence[ViewScore]) -> None:
    """Write rows of ViewScore as parquet, atomically."""
    _write(path, scores, ViewScore)


def read_scores(path: Path) -> list[Score]:
    """Read the `compare/scores.parquet` of a run or a study; refuses a file that is not one."""
    return _read(path, Score)


def read_view_scores(path: Path) -> list[ViewScore]:
    """Read the `compare/views.parquet` of a run or a study."""
    return _read(path, ViewScore)


def _write(path: Path, rows: Sequence[Row], kind: type[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, types[hint]) for name, hint in get_type_hints(kind).items()])
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=schema)
    with write_atomically(path) as temporary:
        pq.write_table(table, temporary)


def _read(path: Path, kind: type[Row]) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_is_no_pipe(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; run: restage compare")
    names = [field.name for field in dataclasses.fields(kind)]
    try:
        table = pq.ParquetFile(path).read()
        if missing := [name for name in names if name not in table.column_names]:
            raise InputError(f"{path} lacks columns {missing}; it should have those of {kind.__name__}: {names}")
        rows = table.select(names).to_pylist()
    except (OSError, pa.ArrowException) as error:
        first_line = str(error).splitlines()[0]
        raise InputError(f"{path} is not readable as parquet ({first_line}); run the compare stage again") from None
    # Other writers of parquet store NaN as null, and an empty text too.
    for row in rows:
        row["value"], row["reason"] = math.nan if row["value"] is None else row["value"], row["reason"] or ""
    return [from_plain(row, kind, where=f"{path}, row {number}") for number, row in enumerate(rows)]

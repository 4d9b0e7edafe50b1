"""Rows of results as parquet: one a number (`Score`), one a number and view (`ViewScore`), and their readers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from restage.records import InputError, Score, write_atomically

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
    value: float
    """NaN where this view cannot be scored; `reason` says why."""
    reason: str = ""


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Write rows of Score as parquet, atomically."""
    _write(path, scores, Score)


def write_view_scores(path: Path, scores: Sequence[ViewScore]) -> None:
    """Write rows of ViewScore as parquet, atomically."""
    _write(path, scores, ViewScore)


def read_scores(path: Path) -> list[Score]:
    """Read `compare/scores.parquet` of a run or a study.

    Raises:
        InputError: the file is missing or not one of ours.
    """
    return _read(path, Score)


def read_view_scores(path: Path) -> list[ViewScore]:
    """Read `compare/views.parquet` of a run or a study.

    Raises:
        InputError: the file is missing or not one of ours.
    """
    return _read(path, ViewScore)


def _write(path: Path, rows: Sequence[Any], kind: type) -> None:
    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, types[hint]) for name, hint in get_type_hints(kind).items()])
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=schema)
    with write_atomically(path) as temporary:
        pq.write_table(table, temporary)


def _read(path: Path, kind: type) -> list[Any]:
    try:
        return [kind(**row) for row in pq.read_table(path).to_pylist()]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; run: restage compare") from None
    except (pa.ArrowInvalid, TypeError) as error:
        raise InputError(f"{path} is not a table of scores: {error}") from None

"""How arrays and tables are spoiled; see `faults`."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.borders.faults import (
    FILE,
    Fault,
    remove,
    replace_file,
)

__all__ = ["ARRAY", "PARQUET", "Evil"]


class Evil:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("outside/pickle-was-run",)


def pickled_array(path: Path, rng: Random) -> bool:
    remove(path)
    with path.open("wb") as file:
        np.save(file, np.array([Evil()], dtype=object), allow_pickle=True)
    return True


def other_array(path: Path, rng: Random) -> bool:
    arrays = (np.zeros((0, 17)), np.full((6, 17), np.nan), np.zeros(5), np.array("x"), np.full((6, 17), 1e300))
    remove(path)
    with path.open("wb") as file:
        np.save(file, rng.choice(arrays))
    return True


def promised_array(path: Path, rng: Random) -> bool:
    """A header that promises a million million rows."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 17), }"
    header += b" " * (63 - (len(header) + 10) % 64 + 1 - 1) + b"\n"
    replace_file(path, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    return True


ARRAY: tuple[Fault, ...] = (*FILE, pickled_array, pickled_array, other_array, other_array, other_array, promised_array)


def change_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    # Without threads, which forks of this process would miss.
    table = change(pq.ParquetFile(io.BytesIO(path.read_bytes())).read(use_threads=False))
    remove(path)
    pq.write_table(table, path)


def dropped_column(path: Path, rng: Random) -> bool:
    change_table(path, lambda table: table.drop_columns([rng.choice(table.column_names)]))
    return False


def other_column(path: Path, rng: Random) -> bool:
    def change(table: pa.Table) -> pa.Table:
        at = rng.randrange(table.num_columns)
        kinds: tuple[list[Any], ...] = ([None], ["x"], [-1], [float("nan")], [[1]], [b"\xff"], [{"a": 1}], ["\x1b[2J"])
        values = rng.choice(kinds) * table.num_rows
        return table.set_column(at, table.column_names[at], pa.array(values))

    change_table(path, change)
    return False


def no_rows(path: Path, rng: Random) -> bool:
    change_table(path, lambda table: table.slice(0, 0))
    return False


def double_rows(path: Path, rng: Random) -> bool:
    change_table(path, lambda table: pa.concat_tables([table, table]))
    return False


PARQUET: tuple[Fault, ...] = (*FILE, *(dropped_column,) * 3, *(other_column,) * 6, no_rows, double_rows)
